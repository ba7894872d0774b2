//! Who may do what: the policy in force, what of it applies to each peer, and asking it about each message (dbus-daemon(1),
//! "CONFIGURATION FILE", `<policy>`).

use std::sync::Arc;

use bus_wire::{Message, MessageType};

use super::event::PeerId;
use super::invariants::Violation;
use super::monitor::Addressee;
use super::peer::{Peer, Phase};
use super::speak::expects_reply;
use super::{Broker, DRIVER, Seeded, System, driver};
use crate::policy::compile::{Compiled, IndexId, Indexes};
use crate::policy::rules::{Policy, Subject};
use crate::policy::simple::{Simple, Traffic};
use crate::policy::verdict::{Access, Reply, Verdict, Who};
use crate::policy::vocabulary::Standing;

/// The policy in force.
#[derive(Debug)]
pub(super) struct InForce {
    compiled: Compiled,
    indexes: Indexes,
    /// What rules see of the bus itself.
    driver: Standing,
    /// Whether all passes but what is overheard and replies that nobody waits for: nothing is looked up for it.
    is_open: bool,
    /// Whether some rule lets somebody receive what is for others.
    may_overhear: bool,
    names_console: bool,
}

/// What of the policy in force concerns one peer.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    /// Which rules apply to it. `None` until it has authenticated.
    index: Option<IndexId>,
    /// What rules see of its names.
    standing: Standing,
    /// Whether its user sat at the machine when it connected, or when the policy was loaded; false where no rule asks.
    is_at_console: bool,
}

impl Rights {
    /// What rules see of its names.
    pub(super) fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Whether its user sat at the machine, as far as the policy asks.
    pub(super) fn is_at_console(&self) -> bool {
        self.is_at_console
    }
}

/// Why something may not be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Denial {
    side: Side,
    verdict: Verdict,
    reply: Reply,
}

/// Which rules say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Those about sending, for whoever sends.
    Send,
    /// Those about receiving, for whoever is to receive.
    Receive,
}

impl InForce {
    pub(super) fn new(policy: Arc<Policy>) -> Self {
        let simple = Simple::of(&policy);
        let mut rules = policy.blocks.iter().flat_map(|block| &block.rules);
        let may_overhear = rules.any(|rule| match &rule.subject {
            Subject::Receive(receive) => rule.allow && receive.eavesdrop,
            Subject::Send(_) | Subject::Own(_) | Subject::User(_) | Subject::Group(_) => false,
        });
        let names_console = policy.names_console();
        let compiled = Compiled::new(policy);
        Self {
            driver: Standing::of(DRIVER, compiled.patterns()),
            indexes: Indexes::default(),
            is_open: simple.is_some_and(|simple| simple.traffic == Traffic::Everything),
            may_overhear,
            names_console,
            compiled,
        }
    }

    /// The policy itself.
    pub(super) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// Whether some rule lets somebody receive what is for others.
    pub(super) fn may_overhear(&self) -> bool {
        self.may_overhear
    }

    /// The rules that apply to a peer that has authenticated, in the place of those that did.
    fn apply(&mut self, peer: &mut Peer) {
        self.forget(peer);
        if matches!(peer.phase, Phase::Authenticating(_)) {
            return;
        }
        let applicable = self.compiled.applicable(Who {
            uid: peer.credentials.uid.unwrap_or(NOBODY),
            gids: gids_of(peer),
            at_console: peer.rights.is_at_console,
        });
        peer.rights.index = Some(self.indexes.join(applicable));
    }

    /// No rule applies to a peer any more.
    pub(super) fn forget(&mut self, peer: &mut Peer) {
        if let Some(index) = peer.rights.index.take() {
            self.indexes.leave(index);
        }
    }

    /// What rules see of a peer with these names.
    fn standing_of<'a>(&self, names: impl Iterator<Item = &'a Arc<str>>) -> Standing {
        let mut standing = Standing::default();
        let patterns = self.compiled.patterns();
        if !patterns.is_empty() {
            names.for_each(|name| standing.add(name, patterns));
        }
        standing
    }
}

/// The groups of a peer's process.
pub(super) fn gids_of(peer: &Peer) -> &[u32] {
    peer.groups.as_deref().unwrap_or(peer.credentials.gid.as_slice())
}

/// A message as rules see it.
fn access(message: &Message, reply: Reply) -> Access<'_> {
    Access {
        message_type: message.message_type(),
        path: message.path(),
        interface: message.interface(),
        member: message.member(),
        error_name: message.error_name(),
        is_broadcast: false,
        reply,
        eavesdrops: false,
        fds: message.unix_fds(),
    }
}

