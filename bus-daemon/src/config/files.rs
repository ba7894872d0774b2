//! What the loader of configuration sees of the system. The one place in which it touches the disk.

use std::io;
use std::path::{Path, PathBuf};

/// No file of a configuration is longer, in bytes.
const MOST_IN_FILE: u64 = 16 * 1024 * 1024;

/// The files that a configuration is read from.
pub trait Files {
    /// The whole content of a file.
    ///
    /// # Errors
    /// Those of the system.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;

    /// The same of a file that is one: whatever else has its name (a fifo, a directory, a device) is not waited for.
    ///
    /// # Errors
    /// Those of the system; `InvalidInput` for what is no file.
    fn read_regular(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read(path)
    }

    /// The paths of the entries of a directory, in any order.
    ///
    /// # Errors
    /// Those of the system.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes a directory, with its parents, that only its owner can enter. One that exists is fine.
    ///
    /// # Errors
    /// Those of the system.
    fn create_private_dir(&self, path: &Path) -> io::Result<()>;
}

/// A service file is a few lines: what is as long as this is something else.
const LARGEST: u64 = 1 << 20;

/// The real ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        use io::Read;
        let mut content = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MOST_IN_FILE + 1).read_to_end(&mut content)?;
        if content.len() as u64 > MOST_IN_FILE {
            let text = format!("it is longer than {MOST_IN_FILE} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        Ok(content)
    }

    fn read_regular(&self, path: &Path) -> io::Result<Vec<u8>> {
        // Before it is opened: a fifo would wait for whoever writes into it.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is no regular file",
            ));
        }
        let file = std::fs::File::open(path)?;
        let mut content = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, LARGEST), &mut content)?;
        if content.len() as u64 == LARGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        Ok(content)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect()
    }

    fn create_private_dir(&self, path: &Path) -> io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
    }
}

/// The environment variables that name the standard directories of service files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// `$XDG_RUNTIME_DIR`
    pub runtime_dir: Option<String>,
    /// `$XDG_DATA_HOME`, or `$HOME/.local/share`
    pub data_home: Option<String>,
    /// `$XDG_DATA_DIRS`, or `/usr/local/share:/usr/share`
    pub data_dirs: Vec<String>,
}

impl Environment {
    /// From what `variable` says of each (`std::env::var`, for one). Relative paths are ignored, as the XDG Base
    /// Directory Specification asks.
    pub fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let absolute = |path: &String| path.starts_with('/');
        let path = |name| variable(name).filter(absolute);
        let home = || path("HOME").map(|home| format!("{home}/.local/share"));
        let dirs = variable("XDG_DATA_DIRS").filter(|dirs| !dirs.is_empty());
        let dirs = dirs.unwrap_or_else(|| "/usr/local/share:/usr/share".into());
        Self {
            runtime_dir: path("XDG_RUNTIME_DIR"),
            data_home: path("XDG_DATA_HOME").or_else(home),
            data_dirs: dirs.split(':').map(str::to_owned).filter(absolute).collect(),
        }
    }
}
