use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::Limits;
use super::*;

mod policies;

/// A disk in memory.
#[derive(Default)]
struct Memory {
    files: BTreeMap<PathBuf, String>,
    made: RefCell<Vec<PathBuf>>,
}

impl Memory {
    fn with(mut self, path: &str, content: &str) -> Self {
        self.files.insert(path.into(), content.into());
        self
    }
}

impl Files for Memory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.files
            .get(path)
            .map(|text| text.clone().into_bytes())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let entries = self.files.keys().filter(|file| file.parent() == Some(path));
        let entries: Vec<PathBuf> = entries.rev().cloned().collect();
        if entries.is_empty() {
            Err(io::ErrorKind::NotFound.into())
        } else {
            Ok(entries)
        }
    }

    fn create_private_dir(&self, path: &Path) -> io::Result<()> {
        self.made.borrow_mut().push(path.to_owned());
        Ok(())
    }
}

fn environment() -> Environment {
    Environment::new(|name| match name {
        "XDG_RUNTIME_DIR" => Some("/run/user/1".into()),
        "HOME" => Some("/home/a".into()),
        _ => None,
    })
}

fn load_with(files: &Memory, body: &str) -> Result<Loaded, ConfigError> {
    let text = format!("<busconfig>\n{body}\n</busconfig>");
    load(
        Path::new("/etc/bus/main.conf"),
        text.as_bytes(),
        files,
        &environment(),
    )
}

#[track_caller]
fn loaded(body: &str) -> Config {
    let loaded = load_with(&Memory::default(), body).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
    loaded.config
}

#[track_caller]
fn refused(body: &str, message: &str) {
    assert_eq!(
        load_with(&Memory::default(), body).unwrap_err().to_string(),
        message,
        "{body}"
    );
}

#[test]
fn nothing_said() {
    assert_eq!(loaded(""), Config::default());
}

#[test]
fn everything_said() {
    let config = loaded(
        "<!-- c --><?pi?><type>session</type><type>system</type><user>me</user><fork/><keep_umask/><syslog/>
         <pidfile>/p</pidfile><allow_anonymous/><servicehelper>/h</servicehelper><servicedir>s</servicedir>
         <listen>unix:path=/a&#98;</listen><listen>systemd:;tcp:port=0</listen>
         <auth>ANONYMOUS</auth><auth>EXTERNAL</auth><auth>EXTERNAL</auth>
         <limit name='max_message_size'> 300 </limit><limit name='reply_timeout'>5</limit>
         <selinux><associate own='a.b' context='c'/></selinux><apparmor mode='enabled'/><apparmor/>",
    );
    let expected = Config {
        bus_type: BusType::System,
        listen: vec!["unix:path=/ab".into(), "systemd:;tcp:port=0".into()],
        auth: vec![Mechanism::Anonymous, Mechanism::External],
        allow_anonymous: true,
        limits: Limits {
            max_message_size: 300,
            reply_timeout: Some(5),
            ..Limits::default()
        },
        service_dirs: vec![ServiceDir {
            path: "/etc/bus/s".into(),
            strict_naming: false,
        }],
        user: Some("me".into()),
        fork: true,
        keep_umask: true,
        pid_file: Some("/p".into()),
        syslog: true,
        service_helper: Some("/h".into()),
        ..Config::default()
    };
    assert_eq!(config, expected);
}

#[test]
fn limits_are_numbers_as_c_writes_them() {
    for (text, number) in [("0x1F", 31), ("010", 8), ("+5", 5), (" 7\n", 7), ("0", 0)] {
        let config = loaded(&format!("<limit name='max_names_per_connection'>{text}</limit>"));
        assert_eq!(config.limits.max_names_per_connection, number, "{text:?}");
    }
}

#[test]
fn a_reply_timeout_of_0_is_none() {
    let limit = |text: &str| format!("<limit name='reply_timeout'>{text}</limit>");
    assert_eq!(loaded(&limit("0")).limits.reply_timeout, None);
    assert_eq!(loaded(&(limit("5") + &limit("0"))).limits.reply_timeout, None);
    assert_eq!(loaded(&(limit("0") + &limit("5"))).limits.reply_timeout, Some(5));
}