/// What of a reply a message is. Only a return or an error is one, whatever else carries a reply serial.
pub(super) fn reply_of(message: &Message, is_awaited: bool) -> Reply {
    match (message.message_type().is_reply(), is_awaited) {
        (false, _) => Reply::No,
        (true, true) => Reply::Requested,
        (true, false) => Reply::Unrequested,
    }
}

/// The interfaces of the bus for which there is a check of its own in the place of the policy.
const OWN_INTERFACES: [&str; 2] = ["org.busdaemon.Restart1", "org.busdaemon.Policy1"];

/// Whether a call to the bus is about one of these.
fn is_own_matter(message: &Message) -> bool {
    match message.interface() {
        Some("org.freedesktop.DBus.Properties") => {
            let mut body = message.body();
            message.signature().starts_with('s')
                && body.read_str().is_ok_and(|name| OWN_INTERFACES.contains(&name))
        }
        Some(interface) => OWN_INTERFACES.contains(&interface),
        None => false,
    }
}

/// Whose names rules look at when something is sent.
#[derive(Debug, Clone, Copy)]
enum Receiver<'a> {
    Driver,
    Peer(PeerId),
    /// Nobody: the name's text is looked at.
    Name(&'a str),
}

impl Denial {
    /// What a verdict comes to.
    fn unless(verdict: Verdict, side: Side, reply: Reply) -> Result<(), Self> {
        if verdict.allowed {
            Ok(())
        } else {
            Err(Self { side, verdict, reply })
        }
    }
}

/// The error of what the policy does not let pass.
pub(super) const ACCESS_DENIED: &str = "org.freedesktop.DBus.Error.AccessDenied";

/// The user of a peer that is nobody: one whom no rule can name.
const NOBODY: u32 = u32::MAX;

impl Broker {
    /// Whether a peer's user sat at the machine, as far as the policy asks.
    pub fn is_at_console(&self, id: PeerId) -> bool {
        self.roster.get(id).is_some_and(|peer| peer.rights.is_at_console)
    }

    /// Whether a peer that has proved to be of this user may connect.
    pub(super) fn may_connect(&self, id: PeerId, uid: u32) -> bool {
        let who = Who {
            uid,
            gids: self.roster.get(id).map_or(&[], gids_of),
            at_console: false,
        };
        let verdict = self.in_force.compiled.may_connect(who, self.identity.own_uid);
        verdict.allowed
    }

    /// A peer has authenticated: which rules apply to it.
    pub(super) fn apply_policy(&mut self, id: PeerId, system: &mut dyn System) {
        let names_console = self.in_force.names_console;
        let Some(peer) = self.roster.get_mut(id) else {
            return;
        };
        peer.rights.is_at_console = match peer.credentials.uid {
            Some(uid) if names_console => system.is_at_console(uid),
            Some(_) | None => false,
        };
        self.in_force.apply(peer);
    }

    /// Another policy is in force: for the peers that there are, too. Nobody is disconnected, and nobody loses a name.
    pub(super) fn take_policy(&mut self, policy: Arc<Policy>, system: &mut dyn System) {
        self.in_force = InForce::new(policy);
        if self.in_force.names_console {
            let mut asked = hashbrown::HashMap::with_hasher(Seeded::default());
            for id in self.peer_ids().collect::<Vec<_>>() {
                let Some(uid) = self.uid(id) else { continue };
                let is_there = *asked.entry(uid).or_insert_with(|| system.is_at_console(uid));
                if let Some(peer) = self.roster.get_mut(id) {
                    peer.rights.is_at_console = is_there;
                }
            }
        }
        // Those of the policy before it are not of this one.
        self.roster.iter_mut().for_each(|peer| peer.rights.index = None);
        self.apply_policy_to_all();
    }

    /// Which rules apply to each peer, and what they see of its names.
    pub(super) fn apply_policy_to_all(&mut self) {
        let ids: Vec<PeerId> = self.peer_ids().collect();
        for id in ids {
            let standing = self.in_force.standing_of(self.names_seen(id));
            if let Some(peer) = self.roster.at_mut(id.index) {
                self.in_force.apply(peer);
                peer.rights.standing = standing;
            }
        }
    }

    /// The names by which rules know a peer: those that it owns or waits for, and its unique one.
    fn names_seen(&self, id: PeerId) -> impl Iterator<Item = &Arc<str>> {
        let unique = self.roster.get(id).and_then(|peer| peer.unique.as_ref());
        let unique = unique.filter(|unique| self.roster.by_unique(unique.number) == Some(id));
        self.names.held_by(id).chain(unique.map(|unique| &unique.name))
    }

