//! The system's log: datagrams to `/dev/log` (RFC 3164). Nobody waits for whoever reads there.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};

/// Where the system's log listens.
const PLACE: &str = "/dev/log";
/// The facility for system daemons.
const DAEMON: u8 = 3 << 3;

/// The way to the system's log.
#[derive(Debug)]
pub(crate) struct Syslog {
    socket: OwnedFd,
    place: String,
    left_out: u64,
}

impl Syslog {
    /// Nothing need listen there yet.
    pub(crate) fn new() -> nix::Result<Self> {
        Self::at(PLACE)
    }

    fn at(place: &str) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self {
            socket: socket(AddressFamily::Unix, SockType::Datagram, flags, None)?,
            place: place.to_owned(),
            left_out: 0,
        })
    }

    /// What it has open.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Writes a line of the log, which begins with its level, or leaves it out. The next that is written is preceded by the
    /// number of those that were left out.
    pub(crate) fn write(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        if self.left_out > 0 {
            let notice = format!("WARN {} log lines were left out", self.left_out);
            if self.put(&notice).is_err() {
                self.left_out += 1;
                return;
            }
            self.left_out = 0;
        }
        if self.put(text).is_err() {
            self.left_out += 1;
        }
    }

    fn put(&self, text: &str) -> nix::Result<()> {
        let message = message(text, std::process::id());
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let sent = send(self.socket.as_raw_fd(), message.as_bytes(), flags);
        // Whoever listened there may be another process by now.
        let lost = [
            Errno::ENOTCONN,
            Errno::ECONNREFUSED,
            Errno::ECONNRESET,
            Errno::EDESTADDRREQ,
            Errno::EPIPE,
        ];
        let sent = match sent {
            Err(errno) if lost.contains(&errno) => {
                connect(self.socket.as_raw_fd(), &UnixAddr::new(self.place.as_str())?)?;
                send(self.socket.as_raw_fd(), message.as_bytes(), flags)
            }
            sent => sent,
        };
        sent.map(drop)
    }
}

fn message(text: &str, pid: u32) -> String {
    let (level, rest) = text.split_once(' ').unwrap_or((text, ""));
    let severity = match level {
        "ERROR" => 3,
        "WARN" => 4,
        "INFO" => 6,
        "DEBUG" | "TRACE" => 7,
        // A text that came by no level.
        _ => return format!("<{}>bus-daemon[{pid}]: {text}", DAEMON | 3),
    };
    format!("<{}>bus-daemon[{pid}]: {}", DAEMON | severity, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn lines_have_their_severity() {
        assert_eq!(message("WARN  it is late", 7), "<28>bus-daemon[7]: it is late");
        assert_eq!(message("ERROR no", 7), "<27>bus-daemon[7]: no");
        assert_eq!(
            message("thread panicked", 7),
            "<27>bus-daemon[7]: thread panicked"
        );
    }

    #[test]
    fn nobody_need_listen_and_whoever_does_may_be_another() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        let mut log = Syslog::at(place.to_str().unwrap()).unwrap();
        log.write(b" WARN one\n");
        log.write(b" WARN two\n");
        let read = |listener: &UnixDatagram| {
            let mut buffer = [0; 200];
            let len = listener.recv(&mut buffer).unwrap();
            let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
            text.split_once(": ").unwrap().1.to_owned()
        };
        for round in 0..2 {
            let listener = UnixDatagram::bind(&place).unwrap();
            log.write(format!("ERROR three {round}\n").as_bytes());
            if round == 0 {
                assert_eq!(read(&listener), "2 log lines were left out");
            }
            assert_eq!(read(&listener), format!("three {round}"));
            std::fs::remove_file(&place).unwrap();
        }
    }

    #[test]
    fn who_does_not_read_holds_up_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("log");
        let _listener = UnixDatagram::bind(&place).unwrap();
        let mut log = Syslog::at(place.to_str().unwrap()).unwrap();
        for _ in 0..10_000 {
            log.write(b" WARN more\n");
        }
        assert!(log.left_out > 5_000);
    }
}
