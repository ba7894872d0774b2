//! The rules that have the same set of hashed conditions.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use smallvec::SmallVec;

use super::key::{Key, Mask};

/// Number of a rule in the index's slab.
pub(in crate::broker) type RuleId = u32;

/// A hash table from the values of the conditions in `mask` to rules.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) mask: Mask,
    pub(super) path_depths: Depths,
    pub(super) arg0_depths: Depths,
    buckets: HashTable<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    hash: u64,
    rules: SmallVec<[RuleId; 2]>,
}

impl Table {
    pub(super) fn new(mask: Mask) -> Self {
        Self {
            mask,
            path_depths: Depths::default(),
            arg0_depths: Depths::default(),
            buckets: HashTable::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    pub(super) fn insert(&mut self, key: &Key, rule: RuleId) {
        self.path_depths.insert(key.path_depth);
        self.arg0_depths.insert(key.arg0_depth);
        let same = |bucket: &Bucket| bucket.hash == key.hash;
        match self.buckets.entry(key.hash, same, |bucket| bucket.hash) {
            Entry::Occupied(mut bucket) => bucket.get_mut().rules.push(rule),
            Entry::Vacant(place) => {
                place.insert(Bucket {
                    hash: key.hash,
                    rules: SmallVec::from_slice(&[rule]),
                });
            }
        }
    }

    pub(super) fn remove(&mut self, key: &Key, rule: RuleId) {
        let Ok(mut bucket) = self
            .buckets
            .find_entry(key.hash, |bucket| bucket.hash == key.hash)
        else {
            debug_assert!(false, "a rule without a bucket");
            return;
        };
        bucket.get_mut().rules.retain(|other| *other != rule);
        if bucket.get().rules.is_empty() {
            bucket.remove();
        }
        self.path_depths.remove(key.path_depth);
        self.arg0_depths.remove(key.arg0_depth);
    }

    /// Rules whose conditions have this hash; nearly always those that have these values.
    pub(super) fn find(&self, hash: u64) -> &[RuleId] {
        self.buckets
            .find(hash, |bucket| bucket.hash == hash)
            .map_or(&[], |bucket| &bucket.rules)
    }
}

/// How many rules there are with a namespace of so many components, by that number.
#[derive(Debug, Default)]
pub(super) struct Depths(SmallVec<[(u16, u32); 2]>);

impl Depths {
    fn insert(&mut self, depth: u16) {
        match self.0.binary_search_by_key(&depth, |(depth, _)| *depth) {
            Ok(place) => self.0[place].1 += 1,
            Err(place) => self.0.insert(place, (depth, 1)),
        }
    }

    fn remove(&mut self, depth: u16) {
        if let Ok(place) = self.0.binary_search_by_key(&depth, |(depth, _)| *depth) {
            self.0[place].1 -= 1;
            if self.0[place].1 == 0 {
                self.0.remove(place);
            }
        }
    }

    /// Ascending, each once.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        self.0.iter().map(|(depth, _)| usize::from(*depth))
    }

    pub(super) fn max(&self) -> usize {
        self.0.last().map_or(0, |(depth, _)| usize::from(*depth))
    }
}
