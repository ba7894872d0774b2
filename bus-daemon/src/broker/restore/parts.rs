//! Parts of a saved state that depend on no other.

use bus_wire::PieceState;
use bytes::Bytes;

use crate::broker::ListenerIdentity;
use crate::broker::deliver::SHARED;
use crate::broker::event::{PeerId, Transport};
use crate::broker::frozen::{Blob, ListenerV1, PieceV1, ReloadV1, RestartV2, TransportV1, UpgradeV1};
use crate::broker::reload::{Callers, Reading, Reload, Wanted};
use crate::broker::restart::{LastRestart, Restart, Upgrade};

/// `None` where the piece refers to bytes that are not there.
pub(super) fn restore_piece(piece: PieceV1, shared: &[Blob], pieces: &mut Vec<PieceState>) -> Option<()> {
    match piece {
        // The queue takes long pieces for shared ones; these are not.
        PieceV1::Inline(Blob(bytes)) => {
            pieces.extend(
                bytes
                    .chunks(SHARED - 1)
                    .map(|chunk| PieceState::Inline(chunk.to_vec())),
            );
        }
        PieceV1::Shared { index, length } => {
            let Blob(body) = shared.get(index as usize)?;
            // Shorter ones are never shared; many of them would be copied again and again.
            if length < SHARED as u64 {
                return None;
            }
            let from = body.len().checked_sub(usize::try_from(length).ok()?)?;
            pieces.push(PieceState::Shared(body.slice(from..)));
        }
    }
    Some(())
}

pub(super) fn piece_length(piece: &PieceState) -> usize {
    match piece {
        PieceState::Inline(bytes) => bytes.len(),
        PieceState::Shared(bytes) => Bytes::len(bytes),
    }
}

pub(super) fn restore_restart(restart: RestartV2) -> Restart {
    let RestartV2 {
        generation,
        recoveries,
        worker_pid,
        last_cause,
        last_pause,
        last_carried,
        last_dropped,
        last_quarantined,
        upgrade,
        dropped_in_restore,
    } = restart;
    let last = LastRestart {
        cause: last_cause,
        pause: last_pause,
        carried: last_carried,
        dropped: last_dropped,
        quarantined: last_quarantined,
    };
    Restart {
        generation,
        recoveries,
        worker_pid,
        last,
        upgrade: match upgrade {
            UpgradeV1::None => Upgrade::None,
            UpgradeV1::Trying {
                errand,
                binary,
                caller,
            } => Upgrade::Trying {
                errand,
                binary,
                caller,
            },
            UpgradeV1::HandingOver { caller } => Upgrade::HandingOver { caller },
        },
        dropped_in_restore,
    }
}

pub(super) fn restore_listener(listener: ListenerV1) -> ListenerIdentity {
    let ListenerV1 { guid, transport } = listener;
    ListenerIdentity {
        guid,
        transport: match transport {
            TransportV1::Unix => Transport::Unix,
            TransportV1::Tcp => Transport::Tcp,
        },
        nonce: None,
    }
}

pub(super) fn restore_reload(reload: ReloadV1) -> Reload {
    let ReloadV1 {
        wanted,
        callers,
        reading,
    } = reload;
    let by_peer = |flat: Vec<(PeerId, u32)>| {
        let mut callers = Callers::new();
        for (peer, serial) in flat {
            callers.entry(peer).or_default().push(serial);
        }
        callers
    };
    let wanted = wanted.map(|(first, last)| Wanted {
        first,
        last,
        callers: by_peer(callers),
    });
    let reading = reading.map(|(errand, callers)| Reading {
        errand,
        callers: by_peer(callers),
    });
    Reload::new(wanted, reading)
}
