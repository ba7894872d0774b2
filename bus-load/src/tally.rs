//! Checking the numbers of one stream.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// A jump of more than this is taken for garbage, and counted as this many lost.
const LARGEST_GAP: u64 = 100_000;

/// Checks that the numbers 1, 2, 3... of one stream come once each and in order.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    count: u64,
    last: u64,
    missing: BTreeSet<u64>,
    doubled: u64,
    reordered: u64,
}

impl Tally {
    /// A message with this number came.
    pub fn record(&mut self, number: u64) {
        self.count += 1;
        if number == self.last + 1 {
            self.last = number;
        } else if number > self.last {
            self.missing
                .extend(self.last + 1..number.min(self.last + LARGEST_GAP));
            self.last = number;
        } else if self.missing.remove(&number) {
            self.reordered += 1;
        } else {
            self.doubled += 1;
        }
    }

    /// The highest number that came.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        Counts {
            count: self.count,
            last: self.last,
            lost: self.missing.len() as u64,
            doubled: self.doubled,
            reordered: self.reordered,
        }
    }
}

/// The outcome of one [`Tally`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Messages that came.
    pub count: u64,
    /// The highest number among them.
    pub last: u64,
    /// Numbers below `last` that never came.
    pub lost: u64,
    /// Messages whose number had come before.
    pub doubled: u64,
    /// Messages that came after a higher number.
    pub reordered: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts {
            count,
            last,
            lost,
            doubled,
            reordered,
        } = self;
        write!(f, "{count} {last} {lost} {doubled} {reordered}")
    }
}

impl FromStr for Counts {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Counts> {
        let numbers: Vec<u64> = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let [count, last, lost, doubled, reordered] = numbers[..] else {
            anyhow::bail!("five numbers expected, not {text:?}");
        };
        Ok(Counts {
            count,
            last,
            lost,
            doubled,
            reordered,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(numbers: &[u64], expected: &str) {
        let mut tally = Tally::default();
        numbers.iter().for_each(|&number| tally.record(number));
        assert_eq!(tally.counts().to_string(), expected, "{numbers:?}");
        assert_eq!(expected.parse::<Counts>().unwrap(), tally.counts());
    }

    #[test]
    fn every_kind_of_damage_is_told_apart() {
        check(&[], "0 0 0 0 0");
        check(&[1, 2, 3], "3 3 0 0 0");
        check(&[1, 3], "2 3 1 0 0"); // lost 2
        check(&[1, 3, 2], "3 3 0 0 1"); // 2 came late
        check(&[1, 1, 2], "3 2 0 1 0"); // 1 came twice
        check(&[1, 3, 2, 2], "4 3 0 1 1");
        check(&[2], "1 2 1 0 0"); // the first was lost
    }
}
