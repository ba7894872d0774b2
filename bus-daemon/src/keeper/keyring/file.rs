//! The keyring's file, `~/.dbus-keyrings/org_freedesktop_general`: cookies are read, and made where there is none that is
//! young enough (specification, "DBUS_COOKIE_SHA1").

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bus_wire::sasl::cookie::{Cookie, cookies};
use nix::unistd::{Uid, User};

use crate::broker::COOKIE_CONTEXT;
use crate::os::{clock, random};

/// Seconds for which a cookie is offered.
const OFFERED: u64 = 5 * 60;
/// Seconds for which it is kept: whoever was asked for it has time to answer.
const KEPT: u64 = 7 * 60;
/// Seconds that a cookie may be from the future: clocks differ.
const AHEAD: u64 = 5 * 60;
/// More is not read of a file, in bytes; an honest one has some hundred.
const MOST: u64 = 1 << 20;
/// How long a lock is waited for, in steps of 100 ms. Whoever writes holds it for milliseconds: it was left behind then.
const TRIES: u32 = 50;

/// Why there is no cookie. All are the affair of the bus's user, or of whoever wrote the file.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyringError {
    #[error("the bus's user has no home directory")]
    NoHome,
    #[error("{}: {error}", path.display())]
    Os { path: PathBuf, error: io::Error },
    /// "The directory should not be readable or writable by other users. If it is, clients and servers must ignore it."
    #[error("{} can be reached by others: its mode is {mode:o} and not {expected:o}", path.display())]
    Open { path: PathBuf, mode: u32, expected: u32 },
    #[error("{} belongs to user {owner}, and not to the bus's own", path.display())]
    Foreign { path: PathBuf, owner: u32 },
    #[error("{} is not what it should be: a {expected}", path.display())]
    Kind { path: PathBuf, expected: &'static str },
    #[error("{} is longer than {MOST} bytes", .0.display())]
    TooLong(PathBuf),
}

/// Where the keyring is: in `HOME`, or where that is not set in the home directory that the user data base knows.
pub(super) fn directory(user: Option<&User>) -> Result<PathBuf, KeyringError> {
    let said = std::env::var_os("HOME").map(PathBuf::from);
    let home = said.filter(|home| home.is_absolute());
    let home = home.or_else(|| {
        user.map(|user| user.dir.clone())
            .filter(|home| home.is_absolute())
    });
    Ok(home.ok_or(KeyringError::NoHome)?.join(".dbus-keyrings"))
}

/// A cookie that may be offered. One that nobody else offers yet is made where there is none.
pub(super) fn cookie(directory: &Path, user: Uid) -> Result<Cookie, KeyringError> {
    let mut builder = DirBuilder::new();
    match builder.mode(0o700).create(directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(os(directory, error)),
        Ok(()) | Err(_) => {}
    }
    let opened = open(directory, libc::O_DIRECTORY)?;
    check(directory, &opened, user, 0o700, Metadata::is_dir, "directory")?;
    let path = directory.join(COOKIE_CONTEXT);
    let now = clock::unix_seconds();
    if let Some(cookie) = youngest(&read(&path, user)?, now) {
        return Ok(cookie);
    }
    let _lock = Lock::take(path.with_extension("lock"))?;
    let mut all = read(&path, user)?;
    if let Some(cookie) = youngest(&all, now) {
        // Another bus was faster.
        return Ok(cookie);
    }
    all.retain(|cookie| is_kept(cookie, now));
    let cookie = new_cookie(&all, now);
    all.push(cookie.clone());
    replace(&path, &all)?;
    Ok(cookie)
}

fn age(cookie: &Cookie, now: u64) -> Result<u64, u64> {
    now.checked_sub(cookie.created)
        .ok_or_else(|| cookie.created - now)
}

fn is_kept(cookie: &Cookie, now: u64) -> bool {
    match age(cookie, now) {
        Ok(age) => age <= KEPT,
        Err(ahead) => ahead <= AHEAD,
    }
}

/// The youngest that may be offered.
fn youngest(all: &[Cookie], now: u64) -> Option<Cookie> {
    let is_offered =
        |cookie: &&Cookie| is_kept(cookie, now) && age(cookie, now).is_ok_and(|age| age <= OFFERED);
    // A secret that can be guessed is none.
    let is_long = |cookie: &&Cookie| cookie.secret.len() >= 32;
    let offered = all.iter().filter(is_offered).filter(is_long);
    offered.max_by_key(|cookie| cookie.created).cloned()
}

