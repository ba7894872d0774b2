//! What happens when the time of a deadline has come.

use super::Broker;
use super::deadline::Deadline;
use super::disconnect::Excess;
use super::event::Millis;

impl Broker {
    pub(super) fn tick(&mut self, now: Millis) {
        let before = self.deadlines.now();
        self.deadlines.advance(now);
        self.awake.note_time(self.deadlines.now().0 - before.0);
        self.pacing.note_time(self.deadlines.now());
        // What is left is due at the next tick, which comes at once.
        while !self.outgoing.is_step_over()
            && let Some(deadline) = self.deadlines.pop_due()
        {
            self.outgoing.note_work(1);
            match deadline {
                Deadline::Hello(id) => self.disconnect(id, Excess::Hello.into()),
                Deadline::Fds(id) => self.disconnect(id, Excess::PendingFdsTime.into()),
                Deadline::Reply {
                    callee,
                    caller,
                    serial,
                } => self.reply_overdue(callee, caller, serial),
                Deadline::Reload => self.begin_reload(),
                Deadline::Keyring => self.read_keyring(),
                Deadline::HeldBack(id) => self.end_hold_back(id),
                Deadline::Paced(id) => self.end_wait(id),
            }
            // Before what is due next: in one order, however much a step takes.
            self.bury_condemned();
        }
    }
}
