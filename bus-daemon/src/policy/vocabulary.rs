//! The texts and names that rules speak of, as numbers.

use smallvec::SmallVec;

use super::Map;
use super::rules::NamePattern;

/// A pattern of names that a rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u32);

impl Mark {
    pub(super) const fn number(self) -> u32 {
        self.0
    }
}

/// The patterns that a name matches.
pub type Marks = SmallVec<[Mark; 4]>;

/// All patterns of names in a policy, each once.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    exact: Map<Box<str>, Mark>,
    prefixes: Map<Box<str>, Mark>,
}

impl Patterns {
    /// The mark of a pattern, which is a new one if need be; `None` for `*`.
    pub(super) fn mark(&mut self, pattern: &NamePattern) -> Option<Mark> {
        // 0 stands for no condition.
        let next = Mark((self.exact.len() + self.prefixes.len()) as u32 + 1);
        let (map, text) = match pattern {
            NamePattern::Any => return None,
            NamePattern::Exact(name) => (&mut self.exact, name),
            NamePattern::Prefix(prefix) => (&mut self.prefixes, prefix),
        };
        Some(*map.entry(text.as_str().into()).or_insert(next))
    }

    /// What is known of a pattern.
    pub(super) fn find(&self, pattern: &NamePattern) -> Option<Mark> {
        match pattern {
            NamePattern::Any => None,
            NamePattern::Exact(name) => self.exact.get(name.as_str()).copied(),
            NamePattern::Prefix(prefix) => self.prefixes.get(prefix.as_str()).copied(),
        }
    }

    /// Whether rules speak of no name.
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty()
    }

    /// The patterns that a name matches: itself, and each prefix of it that ends before a period or with it.
    pub fn of(&self, name: &str) -> Marks {
        let mut marks = Marks::new();
        marks.extend(self.exact.get(name).copied());
        if !self.prefixes.is_empty() {
            let ends = name.match_indices('.').map(|(end, _)| end).chain([name.len()]);
            let found = ends.filter_map(|end| self.prefixes.get(&name[..end]));
            // An empty prefix never matches.
            marks.extend(found.filter(|_| !name.is_empty()).copied());
        }
        marks
    }
}

/// What rules see of the names of a peer, owned and waited for: the patterns that one of them matches. It follows the names one
/// by one, so that no verdict walks them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// With how many names match, never 0; sorted.
    marks: Vec<(Mark, u32)>,
}

impl Standing {
    /// That of a party with one name: the bus, or a name that nobody owns and a service can be started for.
    pub fn of(name: &str, patterns: &Patterns) -> Self {
        let mut standing = Self::default();
        standing.add(name, patterns);
        standing
    }

    /// The peer owns, or waits for, one name more.
    pub fn add(&mut self, name: &str, patterns: &Patterns) {
        for mark in patterns.of(name) {
            match self.marks.binary_search_by_key(&mark, |(mark, _)| *mark) {
                Ok(at) => self.marks[at].1 += 1,
                Err(at) => self.marks.insert(at, (mark, 1)),
            }
        }
    }

    /// The peer does not own, or wait for, a name any more that was [added](Self::add).
    pub fn remove(&mut self, name: &str, patterns: &Patterns) {
        for mark in patterns.of(name) {
            if let Ok(at) = self.marks.binary_search_by_key(&mark, |(mark, _)| *mark) {
                self.marks[at].1 -= 1;
                if self.marks[at].1 == 0 {
                    self.marks.remove(at);
                }
            }
        }
    }

    /// Whether rules see nothing: as of a party without names.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// The patterns, each once.
    pub fn marks(&self) -> impl Iterator<Item = Mark> + '_ {
        self.marks.iter().map(|(mark, _)| *mark)
    }
}

/// The texts that rules compare fields of messages with.
#[derive(Debug, Clone, Default)]
pub(super) struct Texts(Map<Box<str>, u32>);

/// No condition on a field.
pub(super) const ANY: u32 = 0;
/// A message without the field.
pub(super) const LACKING: u32 = 1;
/// A text that no rule speaks of.
pub(super) const UNKNOWN: u32 = u32::MAX;

impl Texts {
    /// The number of a rule's text, which is a new one if need be.
    pub(super) fn number(&mut self, text: &str) -> u32 {
        let next = self.0.len() as u32 + LACKING + 1;
        *self.0.entry(text.into()).or_insert(next)
    }

    /// What a rule says of a field.
    pub(super) fn of_rule(&self, text: Option<&str>) -> u32 {
        text.map_or(ANY, |text| self.0.get(text).copied().unwrap_or(UNKNOWN))
    }

    /// What a message has in a field.
    pub(super) fn of_message(&self, text: Option<&str>) -> u32 {
        text.map_or(LACKING, |text| self.0.get(text).copied().unwrap_or(UNKNOWN))
    }
}
