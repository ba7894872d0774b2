//! Policies and messages for tests, and somebody who asks.

use bus_wire::MessageType::{self, Error, MethodCall, MethodReturn, Signal};

use crate::config::policy::blocks_of;
use crate::policy::compile::{Compiled, Index};
use crate::policy::rules::{Accounts, Policy};
use crate::policy::verdict::{Access, Reply, Verdict, Who};
use crate::policy::vocabulary::Standing;

pub(super) const DRIVER: &str = "org.freedesktop.DBus";

pub(super) const BASE: &str = "<policy context='default'><allow send_destination='*'/><allow receive_sender='*'/>\
                    <allow own='*'/><allow user='*'/></policy>\n";

/// root, u1 (1001) and u2 (1002); the groups g1 (11), g2 (12) and g9 (9).
struct TestAccounts;

impl Accounts for TestAccounts {
    fn uid_of(&self, user: &str) -> Option<u32> {
        match user {
            "root" => Some(0),
            "u1" => Some(1001),
            "u2" => Some(1002),
            _ => None,
        }
    }

    fn has_uid(&self, uid: u32) -> bool {
        [0, 1001, 1002].contains(&uid)
    }

    fn gid_of(&self, group: &str) -> Option<u32> {
        match group {
            "g1" => Some(11),
            "g2" => Some(12),
            "g9" => Some(9),
            _ => None,
        }
    }

    fn has_gid(&self, gid: u32) -> bool {
        [11, 12, 9].contains(&gid)
    }
}

/// A bus with a policy, asked by one peer.
pub(super) struct Asker {
    pub(super) policy: Compiled,
    uid: u32,
    gids: Vec<u32>,
    at_console: bool,
}

pub(super) fn policy(text: &str) -> Asker {
    let blocks = blocks_of(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    Asker {
        policy: Compiled::new(Policy::resolve(blocks, &TestAccounts)),
        uid: 1001,
        gids: vec![1001],
        at_console: false,
    }
}

/// A policy of these rules behind those that allow all.
pub(super) fn base(rules: &str) -> Asker {
    policy(&format!("{BASE}<policy context='default'>{rules}</policy>"))
}

impl Asker {
    pub(super) fn by(mut self, uid: u32, gids: &[u32]) -> Self {
        self.uid = uid;
        self.gids = gids.to_vec();
        self
    }

    pub(super) fn at_console(mut self) -> Self {
        self.at_console = true;
        self
    }

    pub(super) fn who(&self) -> Who<'_> {
        Who {
            uid: self.uid,
            gids: &self.gids,
            at_console: self.at_console,
        }
    }

    pub(super) fn index(&self) -> Index {
        Index::new(&self.policy, &self.policy.applicable(self.who()))
    }

    pub(super) fn standing(&self, names: &[&str]) -> Standing {
        let mut standing = Standing::default();
        for name in names {
            standing.add(name, self.policy.patterns());
        }
        standing
    }

    pub(super) fn sends(&self, access: Access<'_>, to: &[&str]) -> bool {
        self.send_verdict(access, to).allowed
    }

    pub(super) fn send_verdict(&self, access: Access<'_>, to: &[&str]) -> Verdict {
        self.index().may_send(&access, &self.standing(to), &self.policy)
    }

    pub(super) fn receives(&self, access: Access<'_>, from: &[&str]) -> bool {
        let verdict = self
            .index()
            .may_receive(&access, &self.standing(from), &self.policy);
        verdict.allowed
    }

    pub(super) fn owns(&self, name: &str) -> bool {
        self.index().may_own(name, &self.policy).allowed
    }

    pub(super) fn connects(&self) -> bool {
        self.policy.may_connect(self.who(), 1002).allowed
    }
}

pub(super) fn message(message_type: MessageType) -> Access<'static> {
    let blank = Access {
        message_type,
        ..Access::NONE
    };
    match message_type {
        MethodCall | Signal => Access {
            path: Some("/p"),
            interface: Some("i.I"),
            member: Some("M"),
            ..blank
        },
        Error => Access {
            error_name: Some("e.Two"),
            reply: Reply::Requested,
            ..blank
        },
        MethodReturn | MessageType::Unknown(_) => Access {
            reply: Reply::Requested,
            ..blank
        },
    }
}

pub(super) fn call() -> Access<'static> {
    message(MethodCall)
}

pub(super) fn broadcast() -> Access<'static> {
    Access {
        is_broadcast: true,
        ..message(Signal)
    }
}

pub(super) fn answer() -> Access<'static> {
    message(MethodReturn)
}

pub(super) fn unrequested(access: Access<'static>) -> Access<'static> {
    Access {
        reply: Reply::Unrequested,
        ..access
    }
}

pub(super) fn with_fds(access: Access<'static>, fds: u32) -> Access<'static> {
    Access { fds, ..access }
}

pub(super) const PEER: &[&str] = &[":1.5"];
