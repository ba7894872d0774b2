//! All forms of rules, and what they want to know of a message.

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use super::form::{Form, RuleId};
use super::key::{Depth, Hasher, Key, Mask, Namespace, bits};

/// The [`Form`]s by the last argument that they look at: a message with two arguments meets none that looks at a third.
#[derive(Debug)]
pub(super) struct Forms {
    by_mask: HashMap<Mask, u32, FixedState>,
    forms: Vec<Option<Form>>,
    free: Vec<u32>,
    groups: SmallVec<[Group; 2]>,
    wants: Wants,
}

#[derive(Debug)]
struct Group {
    last_argument: Option<u8>,
    /// The masks once more, so that forms which do not apply are passed over quickly.
    forms: Vec<(Mask, u32)>,
}

/// What any form looks at.
#[derive(Debug, Default)]
struct Wants {
    mask: Mask,
    /// How many forms look at it, by the number of the bit.
    counts: Counts,
    /// How many rules have a namespace of so many elements, by that number.
    depths: Vec<(Namespace, Vec<(Depth, u32)>)>,
}

#[derive(Debug, Default)]
struct Counts {
    header: [u32; 8],
    equals: Vec<u32>,
    paths: Vec<u32>,
}

impl Forms {
    pub(super) fn new(hasher: &Hasher) -> Self {
        Self {
            by_mask: HashMap::with_hasher(hasher.state()),
            forms: Vec::new(),
            free: Vec::new(),
            groups: SmallVec::new(),
            wants: Wants::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_mask.is_empty()
            && self.groups.is_empty()
            && self.wants.mask == Mask::default()
            && self.wants.depths.is_empty()
    }

    /// Whatever any form looks at.
    #[inline]
    pub(super) fn wanted(&self) -> Mask {
        self.wants.mask
    }

    /// The most elements that a namespace has in any rule.
    pub(super) fn max_depth(&self, namespace: Namespace) -> Depth {
        let found = self.wants.find(namespace).ok();
        let depths = found.and_then(|place| self.wants.depths[place].1.last());
        depths.map_or(0, |(depth, _)| *depth)
    }

    /// The forms whose conditions are all among those that a message may satisfy.
    #[inline]
    pub(super) fn within(&self, present: Mask) -> impl Iterator<Item = &Form> {
        let arguments = present.arguments();
        let groups = self.groups.iter().filter(move |group| {
            group
                .last_argument
                .is_none_or(|index| arguments & (1 << index) != 0)
        });
        groups
            .flat_map(|group| &group.forms)
            .filter(move |(mask, _)| mask.is_within(present))
            .filter_map(|(_, id)| self.forms[*id as usize].as_ref())
    }

    pub(super) fn insert(&mut self, key: &Key, rule: RuleId) {
        self.wants.add_depths(key);
        self.form_mut(key.mask).insert(key, rule);
    }

    pub(super) fn remove(&mut self, key: &Key, rule: RuleId) {
        self.wants.remove_depths(key);
        let form = self.form_mut(key.mask);
        form.remove(key, rule);
        if form.is_empty() {
            self.drop_form(key.mask);
        }
    }

    /// The form of the rules with these conditions.
    pub(super) fn form_mut(&mut self, mask: Mask) -> &mut Form {
        let id = match self.by_mask.get(&mask) {
            Some(id) => *id,
            None => self.add_form(mask),
        };
        // The slot of an id that is in use is never empty.
        self.forms[id as usize].get_or_insert_with(|| Form::new(mask, 0))
    }

    fn add_form(&mut self, mask: Mask) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.forms.push(None);
            (self.forms.len() - 1) as u32
        });
        let last_argument = mask.last_argument();
        let of_same = |group: &Group| group.last_argument == last_argument;
        let group = self.groups.iter().position(of_same).unwrap_or_else(|| {
            self.groups.push(Group {
                last_argument,
                forms: Vec::new(),
            });
            self.groups.len() - 1
        });
        let group = &mut self.groups[group].forms;
        self.forms[id as usize] = Some(Form::new(mask, group.len()));
        group.push((mask, id));
        self.by_mask.insert(mask, id);
        self.wants.add(mask);
        id
    }

    fn drop_form(&mut self, mask: Mask) {
        let Some(id) = self.by_mask.remove(&mask) else {
            return;
        };
        let Some(form) = self.forms[id as usize].take() else {
            return;
        };
        self.free.push(id);
        self.wants.remove(mask);
        let of_same = |group: &Group| group.last_argument == mask.last_argument();
        let Some(at) = self.groups.iter().position(of_same) else {
            return;
        };
        let group = &mut self.groups[at].forms;
        group.swap_remove(form.place);
        if let Some((_, moved)) = group.get(form.place)
            && let Some(moved) = &mut self.forms[*moved as usize]
        {
            moved.place = form.place;
        }
        if group.is_empty() {
            self.groups.swap_remove(at);
        }
    }
}

impl Wants {
    fn add(&mut self, mask: Mask) {
        let Self {
            mask: all, counts, ..
        } = self;
        all.header |= mask.header;
        all.equals |= mask.equals;
        all.paths |= mask.paths;
        counts.each(mask, |count, _, _| *count += 1);
    }

    fn remove(&mut self, mask: Mask) {
        let Self {
            mask: all, counts, ..
        } = self;
        counts.each(mask, |count, part, bit| {
            *count -= 1;
            if *count == 0 {
                match part {
                    Part::Header => all.header &= !(1 << bit),
                    Part::Equals => all.equals &= !(1 << bit),
                    Part::Paths => all.paths &= !(1 << bit),
                }
            }
        });
    }

    fn find(&self, namespace: Namespace) -> Result<usize, usize> {
        self.depths.binary_search_by_key(&namespace, |(other, _)| *other)
    }

    fn add_depths(&mut self, key: &Key) {
        for (namespace, depth) in key.mask.namespaces().zip(&key.depths) {
            let place = self.find(namespace).unwrap_or_else(|place| {
                self.depths.insert(place, (namespace, Vec::new()));
                place
            });
            let depths = &mut self.depths[place].1;
            match depths.binary_search_by_key(depth, |(depth, _)| *depth) {
                Ok(place) => depths[place].1 += 1,
                Err(place) => depths.insert(place, (*depth, 1)),
            }
        }
    }

    fn remove_depths(&mut self, key: &Key) {
        for (namespace, depth) in key.mask.namespaces().zip(&key.depths) {
            let Ok(at) = self.find(namespace) else { continue };
            let depths = &mut self.depths[at].1;
            let Ok(place) = depths.binary_search_by_key(depth, |(depth, _)| *depth) else {
                continue;
            };
            depths[place].1 -= 1;
            if depths[place].1 == 0 {
                depths.remove(place);
            }
            if depths.is_empty() {
                self.depths.remove(at);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Header,
    Equals,
    Paths,
}

impl Counts {
    fn each(&mut self, mask: Mask, mut visit: impl FnMut(&mut u32, Part, u8)) {
        for bit in bits(mask.header.into()) {
            visit(&mut self.header[usize::from(bit)], Part::Header, bit);
        }
        for (counts, set, part) in [
            (&mut self.equals, mask.equals, Part::Equals),
            (&mut self.paths, mask.paths, Part::Paths),
        ] {
            for bit in bits(set) {
                let index = usize::from(bit);
                if counts.len() <= index {
                    counts.resize(index + 1, 0);
                }
                visit(&mut counts[index], part, bit);
            }
        }
    }
}
