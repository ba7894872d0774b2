//! Where a rule lies in the index: which conditions it has, how deep its namespaces are, and the hash of it all.

use std::hash::BuildHasher;

use bus_wire::MessageType;
use bus_wire::match_rule::{ArgKind, MAX_RULE, PathCondition};
use foldhash::fast::FixedState;
use smallvec::SmallVec;

use super::side::is_well_known;
use crate::broker::match_rule::MatchRule;

/// A set of conditions, or of what a message has to satisfy conditions with.
///
/// Conditions on well-known names are not in it: the names of a side are several, and looked for last (see
/// [`Node`](super::form::Node)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Mask {
    /// Of the constants below.
    pub(super) header: u8,
    /// `argN`, one bit each.
    pub(super) equals: u64,
    /// `argNpath`, one bit each.
    pub(super) paths: u64,
}

impl Mask {
    pub(super) const TYPE: u8 = 1;
    pub(super) const SENDER: u8 = 2;
    pub(super) const INTERFACE: u8 = 4;
    pub(super) const MEMBER: u8 = 8;
    pub(super) const PATH: u8 = 16;
    pub(super) const DESTINATION: u8 = 32;
    pub(super) const PATH_NAMESPACE: u8 = 64;
    pub(super) const ARG0_NAMESPACE: u8 = 128;

    /// How many of the constants stand for one value; they come first.
    pub(super) const EXACT: usize = 6;

    #[inline]
    pub(super) fn has(self, condition: u8) -> bool {
        self.header & condition != 0
    }

    /// Whether all conditions of this set are in the other.
    #[inline]
    pub(super) fn is_within(self, other: Self) -> bool {
        (self.header & !other.header) == 0
            && ((self.equals & !other.equals) | (self.paths & !other.paths)) == 0
    }

    /// The arguments that are looked at, one bit each.
    #[inline]
    pub(super) fn arguments(self) -> u64 {
        self.equals | self.paths | u64::from(self.has(Self::ARG0_NAMESPACE))
    }

    /// The highest of them.
    pub(super) fn last_argument(self) -> Option<u8> {
        self.arguments().checked_ilog2().map(|bit| bit as u8)
    }

    #[inline]
    pub(super) fn has_namespaces(self) -> bool {
        self.has(Self::PATH_NAMESPACE | Self::ARG0_NAMESPACE) || self.paths != 0
    }

    /// The conditions that one of several prefixes of a value may satisfy, ascending.
    #[inline]
    pub(super) fn namespaces(self) -> Namespaces {
        Namespaces {
            header: self.header & (Self::PATH_NAMESPACE | Self::ARG0_NAMESPACE),
            paths: self.paths,
        }
    }
}

/// See [`Mask::namespaces`].
pub(super) struct Namespaces {
    header: u8,
    paths: u64,
}

impl Iterator for Namespaces {
    type Item = Namespace;

    #[inline]
    fn next(&mut self) -> Option<Namespace> {
        for (condition, namespace) in [
            (Mask::PATH_NAMESPACE, Namespace::PATH),
            (Mask::ARG0_NAMESPACE, Namespace::ARG0),
        ] {
            if self.header & condition != 0 {
                self.header &= !condition;
                return Some(namespace);
            }
        }
        if self.paths == 0 {
            return None;
        }
        let index = self.paths.trailing_zeros();
        self.paths &= self.paths - 1;
        Some(Namespace::argument_path(index as u8))
    }
}

/// The places of the bits that are set, ascending.
pub(super) fn bits(mut set: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let bit = (set != 0).then(|| set.trailing_zeros() as u8)?;
        set &= set - 1;
        Some(bit)
    })
}

/// One of the conditions that look at prefixes: `path_namespace`, `arg0namespace`, `arg0path` to `arg63path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Namespace(u8);

impl Namespace {
    pub(super) const PATH: Self = Self(0);
    pub(super) const ARG0: Self = Self(1);
    pub(super) fn argument_path(index: u8) -> Self {
        Self(2 + index)
    }

    /// The argument that an `argNpath` looks at.
    pub(super) fn path_argument(self) -> Option<u8> {
        self.0.checked_sub(2)
    }
}

