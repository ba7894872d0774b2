//! How many log lines about one user are written.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Lines about a user that are written at once.
const BURST: u64 = 20;
/// After those, one in each of these.
const INTERVAL: Duration = Duration::from_secs(1);
/// Users with a bucket of their own.
const USERS: usize = 256;

/// A bucket of lines for each user; memory is bounded, and whoever comes when there are many users shares one with
/// others. Time is an argument: what has passed since some fixed moment.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    buckets: BTreeMap<Who, Bucket>,
}

/// Whom lines are about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// A user, by number.
    User(u32),
    /// Nobody knows whose peer it is.
    Unknown,
    /// Users without a bucket of their own.
    Others,
}

/// That a line may be written, and what it is to say besides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permit {
    /// Lines that were left out before this one.
    pub(crate) left_out: u64,
    /// Whom those are about.
    pub(crate) who: Who,
}

#[derive(Debug)]
struct Bucket {
    /// When it is, or was, full again: each line moves that on by an interval.
    full_at: Duration,
    left_out: u64,
}

impl Rates {
    /// Whether a line about this user may be written now.
    pub(crate) fn permit(&mut self, uid: Option<u32>, now: Duration) -> Option<Permit> {
        let who = self.place(uid.map_or(Who::Unknown, Who::User), now);
        let bucket = self.buckets.entry(who).or_insert(Bucket {
            full_at: now,
            left_out: 0,
        });
        let full_at = bucket.full_at.max(now) + INTERVAL;
        if full_at > now + INTERVAL * BURST as u32 {
            bucket.left_out += 1;
            return None;
        }
        bucket.full_at = full_at;
        Some(Permit {
            left_out: std::mem::take(&mut bucket.left_out),
            who,
        })
    }

    /// Whose bucket a user's lines are taken from.
    fn place(&mut self, who: Who, now: Duration) -> Who {
        if self.buckets.len() < USERS || self.buckets.contains_key(&who) {
            return who;
        }
        // Those that are full, with nothing to tell, are as good as new ones; those with something to tell go next.
        self.buckets
            .retain(|_, bucket| bucket.full_at > now || bucket.left_out > 0);
        if self.buckets.len() >= USERS {
            self.buckets.retain(|_, bucket| bucket.full_at > now);
        }
        if self.buckets.len() < USERS {
            who
        } else {
            Who::Others
        }
    }
}

impl fmt::Display for Permit {
    /// What is to be said of the lines that were left out; nothing if there are none.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.left_out {
            0 => Ok(()),
            1 => write!(f, " (1 more line about {} was left out)", self.who),
            count => write!(f, " ({count} more lines about {} were left out)", self.who),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "user {uid}"),
            Self::Unknown => f.write_str("unknown users"),
            Self::Others => f.write_str("other users"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_000);

    fn seconds(seconds: u64) -> Duration {
        START + Duration::from_secs(seconds)
    }

    /// How many of `lines` lines about `uid` are permitted at this moment.
    fn permitted(rates: &mut Rates, uid: u32, now: Duration, lines: u64) -> u64 {
        (0..lines)
            .filter(|_| rates.permit(Some(uid), now).is_some())
            .count() as u64
    }

    #[test]
    fn a_burst_is_written_and_then_a_line_a_second() {
        let mut rates = Rates::default();
        assert_eq!(permitted(&mut rates, 1, seconds(0), 1_000), BURST);
        assert_eq!(rates.permit(Some(1), START + Duration::from_millis(999)), None);
        let permit = rates.permit(Some(1), seconds(1));
        assert_eq!(permit.map(|permit| permit.left_out), Some(1_000 - BURST + 1));
        assert_eq!(permitted(&mut rates, 1, seconds(1), 10), 0);
        assert_eq!(permitted(&mut rates, 1, seconds(6), 10), 5);
        // Silence fills it again, and not beyond.
        assert_eq!(permitted(&mut rates, 1, seconds(10_000), 1_000), BURST);
    }

    #[test]
    fn a_user_does_not_silence_another() {
        let mut rates = Rates::default();
        assert_eq!(permitted(&mut rates, 1, seconds(0), 1_000), BURST);
        assert_eq!(permitted(&mut rates, 2, seconds(0), 3), 3);
        assert!(rates.permit(None, seconds(0)).is_some());
        let permit = rates.permit(Some(2), seconds(0));
        assert_eq!(permit.map(|permit| permit.left_out), Some(0));
    }

    #[test]
    fn users_beyond_the_bound_share_a_bucket_until_there_is_room() {
        let mut rates = Rates::default();
        for uid in 0..USERS as u32 {
            assert_eq!(permitted(&mut rates, uid, seconds(0), 1), 1);
        }
        let others: u64 = (0..1_000)
            .map(|uid| permitted(&mut rates, 5_000 + uid, seconds(0), 1))
            .sum();
        assert_eq!(others, BURST);
        assert!(rates.buckets.len() <= USERS + 1);
        // Those who have a bucket keep it.
        assert_eq!(permitted(&mut rates, 7, seconds(0), 100), BURST - 1);
        // Later all but two are full again and make room.
        assert_eq!(permitted(&mut rates, 9_999, seconds(5), 100), BURST);
        assert_eq!(rates.buckets.len(), 3);
    }

    #[test]
    fn what_was_left_out_is_said() {
        let text = |left_out, who| Permit { left_out, who }.to_string();
        assert_eq!(text(0, Who::User(1)), "");
        assert_eq!(
            text(1, Who::Unknown),
            " (1 more line about unknown users was left out)"
        );
        assert_eq!(
            text(2, Who::User(77)),
            " (2 more lines about user 77 were left out)"
        );
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_more_lines() {
        let mut rates = Rates::default();
        assert_eq!(permitted(&mut rates, 1, seconds(100), 100), BURST);
        assert_eq!(permitted(&mut rates, 1, seconds(0), 100), 0);
    }
}
