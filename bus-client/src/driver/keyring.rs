//! The user's cookies, which prove to a bus who we are where the kernel cannot (specification, "DBUS_COOKIE_SHA1").

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bus_wire::sasl::cookie::{Cookie, CookieChallenge, cookies};
use nix::unistd::{Uid, User};

use crate::shared::{Request, Shared};

/// Why a cookie is not used. All but the first are this user's affair, or that of whoever wrote the file.
#[derive(Debug, thiserror::Error)]
enum KeyringError {
    #[error("the bus means a cookie that is not there: {0}")]
    NoCookie(String),
    #[error("this user has no home directory")]
    NoHome,
    #[error("{path}: {error}")]
    Os { path: PathBuf, error: io::Error },
    /// "The directory should not be readable or writable by other users. If it is, clients and servers must ignore it."
    #[error("{0} is not this user's alone")]
    NotPrivate(PathBuf),
    #[error("{0} is longer than {MOST} bytes")]
    TooLong(PathBuf),
}

/// More is not read of a file of cookies, in bytes; an honest one has some hundred.
const MOST: u64 = 1 << 20;

/// Looks a cookie up in a thread of its own: home directories may be far.
pub(super) fn look_up(challenge: CookieChallenge, attempt: u64, shared: Arc<Shared>) {
    let to = shared.clone();
    let spawned = std::thread::Builder::new()
        .name("bus-keyring".to_owned())
        .spawn(move || {
            let cookie = find(&challenge);
            if let Err(error) = &cookie {
                tracing::debug!(%error, "no cookie for the bus");
            }
            to.push(Request::Cookie(attempt, cookie.ok()))
        });
    if spawned.is_err() {
        let _ = shared.push(Request::Cookie(attempt, None));
    }
}

/// In the home directory of the user database, and then in `HOME`: implementations differ.
fn find(challenge: &CookieChallenge) -> Result<Cookie, KeyringError> {
    let user = nix::unistd::geteuid();
    let known = User::from_uid(user).ok().flatten().map(|user| user.dir);
    let said = std::env::var_os("HOME").map(PathBuf::from);
    let mut result = Err(KeyringError::NoHome);
    for home in known.into_iter().chain(said) {
        result = find_in(&home, user, challenge);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn find_in(home: &Path, user: Uid, challenge: &CookieChallenge) -> Result<Cookie, KeyringError> {
    let directory = home.join(".dbus-keyrings");
    let opened = open(&directory, nix::libc::O_DIRECTORY)?;
    check(&directory, &opened, user, Metadata::is_dir)?;
    let path = directory.join(challenge.context.as_str());
    let file = open(&path, nix::libc::O_NONBLOCK)?;
    check(&path, &file, user, Metadata::is_file)?;
    let mut text = Vec::new();
    let read = file.take(MOST + 1).read_to_end(&mut text);
    read.map_err(|error| os(&path, error))?;
    if text.len() as u64 > MOST {
        return Err(KeyringError::TooLong(path));
    }
    let mut known = cookies(&text).filter(|cookie| cookie.id == challenge.id);
    known
        .next()
        .ok_or_else(|| KeyringError::NoCookie(challenge.id.clone()))
}

fn open(path: &Path, flags: i32) -> Result<File, KeyringError> {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags | nix::libc::O_NOFOLLOW);
    options.open(path).map_err(|error| os(path, error))
}

/// Of what was opened, not of what is at its path a moment later.
fn check(path: &Path, file: &File, user: Uid, is_kind: fn(&Metadata) -> bool) -> Result<(), KeyringError> {
    let metadata = file.metadata().map_err(|error| os(path, error))?;
    let is_private = metadata.uid() == user.as_raw() && metadata.mode() & 0o077 == 0;
    if is_private && is_kind(&metadata) {
        Ok(())
    } else {
        Err(KeyringError::NotPrivate(path.to_owned()))
    }
}

fn os(path: &Path, error: io::Error) -> KeyringError {
    let path = path.to_owned();
    KeyringError::Os { path, error }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use bus_wire::sasl::cookie::CookieContext;

    use super::*;

    struct Home {
        directory: tempfile::TempDir,
    }

    impl Home {
        fn new() -> Self {
            let home = Self {
                directory: tempfile::tempdir().unwrap(),
            };
            fs::create_dir(home.keyrings()).unwrap();
            fs::write(home.file(), "16 1700000000 00ff\n17 1700000000 c0ffee\n").unwrap();
            home.mode(&home.keyrings(), 0o700);
            home.mode(&home.file(), 0o600);
            home
        }

        fn keyrings(&self) -> PathBuf {
            self.directory.path().join(".dbus-keyrings")
        }

        fn file(&self) -> PathBuf {
            self.keyrings().join("org_freedesktop_general")
        }

        fn mode(&self, path: &Path, mode: u32) {
            fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }

        fn find(&self, user: Uid, id: &str) -> Result<Cookie, KeyringError> {
            let challenge = CookieChallenge {
                context: CookieContext::new("org_freedesktop_general").unwrap(),
                id: id.to_owned(),
                challenge: "0123".to_owned(),
            };
            find_in(self.directory.path(), user, &challenge)
        }
    }

    #[test]
    fn a_cookie_is_found_by_its_number() {
        let (home, user) = (Home::new(), nix::unistd::geteuid());
        assert_eq!(home.find(user, "17").unwrap().secret, "c0ffee");
        assert!(matches!(home.find(user, "18"), Err(KeyringError::NoCookie(_))));
        fs::remove_file(home.file()).unwrap();
        assert!(matches!(home.find(user, "17"), Err(KeyringError::Os { .. })));
    }

    #[test]
    fn what_others_can_read_or_write_or_own_is_not_used() {
        let (home, user) = (Home::new(), nix::unistd::geteuid());
        let is_refused =
            |home: &Home, user| matches!(home.find(user, "17"), Err(KeyringError::NotPrivate(_)));
        for bits in [0o040, 0o020, 0o010, 0o004, 0o002, 0o001] {
            home.mode(&home.keyrings(), 0o700 | bits);
            assert!(is_refused(&home, user), "directory with {bits:o}");
            home.mode(&home.keyrings(), 0o700);
            home.mode(&home.file(), 0o600 | bits);
            assert!(is_refused(&home, user), "file with {bits:o}");
            home.mode(&home.file(), 0o600);
        }
        assert!(is_refused(&home, Uid::from_raw(user.as_raw() ^ 1)), "another's");
        home.find(user, "17").unwrap();
    }

    #[test]
    fn no_link_is_followed_and_nothing_but_a_file_is_read() {
        let (home, user) = (Home::new(), nix::unistd::geteuid());
        let aside = home.directory.path().join("aside");
        fs::rename(home.file(), &aside).unwrap();
        std::os::unix::fs::symlink(&aside, home.file()).unwrap();
        assert!(matches!(home.find(user, "17"), Err(KeyringError::Os { .. })));
        fs::remove_file(home.file()).unwrap();
        nix::unistd::mkfifo(&home.file(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(home.find(user, "17"), Err(KeyringError::NotPrivate(_))));
        fs::remove_file(home.file()).unwrap();
        fs::rename(home.keyrings(), aside.with_extension("d")).unwrap();
        std::os::unix::fs::symlink(aside.with_extension("d"), home.keyrings()).unwrap();
        assert!(matches!(home.find(user, "17"), Err(KeyringError::Os { .. })));
    }
}
