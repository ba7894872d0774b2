//! The buses of this kind that run on this machine, found through /proc.

use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The names of the binaries that are a bus.
const BINARIES: [&str; 2] = ["bus", "bus-daemon"];
/// __SO_ACCEPTCON, in the flags of /proc/net/unix: a listening socket.
const LISTENING: u32 = 1 << 16;

/// A running bus.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RunningBus {
    /// Its keeper.
    pub(crate) pid: u32,
    /// Where it listens.
    pub(crate) address: String,
}

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) buses: Vec<RunningBus>,
    /// Processes of other users, whose sockets cannot be seen.
    pub(crate) unreadable: Vec<u32>,
}

/// Every process whose binary is a bus and that listens on a unix socket. A worker shares its keeper's descriptors, and
/// is not counted again.
pub(crate) fn buses() -> anyhow::Result<Found> {
    let mut found = Found::default();
    let mut seen = BTreeSet::new();
    let mut pids: Vec<u32> = fs::read_dir("/proc")
        .context("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| is_bus(*pid))
        .collect();
    pids.sort_unstable();
    for pid in pids {
        let sockets = match inodes(pid) {
            Ok(sockets) => sockets,
            Err(_) => {
                found.unreadable.push(pid);
                continue;
            }
        };
        let table = fs::read_to_string(format!("/proc/{pid}/net/unix")).unwrap_or_default();
        // One address per bus is enough to reach it.
        let listening = listening(&table);
        let of_this = sockets
            .iter()
            .find_map(|inode| Some((inode, listening.get(inode)?)));
        if let Some((inode, address)) = of_this
            && seen.insert(*inode)
        {
            found.buses.push(RunningBus {
                pid,
                address: address.clone(),
            });
        }
    }
    Ok(found)
}

fn is_bus(pid: u32) -> bool {
    // The binary may have been replaced on disk: then " (deleted)" follows. Where it cannot be read, its name can.
    let name = match fs::read_link(format!("/proc/{pid}/exe")) {
        Ok(path) => path.file_name().map(|name| name.to_string_lossy().into_owned()),
        Err(_) => fs::read_to_string(format!("/proc/{pid}/comm")).ok(),
    };
    let name = name.unwrap_or_default();
    let name = name.trim_end().trim_end_matches(" (deleted)");
    let is_daemon = name != "bus" || arguments(pid).get(1).is_some_and(|argument| argument == "daemon");
    BINARIES.contains(&name) && is_daemon
}

fn arguments(pid: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect()
}

/// The sockets among a process's descriptors.
fn inodes(pid: u32) -> std::io::Result<BTreeSet<u64>> {
    let mut inodes = BTreeSet::new();
    for entry in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))? {
        let Ok(link) = entry.and_then(|entry| fs::read_link(entry.path())) else {
            continue;
        };
        let inode: Option<u64> = link
            .to_str()
            .and_then(|link| link.strip_prefix("socket:["))
            .and_then(|link| link.strip_suffix(']'))
            .and_then(|inode| inode.parse().ok());
        inodes.extend(inode);
    }
    Ok(inodes)
}

/// The listening sockets of a /proc/net/unix, as addresses.
fn listening(table: &str) -> BTreeMap<u64, String> {
    let mut listening = BTreeMap::new();
    for line in table.lines().skip(1) {
        // Num RefCount Protocol Flags Type St Inode Path
        let fields: Vec<&str> = line.splitn(8, ' ').collect();
        let &[_, _, _, flags, _, _, ref rest @ ..] = &fields[..] else {
            continue;
        };
        let rest = rest.join(" ");
        let Some((inode, path)) = rest.trim_start().split_once(' ') else {
            continue;
        };
        let flags = u32::from_str_radix(flags, 16).unwrap_or(0);
        if let (true, Ok(inode)) = (flags & LISTENING != 0, inode.parse()) {
            let address = match path.strip_prefix('@') {
                Some(name) => {
                    bus_wire::address::Address::new("unix").and_then(|unix| unix.with("abstract", name))
                }
                None => bus_wire::address::Address::new("unix").and_then(|unix| unix.with("path", path)),
            };
            listening.extend(address.ok().map(|address| (inode, address.to_string())));
        }
    }
    listening
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_with_a_name_are_addresses() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 21434 /run/user/0/a b\n\
            0000000000000000: 00000003 00000000 00000000 0001 03    77 /run/user/0/bus\n\
            0000000000000000: 00000002 00000000 00010000 0001 01     9 @/tmp/x\n\
            0000000000000000: 00000002 00000000 00010000 0001 01    10\n";
        let found = listening(table);
        assert_eq!(found[&21434], "unix:path=/run/user/0/a%20b");
        assert_eq!(found[&9], "unix:abstract=/tmp/x");
        assert_eq!(found.len(), 2);
    }
}
