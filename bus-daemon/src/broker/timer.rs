//! What happens when the time of a deadline has come.

use super::Broker;
use super::deadline::Deadline;
use super::disconnect::Excess;
use super::event::Millis;

impl Broker {
    pub(super) fn tick(&mut self, now: Millis) {
        self.deadlines.advance(now);
        while let Some(deadline) = self.deadlines.pop_due() {
            match deadline {
                Deadline::Hello(id) => self.disconnect(id, Excess::Hello.into()),
                Deadline::Fds(id) => self.disconnect(id, Excess::PendingFdsTime.into()),
                Deadline::Reply {
                    callee,
                    caller,
                    serial,
                } => self.reply_overdue(callee, caller, serial),
                Deadline::Reload => self.begin_reload(),
            }
        }
    }
}
