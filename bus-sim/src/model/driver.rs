//! What the driver answers (specification, "Message Bus Messages").

use bus_daemon::broker::PeerId;

use super::{BUS_ID, Check, KEEPER_PID, Model, OWN_UID, Phase, wrong};
use crate::letter::{DRIVER, Letter, Value};
use crate::rule::Rule;

impl Model {
    /// Whether a peer of this user would get a name.
    pub(super) fn may_greet(&self, uid: u32) -> bool {
        let is_named = |peer: &&super::Peer| peer.unique.is_some();
        let named = self.peers.values().filter(is_named).count() as u64;
        let of_user = self
            .peers
            .values()
            .filter(is_named)
            .filter(|peer| peer.uid == uid)
            .count() as u64;
        named < self.limits.max_completed_connections && of_user < self.limits.max_connections_per_user
    }

    /// A call to the driver, from its effects to its answer.
    pub(super) fn driver_call(&mut self, id: PeerId, call: &Letter) -> Check {
        let member = call.member.as_deref().unwrap_or_default();
        let arg = match call.values.first() {
            Some(Value::Str(text)) => text.clone(),
            _ => String::new(),
        };
        let text = |text: String| vec![Value::Str(text)];
        // A monitor must be privileged before anything else.
        let adds_state = matches!(member, "AddMatch" | "RequestName")
            || (member == "BecomeMonitor" && self.peers.get(&id).is_some_and(|peer| peer.uid == OWN_UID));
        if adds_state && self.is_refused(id) {
            return self.fail(id, call, "LimitsExceeded");
        }
        match member {
            "Hello" => self.hello(id, call),
            "RequestName" if call.note.is_wrong => self.fail(id, call, "InvalidArgs"),
            "RequestName" => {
                let Some(Value::U32(flags)) = call.values.get(1) else {
                    return wrong("a RequestName without flags");
                };
                match self.request_name(id, &arg, *flags)? {
                    Some(reply) => self.answer(id, call, vec![Value::U32(reply)]),
                    None => self.fail(id, call, "LimitsExceeded"),
                }
            }
            "ReleaseName" if call.note.is_wrong => self.fail(id, call, "InvalidArgs"),
            "ReleaseName" => {
                let reply = self.release_name(id, &arg)?;
                self.answer(id, call, vec![Value::U32(reply)])
            }
            "NameHasOwner" => {
                let has_owner = arg == DRIVER || self.resolve(&arg).is_some();
                self.answer(id, call, vec![Value::Bool(has_owner)])
            }
            "GetNameOwner" if arg == DRIVER => self.answer(id, call, text(arg)),
            "GetNameOwner" => match self.resolve(&arg).and_then(|owner| self.peers.get(&owner)) {
                Some(owner) => {
                    let name = owner.name();
                    self.answer(id, call, text(name))
                }
                None => self.fail(id, call, "NameHasNoOwner"),
            },
            "ListQueuedOwners" if arg == DRIVER => self.answer(id, call, vec![Value::Strs(vec![arg])]),
            "ListQueuedOwners" => {
                let queue: Vec<PeerId> = match self.names.get(&arg) {
                    Some(queue) => queue.iter().map(|(peer, _)| *peer).collect(),
                    None => self.resolve(&arg).into_iter().collect(),
                };
                if queue.is_empty() {
                    return self.fail(id, call, "NameHasNoOwner");
                }
                let names = queue
                    .iter()
                    .filter_map(|peer| self.peers.get(peer))
                    .map(super::Peer::name);
                let names = Value::Strs(names.collect());
                self.answer(id, call, vec![names])
            }
            "ListNames" => {
                let mut unique: Vec<u64> = self
                    .peers
                    .values()
                    .filter(|p| p.is_reachable)
                    .filter_map(|p| p.unique)
                    .collect();
                unique.sort_unstable();
                let mut names = vec![DRIVER.to_owned()];
                names.extend(unique.iter().map(|number| format!(":1.{number}")));
                names.extend(self.names.keys().cloned());
                self.answer(id, call, vec![Value::Strs(names)])
            }
            "GetId" => {
                let digits: String = BUS_ID.iter().map(|byte| format!("{byte:02x}")).collect();
                self.answer(id, call, text(digits))
            }
            "Ping" => self.answer(id, call, Vec::new()),
            "GetConnectionUnixUser" | "GetConnectionUnixProcessID" => {
                let is_user = member == "GetConnectionUnixUser";
                let found = if arg == DRIVER {
                    Some((OWN_UID, KEEPER_PID))
                } else {
                    self.resolve(&arg)
                        .and_then(|of| self.peers.get(&of))
                        .map(|peer| (peer.uid, peer.pid))
                };
                match found {
                    Some((uid, pid)) => {
                        self.answer(id, call, vec![Value::U32(if is_user { uid } else { pid })])
                    }
                    None => self.fail(id, call, "NameHasNoOwner"),
                }
            }
            "GetConnectionCredentials" => self.credentials(id, call, &arg),
            "AddMatch" => self.add_match(id, call),
            "RemoveMatch" => self.remove_match(id, call),
            "BecomeMonitor" => self.become_monitor(id, call),
            "ReloadConfig" => self.call_reload(id, call),
            "Upgrade" => self.call_upgrade(id, call, &arg),
            _ => self.fail(id, call, "UnknownMethod"),
        }
    }