/// How many elements the value of a namespace has. Of an `argNpath` these are those that end with a slash, and 0 stands for
/// a value that does not: then the argument has to be the same.
pub(super) type Depth = u16;

/// The depth of each of a rule's namespaces, in their order.
pub(super) type Depths = SmallVec<[Depth; 2]>;

/// The place of one rule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Key {
    pub(super) mask: Mask,
    pub(super) depths: Depths,
    /// Of the values of all conditions with one value.
    pub(super) exact: u64,
    /// Of these and of the namespaces.
    pub(super) hash: u64,
    /// Well-known names: the sender's, then the destination's.
    pub(super) names: SmallVec<[u64; 1]>,
}

/// Which messages an index is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Signals without a destination. Rules for anything else are kept, and never met.
    Broadcasts,
    /// Any message.
    Everything,
}

/// Hashes the values of conditions; seeded, so that a peer cannot choose rules that collide.
#[derive(Debug, Clone)]
pub(super) struct Hasher {
    state: FixedState,
    start: u64,
}

impl Hasher {
    pub(super) fn new(seed: u64) -> Self {
        let state = FixedState::with_seed(seed);
        let start = state.hash_one(seed);
        Self { state, start }
    }

    /// For the maps of the index.
    pub(super) fn state(&self) -> FixedState {
        self.state.clone()
    }

    #[inline]
    pub(super) fn text(&self, text: &str) -> u64 {
        self.state.hash_one(text)
    }

    /// Of all that a rule says. `key` is its own: so its texts are hashed once.
    pub(super) fn rule(&self, rule: &MatchRule, key: Option<&Key>) -> u64 {
        let Some(key) = key else {
            return self.state.hash_one(rule);
        };
        let message_type = rule.message_type.map_or(0, MessageType::code);
        let rest = u64::from(message_type) << 1 | u64::from(rule.eavesdrop);
        let values = fold(fold(key.hash, self.form(key)), rest);
        key.names.iter().fold(values, |hash, name| fold(hash, *name))
    }

    #[inline]
    pub(super) fn message_type(&self, message_type: MessageType) -> u64 {
        fold(self.start, message_type.code().into())
    }

    /// A well-known name of the sender.
    pub(super) fn sender(&self, name: &str) -> u64 {
        self.text(name)
    }

    /// A well-known name of the recipient.
    pub(super) fn destination(&self, name: &str) -> u64 {
        fold(self.start, self.text(name))
    }

    /// Of what a message has to be looked up by, without the values.
    pub(super) fn form(&self, key: &Key) -> u64 {
        self.state.hash_one((key.mask, &key.depths[..]))
    }

    /// The state in which a combined hash starts; [`fold`] the values in the order of [`Mask`]'s constants, then the
    /// arguments, then the namespaces.
    #[inline]
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Where a rule belongs; `None` for one that matches nothing in this scope.
    pub(super) fn key(&self, rule: &MatchRule, scope: Scope) -> Option<Key> {
        let mut key = Key {
            exact: self.start,
            ..Key::default()
        };
        match (scope, rule.message_type) {
            (_, None) | (Scope::Broadcasts, Some(MessageType::Signal)) => {}
            (Scope::Broadcasts, Some(_)) => return None,
            (Scope::Everything, Some(message_type)) => {
                key.add(Mask::TYPE, self.message_type(message_type));
            }
        }
        if scope == Scope::Broadcasts && rule.destination.is_some() {
            return None;
        }
        let path = match &rule.path {
            Some(PathCondition::Exact(path)) => Some(&**path),
            Some(PathCondition::Namespace(_)) | None => None,
        };
        let (mut sender, mut destination) = (rule.sender.as_deref(), rule.destination.as_deref());
        let mut well_known = |name: &mut Option<&str>, hash: fn(&Self, &str) -> u64| {
            if let Some(name) = name.take_if(|name| is_well_known(name)) {
                key.names.push(hash(self, name));
            }
        };
        well_known(&mut sender, Self::sender);
        well_known(&mut destination, Self::destination);
        let exact = [
            (Mask::SENDER, sender),
            (Mask::INTERFACE, rule.interface.as_deref()),
            (Mask::MEMBER, rule.member.as_deref()),
            (Mask::PATH, path),
            (Mask::DESTINATION, destination),
        ];
        for (condition, value) in exact {
            if let Some(value) = value {
                key.add(condition, self.text(value));
            }
        }
        for argument in rule
            .args
            .iter()
            .filter(|argument| argument.kind == ArgKind::Equals)
        {
            key.mask.equals |= 1 << argument.index;
            key.exact = fold(key.exact, self.text(&argument.value));
        }
        key.hash = key.exact;
        self.add_namespaces(rule, &mut key);
        Some(key)
    }