fn new_cookie(others: &[Cookie], now: u64) -> Cookie {
    let mut secret = [0; 24];
    random::fill(&mut secret);
    let id = loop {
        let mut bytes = [0; 4];
        random::fill(&mut bytes);
        // Readers take it for a number of 32 bits with a sign.
        let id = (u32::from_ne_bytes(bytes) >> 1).to_string();
        if others.iter().all(|other| other.id != id) {
            break id;
        }
    };
    let secret = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    Cookie {
        id,
        created: now,
        secret,
    }
}

fn read(path: &Path, user: Uid) -> Result<Vec<Cookie>, KeyringError> {
    let file = match open(path, libc::O_NONBLOCK) {
        Err(KeyringError::Os { error, .. }) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    check(path, &file, user, 0o600, Metadata::is_file, "file")?;
    let mut text = Vec::new();
    let read = file.take(MOST + 1).read_to_end(&mut text);
    read.map_err(|error| os(path, error))?;
    if text.len() as u64 > MOST {
        return Err(KeyringError::TooLong(path.to_owned()));
    }
    Ok(cookies(&text).collect())
}

/// Readers find the old file or the new one.
fn replace(path: &Path, all: &[Cookie]) -> Result<(), KeyringError> {
    let mut number = [0; 4];
    random::fill(&mut number);
    let new = path.with_extension(format!("{:08x}", u32::from_ne_bytes(number)));
    let lines = all
        .iter()
        .map(|one| format!("{} {} {}\n", one.id, one.created, one.secret));
    let text: String = lines.collect();
    let written = create(&new).and_then(|mut file| file.write_all(text.as_bytes()));
    let written = written.and_then(|()| std::fs::rename(&new, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&new);
        os(path, error)
    })
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)
}

/// Held while the file is written.
struct Lock(PathBuf);

impl Lock {
    fn take(path: PathBuf) -> Result<Self, KeyringError> {
        for tries in 0.. {
            match create(&path) {
                Ok(_) => break,
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(os(&path, error)),
                Err(_) if tries < TRIES => std::thread::sleep(Duration::from_millis(100)),
                Err(_) if tries == TRIES => {
                    tracing::warn!("{}: the lock was left behind, and is removed", path.display());
                    std::fs::remove_file(&path).map_err(|error| os(&path, error))?;
                }
                // Others find it left behind, too, and are faster.
                Err(error) => return Err(os(&path, error)),
            }
        }
        Ok(Self(path))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn open(path: &Path, flags: i32) -> Result<File, KeyringError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags | libc::O_NOFOLLOW);
    options.open(path).map_err(|error| os(path, error))
}

/// Of what was opened, not of what is at its path a moment later.
fn check(
    path: &Path,
    file: &File,
    user: Uid,
    expected: u32,
    is_kind: fn(&Metadata) -> bool,
    kind: &'static str,
) -> Result<(), KeyringError> {
    let metadata = file.metadata().map_err(|error| os(path, error))?;
    let path = path.to_owned();
    if !is_kind(&metadata) {
        return Err(KeyringError::Kind { path, expected: kind });
    }
    if metadata.uid() != user.as_raw() {
        let owner = metadata.uid();
        return Err(KeyringError::Foreign { path, owner });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyringError::Open { path, mode, expected });
    }
    Ok(())
}