    fn answer(&mut self, id: PeerId, call: &Letter, values: Vec<Value>) -> Check {
        if call.expects_reply() {
            self.say(id, Letter::driver_reply(call.serial, values))
        } else {
            Ok(())
        }
    }

    pub(super) fn fail(&mut self, id: PeerId, call: &Letter, error: &str) -> Check {
        if call.expects_reply() {
            self.say(id, Letter::driver_error(call.serial, error))
        } else {
            Ok(())
        }
    }

    fn hello(&mut self, id: PeerId, call: &Letter) -> Check {
        let Some((phase, uid)) = self.peers.get(&id).map(|peer| (peer.phase, peer.uid)) else {
            return Ok(());
        };
        if phase != Phase::Greeting {
            return self.fail(id, call, "Failed");
        }
        if !self.may_greet(uid) {
            return self.fail(id, call, "LimitsExceeded");
        }
        let number = self.next_unique;
        self.next_unique += 1;
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.phase = Phase::Active;
            peer.unique = Some(number);
            peer.is_reachable = true;
            peer.hello_deadline = None;
        }
        self.give_slots();
        let name = format!(":1.{number}");
        self.answer(id, call, vec![Value::Str(name.clone())])?;
        self.broadcast(
            id,
            &Letter::driver_signal("NameOwnerChanged", &[&name, "", &name]),
        )?;
        self.say(id, Letter::driver_signal("NameAcquired", &[&name]))
    }

    fn credentials(&mut self, id: PeerId, call: &Letter, name: &str) -> Check {
        let takes_fds = self.peers.get(&id).is_some_and(|peer| peer.takes_fds);
        let mut files = Vec::new();
        if name != DRIVER {
            let Some(of) = self.resolve(name) else {
                return self.fail(id, call, "NameHasNoOwner");
            };
            let has_link = self.peers.get(&of).is_some_and(|peer| !peer.is_parked);
            if has_link && takes_fds && call.expects_reply() {
                match self.seen.pidfds.pop_front() {
                    Some(file) => files.extend(file),
                    None => return wrong("no descriptor of a process was asked for"),
                }
            }
        }
        if !call.expects_reply() {
            return Ok(());
        }
        let reply = Letter {
            files,
            is_exact: false,
            ..Letter::driver_reply(call.serial, Vec::new())
        };
        self.say(id, reply)
    }

    fn add_match(&mut self, id: PeerId, call: &Letter) -> Check {
        if call.note.is_wrong {
            return self.fail(id, call, "MatchRuleInvalid");
        }
        let limit = self.limits.max_match_rules_per_connection;
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        if peer.rules.len() as u64 >= limit {
            return self.fail(id, call, "LimitsExceeded");
        }
        peer.rules.extend(call.note.rules.iter().cloned());
        self.answer(id, call, Vec::new())
    }

    fn remove_match(&mut self, id: PeerId, call: &Letter) -> Check {
        if call.note.is_wrong {
            return self.fail(id, call, "MatchRuleInvalid");
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            return Ok(());
        };
        let place = call
            .note
            .rules
            .first()
            .and_then(|rule| peer.rules.iter().position(|one| one == rule));
        match place {
            Some(place) => {
                peer.rules.remove(place);
                self.answer(id, call, Vec::new())
            }
            None => self.fail(id, call, "MatchRuleNotFound"),
        }
    }

    fn become_monitor(&mut self, id: PeerId, call: &Letter) -> Check {
        let uid = self.peers.get(&id).map(|peer| peer.uid);
        if uid != Some(OWN_UID) {
            return self.fail(id, call, "AccessDenied");
        }
        if call.note.rules.len() as u64 > self.limits.max_match_rules_per_connection {
            return self.fail(id, call, "LimitsExceeded");
        }
        self.answer(id, call, Vec::new())?;
        // Whoever else overhears the call has it before what comes of it.
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.rules.clear();
        }
        self.monitor_to_be = Some((id, call.note.rules.clone()));
        Ok(())
    }

    /// The peer whose BecomeMonitor has just been dealt with loses what it has, and is a monitor from now on.
    pub(super) fn end_becoming_monitor(&mut self) -> Check {
        let Some((id, rules)) = self.monitor_to_be.take() else {
            return Ok(());
        };
        self.release_all(id)?;
        self.drop_calls(id)?;
        self.forget_caller(id);
        if let Some(peer) = self.peers.get_mut(&id) {
            peer.phase = Phase::Monitor;
            peer.rules = rules;
            if peer.rules.is_empty() {
                peer.rules.push(Rule::default());
            }
        }
        Ok(())
    }
}
