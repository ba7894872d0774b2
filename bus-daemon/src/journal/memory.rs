//! How much memory the journal takes, and what of it goes back to the system.

use super::Journal;
use crate::broker::JournalMemory;

impl Journal {
    /// Bytes of shared memory in use.
    pub(crate) fn memory(&self) -> JournalMemory {
        let extents = self.extents.memory();
        JournalMemory {
            log: self.log.memory() as u64,
            extents,
            checkpoints: self.checkpoints.memory(),
            store: self.waiting.memory().saturating_sub(extents),
            used: self.used(),
            cap: self.cap,
        }
    }

    /// Bytes of it that are in use: a checkpoint and what it leaves to do give the rest back. What took no memory when it was
    /// lent does not count: how much of it does by now the broker knows, which has what arrived.
    pub(crate) fn used(&self) -> u64 {
        // Extents lie in the store.
        let unused = (self.extents.idle() + self.lent_untouched) as u64;
        self.log.used() + self.checkpoints.used_bytes() + self.waiting.used().saturating_sub(unused)
    }

    /// Bytes of it that are in memory, at most, in use or not; of extents as above.
    pub(crate) fn resident(&self) -> u64 {
        self.log.memory() as u64 + self.checkpoints.memory() + self.store_resident()
    }

    /// The store's part of that.
    pub(crate) fn store_resident(&self) -> u64 {
        self.waiting.memory().saturating_sub(self.lent_untouched as u64)
    }

    /// Bytes that are in use no more and kept to be used again, or until the next checkpoint.
    pub(crate) fn idle(&self) -> u64 {
        self.resident().saturating_sub(self.used()) + self.log.stale()
    }

    /// Bytes of output that the next checkpoint sets free, at least.
    pub(crate) fn freed_by_checkpoint(&self) -> u64 {
        self.waiting.freed_by_commit()
    }

    /// Grows while much is read.
    pub(crate) fn activity(&self) -> u64 {
        self.log.turnover() + self.lent
    }

    /// Gives back to the system what is kept to be used again: at once, or as a chore.
    pub(crate) fn return_idle(&mut self) {
        self.log.return_idle();
        self.waiting.return_idle();
        self.is_thrifty = true;
    }

    /// Whether somebody is in the middle of a large message.
    pub(crate) fn has_lent_extents(&self) -> bool {
        self.lent_bytes > 0
    }

    /// Gives the extents that are kept to be used again to the store. False: there are none.
    pub(crate) fn release_extents(&mut self) -> bool {
        let is_any = self.extents.idle() > 0;
        self.extents.release_free(&mut self.waiting, 0);
        is_any
    }

    /// Bytes that the bus may hold.
    pub(crate) fn cap(&self) -> u64 {
        self.cap
    }

    /// So much the bus may hold from now on. The store takes no more than twice that, come what may: it is the broker that
    /// keeps to the cap, and who is to pay for that.
    pub(crate) fn set_cap(&mut self, cap: u64) {
        self.cap = cap;
        self.extents.set_cap(cap);
        self.waiting.set_limit(cap.saturating_mul(2));
    }
}