    /// What is known of each peer follows from the policy in force, the peer and its names.
    pub(super) fn check_rights(&self) -> Result<(), Violation> {
        for peer in self.roster.iter() {
            let (id, rights) = (peer.id, &peer.rights);
            if rights.index.is_none() != matches!(peer.phase, Phase::Authenticating(_)) {
                return Err(Violation::new(format!(
                    "{id:?} has rules before it has authenticated, or none after"
                )));
            }
            if rights.standing != self.in_force.standing_of(self.names_seen(id)) {
                return Err(Violation::new(format!(
                    "rules see other names of {id:?} than it has"
                )));
            }
        }
        Ok(())
    }

    /// Restored peers whose users sat at the machine.
    pub(super) fn restore_at_console(&mut self, at_console: &[PeerId]) {
        for id in at_console {
            if let Some(peer) = self.roster.get_mut(*id) {
                peer.rights.is_at_console = true;
            }
        }
    }

    /// A peer has come by a name, or has one less.
    pub(super) fn note_name(&mut self, id: PeerId, name: &str, is_held: bool) {
        let patterns = self.in_force.compiled.patterns();
        if patterns.is_empty() {
            return;
        }
        if let Some(peer) = self.roster.at_mut(id.index).filter(|peer| peer.id == id) {
            let standing = &mut peer.rights.standing;
            if is_held {
                standing.add(name, patterns);
            } else {
                standing.remove(name, patterns);
            }
        }
    }

    /// Whether rules speak of this name, so that it is to be [noted](Self::note_name) whose it is.
    pub(super) fn is_name_noted(&self, name: &str) -> bool {
        let patterns = self.in_force.compiled.patterns();
        !patterns.is_empty() && !patterns.of(name).is_empty()
    }

    /// Whether a peer may own a name, or wait for it; if not, the text of the error.
    pub(crate) fn check_ownership(&mut self, id: PeerId, name: &str) -> Result<(), String> {
        if self.in_force.is_open {
            return Ok(());
        }
        let verdict = self.may_own(id, name);
        if verdict.allowed {
            return Ok(());
        }
        let unique = self.roster.get(id).map_or("", Peer::unique_name);
        let text = format!(
            "Connection \"{unique}\" is not allowed to own the service \"{name}\" due to security policies in the \
             configuration file"
        );
        let rule = self.rule_of(verdict);
        Err(if self.is_privileged(id) {
            text + &rule
        } else {
            text
        })
    }

    fn may_own(&mut self, id: PeerId, name: &str) -> Verdict {
        let InForce {
            compiled, indexes, ..
        } = &mut self.in_force;
        let index = self.roster.get(id).and_then(|peer| peer.rights.index);
        let index = index.and_then(|index| indexes.get(index, compiled));
        index.map_or(Verdict::NO_RULE, |index| index.may_own(name, compiled))
    }

    /// Whether a message may go from one peer to another, which it is for.
    #[inline]
    pub(super) fn check_policy(
        &mut self,
        from: PeerId,
        to: PeerId,
        message: &Message,
        reply: Reply,
    ) -> Result<(), Denial> {
        if self.in_force.is_open && reply != Reply::Unrequested {
            return Ok(());
        }
        let access = access(message, reply);
        let sent = self.judge_sending(from, Receiver::Peer(to), &access);
        self.note_use(from, Receiver::Peer(to), message, reply, sent);
        Denial::unless(sent, Side::Send, reply)?;
        Denial::unless(
            self.judge_receiving(to, Some(from), &access),
            Side::Receive,
            reply,
        )
    }

    /// Whether a peer may send a message to the bus.
    pub(super) fn check_policy_to_driver(&mut self, from: PeerId, message: &Message) -> Result<(), Denial> {
        let reply = reply_of(message, false);
        if self.in_force.is_open && reply != Reply::Unrequested {
            return Ok(());
        }
        if is_own_matter(message) && self.roster.get(from).is_some_and(driver::is_local) {
            return Ok(());
        }
        let sent = self.judge_sending(from, Receiver::Driver, &access(message, reply));
        self.note_use(from, Receiver::Driver, message, reply, sent);
        Denial::unless(sent, Side::Send, reply)
    }

    /// Whether a peer may send a message to a name that nobody owns, and for which a service could be started.
    pub(super) fn check_policy_to_name(&mut self, from: PeerId, message: &Message) -> Result<(), Denial> {
        let reply = reply_of(message, false);
        if self.in_force.is_open && reply != Reply::Unrequested {
            return Ok(());
        }
        let sent = self.judge_sending(
            from,
            Receiver::Name(message.destination().unwrap_or_default()),
            &access(message, reply),
        );
        Denial::unless(sent, Side::Send, reply)
    }

