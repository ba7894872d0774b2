//! The bus's table of open files, simulated: every number is opened once and closed once.

use std::collections::BTreeMap;

use bus_wire::Fd;

/// An open file, whatever numbers it has. Never used again.
pub(crate) type File = u64;

/// Which numbers are open, and what they stand for.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: BTreeMap<i32, File>,
    newest: File,
    /// How many numbers were ever given out.
    pub(crate) opened: u64,
}

impl Files {
    /// A file that did not exist.
    pub(crate) fn create(&mut self) -> File {
        self.newest += 1;
        self.newest
    }

    /// Gives a file the lowest number that is free, as the kernel does.
    pub(crate) fn open(&mut self, file: File) -> Fd {
        let mut number = 3;
        for taken in self.open.keys() {
            if *taken != number {
                break;
            }
            number += 1;
        }
        self.open.insert(number, file);
        self.opened += 1;
        Fd(number)
    }

    pub(crate) fn close(&mut self, fd: Fd) -> Result<File, String> {
        self.open
            .remove(&fd.0)
            .ok_or_else(|| format!("descriptor {} is closed and was not open", fd.0))
    }

    pub(crate) fn get(&self, fd: Fd) -> Result<File, String> {
        self.open
            .get(&fd.0)
            .copied()
            .ok_or_else(|| format!("descriptor {} is used and is not open", fd.0))
    }

    /// The open numbers, sorted.
    pub(crate) fn numbers(&self) -> Vec<i32> {
        self.open.keys().copied().collect()
    }
}