fn os(path: &Path, error: io::Error) -> KeyringError {
    let path = path.to_owned();
    KeyringError::Os { path, error }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    struct Home {
        home: tempfile::TempDir,
    }

    impl Home {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            Self { home }
        }

        fn directory(&self) -> PathBuf {
            self.home.path().join(".dbus-keyrings")
        }

        fn file(&self) -> PathBuf {
            self.directory().join(COOKIE_CONTEXT)
        }

        fn lock(&self) -> PathBuf {
            self.directory().join("org_freedesktop_general.lock")
        }

        fn with(self, text: &str) -> Self {
            DirBuilder::new().mode(0o700).create(self.directory()).unwrap();
            create(&self.file()).unwrap().write_all(text.as_bytes()).unwrap();
            self
        }

        fn cookie(&self) -> Result<Cookie, KeyringError> {
            cookie(&self.directory(), nix::unistd::geteuid())
        }

        fn ids(&self) -> Vec<String> {
            let text = fs::read(self.file()).unwrap();
            cookies(&text).map(|cookie| cookie.id).collect()
        }

        fn files(&self) -> Vec<String> {
            let files = fs::read_dir(self.directory()).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            names.collect()
        }
    }

    fn line(id: u32, age: i64) -> String {
        let created = clock::unix_seconds() as i64 - age;
        format!("{id} {created} {}\n", "ab".repeat(24))
    }

    #[test]
    fn a_cookie_is_made_where_there_is_none_and_offered_again() {
        let home = Home::new();
        let first = home.cookie().unwrap();
        assert_eq!(first.secret.len(), 48);
        assert_eq!(home.cookie().unwrap(), first);
        assert_eq!(home.ids(), [first.id]);
        assert_eq!(home.files(), [COOKIE_CONTEXT]);
        let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(home.directory()), mode(home.file())), (0o700, 0o600));
    }

    #[test]
    fn a_cookie_is_offered_for_five_minutes_and_kept_for_seven() {
        let lines = [line(1, 430), line(2, -330), line(3, 360), line(4, -100)].concat();
        let home = Home::new().with(&format!("{lines}nonsense\n5 5\n"));
        let new = home.cookie().unwrap().id;
        assert_eq!(home.ids(), ["3", "4", &new]);
        assert_eq!(home.cookie().unwrap().id, new);
        let home = Home::new().with(&[line(1, 200), line(2, 100), line(3, 310)].concat());
        assert_eq!(home.cookie().unwrap().id, "2");
        // Nothing was to be written.
        assert_eq!(home.ids(), ["1", "2", "3"]);
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_not_offered() {
        let now = clock::unix_seconds();
        let home = Home::new().with(&format!("1 {now} ab\n2 {now} \n3 {now}"));
        assert_ne!(home.cookie().unwrap().id, "1");
    }

    #[test]
    fn what_others_can_reach_or_own_is_not_used() {
        let home = Home::new().with(&line(1, 0));
        let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        for bits in [0o040, 0o020, 0o010, 0o004, 0o002, 0o001] {
            set(&home.directory(), 0o700 | bits);
            let error = home.cookie().unwrap_err().to_string();
            let expected = format!(
                ".dbus-keyrings can be reached by others: its mode is {:o} and not 700",
                0o700 | bits
            );
            assert!(error.ends_with(&expected), "{error}");
            set(&home.directory(), 0o700);
            set(&home.file(), 0o600 | bits);
            assert!(
                matches!(home.cookie(), Err(KeyringError::Open { .. })),
                "file with {bits:o}"
            );
            set(&home.file(), 0o600);
        }
        let other = Uid::from_raw(nix::unistd::geteuid().as_raw() ^ 1);
        assert!(matches!(
            cookie(&home.directory(), other),
            Err(KeyringError::Foreign { .. })
        ));
        assert_eq!(home.cookie().unwrap().id, "1");
    }

    #[test]
    fn nothing_but_a_file_of_bounded_length_is_read() {
        let home = Home::new().with(&"x\n".repeat(1 << 20));
        assert!(matches!(home.cookie(), Err(KeyringError::TooLong(_))));
        fs::remove_file(home.file()).unwrap();
        nix::unistd::mkfifo(&home.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(home.cookie(), Err(KeyringError::Kind { .. })));
        fs::remove_file(home.file()).unwrap();
        fs::create_dir(home.file()).unwrap();
        assert!(matches!(home.cookie(), Err(KeyringError::Kind { .. })));
        fs::remove_dir(home.file()).unwrap();
        let aside = home.home.path().join("aside");
        fs::write(&aside, line(1, 0)).unwrap();
        symlink(&aside, home.file()).unwrap();
        assert!(matches!(home.cookie(), Err(KeyringError::Os { .. })));
        fs::remove_file(home.file()).unwrap();
        fs::rename(home.directory(), aside.with_extension("d")).unwrap();
        symlink(aside.with_extension("d"), home.directory()).unwrap();
        assert!(matches!(home.cookie(), Err(KeyringError::Os { .. })));
    }

    #[test]
    fn a_lock_is_waited_for_and_one_that_was_left_behind_is_outlived() {
        let home = Home::new().with("");
        create(&home.lock()).unwrap();
        let lock = home.lock();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            fs::remove_file(lock).unwrap();
        });
        let id = home.cookie().unwrap().id;
        other.join().unwrap();
        assert_eq!(home.ids(), [id]);
        fs::write(home.file(), "").unwrap();
        create(&home.lock()).unwrap();
        home.cookie().unwrap();
        assert_eq!(home.files(), [COOKIE_CONTEXT]);
        // Who need not write needs no lock.
        create(&home.lock()).unwrap();
        home.cookie().unwrap();
    }

    #[test]
    fn a_home_that_cannot_be_written_to_is_named() {
        for home in ["/nowhere/x", "/proc/1", "/dev/null"] {
            let error = cookie(&Path::new(home).join(".dbus-keyrings"), nix::unistd::geteuid()).unwrap_err();
            assert!(error.to_string().starts_with(home), "{error}");
        }
    }
}
