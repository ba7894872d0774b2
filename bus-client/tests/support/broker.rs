//! dbus-broker, which is given its listening socket and a policy that allows everything.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bus_client::{FdIndex, Variant};
use bus_wire::{MessageBuilder, ObjectPath};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// A verdict, its priority, and whom it is about.
type Owns = (bool, u64, bool, &'static str);
type Passes = (
    bool,
    u64,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    u32,
    u32,
    u64,
    u64,
);
type Batch = (bool, u64, Vec<Owns>, Vec<Passes>, Vec<Passes>);
/// As dbus-broker 33 and later expect it.
type Policy = (
    Vec<(u32, Batch)>,
    Vec<(bool, u32, u32, Batch)>,
    Vec<(&'static str, &'static str)>,
    bool,
    &'static str,
);

fn allow_everything() -> Policy {
    let passes: Passes = (true, 1, "", "", "", "", 0, 0, 0, u64::MAX);
    let batch = (true, 1, vec![(true, 1, true, "")], vec![passes], vec![passes]);
    // For every user who has none of their own.
    (vec![(u32::MAX, batch)], Vec::new(), Vec::new(), false, "")
}

/// The process, and the connection that it lives as long as. `None` where there is no such program.
pub fn start(path: &Path) -> Option<(Child, UnixStream)> {
    let program = std::env::var_os("BUS_TEST_BROKER").unwrap_or_else(|| "dbus-broker".into());
    let (mut controller, theirs) = UnixStream::pair().unwrap();
    let child = Command::new(program)
        .args(["--controller", "0"])
        .args(["--machine-id", "0123456789abcdef0123456789abcdef"])
        .args(["--max-bytes", "1000000000", "--max-fds", "10000"])
        .args(["--max-matches", "1000000", "--max-objects", "1000000"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .ok()?;
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    controller
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    controller
        .write_all(b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n")
        .unwrap();
    let call = MessageBuilder::method_call("/org/bus1/DBus/Broker", "AddListener")
        .interface("org.bus1.DBus.Broker")
        .serial(1_u32)
        .unix_fds(1)
        .encode(&(
            ObjectPath::new("/org/bus1/DBus/Listener/0").unwrap(),
            FdIndex(0),
            Variant(allow_everything()),
        ))
        .unwrap();
    let fds = [listener.as_raw_fd()];
    let sent = sendmsg::<()>(
        controller.as_raw_fd(),
        &[IoSlice::new(&call)],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent, Ok(call.len()));
    // DATA, OK and AGREE_UNIX_FD, then the reply, whose second byte is its type.
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    let agreed = b"AGREE_UNIX_FD\r\n";
    loop {
        let read = controller.read(&mut buffer).unwrap();
        assert!(read > 0, "dbus-broker has closed the connection");
        answer.extend_from_slice(&buffer[..read]);
        let at = answer.windows(agreed.len()).position(|part| part == agreed);
        match at.and_then(|at| answer.get(at + agreed.len() + 1)) {
            Some(2) => return Some((child, controller)),
            Some(_) => panic!("AddListener: {}", String::from_utf8_lossy(&answer)),
            None => {}
        }
    }
}