#[test]
fn mistakes_are_named() {
    refused(
        "\n<bees/>",
        "/etc/bus/main.conf:3: <busconfig> has no element <bees>",
    );
    refused(
        "<Type>x</Type>",
        "/etc/bus/main.conf:2: <busconfig> has no element <Type>",
    );
    refused(
        "<listen carefully='yes'>x:</listen>",
        "/etc/bus/main.conf:2: <listen> has no attribute \"carefully\"",
    );
    refused(
        "<fork>\nx</fork>",
        "/etc/bus/main.conf:2: <fork> cannot contain text",
    );
    refused("text", "/etc/bus/main.conf:1: <busconfig> cannot contain text");
    refused("<type/>", "/etc/bus/main.conf:2: <type> must contain text");
    refused(
        "<listen><type>x</type></listen>",
        "/etc/bus/main.conf:2: <listen> has no element <type>",
    );
    refused(
        "<fork><type>x</type></fork>",
        "/etc/bus/main.conf:2: <fork> has no element <type>",
    );
    refused(
        "<listen>foo:</listen>",
        "/etc/bus/main.conf:2: \"foo:\": cannot listen on the transport \"foo\"",
    );
    refused(
        "<listen>foo:;bar:</listen>",
        "/etc/bus/main.conf:2: \"foo:;bar:\": cannot listen on the transport \"foo\"",
    );
    refused(
        "<listen>unix:path</listen>",
        "/etc/bus/main.conf:2: \"unix:path\": address, byte 9: expected a key and '='",
    );
    refused(
        "<auth>x</auth>",
        "/etc/bus/main.conf:2: <auth>x</auth>: the mechanisms are EXTERNAL, DBUS_COOKIE_SHA1 and ANONYMOUS",
    );
    refused(
        "<limit>5</limit>",
        "/etc/bus/main.conf:2: <limit> must have the attribute \"name\"",
    );
    refused(
        "<limit name='bees'>5</limit>",
        "/etc/bus/main.conf:2: there is no limit \"bees\"",
    );
    for text in ["-1", "bees", "3123123123", "5x", "5.9", "5 5", "1e1", "08", "0x"] {
        let body = format!("<limit name='max_names_per_connection'>{text}</limit>");
        let message = format!(
            "/etc/bus/main.conf:2: <limit name=\"max_names_per_connection\">: {text:?} is not a number from 0 to 2147483647"
        );
        refused(&body, &message);
    }
    refused(
        "<include ignore_missing='maybe'>x</include>",
        "/etc/bus/main.conf:2: ignore_missing=\"maybe\" must be \"yes\" or \"no\"",
    );
    refused(
        "<apparmor mode='required'/>",
        "/etc/bus/main.conf:2: AppArmor mediation is required, and not supported",
    );
    refused(
        "<selinux><associate own='a'/></selinux>",
        "/etc/bus/main.conf:2: <associate> must have the attribute \"context\"",
    );
    refused(
        "<selinux><bees/></selinux>",
        "/etc/bus/main.conf:2: <selinux> has no element <bees>",
    );
    let error = load(Path::new("f"), b"<bees/>", &Memory::default(), &environment()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "f:1: the root element is <bees> and not <busconfig>"
    );
    let error = load(
        Path::new("f"),
        b"<busconfig>\n\n\xff",
        &Memory::default(),
        &environment(),
    )
    .unwrap_err();
    assert_eq!(error.to_string(), "f:3: the file is not UTF-8");
    for text in [
        "<busconfig>",
        "<busconfig a='b' a='b'/>",
        "",
        "<busconfig><type>x</tyep></busconfig>",
    ] {
        let error = load(
            Path::new("f"),
            text.as_bytes(),
            &Memory::default(),
            &environment(),
        )
        .unwrap_err();
        assert!(
            matches!(
                error,
                ConfigError::Content {
                    problem: Problem::Xml(_),
                    ..
                }
            ),
            "{text}"
        );
    }
}

