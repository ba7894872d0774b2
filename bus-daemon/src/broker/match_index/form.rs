//! The rules that have the same set of conditions.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use smallvec::SmallVec;

use super::key::{Depths, Key, Mask, Namespace};
use crate::broker::event::PeerId;

/// Number of a rule in the index's slab.
pub(in crate::broker) type RuleId = u32;

/// A hash table from the values of the conditions in a [`Mask`] to rules.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) mask: Mask,
    /// Where it stands among those with the same last argument.
    pub(super) place: usize,
    /// Of a form with namespaces: how deep they are, by the hash of the conditions that have one value.
    shapes: HashTable<Shape>,
    buckets: HashTable<Bucket>,
    /// Of rules with an `argNpath`: a message may have a shorter path than the rule.
    pub(super) below: BTreeSet<Below>,
}

/// How deep the namespaces are of rules that agree in all conditions with one value.
#[derive(Debug)]
pub(super) struct Shape {
    exact: u64,
    /// Ascending, and how many rules have these depths. Each costs a look-up.
    depths: Vec<(Depths, u32)>,
}

#[derive(Debug)]
struct Bucket {
    hash: u64,
    node: Node,
}

/// Rules that agree in everything that was looked up so far.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Those of which nothing is left.
    pub(super) rules: SmallVec<[RuleId; 2]>,
    /// Those that name a well-known name besides.
    pub(super) names: Names,
}

/// Nodes by the well-known name of a sender or of a recipient.
#[derive(Debug)]
pub(super) enum Names {
    Few(Vec<NameNode>),
    Many(HashTable<NameNode>),
}

#[derive(Debug)]
pub(super) struct NameNode {
    hash: u64,
    pub(super) node: Node,
}

/// One `argNpath` of a rule that a peer has. Those of one peer are in the order of their values, so that one of them that
/// begins with the argument of a message is found without looking at the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Below {
    /// Of the rule's conditions that have one value.
    pub(super) exact: u64,
    pub(super) namespace: Namespace,
    pub(super) peer: PeerId,
    pub(super) value: Arc<str>,
    pub(super) rule: RuleId,
}

