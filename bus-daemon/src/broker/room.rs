//! How much state there is room for where it outlives the worker.

use super::Broker;

/// How many names, match rules and open calls the whole bus may have: checkpoints have so many entries for them. It follows from
/// where this process keeps them, so it is no part of the state; a replay must be given the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Well-known names.
    pub names: usize,
    /// Match rules, and filters of monitors.
    pub rules: usize,
    /// Calls that are not answered.
    pub calls: usize,
}

impl Room {
    /// There is as much as anybody wants.
    pub const ENDLESS: Self = Self {
        names: usize::MAX,
        rules: usize::MAX,
        calls: usize::MAX,
    };
}

impl Broker {
    /// There is so much room from now on. What there is already stays.
    pub fn set_room(&mut self, room: Room) {
        self.room = room;
    }

    /// Whether the bus may have another name.
    pub(super) fn has_room_for_name(&self) -> bool {
        self.names.len() < self.room.names
    }

    /// Whether the bus may have so many more match rules and filters.
    pub(super) fn has_room_for_rules(&self, count: usize) -> bool {
        self.subscriptions.len().saturating_add(count) <= self.room.rules
    }

    /// Whether another call may be open.
    #[inline]
    pub(super) fn has_room_for_call(&self) -> bool {
        self.calls.entries().len() < self.room.calls
    }
}