#[test]
fn includes() {
    let files = Memory::default()
        .with(
            "/etc/bus/a.conf",
            "<busconfig><listen>unix:path=/a</listen><include>sub/b.conf</include></busconfig>",
        )
        .with(
            "/etc/bus/sub/b.conf",
            "<busconfig><servicedir>s</servicedir></busconfig>",
        )
        .with(
            "/etc/bus/d.d/2.conf",
            "<busconfig><listen>unix:path=/d2</listen></busconfig>",
        )
        .with(
            "/etc/bus/d.d/1.conf",
            "<busconfig><listen>unix:path=/d1</listen></busconfig>",
        )
        .with("/etc/bus/d.d/3.txt", "nonsense");
    let body = "<listen>unix:path=/0</listen><include>a.conf</include><includedir>d.d</includedir>
                <includedir>none</includedir><include ignore_missing='yes'>none.conf</include>
                <include if_selinux_enabled='yes' selinux_root_relative='yes'>contexts/dbus_contexts</include>
                <include ignore_missing='yes' selinux_root_relative='yes'>c</include><listen>unix:path=/9</listen>";
    let Loaded {
        config,
        warnings,
        sources,
    } = load_with(&files, body).unwrap();
    assert_eq!(
        config.listen,
        [
            "unix:path=/0",
            "unix:path=/a",
            "unix:path=/d1",
            "unix:path=/d2",
            "unix:path=/9"
        ]
    );
    assert_eq!(config.service_dirs[0].path, "/etc/bus/sub/s");
    assert_eq!(warnings, [""; 0]);
    assert!(sources.contains(&"/etc/bus/none.conf".into()) && sources.contains(&"/etc/bus/d.d".into()));
    let error = load_with(&files, "<include>none.conf</include>").unwrap_err();
    assert_eq!(error.to_string(), "/etc/bus/none.conf: entity not found");
}

#[test]
fn circles() {
    let files = Memory::default()
        .with(
            "/etc/bus/a.conf",
            "<busconfig>\n<include>b.conf</include></busconfig>",
        )
        .with(
            "/etc/bus/b.conf",
            "<busconfig>\n\n<include>/etc/bus/a.conf</include></busconfig>",
        )
        .with(
            "/etc/bus/d.d/a.conf",
            "<busconfig><fork/><includedir>.</includedir></busconfig>",
        );
    let error = load_with(&files, "<include>a.conf</include>").unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/bus/b.conf:3: /etc/bus/a.conf includes itself"
    );
    let error = load_with(&files, "<include>main.conf</include>").unwrap_err();
    assert_eq!(
        error.to_string(),
        "/etc/bus/main.conf:2: /etc/bus/main.conf includes itself"
    );
}

#[test]
fn broken_drop_ins_are_left_out() {
    let files = Memory::default()
        .with(
            "/etc/bus/d.d/1.conf",
            "<busconfig><listen>unix:path=/1</listen><bees/></busconfig>",
        )
        .with(
            "/etc/bus/d.d/2.conf",
            "<busconfig><include>nope</include></busconfig>",
        )
        .with("/etc/bus/d.d/3.conf", "<busconfig><fork/></busconfig>");
    let Loaded { config, warnings, .. } = load_with(&files, "<includedir>d.d</includedir>").unwrap();
    assert!(config.fork && config.listen.is_empty());
    let expected = [
        "/etc/bus/d.d/1.conf:1: <busconfig> has no element <bees>; /etc/bus/d.d/1.conf is left out",
        "/etc/bus/d.d/nope: entity not found; /etc/bus/d.d/2.conf is left out",
    ];
    assert_eq!(warnings, expected);
}

