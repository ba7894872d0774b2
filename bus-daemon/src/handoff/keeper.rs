//! What the keeper hands to the process image that replaces it.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::codec;
use super::container::{IfUnknown, Reader, Writer};
use crate::os::memfd;

/// The record's type in a container of its own.
const KEEPER: u16 = 1;

/// A socket that the daemon listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerV1 {
    /// The listening socket.
    pub(crate) fd: RawFd,
    /// Where clients connect, guid included.
    pub(crate) address: String,
    /// The guid in it: 32 hexadecimal digits.
    pub(crate) guid: String,
    /// The socket's file, removed at the end.
    pub(crate) path: Option<String>,
}

/// Both ends of the pair. Either side only uses its own; both are open in the shared descriptor table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlV1 {
    /// The keeper's end.
    pub(crate) keeper: RawFd,
    /// The worker's end.
    pub(crate) worker: RawFd,
}

/// Of today.
pub(crate) type Listener = ListenerV1;
/// Of today.
pub(crate) type Control = ControlV1;

/// All that the keeper knows, in version 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeeperV1 {
    /// The command line's arguments after the program (and its subcommand), without hidden ones.
    arguments: Vec<Vec<u8>>,
    /// The path that the binary was started from.
    executable: Vec<u8>,
    pub(crate) listeners: Vec<ListenerV1>,
    /// The guid of the bus.
    pub(crate) guid: String,
    /// The machine's id.
    pub(crate) machine_id: String,
    /// The epoll set in which every link is registered.
    pub(crate) epoll: RawFd,
    /// The pair to the worker.
    pub(crate) control: ControlV1,
    /// Removed at the end.
    pub(crate) pid_file: Option<String>,
    /// The memfd with the broker's state.
    pub(crate) image: RawFd,
    /// The binary that wrote this, to return to.
    pub(crate) previous: RawFd,
    /// The path that one was started from.
    previous_executable: Vec<u8>,
}

impl KeeperV1 {
    #[expect(clippy::too_many_arguments, reason = "the frozen record's fields")]
    pub(crate) fn new(
        arguments: &[OsString],
        executable: &std::path::Path,
        listeners: Vec<Listener>,
        guid: String,
        machine_id: String,
        epoll: RawFd,
        control: Control,
        pid_file: Option<String>,
    ) -> Self {
        Self {
            arguments: arguments
                .iter()
                .map(|argument| argument.as_bytes().to_vec())
                .collect(),
            executable: executable.as_os_str().as_bytes().to_vec(),
            listeners,
            guid,
            machine_id,
            epoll,
            control,
            pid_file,
            image: -1,
            previous: -1,
            previous_executable: Vec::new(),
        }
    }

    pub(crate) fn arguments(&self) -> Vec<OsString> {
        self.arguments
            .iter()
            .map(|bytes| OsString::from_vec(bytes.clone()))
            .collect()
    }

    pub(crate) fn executable(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.executable.clone()))
    }

    /// For the image that is to take over: it is started from `path`, and can return to `previous`.
    pub(crate) fn handed_to(&self, path: &std::path::Path, previous: RawFd) -> Self {
        Self {
            executable: path.as_os_str().as_bytes().to_vec(),
            previous,
            previous_executable: self.executable.clone(),
            ..self.clone()
        }
    }

    /// For the image that takes over again after the one it was handed to failed.
    pub(crate) fn taken_back(self) -> Self {
        Self {
            executable: self.previous_executable,
            previous_executable: Vec::new(),
            ..self
        }
    }

    /// Into a new memfd.
    pub(crate) fn save(&self) -> std::io::Result<RawFd> {
        let mut writer = Writer::new(0);
        writer
            .record(KEEPER, 1, IfUnknown::Refuse, self)
            .map_err(std::io::Error::other)?;
        memfd::write(c"bus-keeper", &writer.finish())
    }

    /// Out of a memfd.
    pub(crate) fn load(fd: RawFd) -> Result<Self, String> {
        let bytes = memfd::read(fd).map_err(|error| format!("cannot read descriptor {fd}: {error}"))?;
        for record in Reader::new(&bytes).map_err(|error| error.to_string())? {
            let record = record.map_err(|error| error.to_string())?;
            if record.kind == KEEPER && record.version == 1 {
                return codec::decode(record.body).map_err(|error| error.to_string());
            }
            if record.if_unknown == IfUnknown::Refuse {
                return Err(format!(
                    "record {} version {} is not known here",
                    record.kind, record.version
                ));
            }
        }
        Err("there is no keeper record in it".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that builds from the first one on have written and read.
    #[test]
    fn the_record_is_encoded_as_ever() {
        let record = KeeperV1 {
            arguments: vec![b"--session".to_vec()],
            executable: b"/b".to_vec(),
            listeners: vec![ListenerV1 {
                fd: 4,
                address: "unix:path=/s,guid=0".into(),
                guid: "0".into(),
                path: Some("/s".into()),
            }],
            guid: "1".into(),
            machine_id: "m".into(),
            epoll: 5,
            control: ControlV1 { keeper: 6, worker: 7 },
            pid_file: None,
            image: 8,
            previous: -1,
            previous_executable: b"/a".to_vec(),
        };
        let bytes = codec::encode(&record).unwrap();
        let expected: &[&[u8]] = &[
            b"\x01\x09--session\x02/b",
            b"\x01\x08\x13unix:path=/s,guid=0\x010\x01\x02/s",
            b"\x011\x01m\x0a\x0c\x0e\x00\x10\x01\x02/a",
        ];
        assert_eq!(bytes, expected.concat());
        assert_eq!(codec::decode::<KeeperV1>(&bytes), Ok(record));
    }
}