    /// Whether a peer may receive a message of the bus.
    #[inline]
    pub(super) fn may_hear_driver(&mut self, to: PeerId, access: &Access<'_>) -> bool {
        self.in_force.is_open || self.judge_receiving(to, None, access).allowed
    }

    /// The same of a whole message. A reply of the bus is always one to a call.
    pub(super) fn may_hear_reply(&mut self, to: PeerId, message: &Message) -> bool {
        self.may_hear_driver(to, &access(message, reply_of(message, true)))
    }

    /// Leaves those who may receive a message without a destination, from a peer or from the bus (`None`).
    #[inline]
    pub(super) fn retain_hearers(
        &mut self,
        from: Option<PeerId>,
        message: &Message,
        receivers: &mut Vec<PeerId>,
    ) {
        if self.in_force.is_open || receivers.is_empty() {
            return;
        }
        let access = Access {
            is_broadcast: true,
            ..access(message, Reply::No)
        };
        self.retain(from, &access, receivers);
    }

    /// Leaves those who may receive a message that is for somebody else.
    pub(super) fn retain_overhearers(
        &mut self,
        from: PeerId,
        addressee: Addressee,
        message: &Message,
        receivers: &mut Vec<PeerId>,
    ) {
        if receivers.is_empty() {
            return;
        }
        let eavesdrops = match addressee {
            Addressee::All => false,
            Addressee::Driver | Addressee::Peer(_) | Addressee::Nobody => true,
        };
        let access = Access {
            eavesdrops,
            // Who overhears waits for no reply.
            ..access(message, reply_of(message, false))
        };
        self.retain(Some(from), &access, receivers);
    }

    /// Of receivers to whom the same rules apply one is asked about; of those that have names of which rules speak, each.
    fn retain(&mut self, from: Option<PeerId>, access: &Access<'_>, receivers: &mut Vec<PeerId>) {
        let mut plain_send = None;
        let mut by_index: smallvec::SmallVec<[(IndexId, bool); 4]> = smallvec::SmallVec::new();
        receivers.retain(|to| {
            let Some(rights) = self.roster.get(*to).map(|peer| &peer.rights) else {
                return false;
            };
            let Some(index) = rights.index else {
                return false;
            };
            let is_plain = rights.standing.is_empty();
            let may_send = match (from, plain_send) {
                (None, _) => true,
                (Some(_), Some(allowed)) if is_plain => allowed,
                (Some(from), _) => {
                    let allowed = self.judge_sending(from, Receiver::Peer(*to), access).allowed;
                    if is_plain {
                        plain_send = Some(allowed);
                    }
                    allowed
                }
            };
            if !may_send {
                return false;
            }
            if let Some((_, allowed)) = by_index.iter().find(|(known, _)| *known == index) {
                return *allowed;
            }
            let allowed = self.judge_receiving(*to, from, access).allowed;
            by_index.push((index, allowed));
            allowed
        });
    }

    fn judge_sending(&mut self, from: PeerId, to: Receiver<'_>, access: &Access<'_>) -> Verdict {
        let InForce {
            compiled,
            indexes,
            driver,
            ..
        } = &mut self.in_force;
        let of_name;
        let standing = match to {
            Receiver::Driver => &*driver,
            Receiver::Peer(to) => match self.roster.get(to) {
                Some(peer) => &peer.rights.standing,
                None => return Verdict::NO_RULE,
            },
            Receiver::Name(name) => {
                of_name = Standing::of(name, compiled.patterns());
                &of_name
            }
        };
        let index = self.roster.get(from).and_then(|peer| peer.rights.index);
        let index = index.and_then(|index| indexes.get(index, compiled));
        index.map_or(Verdict::NO_RULE, |index| {
            index.may_send(access, standing, compiled)
        })
    }

    fn judge_receiving(&mut self, to: PeerId, from: Option<PeerId>, access: &Access<'_>) -> Verdict {
        let InForce {
            compiled,
            indexes,
            driver,
            ..
        } = &mut self.in_force;
        let standing = match from {
            None => &*driver,
            Some(from) => match self.roster.get(from) {
                Some(peer) => &peer.rights.standing,
                None => return Verdict::NO_RULE,
            },
        };
        let index = self.roster.get(to).and_then(|peer| peer.rights.index);
        let index = index.and_then(|index| indexes.get(index, compiled));
        index.map_or(Verdict::NO_RULE, |index| {
            index.may_receive(access, standing, compiled)
        })
    }