    fn add_namespaces(&self, rule: &MatchRule, key: &mut Key) {
        if let Some(PathCondition::Namespace(root)) = &rule.path {
            key.mask.header |= Mask::PATH_NAMESPACE;
            key.add_namespace(&self.prefixes(Namespace::PATH, root, Depth::MAX));
        }
        for argument in &rule.args {
            match argument.kind {
                ArgKind::Equals => {}
                ArgKind::Namespace => {
                    key.mask.header |= Mask::ARG0_NAMESPACE;
                    key.add_namespace(&self.prefixes(Namespace::ARG0, &argument.value, Depth::MAX));
                }
                ArgKind::Path => {
                    key.mask.paths |= 1 << argument.index;
                    let namespace = Namespace::argument_path(argument.index);
                    let mut prefixes = self.prefixes(namespace, &argument.value, Depth::MAX);
                    if !argument.value.ends_with('/') {
                        prefixes.truncate(1);
                    }
                    key.add_namespace(&prefixes);
                }
            }
        }
    }

    /// Hashes of a value's beginnings, by their depth; up to a depth, and not beyond what a rule has room for.
    ///
    /// - A path: `/`, its first element, its first two, and so on.
    /// - `arg0`: nothing, the text up to its first dot, up to its second, and so on.
    /// - An argument as a path: the whole of it, the text up to and with its first slash, its second, and so on.
    pub(super) fn prefixes(&self, namespace: Namespace, text: &str, depth: Depth) -> Prefixes {
        match namespace {
            Namespace::PATH => {
                let elements = text.split('/').skip(1).filter(|element| !element.is_empty());
                self.fold_prefixes(self.start, elements, depth)
            }
            Namespace::ARG0 => self.fold_prefixes(self.start, text.split('.'), depth),
            Namespace(_) => {
                let whole = if text.len() <= MAX_RULE {
                    self.text(text)
                } else {
                    // No rule has this value, nor a value that is anything with this hash.
                    self.start
                };
                let elements = text.split_inclusive('/').filter(|element| element.ends_with('/'));
                self.fold_prefixes(whole, elements, depth)
            }
        }
    }

    fn fold_prefixes<'t>(
        &self,
        first: u64,
        elements: impl Iterator<Item = &'t str>,
        depth: Depth,
    ) -> Prefixes {
        let mut hash = self.start;
        let mut left = MAX_RULE;
        let mut prefixes = Prefixes::new();
        prefixes.push(first);
        for element in elements.take(depth.into()) {
            let Some(rest) = left.checked_sub(element.len()) else {
                break;
            };
            left = rest;
            hash = fold(hash, self.text(element));
            prefixes.push(hash);
        }
        prefixes
    }
}

impl Key {
    fn add(&mut self, condition: u8, value: u64) {
        self.mask.header |= condition;
        self.exact = fold(self.exact, value);
    }

    /// Adds the longest of the prefixes.
    fn add_namespace(&mut self, prefixes: &Prefixes) {
        self.depths.push((prefixes.len() - 1) as Depth);
        self.hash = fold(self.hash, prefixes[prefixes.len() - 1]);
    }
}

/// By the number of elements.
pub(super) type Prefixes = SmallVec<[u64; 12]>;

/// Adds the hash of one more condition.
#[inline]
pub(super) fn fold(hash: u64, value: u64) -> u64 {
    let mixed = (hash.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}
