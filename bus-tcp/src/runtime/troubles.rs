//! Log lines about those who are turned away: one per source and second, however many come.

use crate::moment::Moment;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

/// Sources that are told apart; beyond, all others are one.
const SOURCES: usize = 1024;
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Troubles {
    sources: BTreeMap<String, Source>,
    logged: u64,
    counted: u64,
}

#[derive(Debug)]
struct Source {
    since: Moment,
    more: u64,
}

impl Troubles {
    /// `who` was turned away because of `why`. Logged, or counted for the next line.
    pub(crate) fn turned_away(&mut self, now: Moment, who: Option<&str>, why: &dyn Display) {
        self.counted += 1;
        let known = who.filter(|who| self.sources.len() < SOURCES || self.sources.contains_key(*who));
        let who = known.unwrap_or("others");
        if self.sources.len() >= SOURCES {
            self.sources
                .retain(|_, source| now.since(source.since) < INTERVAL);
        }
        let source = self.sources.entry(who.to_owned()).or_insert(Source {
            since: Moment::default(),
            more: 0,
        });
        if source.since != Moment::default() && now.since(source.since) < INTERVAL {
            source.more += 1;
            return;
        }
        let more = std::mem::take(&mut source.more);
        source.since = now;
        self.logged += 1;
        tracing::warn!(who, more, "turned away: {why}");
    }

    /// Lines that were logged, and occasions that there were.
    pub(crate) const fn logged_and_counted(&self) -> (u64, u64) {
        (self.logged, self.counted)
    }
}
