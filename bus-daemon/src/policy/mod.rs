//! Who may do what (dbus-daemon(1), `<policy>`): the rules, an index over those that apply to a peer, and verdicts.
//!
//! [`rules`] has the rules as they are written. [`compile`] finds which of them apply to whom, and makes one index for all
//! peers to whom the same apply. [`verdict`] is what an index is asked: whether a message may be sent or received, a name
//! owned, a user connected, and which rule says so. [`vocabulary`] are the texts and names that any rule speaks of, `table`
//! finds the last rule that matches without looking at the others. [`simple`] are policies for which nothing has to be looked up. [`explain`] looks at each, for whoever asks why,
//! and [`lint`] for what is probably not meant; [`text`] writes them.
//!
//! Nothing here asks the system: names of users and groups were resolved when the files were loaded.

pub mod compile;
pub mod explain;
pub mod lint;
pub mod rules;
pub mod simple;
mod table;
pub mod text;
pub mod verdict;
pub mod vocabulary;

#[cfg(test)]
mod tests;

/// Hashing that is the same in every run.
type Map<K, V> = hashbrown::HashMap<K, V, foldhash::fast::FixedState>;
