//! Where a rule lies in the index: which exact conditions it has, and the hash of their values.

use std::hash::BuildHasher;

use bus_wire::MatchRule;
use bus_wire::match_rule::{ArgKind, PathCondition};
use foldhash::fast::FixedState;
use smallvec::SmallVec;

/// The set of hashed conditions that a rule has. All rules with the same set share one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mask(u8);

impl Mask {
    pub(super) const SENDER: Self = Self(1);
    pub(super) const INTERFACE: Self = Self(2);
    pub(super) const MEMBER: Self = Self(4);
    pub(super) const PATH: Self = Self(8);
    pub(super) const PATH_NAMESPACE: Self = Self(16);
    pub(super) const ARG0: Self = Self(32);
    pub(super) const ARG0_NAMESPACE: Self = Self(64);

    pub(super) fn has(self, condition: Self) -> bool {
        self.0 & condition.0 != 0
    }

    pub(super) fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The place of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    pub(super) mask: Mask,
    pub(super) hash: u64,
    /// Hash of the sender, for the table of senders that any rule names.
    pub(super) sender: Option<u64>,
    /// Components of the root in `path_namespace`; 0 for `/` and where there is none.
    pub(super) path_depth: u16,
    /// Components of `arg0namespace`; 0 where there is none.
    pub(super) arg0_depth: u16,
}

impl Key {
    fn add(&mut self, condition: Mask, value: u64) {
        self.mask = self.mask.union(condition);
        self.hash = fold(self.hash, value);
    }

    /// Adds the longest of the prefixes, and says how many components it has.
    fn add_namespace(&mut self, condition: Mask, prefixes: &Prefixes) -> u16 {
        if let Some(whole) = prefixes.last() {
            self.add(condition, *whole);
        }
        // A rule has far fewer characters than this has room for.
        u16::try_from(prefixes.len().saturating_sub(1)).unwrap_or(u16::MAX)
    }
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

    pub(super) fn text(&self, text: &str) -> u64 {
        self.state.hash_one(text)
    }

    pub(super) fn rule(&self, rule: &MatchRule) -> u64 {
        self.state.hash_one(rule)
    }

    /// The state in which a combined hash starts; fold the conditions in the order of [`Mask`]'s constants.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn key(&self, rule: &MatchRule) -> Key {
        let mut key = Key {
            mask: Mask::default(),
            hash: self.start,
            sender: None,
            path_depth: 0,
            arg0_depth: 0,
        };
        if let Some(interface) = &rule.interface {
            key.add(Mask::INTERFACE, self.text(interface));
        }
        if let Some(member) = &rule.member {
            key.add(Mask::MEMBER, self.text(member));
        }
        match &rule.path {
            Some(PathCondition::Exact(path)) => key.add(Mask::PATH, self.text(path)),
            Some(PathCondition::Namespace(root)) => {
                key.path_depth =
                    key.add_namespace(Mask::PATH_NAMESPACE, &self.path_prefixes(root, usize::MAX));
            }
            None => {}
        }
        if let Some(condition) = rule.args.first().filter(|condition| condition.index == 0) {
            match condition.kind {
                ArgKind::Equals => key.add(Mask::ARG0, self.text(&condition.value)),
                ArgKind::Namespace => {
                    let prefixes = self.arg0_prefixes(&condition.value, usize::MAX);
                    key.arg0_depth = key.add_namespace(Mask::ARG0_NAMESPACE, &prefixes);
                }
                ArgKind::Path => {}
            }
        }
        if let Some(sender) = &rule.sender {
            let hash = self.text(sender);
            key.add(Mask::SENDER, hash);
            key.sender = Some(hash);
        }
        key
    }

    /// Hashes of `/`, of the path's first component, its first two, and so on up to `depth` components.
    pub(super) fn path_prefixes(&self, path: &str, depth: usize) -> Prefixes {
        let components = path.split('/').skip(1).filter(|component| !component.is_empty());
        self.prefixes(components, depth)
    }

    /// Hashes of nothing, of the text up to its first dot, up to its second, and so on up to `depth` of them.
    pub(super) fn arg0_prefixes(&self, text: &str, depth: usize) -> Prefixes {
        self.prefixes(text.split('.'), depth)
    }

    fn prefixes<'t>(&self, components: impl Iterator<Item = &'t str>, depth: usize) -> Prefixes {
        let mut hash = self.start;
        let mut prefixes = Prefixes::new();
        prefixes.push(hash);
        for component in components.take(depth) {
            hash = fold(hash, self.text(component));
            prefixes.push(hash);
        }
        prefixes
    }
}

/// By the number of components.
pub(super) type Prefixes = SmallVec<[u64; 12]>;

/// Adds the hash of one more condition.
pub(super) fn fold(hash: u64, value: u64) -> u64 {
    let mixed = (hash.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 32)
}
