//! Service files: names that can be activated (specification, "Message Bus Starting Services (Activation)").

use std::collections::BTreeMap;
use std::path::Path;

use bus_wire::WellKnownName;
use thiserror::Error;

use super::files::Files;
use super::{Service, ServiceDir};

/// Reads all service files of some directories. A name that is in more than one comes from the first.
///
/// A file that is not right costs the name in it and nothing more; `warnings` says which and why. Directories need
/// not exist.
pub fn read_services(dirs: &[ServiceDir], files: &dyn Files, warnings: &mut Vec<String>) -> Vec<Service> {
    let mut services = BTreeMap::new();
    for dir in dirs {
        let Ok(mut paths) = files.list(Path::new(&dir.path)) else {
            continue;
        };
        paths.sort();
        for path in paths
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == "service"))
        {
            match read_service(path, dir.strict_naming, files) {
                Ok(service) => {
                    services.entry(service.name.clone()).or_insert(service);
                }
                Err(error) => warnings.push(format!("{}: {error}; the service is ignored", path.display())),
            }
        }
    }
    services.into_values().collect()
}

fn read_service(path: &Path, strict_naming: bool, files: &dyn Files) -> Result<Service, ServiceError> {
    let content = files.read_regular(path)?;
    let service = parse_service(&content, &path.to_string_lossy())?;
    if strict_naming && path.file_stem().is_none_or(|stem| stem != service.name.as_str()) {
        return Err(ServiceError::FileName(service.name));
    }
    Ok(service)
}

/// What is wrong with a service file.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// It cannot be read.
    #[error("{0}")]
    Read(#[from] std::io::Error),
    /// "All service description files must be in UTF-8 encoding."
    #[error("it is not UTF-8")]
    NotUtf8,
    /// A line that is neither a comment nor a group nor a key with a value.
    #[error("line {0} is no group, key or comment")]
    Line(usize),
    /// A backslash in front of something that has no meaning behind it.
    #[error("line {0} has an unknown escape")]
    Escape(usize),
    /// No such group.
    #[error("it has no group [D-BUS Service]")]
    NoGroup,
    /// A key for the second time.
    #[error("line {0} repeats a key")]
    DuplicateKey(usize),
    /// No such key.
    #[error("it has no key {0}")]
    NoKey(&'static str),
    /// Not a well-known name.
    #[error("line {line}: Name={name} is not a well-known bus name")]
    Name {
        /// Where.
        line: usize,
        /// What stands there.
        name: String,
    },
    /// The name of the bus, which nobody else can have.
    #[error("line {0}: the name org.freedesktop.DBus is the bus's own")]
    OwnName(usize),
    /// In the directories in which the file must be named as the service is.
    #[error("the file must be named {0}.service")]
    FileName(String),
}

/// The name of the driver.
const OWN_NAME: &str = "org.freedesktop.DBus";

/// One service file. Where `Exec` cannot be split into words the name can still be activated, only that this fails, as
/// it does for dbus-daemon; `exec` is empty then.
///
/// # Errors
/// The file is not one.
pub fn parse_service(content: &[u8], file: &str) -> Result<Service, ServiceError> {
    let text = std::str::from_utf8(content).map_err(|_| ServiceError::NotUtf8)?;
    let mut entries = read_group(text)?;
    let mut take = |key| entries.remove(key);
    let (line, name) = take("Name").ok_or(ServiceError::NoKey("Name"))?;
    if WellKnownName::new(&name).is_err() {
        return Err(ServiceError::Name { line, name });
    }
    if name == OWN_NAME {
        return Err(ServiceError::OwnName(line));
    }
    let (_, exec) = take("Exec").ok_or(ServiceError::NoKey("Exec"))?;
    let mut text = |key| take(key).map(|(_, value)| value);
    Ok(Service {
        name,
        exec: split_command(&exec),
        user: text("User"),
        systemd_service: text("SystemdService"),
        assumed_apparmor_label: text("AssumedAppArmorLabel"),
        file: file.to_owned(),
    })
}

/// The entries of the group `[D-BUS Service]`, each with its line, in the syntax of desktop entries. Other groups are skipped.
fn read_group(text: &str) -> Result<BTreeMap<&str, (usize, String)>, ServiceError> {
    let mut entries = None;
    let mut is_inside = false;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(group) = line.strip_prefix('[') {
            let group = group
                .trim_end()
                .strip_suffix(']')
                .ok_or(ServiceError::Line(number))?;
            is_inside = group == "D-BUS Service";
            if is_inside {
                entries.get_or_insert_with(BTreeMap::new);
            }
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(ServiceError::Line(number))?;
        let key = key.trim();
        if key.is_empty() {
            return Err(ServiceError::Line(number));
        }
        if !is_inside {
            continue;
        }
        let value = unescape(value.trim()).ok_or(ServiceError::Escape(number))?;
        if let Some(entries) = &mut entries
            && entries.insert(key, (number, value)).is_some()
        {
            return Err(ServiceError::DuplicateKey(number));
        }
    }
    entries.ok_or(ServiceError::NoGroup)
}

/// "The escape sequences \s, \n, \t, \r, and \\ are supported" (Desktop Entry Specification).
fn unescape(value: &str) -> Option<String> {
    let mut text = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' => match chars.next()? {
                's' => ' ',
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '\\' => '\\',
                _ => return None,
            },
            _ => c,
        });
    }
    Some(text)
}

