//! Configuration files, and keyrings.

use std::io;
use std::path::{Path, PathBuf};

use bus_daemon::config::files::{Environment, Files};
use bus_daemon::config::xml::{Loaded, load};
use bus_wire::sasl::cookie::cookies;

/// What stands between the files that an input consists of.
const NEXT: u8 = 0xf8;

/// A disk on which the parts of the input are files: the second is `a.conf`, all from the third on are in `d`. One that is not
/// there is the main file once more, so that everything may include everything.
struct Disk<'a>(Vec<&'a [u8]>);

impl Files for Disk<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let name = path
            .file_stem()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let part = match name {
            "a" => 1,
            "missing" => return Err(io::ErrorKind::NotFound.into()),
            name => name.parse().map_or(0, |number: usize| 2 + number),
        };
        Ok(self
            .0
            .get(part)
            .or(self.0.first())
            .map(|part| part.to_vec())
            .unwrap_or_default())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        if !path.ends_with("d") {
            return Err(io::ErrorKind::NotFound.into());
        }
        let parts = 0..self.0.len().saturating_sub(2).min(4);
        Ok(parts.map(|number| path.join(format!("{number}.conf"))).collect())
    }

    fn create_private_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

/// Files that include each other: what is wrong is said with a file's name, and it is the same every time.
pub fn config(data: &[u8]) {
    let disk = Disk(data.split(|byte| *byte == NEXT).collect());
    let main = disk.0.first().copied().unwrap_or_default();
    let read = || load(Path::new("/etc/main.conf"), main, &disk, &Environment::default());
    match (read(), read()) {
        (Ok(one), Ok(other)) => {
            assert_eq!(one, other);
            check(&one);
        }
        (Err(one), Err(other)) => {
            let text = one.to_string();
            assert_eq!(text, other.to_string());
            assert!(text.starts_with('/'), "{text}");
        }
        (one, other) => panic!("{one:?} and then {other:?}"),
    }
}

fn check(loaded: &Loaded) {
    for address in &loaded.config.listen {
        let parsed: Result<bus_wire::AddressList, _> = address.parse();
        assert!(parsed.is_ok(), "{address:?}");
    }
    for limit in [
        loaded.config.limits.max_names_per_connection,
        loaded.config.limits.auth_timeout,
    ] {
        assert!(limit <= i32::MAX as u64);
    }
}

/// A keyring's file: what is read of it can be written, and read again.
pub fn keyring(data: &[u8]) {
    let all: Vec<_> = cookies(data).collect();
    let lines = all
        .iter()
        .map(|one| format!("{} {} {}\n", one.id, one.created, one.secret));
    let text: String = lines.collect();
    let again: Vec<_> = cookies(text.as_bytes()).collect();
    assert_eq!(all, again);
}