    /// A rule that decides for something may say that the log is to be told.
    fn note_use(
        &mut self,
        from: PeerId,
        to: Receiver<'_>,
        message: &Message,
        reply: Reply,
        verdict: Verdict,
    ) {
        if verdict.allowed && verdict.log {
            let text = self.described("Would reject message", from, to, message, reply, verdict);
            let rule = self.rule_of(verdict);
            self.warn(self.uid(from), text + &rule);
        }
    }

    /// A message is not passed on: who is told of it, and the log. `to` is whom it was for.
    pub(super) fn deny(&mut self, from: PeerId, to: Addressee, message: &Message, denial: &Denial) {
        let Denial { side, verdict, reply } = *denial;
        let what = match side {
            Side::Send => "Rejected send message",
            Side::Receive => "Rejected receive message",
        };
        let receiver = match to {
            Addressee::Peer(to) => Receiver::Peer(to),
            Addressee::Driver => Receiver::Driver,
            Addressee::Nobody | Addressee::All => Receiver::Name(message.destination().unwrap_or_default()),
        };
        let text = self.described(what, from, receiver, message, reply, verdict);
        let rule = self.rule_of(verdict);
        self.warn(self.uid(from), format!("{text}{rule}"));
        let (told, serial) = match (to, reply, message.reply_serial()) {
            // Whoever waits would wait for ever.
            (Addressee::Peer(caller), Reply::Requested, Some(serial)) => (caller, serial),
            _ if expects_reply(message) || message.message_type() == MessageType::Signal => {
                (from, message.serial())
            }
            _ => return,
        };
        let text = if self.is_privileged(told) {
            text + &rule
        } else {
            text
        };
        if told == from {
            self.send_late_error(told, serial.get(), ACCESS_DENIED, &text);
        } else {
            self.send_in_place_of_reply(told, serial.get(), ACCESS_DENIED, &text);
        }
    }

    /// Whether a peer is of the superuser, or of the user that the bus runs as.
    pub(super) fn is_privileged(&self, id: PeerId) -> bool {
        let uid = self.uid(id);
        uid.is_some_and(|uid| uid == 0 || uid == self.identity.own_uid)
    }

    /// A message in the words of dbus-daemon, which scripts look for in logs.
    fn described(
        &self,
        what: &str,
        from: PeerId,
        to: Receiver<'_>,
        message: &Message,
        reply: Reply,
        verdict: Verdict,
    ) -> String {
        let kind = match message.message_type() {
            MessageType::MethodCall => "method_call",
            MessageType::MethodReturn => "method_return",
            MessageType::Error => "error",
            MessageType::Signal => "signal",
            MessageType::Unknown(_) => "invalid",
        };
        let unset = "(unset)";
        let sender = self.roster.get(from).and_then(|peer| peer.unique.as_ref());
        format!(
            "{what}, {matched} matched rules; type=\"{kind}\", sender=\"{sender}\" ({who}) interface=\"{interface}\" \
             member=\"{member}\" error name=\"{error}\" requested_reply=\"{requested}\" \
             destination=\"{destination}\" ({whom})",
            matched = verdict.matched,
            sender = sender.map_or(unset, |unique| &unique.name),
            who = self.loginfo(from),
            interface = message.interface().unwrap_or(unset),
            member = message.member().unwrap_or(unset),
            error = message.error_name().unwrap_or(unset),
            requested = u8::from(reply == Reply::Requested),
            destination = message.destination().unwrap_or(unset),
            whom = match to {
                Receiver::Driver => "bus".to_owned(),
                Receiver::Peer(to) => self.loginfo(to),
                Receiver::Name(_) => "not running".to_owned(),
            },
        )
    }

    /// Who a peer is, for a line in the log.
    fn loginfo(&self, id: PeerId) -> String {
        let credentials = self
            .roster
            .get(id)
            .map(|peer| peer.credentials)
            .unwrap_or_default();
        let known = [("uid", credentials.uid), ("pid", credentials.pid)];
        let known = known
            .iter()
            .filter_map(|(what, id)| Some(format!("{what}={}", (*id)?)));
        known.collect::<Vec<_>>().join(" ")
    }

    /// The rule that decided, for those who may know the configuration.
    pub(super) fn rule_of(&self, verdict: Verdict) -> String {
        let rule = verdict
            .rule
            .and_then(|id| self.in_force.compiled.policy().rule(id));
        match rule {
            Some(rule) => format!(" (rule {})", rule.place),
            None => String::new(),
        }
    }
}