#[test]
fn service_dirs() {
    let service = |name: &str, exec: &str| format!("[D-BUS Service]\nName={name}\nExec={exec}\n");
    let files = Memory::default()
        .with("/run/user/1/dbus-1/services/a.b.service", &service("a.b", "/run"))
        .with(
            "/run/user/1/dbus-1/services/other.service",
            &service("a.x", "/strict"),
        )
        .with(
            "/home/a/.local/share/dbus-1/services/odd.service",
            &service("a.c", "/home"),
        )
        .with("/usr/share/dbus-1/services/a.b.service", &service("a.b", "/usr"))
        .with("/usr/share/dbus-1/services/a.c.service", &service("a.c", "/usr"))
        .with("/usr/share/dbus-1/services/a.d.service", &service("a.d", "/usr"))
        .with("/usr/share/dbus-1/services/a.e.service", "nonsense")
        .with("/usr/share/dbus-1/services/README", "nonsense");
    let Loaded { config, warnings, .. } = load_with(&files, "<standard_session_servicedirs/>").unwrap();
    let services: Vec<(&str, &str)> = config
        .services
        .iter()
        .map(|service| (service.name.as_str(), service.exec[0].as_str()))
        .collect();
    assert_eq!(services, [("a.b", "/run"), ("a.c", "/home"), ("a.d", "/usr")]);
    assert_eq!(
        *files.made.borrow(),
        [PathBuf::from("/run/user/1/dbus-1/services")]
    );
    let expected = [
        "/run/user/1/dbus-1/services/other.service: the file must be named a.x.service; the service is ignored",
        "/usr/share/dbus-1/services/a.e.service: line 1 is no group, key or comment; the service is ignored",
    ];
    assert_eq!(warnings, expected);
    let config = loaded("<standard_system_servicedirs/>");
    assert!(config.service_dirs.iter().all(|dir| dir.strict_naming));
    assert_eq!(
        config.service_dirs[2].path,
        "/usr/local/share/dbus-1/system-services"
    );
}

#[test]
fn cookies_are_not_offered() {
    let Loaded { config, warnings, .. } =
        load_with(&Memory::default(), "<auth>DBUS_COOKIE_SHA1</auth>").unwrap();
    assert!(config.auth.is_empty());
    assert_eq!(warnings.len(), 1);
}

/// The reference implementation's samples, where they are installed.
#[test]
fn reference_samples() {
    let root = Path::new("/usr/lib/dbus-1.0/installed-tests/dbus/data");
    let load = |path: &Path| load_file(path, &super::super::files::Disk, &Environment::default());
    let samples = |dir: &str| {
        let entries = std::fs::read_dir(root.join(dir)).into_iter().flatten();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().is_some_and(|extension| extension == "conf"))
            .collect::<Vec<_>>()
    };
    let invalid = samples("invalid-config-files");
    if invalid.is_empty() {
        assert_ne!(
            std::env::var("BUS_TEST_PEERS").as_deref(),
            Ok("require"),
            "{} is missing",
            root.display()
        );
        eprintln!("skipped: dbus-tests not found");
        return;
    }
    for path in invalid {
        assert!(load(&path).is_err(), "{} is accepted", path.display());
    }
    for dir in [
        "valid-config-files",
        "valid-config-files-system",
        "equiv-config-files/basic",
        "equiv-config-files/entities",
    ] {
        for path in samples(dir) {
            match load(&path) {
                Ok(_) => {}
                // An address that is not one, with which they test entities.
                Err(error)
                    if path.ends_with("entities.conf")
                        || path.ends_with("entities-1.conf")
                        || path.ends_with("entities-2.conf") =>
                {
                    assert!(
                        matches!(
                            error,
                            ConfigError::Content {
                                problem: Problem::Listen { .. },
                                ..
                            }
                        ),
                        "{error}"
                    );
                }
                // Only a transport for tests inside the process.
                Err(ConfigError::Content {
                    problem: Problem::Transport { transport, .. },
                    ..
                }) if transport == "debug-pipe" => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

proptest! {
    #[test]
    fn arbitrary(
        body in "(<(busconfig|policy|allow|limit|listen|include|x)( (name|own|context)='[a-z*]{0,3}')?/?>|</(policy|allow|listen)>|&amp;|[a-z: ]|\\PC){0,16}",
    ) {
        let _ = load(Path::new("f"), body.as_bytes(), &Memory::default(), &environment());
        let _ = load_with(&Memory::default(), &body);
    }
}