/// Splits a command into words as a shell would, without expanding anything. Empty where it names no program, or a quotation
/// mark has no partner.
fn split_command(command: &str) -> Vec<String> {
    let words = shlex::split(command).unwrap_or_default();
    if words.first().is_none_or(String::is_empty) {
        return Vec::new();
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_split(command: &str, expected: &[&str]) {
        assert_eq!(split_command(command), expected, "{command}");
    }

    #[test]
    fn commands() {
        check_split("/bin/echo a  b\tc ", &["/bin/echo", "a", "b", "c"]);
        check_split(
            r#"a 'b c' "d e" f\ g h'i'"j""#,
            &["a", "b c", "d e", "f g", "hij"],
        );
        check_split(r#"a "" '' "\$\`\"\\\n""#, &["a", "", "", "$`\"\\\\n"]);
        check_split("a # b 'c", &["a"]);
        check_split("a b#c", &["a", "b#c"]);
        check_split(r"a '\' \'", &["a", r"\", "'"]);
        for command in ["", "''", "# a", "a 'b", "a \"b", "a \"b\\", "a \\"] {
            assert!(split_command(command).is_empty(), "{command}");
        }
    }

    const GOOD: &str = "# comment\n[Other]\nName=x\n\n[D-BUS Service]\nName=com.example.A\nName[de]=B\n\
                        Exec = /bin/a\\s'b c'\nUser=root\nSystemdService=a.service\nAssumedAppArmorLabel=l\n";

    #[test]
    fn file() {
        let service = parse_service(GOOD.as_bytes(), "f").unwrap();
        let expected = Service {
            name: "com.example.A".into(),
            exec: vec!["/bin/a".into(), "b c".into()],
            user: Some("root".into()),
            systemd_service: Some("a.service".into()),
            assumed_apparmor_label: Some("l".into()),
            file: "f".into(),
        };
        assert_eq!(service, expected);
    }

    #[test]
    fn broken_files() {
        for (from, to, message) in [
            ("[D-BUS Service]", "[D-Bus]", "it has no group [D-BUS Service]"),
            (
                "[D-BUS Service]",
                "[D-BUS Service",
                "line 5 is no group, key or comment",
            ),
            (
                "Name=com.example.A",
                "Name=:1.5",
                "line 6: Name=:1.5 is not a well-known bus name",
            ),
            (
                "Name=com.example.A",
                "Name=org.freedesktop.DBus",
                "line 6: the name org.freedesktop.DBus is the bus's own",
            ),
            ("Name=com.example.A\n", "", "it has no key Name"),
            ("User=root", "Exec=b", "line 9 repeats a key"),
            ("User=root", "what", "line 9 is no group, key or comment"),
            ("User=root", "User=\\x", "line 9 has an unknown escape"),
        ] {
            let error = parse_service(GOOD.replace(from, to).as_bytes(), "f").unwrap_err();
            assert_eq!(error.to_string(), message);
        }
        let unbalanced = parse_service(GOOD.replace("'b c'", "'b c").as_bytes(), "f").unwrap();
        assert!(unbalanced.exec.is_empty());
        assert!(matches!(parse_service(b"\xff", "f"), Err(ServiceError::NotUtf8)));
    }

    /// Whatever is named as a service file and is none costs itself, and nobody waits for it.
    #[test]
    fn what_is_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good.service"), GOOD).unwrap();
        std::fs::create_dir(path("directory.service")).unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("dangling.service")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("endless.service")).unwrap();
        let fifo = std::process::Command::new("mkfifo")
            .arg(path("fifo.service"))
            .status();
        assert!(fifo.is_ok_and(|status| status.success()));
        std::fs::write(path("bad.service"), "[D-BUS Service]\nName=nodots\nExec=/bin/a\n").unwrap();
        let dirs = [ServiceDir {
            path: dir.path().display().to_string(),
            strict_naming: false,
        }];
        let mut warnings = Vec::new();
        let services = read_services(&dirs, &super::super::files::Disk, &mut warnings);
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["com.example.A"]);
        assert_eq!(warnings.len(), 5, "{warnings:?}");
        let said = |file: &str, what: &str| {
            let path = path(file).display().to_string();
            assert!(
                warnings
                    .iter()
                    .any(|line| line.starts_with(&path) && line.contains(what)),
                "{file}: {warnings:?}"
            );
        };
        said("bad.service", ": line 2: Name=nodots");
        for file in ["directory.service", "endless.service", "fifo.service"] {
            said(file, "no regular file");
        }
    }

    proptest! {
        #[test]
        fn arbitrary(content: Vec<u8>, text in "(\\[D-BUS Service\\]\n|Name|Exec|=|a\\.b|[ \"'\\\\\n#]){0,20}") {
            let _ = parse_service(&content, "f");
            let _ = parse_service(text.as_bytes(), "f");
        }
    }
}
