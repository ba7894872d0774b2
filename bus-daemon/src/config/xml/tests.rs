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
fn mechanisms_are_those_that_are_named_or_all() {
    let Loaded { config, warnings, .. } =
        load_with(&Memory::default(), "<auth>DBUS_COOKIE_SHA1</auth>").unwrap();
    assert_eq!(config.auth, [Mechanism::CookieSha1]);
    assert!(warnings.is_empty());
    assert_eq!(
        load_with(&Memory::default(), "").unwrap().config.auth,
        Mechanism::ALL
    );
}

#[test]
fn addresses_whose_keys_make_no_sense_are_refused_with_file_and_line() {
    for (address, text) in [
        (
            "tcp:host=localhost,port=99999",
            "port is not a number from 0 to 65535",
        ),
        ("nonce-tcp:port=x", "port is not a number from 0 to 65535"),
        ("tcp:family=ipv5", "family is neither \"ipv4\" nor \"ipv6\""),
        ("unix:runtime=no", "the only value of runtime is \"yes\""),
    ] {
        let error = load_with(&Memory::default(), &format!("<listen>{address}</listen>")).unwrap_err();
        let expected = format!("/etc/bus/main.conf:2: {address:?}: {text}");
        assert_eq!(error.to_string(), expected);
    }
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

/// What is said of a file with exactly these bytes; empty where nothing is wrong.
fn said_of(content: &[u8]) -> String {
    let loaded = load(Path::new("f"), content, &Memory::default(), &environment());
    loaded.map_or_else(|error| error.to_string(), |_| String::new())
}

fn utf16(text: &str, is_big: bool) -> Vec<u8> {
    let units = text.encode_utf16();
    let bytes = units.map(|unit| {
        if is_big {
            unit.to_be_bytes()
        } else {
            unit.to_le_bytes()
        }
    });
    bytes.flatten().collect()
}

#[test]
fn encodings() {
    let text = "<busconfig><type>ü</type></busconfig>";
    assert_eq!(said_of(text.as_bytes()), "");
    assert_eq!(said_of(&[b"\xef\xbb\xbf", text.as_bytes()].concat()), "");
    assert_eq!(said_of(&[&b"\xff\xfe"[..], &utf16(text, false)].concat()), "");
    assert_eq!(said_of(&[&b"\xfe\xff"[..], &utf16(text, true)].concat()), "");
    assert_eq!(
        said_of(&[&b"\xfe\xff\0"[..], &utf16(text, true)].concat()),
        "f:1: the file is not UTF-8"
    );
    // Without a mark it is not guessed.
    assert!(said_of(&utf16(text, false)).starts_with("f:1: "));
    for declared in ["ISO-8859-1", "UTF-8", "US-ASCII"] {
        let declaration = format!("<?xml version='1.0' encoding='{declared}'?>\n");
        assert_eq!(
            said_of(format!("{declaration}<busconfig/>").as_bytes()),
            "",
            "{declared}"
        );
        let latin = [declaration.as_bytes(), b"<busconfig><!-- \xfc --></busconfig>"].concat();
        assert_eq!(said_of(&latin), "f:2: the file is not UTF-8");
    }
    assert!(said_of(b"<busconfig><type>a\0b</type></busconfig>").starts_with("f:1: "));
    assert!(said_of(b"<busconfig>\n\0</busconfig>").starts_with("f:2: "));
}

#[test]
fn document_types() {
    let with = |subset: &str, body: &str| {
        said_of(format!("<!DOCTYPE busconfig [\n{subset}\n]>\n<busconfig>{body}</busconfig>").as_bytes())
    };
    assert_eq!(with("<!ENTITY type 'session'>", "<type>&type;</type>"), "");
    assert_eq!(with("<!-- <!ATTLIST x y CDATA 'z'> -->", ""), "");
    assert_eq!(with("<!ATTLIST busconfig a CDATA #IMPLIED>", ""), "");
    assert_eq!(
        with(
            "\n<!ATTLIST limit name CDATA 'max_names_per_connection'>",
            "<limit>5</limit>"
        ),
        "f:3: default values of attributes (<!ATTLIST>) are not supported"
    );
    for external in ["SYSTEM 'file:///etc/passwd'", "PUBLIC 'a' 'b'"] {
        let said = with(&format!("<!ENTITY x {external}>"), "<type>&x;</type>");
        assert_eq!(said, "f:2: entities of other files are not supported");
    }
    // The word may be in the value.
    assert_eq!(with("<!ENTITY x 'SYSTEM'>", "<type>&x;</type>"), "");
    assert!(with("", "<type>&nothing;</type>").starts_with("f:4: "));
    // Ten times ten times ten..., and one long entity again and again.
    let levels: String = (1..10)
        .map(|level| format!("<!ENTITY a{level} '{}'>", format!("&a{};", level - 1).repeat(10)))
        .collect();
    assert_ne!(
        with(&format!("<!ENTITY a0 'x'>{levels}"), "<type>&a9;</type>"),
        ""
    );
    let long = format!("<!ENTITY a '{}'>", "x".repeat(100_000));
    let said = with(&long, &"<!-- -->&a;".repeat(10_000));
    assert_eq!(said, "f:1: its entities may become too long");
    // A stock file's, which has no subset of its own.
    let stock =
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\"\n \"http://x\">";
    assert_eq!(
        said_of(format!("{stock}<busconfig>&lt;</busconfig>").as_bytes()),
        "f:2: <busconfig> cannot contain text"
    );
}

#[test]
fn namespaces_are_attributes_that_there_are_not() {
    for body in [
        "<busconfig xmlns='x'/>",
        "<busconfig xmlns:a='x'/>",
        "<busconfig><policy context='default' xmlns='x'/></busconfig>",
        "<busconfig xml:lang='en'/>",
    ] {
        let said = said_of(body.as_bytes());
        assert!(said.contains("has no attribute \"xmlns\""), "{body}: {said}");
    }
}

#[test]
fn blanks_around_names_are_refused_and_around_paths_they_are_part_of_them() {
    for (element, text) in [("auth", "EXTERNAL"), ("user", "root"), ("listen", "unix:path=/a")] {
        for padded in [format!(" {text}"), format!("{text}\n")] {
            let said = said_of(format!("<busconfig><{element}>{padded}</{element}></busconfig>").as_bytes());
            assert_eq!(
                said,
                format!("f:1: <{element}> cannot have blanks around its text")
            );
        }
    }
    assert_eq!(loaded("<type> session\n</type>").bus_type, BusType::Session);
    assert_eq!(
        loaded("<limit name='auth_timeout'> 5 </limit>")
            .limits
            .auth_timeout,
        5
    );
    let files = Memory::default().with("/etc/bus/a.conf", "<busconfig/>");
    let error = load_with(&files, "<include> a.conf</include>").unwrap_err();
    assert_eq!(error.to_string(), "/etc/bus/ a.conf: entity not found");
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = "<type>".repeat(10_000) + &"</type>".repeat(10_000);
    assert_eq!(
        said_of(format!("<busconfig>{deep}</busconfig>").as_bytes()),
        "f:1: <type> has no element <type>"
    );
    let deep = "<busconfig>".repeat(10_000) + &"</busconfig>".repeat(10_000);
    assert_eq!(
        said_of(deep.as_bytes()),
        "f:1: <busconfig> has no element <busconfig>"
    );
    let many = "<policy context='default'/>\n".repeat(100_000);
    assert_eq!(said_of(format!("<busconfig>{many}</busconfig>").as_bytes()), "");
}

/// A directory whose files include it, twice each, by other names: without a bound they would be read 2^64 times.
#[test]
fn circles_by_other_names_come_to_an_end() {
    struct Links;
    impl Files for Links {
        fn read(&self, _: &Path) -> io::Result<Vec<u8>> {
            Ok(b"<busconfig><includedir>l</includedir></busconfig>".to_vec())
        }

        fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
            Ok(vec![path.join("a.conf"), path.join("b.conf")])
        }

        fn create_private_dir(&self, _: &Path) -> io::Result<()> {
            Ok(())
        }
    }
    let error = load_file(Path::new("/d/main.conf"), &Links, &environment()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("there are more than 2000 files, or more than 67108864 bytes in them"),
        "{text}"
    );
}
