//! Replies that are awaited: only a reply to a call that is open here may pass (dbus-daemon(1), "requested_reply").

use super::Broker;
use super::event::PeerId;

pub(super) const NO_REPLY: &str = "org.freedesktop.DBus.Error.NoReply";
pub(super) const DISCONNECTED: &str = "Message recipient disconnected from message bus without replying";

impl Broker {
    /// A call that expects a reply is forwarded. False: a call with this serial is open already.
    pub(super) fn open_call(&mut self, callee: PeerId, caller: PeerId, serial: u32) -> bool {
        let timeout = self.config.limits.reply_timeout;
        let until = timeout.map(|timeout| self.deadlines.later(timeout));
        let is_new = self
            .calls
            .open(callee, caller, serial, until, &mut self.deadlines);
        if is_new {
            self.mark_ends_changed(callee, caller);
        }
        is_new
    }

    /// Forgets an open call at both ends. False if the call is not open.
    pub(super) fn close_call(&mut self, callee: PeerId, caller: PeerId, serial: u32) -> bool {
        let was_open = self.calls.close(callee, caller, serial, &mut self.deadlines);
        if was_open {
            self.mark_ends_changed(callee, caller);
        }
        was_open
    }

    pub(super) fn reply_overdue(&mut self, callee: PeerId, caller: PeerId, serial: u32) {
        if self.close_call(callee, caller, serial) {
            let text = "Message did not receive a reply (timeout by message bus)";
            self.send_late_error(caller, serial, NO_REPLY, text);
        }
    }

    /// Open calls are saved with the peers at both ends.
    fn mark_ends_changed(&mut self, callee: PeerId, caller: PeerId) {
        self.roster.mark_changed(caller);
        self.roster.mark_changed(callee);
    }
}
