//! One message, looked up in an index.

use std::sync::Arc;

use bus_wire::match_rule::{Arg, MAX_RULE};
use smallvec::SmallVec;

use super::form::{Below, Form, Node, RuleId, Shape};
use super::key::{Hasher, Mask, Namespace, Prefixes, bits, fold};
use super::rule::{self, Body};
use super::side::Facts;
use super::{Effort, MatchIndex};
use crate::broker::event::PeerId;

/// Finds the peers that have a rule which matches.
pub(super) struct Search<'s> {
    index: &'s MatchIndex,
    facts: &'s Facts<'s>,
    body: Body<'s>,
    values: Values<'s>,
    peers: &'s mut Vec<PeerId>,
    /// Whether `peers` is in ascending order.
    is_sorted: bool,
    effort: Effort,
}

/// The hashes of what the message has, as far as any form asks for them.
struct Values<'s> {
    hasher: &'s Hasher,
    present: Mask,
    header: [u64; Mask::EXACT],
    /// By index. The text of one that is not a string is empty.
    arguments: SmallVec<[(&'s str, u64); 4]>,
    path: &'s str,
    /// Computed when first asked for, ascending by namespace.
    prefixes: SmallVec<[(Namespace, Prefixes); 2]>,
}

impl<'s> Search<'s> {
    pub(super) fn new(index: &'s MatchIndex, facts: &'s Facts<'s>, peers: &'s mut Vec<PeerId>) -> Self {
        let body = Body::new(facts.message);
        Self {
            index,
            facts,
            values: Values::new(index, facts, &body),
            body,
            is_sorted: peers.is_empty(),
            peers,
            effort: Effort::default(),
        }
    }

    /// Looks up every form. `peers` is then in ascending order, each in it once.
    pub(super) fn run(mut self) -> Effort {
        let index = self.index;
        for form in index.forms.within(self.values.present) {
            self.look_up(form);
        }
        if !self.is_sorted {
            // Stable, because that takes runs that are sorted already as they are.
            self.peers.sort();
            self.peers.dedup();
        }
        self.effort
    }

    fn look_up(&mut self, form: &Form) {
        let exact = self.values.exact(form.mask);
        if !form.mask.has_namespaces() {
            return self.visit(form, exact);
        }
        self.effort.look_ups += 1;
        let Some(shape) = form.shape(exact) else {
            return;
        };
        let mut places = SmallVec::<[usize; 4]>::new();
        for namespace in form.mask.namespaces() {
            places.push(self.values.prepare(self.index, namespace));
        }
        // One that is computed later may have gone in between.
        if places.len() > 1 {
            for (place, namespace) in places.iter_mut().zip(form.mask.namespaces()) {
                *place = self.values.prepare(self.index, namespace);
            }
        }
        self.look_up_depths(form, shape, exact, &places);
        for index in bits(form.mask.paths) {
            self.look_below(form, exact, index);
        }
    }

    /// `places` are of the prefixes, in the order of the namespaces.
    fn look_up_depths(&mut self, form: &Form, shape: &Shape, exact: u64, places: &[usize]) {
        let mut place = 0;
        while let Some(depths) = shape.depths(place) {
            let mut hash = exact;
            let mut is_deeper = None;
            for (order, (prefixes, depth)) in places.iter().zip(depths).enumerate() {
                match self.values.prefixes[*prefixes].1.get(usize::from(*depth)) {
                    Some(prefix) => hash = fold(hash, *prefix),
                    None => {
                        is_deeper = Some(order);
                        break;
                    }
                }
            }
            match is_deeper {
                None => {
                    self.visit(form, hash);
                    place += 1;
                }
                Some(0) => break,
                Some(order) => {
                    self.effort.look_ups += 1;
                    place = shape.skip(place, order);
                }
            }
        }
    }

    fn visit(&mut self, form: &Form, hash: u64) {
        self.effort.look_ups += 1;
        if let Some(node) = form.find(hash) {
            self.visit_node(node);
        }
    }

    fn visit_node(&mut self, node: &Node) {
        for id in &node.rules {
            self.consider(*id);
        }
        let names = &node.names;
        if names.len() == 0 {
            return;
        }
        let (sender, destination) = (self.facts.sender, self.facts.destination);
        // Whichever is less: the names that rules name, or those that the two sides have.
        if names.len() <= sender.well_known_count() + destination.well_known_count() {
            for name in names.iter() {
                self.effort.look_ups += 1;
                self.visit_node(&name.node);
            }
            return;
        }
        let hasher = &self.index.hasher;
        let of_sender = sender.well_known().map(|name| hasher.sender(name));
        let of_destination = destination.well_known().map(|name| hasher.destination(name));
        for hash in of_sender.chain(of_destination) {
            self.effort.look_ups += 1;
            if let Some(node) = names.find(hash) {
                self.visit_node(node);
            }
        }
    }

    /// Adds those who have the rule, if it matches.
    #[inline]
    fn consider(&mut self, id: RuleId) {
        self.effort.candidates += 1;
        let Some(slot) = &self.index.slots[id as usize] else {
            return;
        };
        if rule::matches(&slot.rule, self.facts, &self.body) {
            self.is_sorted &= self.peers.is_empty();
            slot.subscribers.append_to(self.peers);
        }
    }

    /// "either the string given in the match rule or the appropriate message argument ends with '/' and is a prefix of the
    /// other": here the message's argument is the shorter. One rule of each peer is enough.
    fn look_below(&mut self, form: &Form, exact: u64, index: u8) {
        let (text, _) = self.values.arguments[usize::from(index)];
        if form.below.is_empty() || !text.ends_with('/') || text.len() > MAX_RULE {
            return;
        }
        let namespace = Namespace::argument_path(index);
        let text: Arc<str> = text.into();
        let from = |peer: PeerId, value: &Arc<str>| Below {
            exact,
            namespace,
            peer,
            value: value.clone(),
            rule: 0,
        };
        let is_same = |below: &&Below| below.exact == exact && below.namespace == namespace;
        let nothing: Arc<str> = "".into();
        let mut next = PeerId {
            index: 0,
            generation: 0,
        };
        loop {
            self.effort.look_ups += 2;
            let Some(first) = form.below.range(from(next, &nothing)..).next().filter(is_same) else {
                return;
            };
            let peer = first.peer;
            let of_peer = form.below.range(from(peer, &text)..).take_while(|below| {
                below.exact == exact
                    && (below.namespace, below.peer) == (namespace, peer)
                    && below.value.starts_with(&*text)
            });
            for below in of_peer {
                if self.is_matching(below.rule) {
                    self.is_sorted &= self.peers.last().is_none_or(|last| *last < peer);
                    self.peers.push(peer);
                    break;
                }
            }
            let Some(after) = after(peer) else { return };
            next = after;
        }
    }

    fn is_matching(&mut self, id: RuleId) -> bool {
        self.effort.candidates += 1;
        let slot = self.index.slots[id as usize].as_ref();
        slot.is_some_and(|slot| rule::matches(&slot.rule, self.facts, &self.body))
    }
}

/// The least that is greater.
fn after(peer: PeerId) -> Option<PeerId> {
    let PeerId { index, generation } = peer;
    match generation.checked_add(1) {
        Some(generation) => Some(PeerId { index, generation }),
        None => Some(PeerId {
            index: index.checked_add(1)?,
            generation: 0,
        }),
    }
}

impl<'s> Values<'s> {
    fn new(index: &'s MatchIndex, facts: &Facts<'s>, body: &Body<'s>) -> Self {
        let wanted = index.forms.wanted();
        let hasher = &index.hasher;
        let message = facts.message;
        let mut values = Self {
            hasher,
            present: Mask::default(),
            header: [0; Mask::EXACT],
            arguments: SmallVec::new(),
            path: message.path().unwrap_or_default(),
            prefixes: SmallVec::new(),
        };
        if wanted.has(Mask::TYPE) {
            values.present.header |= Mask::TYPE;
            values.header[0] = hasher.message_type(message.message_type());
        }
        if wanted.has(Mask::SENDER) {
            values.add(Mask::SENDER, facts.sender.unique());
        }
        if wanted.has(Mask::INTERFACE) {
            values.add(Mask::INTERFACE, message.interface());
        }
        if wanted.has(Mask::MEMBER) {
            values.add(Mask::MEMBER, message.member());
        }
        if wanted.has(Mask::PATH) {
            values.add(Mask::PATH, message.path());
        }
        if wanted.has(Mask::DESTINATION) {
            values.add(Mask::DESTINATION, facts.destination.unique());
        }
        if wanted.has(Mask::PATH_NAMESPACE) && !values.path.is_empty() {
            values.present.header |= Mask::PATH_NAMESPACE;
        }
        if let Some(last) = wanted.last_argument() {
            values.read_arguments(wanted, last, body);
        }
        values
    }

    fn add(&mut self, condition: u8, text: Option<&str>) {
        // What is longer is not the value of any rule.
        if let Some(text) = text.filter(|text| text.len() <= MAX_RULE) {
            self.present.header |= condition;
            self.header[condition.trailing_zeros() as usize] = self.hasher.text(text);
        }
    }

    fn read_arguments(&mut self, wanted: Mask, last: u8, body: &Body<'s>) {
        for index in 0..=last {
            let bit = 1 << index;
            let Some(argument) = body.argument(index) else {
                break;
            };
            let text = match argument {
                Some(Arg::Str(text)) => {
                    if index == 0 {
                        self.present.header |= wanted.header & Mask::ARG0_NAMESPACE;
                    }
                    if text.len() <= MAX_RULE {
                        self.present.equals |= wanted.equals & bit;
                    }
                    self.present.paths |= wanted.paths & bit;
                    text
                }
                Some(Arg::ObjectPath(path)) => {
                    self.present.paths |= wanted.paths & bit;
                    path
                }
                None => "",
            };
            let hash = if self.present.equals & bit != 0 {
                self.hasher.text(text)
            } else {
                0
            };
            self.arguments.push((text, hash));
        }
    }

    /// The hash of the values of all conditions with one value.
    #[inline]
    fn exact(&self, mask: Mask) -> u64 {
        let mut hash = self.hasher.start();
        for (bit, value) in self.header.iter().enumerate() {
            if mask.has(1 << bit) {
                hash = fold(hash, *value);
            }
        }
        for index in bits(mask.equals) {
            hash = fold(hash, self.arguments[usize::from(index)].1);
        }
        hash
    }

    fn find(&self, namespace: Namespace) -> Result<usize, usize> {
        self.prefixes
            .binary_search_by_key(&namespace, |(other, _)| *other)
    }

    /// The place of a namespace's prefixes, which are computed when first asked for.
    fn prepare(&mut self, index: &MatchIndex, namespace: Namespace) -> usize {
        match self.find(namespace) {
            Ok(place) => place,
            Err(place) => {
                let text = match namespace {
                    Namespace::PATH => self.path,
                    Namespace::ARG0 => self.arguments[0].0,
                    _ => {
                        let index = namespace.path_argument().unwrap_or_default();
                        self.arguments[usize::from(index)].0
                    }
                };
                let depth = index.forms.max_depth(namespace);
                let prefixes = self.hasher.prefixes(namespace, text, depth);
                self.prefixes.insert(place, (namespace, prefixes));
                place
            }
        }
    }
}
