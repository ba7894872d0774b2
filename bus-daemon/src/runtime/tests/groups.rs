//! Processes that have many groups.

#![allow(unsafe_code, reason = "groups of one thread")]

use std::os::unix::net::UnixStream;
use std::path::Path;

use super::Rig;
use crate::runtime::system::MOST_GROUPS;

/// A connection of a thread that has so many groups, besides its primary one.
fn connect(socket: &Path, groups: usize) -> UnixStream {
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let groups: Vec<libc::gid_t> = (100_000..).take(groups).collect();
            // SAFETY: the kernel reads so many numbers. The C library would change all threads.
            let result = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            UnixStream::connect(socket).unwrap()
        });
        connecting.join().unwrap()
    })
}

#[test]
fn who_has_very_many_groups_is_not_taken_in_and_others_are_noted_in_the_log() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not as root: groups cannot be chosen");
        return;
    }
    let mut rig = Rig::new(false);
    let mut streams = Vec::new();
    let count = |rig: &Rig| rig.worker.broker().peer_ids().count();
    for (groups, taken_in) in [
        (0, 1),
        (40, 2),
        (MOST_GROUPS, 3),
        (MOST_GROUPS + 1, 3),
        (65_536, 3),
    ] {
        let epoch = rig.remains.epoch();
        streams.push(connect(&rig.path, groups));
        rig.worker.turns();
        assert_eq!(count(&rig), taken_in, "with {groups} groups");
        assert_eq!(rig.remains.epoch(), epoch, "{groups} groups led to a checkpoint");
    }
    let recovered = rig.replay();
    assert!(super::state(&recovered.broker) == super::state(rig.worker.broker()));
}
