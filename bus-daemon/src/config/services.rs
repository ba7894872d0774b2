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
    let content = files.read(path)?;
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
    #[error("Name={0} is not a well-known bus name")]
    Name(String),
    /// In the directories in which the file must be named as the service is.
    #[error("the file must be named {0}.service")]
    FileName(String),
}

/// What is wrong with the value of `Exec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ExecError {
    /// An open quote.
    #[error("a quotation mark has no partner")]
    Quote,
    /// A backslash at the end.
    #[error("a backslash stands at the end")]
    Backslash,
    /// No word.
    #[error("it names no program")]
    Empty,
}

/// One service file. Where `Exec` cannot be split into words the name can still be activated, only that this fails, as
/// it does for dbus-daemon; `exec` is empty then.
///
/// # Errors
/// The file is not one.
pub fn parse_service(content: &[u8], file: &str) -> Result<Service, ServiceError> {
    let text = std::str::from_utf8(content).map_err(|_| ServiceError::NotUtf8)?;
    let mut entries = read_group(text)?;
    let name = entries.remove("Name").ok_or(ServiceError::NoKey("Name"))?;
    if WellKnownName::new(&name).is_err() {
        return Err(ServiceError::Name(name));
    }
    let exec = entries.remove("Exec").ok_or(ServiceError::NoKey("Exec"))?;
    let exec = split_command(&exec).unwrap_or_default();
    Ok(Service {
        name,
        exec,
        user: entries.remove("User"),
        systemd_service: entries.remove("SystemdService"),
        assumed_apparmor_label: entries.remove("AssumedAppArmorLabel"),
        file: file.to_owned(),
    })
}

/// The entries of the group `[D-BUS Service]`, in the syntax of desktop entries. Other groups are skipped.
fn read_group(text: &str) -> Result<BTreeMap<&str, String>, ServiceError> {
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
            && entries.insert(key, value).is_some()
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

/// Splits a command into words as a shell would, without expanding anything: blanks separate; within apostrophes
/// everything stands for itself; within quotation marks a backslash escapes `$`, `` ` ``, `"`, `\` and the end of a
/// line; outside it escapes anything; a word that begins with `#` begins a comment.
///
/// # Errors
/// Something is not closed, or there is no word.
pub fn split_command(command: &str) -> Result<Vec<String>, ExecError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = command.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' | '\r' => words.extend(word.take()),
            '#' if word.is_none() => {
                chars.by_ref().find(|c| *c == '\n');
            }
            '\'' => quoted(&mut chars, word.get_or_insert_default())?,
            '"' => double_quoted(&mut chars, word.get_or_insert_default())?,
            '\\' => match chars.next().ok_or(ExecError::Backslash)? {
                '\n' => {}
                escaped => word.get_or_insert_default().push(escaped),
            },
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.first().is_none_or(String::is_empty) {
        Err(ExecError::Empty)
    } else {
        Ok(words)
    }
}

fn quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), ExecError> {
    loop {
        match chars.next().ok_or(ExecError::Quote)? {
            '\'' => return Ok(()),
            c => word.push(c),
        }
    }
}

fn double_quoted(chars: &mut std::str::Chars<'_>, word: &mut String) -> Result<(), ExecError> {
    loop {
        match chars.next().ok_or(ExecError::Quote)? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(ExecError::Quote)? {
                '\n' => {}
                escaped @ ('$' | '`' | '"' | '\\') => word.push(escaped),
                other => word.extend(['\\', other]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check_split(command: &str, expected: &[&str]) {
        assert_eq!(split_command(command).unwrap(), expected, "{command}");
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
        for (command, error) in [
            ("", ExecError::Empty),
            ("''", ExecError::Empty),
            ("# a", ExecError::Empty),
            ("a 'b", ExecError::Quote),
            ("a \"b", ExecError::Quote),
            ("a \"b\\", ExecError::Quote),
            ("a \\", ExecError::Backslash),
        ] {
            assert_eq!(split_command(command), Err(error), "{command}");
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
                "Name=:1.5 is not a well-known bus name",
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

    proptest! {
        #[test]
        fn arbitrary(content: Vec<u8>, text in "(\\[D-BUS Service\\]\n|Name|Exec|=|a\\.b|[ \"'\\\\\n#]){0,20}") {
            let _ = parse_service(&content, "f");
            let _ = parse_service(text.as_bytes(), "f");
        }
    }
}
