//! The data base of users and groups of the system, asked when files are loaded.

use nix::unistd::{Gid, Group, Uid, User};

use super::policy::Accounts;

/// What the system's libraries find, wherever they look (nsswitch.conf(5)). It may take as long as it likes.
pub(super) struct System;

impl Accounts for System {
    fn uid_of(&self, user: &str) -> Option<u32> {
        found(User::from_name(user), user).map(|user| user.uid.as_raw())
    }

    fn has_uid(&self, uid: u32) -> bool {
        found(User::from_uid(Uid::from_raw(uid)), &uid).is_some()
    }

    fn gid_of(&self, group: &str) -> Option<u32> {
        found(Group::from_name(group), group).map(|group| group.gid.as_raw())
    }

    fn has_gid(&self, gid: u32) -> bool {
        found(Group::from_gid(Gid::from_raw(gid)), &gid).is_some()
    }
}

/// Whoever cannot be looked up is not there: that never widens a rule, and the log says why.
fn found<T>(looked_up: nix::Result<Option<T>>, whom: &(impl std::fmt::Display + ?Sized)) -> Option<T> {
    looked_up.unwrap_or_else(|errno| {
        tracing::warn!("cannot look up {whom:?}: {errno}", whom = whom.to_string());
        None
    })
}