impl Form {
    pub(super) fn new(mask: Mask, place: usize) -> Self {
        Self {
            mask,
            place,
            shapes: HashTable::new(),
            buckets: HashTable::new(),
            below: BTreeSet::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    pub(super) fn insert(&mut self, key: &Key, rule: RuleId) {
        if !key.depths.is_empty() {
            let same = |shape: &Shape| shape.exact == key.exact;
            let shape = self.shapes.entry(key.exact, same, |shape| shape.exact);
            let new = || Shape {
                exact: key.exact,
                depths: Vec::new(),
            };
            shape.or_insert_with(new).into_mut().insert(&key.depths);
        }
        let same = |bucket: &Bucket| bucket.hash == key.hash;
        let mut bucket = match self.buckets.entry(key.hash, same, |bucket| bucket.hash) {
            Entry::Occupied(bucket) => bucket,
            Entry::Vacant(place) => place.insert(Bucket {
                hash: key.hash,
                node: Node::default(),
            }),
        };
        bucket.get_mut().node.insert(&key.names, rule);
    }

    pub(super) fn remove(&mut self, key: &Key, rule: RuleId) {
        let same = |bucket: &Bucket| bucket.hash == key.hash;
        let Ok(mut bucket) = self.buckets.find_entry(key.hash, same) else {
            debug_assert!(false, "a rule without a bucket");
            return;
        };
        bucket.get_mut().node.remove(&key.names, rule);
        if bucket.get().node.is_empty() {
            bucket.remove();
        }
        let same = |shape: &Shape| shape.exact == key.exact;
        if let Ok(mut shape) = self.shapes.find_entry(key.exact, same) {
            shape.get_mut().remove(&key.depths);
            if shape.get().depths.is_empty() {
                shape.remove();
            }
        }
    }

    /// How deep the namespaces are of the rules whose other conditions have this hash; `None` if there is no such rule.
    #[inline]
    pub(super) fn shape(&self, exact: u64) -> Option<&Shape> {
        self.shapes.find(exact, |shape| shape.exact == exact)
    }

    /// Rules whose conditions have this hash; nearly always those that have these values.
    #[inline]
    pub(super) fn find(&self, hash: u64) -> Option<&Node> {
        let bucket = self.buckets.find(hash, |bucket| bucket.hash == hash)?;
        Some(&bucket.node)
    }
}

impl Shape {
    /// The n-th of the depths that there are, which are in ascending order.
    pub(super) fn depths(&self, place: usize) -> Option<&Depths> {
        self.depths.get(place).map(|(depths, _)| depths)
    }

    /// Behind the depths that agree with these in so many namespaces: all of them are as deep in the next.
    pub(super) fn skip(&self, place: usize, agreeing: usize) -> usize {
        let rest = &self.depths[place..];
        let Some((depths, _)) = rest.first() else {
            return place;
        };
        place + rest.partition_point(|(other, _)| other[..agreeing] == depths[..agreeing])
    }

    fn insert(&mut self, depths: &Depths) {
        match self.find(depths) {
            Ok(place) => self.depths[place].1 += 1,
            Err(place) => {
                if self.depths.is_empty() {
                    // Nearly always there is no other.
                    self.depths.reserve_exact(1);
                }
                self.depths.insert(place, (depths.clone(), 1));
            }
        }
    }

    fn remove(&mut self, depths: &Depths) {
        if let Ok(place) = self.find(depths) {
            self.depths[place].1 -= 1;
            if self.depths[place].1 == 0 {
                self.depths.remove(place);
            }
        }
    }

    fn find(&self, depths: &Depths) -> Result<usize, usize> {
        self.depths.binary_search_by(|(other, _)| other.cmp(depths))
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.names.len() == 0
    }

    fn insert(&mut self, names: &[u64], rule: RuleId) {
        match names {
            [] => self.rules.push(rule),
            [first, rest @ ..] => self.names.entry(*first).insert(rest, rule),
        }
    }

    fn remove(&mut self, names: &[u64], rule: RuleId) {
        match names {
            [] => self.rules.retain(|other| *other != rule),
            [first, rest @ ..] => self.names.remove(*first, |node| node.remove(rest, rule)),
        }
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Names {
    /// So many are searched one by one.
    const FEW: usize = 8;

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &NameNode> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }

    pub(super) fn find(&self, hash: u64) -> Option<&Node> {
        let found = match self {
            Self::Few(few) => few.iter().find(|name| name.hash == hash),
            Self::Many(many) => many.find(hash, |name| name.hash == hash),
        };
        found.map(|name| &name.node)
    }

    fn entry(&mut self, hash: u64) -> &mut Node {
        let new = || NameNode {
            hash,
            node: Node::default(),
        };
        if let Self::Few(few) = self
            && few.len() == Self::FEW
            && few.iter().all(|name| name.hash != hash)
        {
            let mut many = HashTable::with_capacity(2 * Self::FEW);
            for name in few.drain(..) {
                many.insert_unique(name.hash, name, |name: &NameNode| name.hash);
            }
            *self = Self::Many(many);
        }
        match self {
            Self::Few(few) => {
                let place = few.iter().position(|name| name.hash == hash);
                let place = place.unwrap_or_else(|| {
                    few.reserve_exact(1);
                    few.push(new());
                    few.len() - 1
                });
                &mut few[place].node
            }
            Self::Many(many) => {
                let entry = many.entry(hash, |name| name.hash == hash, |name| name.hash);
                &mut entry.or_insert_with(new).into_mut().node
            }
        }
    }

    /// Changes a node, and forgets one that is empty then.
    fn remove(&mut self, hash: u64, change: impl FnOnce(&mut Node)) {
        match self {
            Self::Few(few) => {
                let Some(place) = few.iter().position(|name| name.hash == hash) else {
                    return;
                };
                change(&mut few[place].node);
                if few[place].node.is_empty() {
                    few.swap_remove(place);
                }
            }
            Self::Many(many) => {
                let Ok(mut name) = many.find_entry(hash, |name| name.hash == hash) else {
                    return;
                };
                change(&mut name.get_mut().node);
                if name.get().node.is_empty() {
                    name.remove();
                }
                if many.is_empty() {
                    *self = Self::default();
                }
            }
        }
    }
}
