//! What is known of the process behind a name.

use bus_wire::{BodyWriter, Fd};

use super::{Call, Fault, Named, is_local, named};
use crate::broker::{Broker, Fds, Peer, System, expects_reply};

pub(super) fn unix_user(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let uid = match named(broker, name, "UID")? {
        Named::Driver => Some(broker.identity().own_uid),
        Named::Peer(peer) => peer.credentials.uid,
    };
    let uid = uid.ok_or_else(|| Fault::failed(format!("Could not determine UID for '{name}'")))?;
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.u32(uid);
    });
    Ok(())
}

pub(super) fn unix_process_id(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let pid = match named(broker, name, "PID")? {
        Named::Driver => Some(broker.identity().keeper_pid),
        Named::Peer(peer) => process_id(peer),
    };
    let pid = pid.ok_or_else(|| {
        let text = format!("Could not determine PID for '{name}'");
        Fault::new("org.freedesktop.DBus.Error.UnixProcessIdUnknown", text)
    })?;
    broker.send_driver_reply(call.caller, call.message, |w| {
        w.u32(pid);
    });
    Ok(())
}

/// "Returns as many credentials as possible"; what cannot be determined is left out.
pub(super) fn credentials(broker: &mut Broker, call: Call<'_>, system: &mut dyn System) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    let mut found = Found::default();
    match named(broker, name, "credentials")? {
        Named::Driver => {
            found.pid = Some(broker.identity().keeper_pid);
            found.uid = Some(broker.identity().own_uid);
        }
        Named::Peer(peer) => {
            (found.pid, found.uid) = (process_id(peer), peer.credentials.uid);
            // Whoever is here as nobody in particular (ANONYMOUS) is not told of by its process either.
            if is_local(peer) && found.uid.is_some() {
                found.groups = peer.groups.clone();
                found.label = peer.label.clone();
                let takes_fds = broker.peer(call.caller).is_some_and(|caller| caller.takes_fds);
                let may_take =
                    takes_fds && expects_reply(call.message) && broker.has_room_for_fds(call.caller, 1);
                if let Some(socket) = peer.socket.filter(|_| may_take) {
                    found.pidfd = system.peer_pidfd(socket);
                }
            }
        }
    }
    if let Some(groups) = &mut found.groups {
        groups.sort_unstable();
        groups.dedup();
    }
    let write = |w: &mut BodyWriter| {
        w.array("{sv}", |w| found.write(w));
    };
    match found.pidfd {
        None => broker.send_driver_reply(call.caller, call.message, write),
        Some(fd) => {
            let fds = Fds::from_slice(&[fd]);
            broker.send_driver_reply_with_fds(call.caller, call.message, fds, system, write);
        }
    }
    Ok(())
}

/// The kernel says 0 of a process that is not visible from the bus's pid namespace.
fn process_id(peer: &Peer) -> Option<u32> {
    peer.credentials.pid.filter(|pid| *pid != 0)
}

/// The credentials of one peer.
#[derive(Debug, Default)]
struct Found {
    pid: Option<u32>,
    uid: Option<u32>,
    groups: Option<Vec<u32>>,
    label: Option<Vec<u8>>,
    pidfd: Option<Fd>,
}

impl Found {
    fn write(&self, w: &mut BodyWriter) {
        let mut entry = |key: &str, signature: &str, value: &dyn Fn(&mut BodyWriter)| {
            w.dict_entry(|w| {
                w.str(key).variant(signature, |w| value(w));
            });
        };
        if let Some(pid) = self.pid {
            entry("ProcessID", "u", &|w| {
                w.u32(pid);
            });
        }
        if let Some(uid) = self.uid {
            entry("UnixUserID", "u", &|w| {
                w.u32(uid);
            });
        }
        if let Some(groups) = &self.groups {
            let write = |w: &mut BodyWriter| {
                for group in groups {
                    w.u32(*group);
                }
            };
            entry("UnixGroupIDs", "au", &|w| {
                w.array("u", write);
            });
        }
        if let Some(label) = &self.label {
            // "the non-zero bytes of the security label, followed by a single zero byte"
            let label: Vec<u8> = label
                .iter()
                .copied()
                .take_while(|byte| *byte != 0)
                .chain([0])
                .collect();
            entry("LinuxSecurityLabel", "ay", &|w| {
                w.byte_slice(&label);
            });
        }
        if self.pidfd.is_some() {
            entry("ProcessFD", "h", &|w| {
                w.unix_fd_index(0);
            });
        }
    }
}

/// There is no ADT audit data on Linux.
pub(super) fn adt_audit_session_data(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    named(broker, name, "audit session data")?;
    Err(Fault::new(
        "org.freedesktop.DBus.Error.AdtAuditDataUnknown",
        format!("Could not determine audit session data for '{name}'"),
    ))
}

/// The bus does not mediate with SELinux: what label a peer has is among its credentials.
pub(super) fn selinux_security_context(broker: &mut Broker, call: Call<'_>) -> Result<(), Fault> {
    let name = call.message.body().read_str()?;
    named(broker, name, "security context")?;
    Err(Fault::new(
        "org.freedesktop.DBus.Error.SELinuxSecurityContextUnknown",
        format!("Could not determine security context for '{name}'"),
    ))
}
