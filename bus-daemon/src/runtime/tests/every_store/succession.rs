//! What comes after a worker that has ended: another that recovers, or one that goes on with the image it left.

use std::os::fd::RawFd;

use super::super::state;
use super::keeper::inode;
use super::life::Beginning;
use super::stage::{Mistake, Stage};
use crate::broker::PeerId;
use crate::handoff::image::{self, Restored};
use crate::journal::{Journal, Medium, Memfd, Mirror, Remains};
use crate::keeper::Cause;
use crate::os::{descriptor, memfd};

/// What a worker is to do with the image, as long as it has not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    Upgrade,
    WayBack,
}

impl Stage {
    /// Starts whoever comes after a worker that died.
    pub(super) fn succeed(&mut self) -> Result<bool, String> {
        if let Some(journal) = self.pending.take() {
            return self.start(Beginning::RolledBack(journal));
        }
        let beginning = match self.given {
            None => Beginning::Recovered(self.left_out()),
            Some(given) => {
                let journal = self.renew();
                match given {
                    Given::Upgrade => Beginning::Upgraded(journal),
                    Given::WayBack => Beginning::RolledBack(journal),
                }
            }
        };
        self.start(beginning)
    }

    /// A journal of its own for the next worker.
    fn renew(&mut self) -> Journal {
        let old = [self.remains, self.mirror.copy()];
        for fd in old.iter().flat_map(Remains::fds) {
            self.kept.retain(|kept| *kept != fd);
        }
        for one in old {
            one.discard();
        }
        let journal = Journal::create().unwrap();
        (self.remains, self.serving) = (journal.remains(), journal.serving());
        self.mirror = Mirror::of(self.remains).unwrap();
        self.kept.extend(self.remains.fds());
        self.kept.extend(self.mirror.copy().fds());
        self.keeper.begin_journal();
        self.judge.begin_journal();
        self.segment = 0;
        journal
    }

    /// The unit that the next worker would leave out.
    pub(super) fn left_out(&self) -> Option<u64> {
        let unit = self.keeper.left_out(&self.remains)?;
        Some(match self.mistake {
            Some(Mistake::LeaveOutAnother) => self.innocent,
            Some(Mistake::AcknowledgeFirst | Mistake::StaleImage) | None => unit,
        })
    }

    /// The worker has died: what that means for the next one.
    pub(super) fn died(&mut self, cause: Cause) -> Result<(), String> {
        self.keeper.listen(self.record.control, &mut self.random)?;
        if let Some(image) = self.keeper.take_handed()? {
            return self.take_over(image);
        }
        let has_served = self.serving.get();
        self.keeper
            .note_death(cause, &self.remains, self.given.is_none() || has_served)?;
        if self.given.is_some() && !has_served {
            self.counts.kills_in_restore += 1;
            // Where the new binary is at fault, the old one takes its state back.
            if self.random.below(2) == 0 {
                self.given = Some(Given::WayBack);
            }
            let heard = self.keeper.outbox().inbox().heard();
            self.keeper.begin(heard);
            return Ok(());
        }
        self.given = None;
        let found = self
            .examine()
            .map_err(|error| format!("{error}, after the death"))?;
        self.keeper.begin(found.heard);
        self.judge.killed(found);
        if self.remains.has_checkpoint() {
            self.record.image = -1;
        }
        Ok(())
    }

    /// The worker has handed its state over: it must be all of it, and somebody goes on with that.
    fn take_over(&mut self, image: RawFd) -> Result<(), String> {
        let bytes = memfd::read(image).map_err(|error| error.to_string())?;
        let mut restored = image::load(&bytes, crate::runtime::now()).map_err(|error| error.to_string())?;
        self.counts.inputs += read_inputs(&mut restored)?;
        if !restored.damage.is_empty() || !restored.dropped.is_empty() {
            return Err(format!("the image: {:?} {:?}", restored.damage, restored.dropped));
        }
        self.judge.handed_over(&state(&restored.broker))?;
        if let Some((_, number)) = restored
            .manifest
            .iter()
            .find(|(_, number)| !descriptor::is_open(*number))
        {
            return Err(format!("descriptor {number} of the image is closed"));
        }
        drop(restored);
        self.counts.handed += 1;
        self.given = None;
        if self.mistake == Some(Mistake::StaleImage) {
            let stale = self.stale.get_or_insert_with(|| bytes.to_vec());
            memfd::replace(image, stale).unwrap();
        }
        drop(bytes);
        (self.record.image, self.image_inode) = (image, inode(image));
        if self.random.below(3) == 0 {
            // There was nothing to execute: this process image goes on, and whoever dies now leaves a journal.
            self.counts.returned += 1;
            self.keeper.abandon();
            let journal = self.renew();
            self.pending = Some(journal);
        } else {
            self.given = Some(Given::Upgrade);
            self.keeper.replace();
        }
        let heard = self.keeper.outbox().inbox().heard();
        self.keeper.begin(heard);
        Ok(())
    }
}

/// Gives the peers the beginnings of their large messages, as they stand in the store; how many there are.
fn read_inputs(restored: &mut Restored) -> Result<u64, String> {
    let Some(stored) = &restored.worker.stored else {
        return Ok(0);
    };
    for input in &stored.inputs {
        let mut bytes = vec![0; input.len as usize];
        Memfd::reopen(stored.number)
            .pread(input.offset, &mut bytes)
            .map_err(|error| error.to_string())?;
        let peer = PeerId::from_u64(input.owner);
        if !restored.broker.resume_input(peer, bytes.into()) {
            return Err(format!("peer {} is in the middle of something else", peer.index));
        }
    }
    Ok(stored.inputs.len() as u64)
}
