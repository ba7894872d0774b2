//! What the policy says of something that somebody would do, for whoever asks why.

use bus_wire::MessageType;

use super::event::PeerId;
use super::peer::Peer;
use super::policy::gids_of;
use super::{Broker, DRIVER};
use crate::policy::explain::{Explanation, Party, explain_connect, explain_message, explain_ownership};
use crate::policy::rules::Place;
use crate::policy::verdict::{Access, Who};
use crate::policy::vocabulary::Standing;

/// A question.
#[derive(Debug)]
pub(crate) struct Inquiry<'a> {
    pub(crate) who: Subject,
    pub(crate) matter: Matter<'a>,
}

/// Who would do it.
#[derive(Debug)]
pub(crate) enum Subject {
    Peer(PeerId),
    /// Somebody who may not be there, without any name, and not at the machine.
    User {
        uid: u32,
        gids: Vec<u32>,
    },
}

/// What that would be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Matter<'a> {
    Connect,
    /// Own this name.
    Own(&'a str),
    /// Send a message; a reply is one that is waited for.
    Send {
        destination: &'a str,
        message_type: MessageType,
        path: Option<&'a str>,
        interface: Option<&'a str>,
        member: Option<&'a str>,
    },
}

/// What the policy says.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) allowed: bool,
    /// The text of each rule that matches, where it stands, and whether it decided: the last first.
    pub(crate) rules: Vec<(String, Place, bool)>,
}

impl Broker {
    /// What the policy in force says.
    pub(crate) fn explain(&self, inquiry: &Inquiry<'_>) -> Explained {
        let policy = self.in_force.compiled();
        let (uid, gids, at_console) = self.identity_of_subject(&inquiry.who);
        let who = Who {
            uid,
            gids: &gids,
            at_console,
        };
        let applicable = policy.applicable(who);
        let Explanation { allowed, reasons } = match inquiry.matter {
            Matter::Connect => explain_connect(policy, who, self.identity.own_uid),
            Matter::Own(name) => explain_ownership(policy, &applicable, name),
            Matter::Send {
                destination,
                message_type,
                path,
                interface,
                member,
            } => {
                let access = Access::asked_about(message_type, [path, interface, member]);
                let from = Party {
                    applicable: Some(applicable),
                    standing: match inquiry.who {
                        Subject::Peer(id) => self.standing(id),
                        Subject::User { .. } => Standing::default(),
                    },
                };
                explain_message(policy, access, &from, &self.party(destination))
            }
        };
        let rules = reasons.into_iter().filter_map(|reason| {
            let (text, place) = policy.policy().described(reason.rule)?;
            Some((text, place, reason.decides))
        });
        Explained {
            allowed,
            rules: rules.collect(),
        }
    }

    fn identity_of_subject(&self, who: &Subject) -> (u32, Vec<u32>, bool) {
        match who {
            Subject::Peer(id) => self
                .roster
                .get(*id)
                .map_or((u32::MAX, Vec::new(), false), |peer| {
                    let uid = peer.credentials.uid.unwrap_or(u32::MAX);
                    (uid, gids_of(peer).to_vec(), peer.rights.is_at_console())
                }),
            Subject::User { uid, gids } => (*uid, gids.clone(), false),
        }
    }

    fn standing(&self, id: PeerId) -> Standing {
        let peer = self.roster.get(id);
        peer.map_or_else(Standing::default, |peer| peer.rights.standing().clone())
    }

    /// Whoever has a name: a peer, the bus itself, or nobody, of whom the name is all that rules see.
    fn party(&self, name: &str) -> Party {
        let policy = self.in_force.compiled();
        let owner = if name == DRIVER { None } else { self.resolve(name) };
        match owner.and_then(|id| self.roster.get(id)) {
            Some(peer) => self.party_of(peer),
            None => Party {
                applicable: None,
                standing: Standing::of(name, policy.patterns()),
            },
        }
    }

    fn party_of(&self, peer: &Peer) -> Party {
        let who = Who {
            uid: peer.credentials.uid.unwrap_or(u32::MAX),
            gids: gids_of(peer),
            at_console: peer.rights.is_at_console(),
        };
        Party {
            applicable: Some(self.in_force.compiled().applicable(who)),
            standing: peer.rights.standing().clone(),
        }
    }
}
