//! How long each side may believe that it is still seen.
//!
//! The host keeps a session, and whatever depends on it, until `parked + dead_after + window`. The client counts from
//! the *sending* of the last thing that the host answered, and takes off a margin for clocks that differ. What was
//! answered was heard after it was sent, and a carrier is not lost before something was last heard on it; so the client
//! stops before the host lets go.

use crate::limits::Terms;
use crate::moment::Moment;
use crate::random::Spread;
use std::collections::VecDeque;
use std::time::Duration;

/// Questions whose sending is remembered. More are open only where heartbeats are far shorter than `dead_after`.
const OPEN_PINGS: usize = 8;
/// The least margin between the client's end of a lease and the host's.
const LEAST_MARGIN: Duration = Duration::from_millis(250);

/// What a client may rely on without hearing more: how far its clock may differ is taken off.
#[must_use]
pub fn client_term(terms: &Terms) -> Duration {
    let whole = host_term(terms);
    whole.saturating_sub((whole / 100).max(LEAST_MARGIN))
}

/// How long a host keeps a session whose carrier is lost.
#[must_use]
pub fn host_term(terms: &Terms) -> Duration {
    terms.dead_after + terms.window
}

/// Who is heard, and who asks.
#[derive(Debug)]
pub(crate) struct Lease {
    /// When the other side was last heard on this carrier.
    heard: Moment,
    /// When the next PING is due. Clients only.
    ping_at: Option<Moment>,
    /// One is due, and has not been sent: the carrier may take nothing for a while.
    ping_due: bool,
    /// Number of the last PING.
    number: u64,
    /// PINGs without an answer, and when they were sent.
    open: VecDeque<(u64, Moment)>,
    /// An end of the sent stream, and when its last byte was first sent.
    mark: Option<(u64, Moment)>,
    /// When the newest thing that was answered was sent. Clients only; None: nothing yet.
    proven: Option<Moment>,
}

impl Lease {
    pub(crate) fn new(now: Moment) -> Self {
        Self {
            heard: now,
            ping_at: None,
            ping_due: false,
            number: 0,
            open: VecDeque::new(),
            mark: None,
            proven: None,
        }
    }

    /// A new carrier serves. A client's question for it was sent at `asked` and has been answered.
    pub(crate) fn begin(&mut self, now: Moment, asked: Option<Moment>, terms: &Terms, spread: &mut Spread) {
        self.heard = now;
        self.open.clear();
        self.mark = None;
        if let Some(asked) = asked {
            self.prove(asked);
            self.ping_at = Some(now + spread.around(terms.heartbeat));
        }
    }

    /// The carrier is lost; what was not answered on it never will be.
    pub(crate) fn end(&mut self) {
        self.ping_at = None;
        self.ping_due = false;
        self.open.clear();
        self.mark = None;
    }

    pub(crate) fn heard(&mut self, now: Moment) {
        self.heard = self.heard.max(now);
    }

    /// When the carrier is dead, unless something is heard before.
    pub(crate) fn dead_at(&self, terms: &Terms) -> Moment {
        self.heard + terms.dead_after
    }

    pub(crate) fn ping_at(&self) -> Option<Moment> {
        self.ping_at
    }

    /// Time has passed: a PING may be due. From then on [`ping_at`](Self::ping_at) is the next one's.
    pub(crate) fn tick(&mut self, now: Moment, terms: &Terms, spread: &mut Spread) {
        if self.ping_at.is_some_and(|due| now >= due) {
            self.ping_at = Some(now + spread.around(terms.heartbeat));
            self.ping_due = true;
        }
    }

    /// The number of a PING, if one is due.
    pub(crate) fn ping(&mut self, now: Moment, terms: &Terms, spread: &mut Spread) -> Option<u64> {
        self.tick(now, terms, spread);
        if !std::mem::take(&mut self.ping_due) {
            return None;
        }
        self.number += 1;
        if self.open.len() == OPEN_PINGS {
            self.open.pop_front();
        }
        self.open.push_back((self.number, now));
        Some(self.number)
    }

    /// The other side answered PING `number`. False if there was no such PING.
    pub(crate) fn answered(&mut self, number: u64) -> bool {
        while let Some(&(open, sent)) = self.open.front() {
            if open > number {
                break;
            }
            self.open.pop_front();
            if open == number {
                self.prove(sent);
            }
        }
        number <= self.number
    }

    /// Bytes up to `end` are sent for the first time on this carrier.
    pub(crate) fn sent(&mut self, now: Moment, end: u64) {
        self.mark.get_or_insert((end, now));
    }

    /// Bytes up to `offset` are acknowledged.
    pub(crate) fn acked(&mut self, offset: u64) {
        if let Some((end, sent)) = self.mark
            && offset >= end
        {
            self.mark = None;
            self.prove(sent);
        }
    }

    /// This machine has not run for a while (sleep, a debugger). Nothing is concluded from that silence: who is there
    /// has a third of `dead_after` to say so, and is asked at once.
    pub(crate) fn woke(&mut self, now: Moment, terms: &Terms) {
        self.heard = self.heard.max(now.before(terms.dead_after * 2 / 3));
        if self.ping_at.is_some() {
            self.ping_at = Some(now);
        }
    }

    /// Until when a client may act on its session. None: it has none yet.
    pub(crate) fn valid_until(&self, terms: &Terms) -> Option<Moment> {
        self.proven.map(|proven| proven + client_term(terms))
    }

    fn prove(&mut self, sent: Moment) {
        self.proven = self.proven.max(Some(sent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Moment {
        Moment::from_micros(seconds * 1_000_000)
    }

    fn lease() -> (Lease, Spread) {
        let mut spread = Spread::new(1);
        let mut lease = Lease::new(at(0));
        lease.begin(at(10), Some(at(9)), &Terms::DEFAULT, &mut spread);
        (lease, spread)
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_what_was_answered() {
        let (mut lease, mut spread) = lease();
        let term = client_term(&Terms::DEFAULT);
        assert_eq!(term, Duration::from_millis(74_250));
        assert_eq!(lease.valid_until(&Terms::DEFAULT), Some(at(9) + term));
        let first = lease.ping(at(20), &Terms::DEFAULT, &mut spread).unwrap();
        let second = lease.ping(at(30), &Terms::DEFAULT, &mut spread).unwrap();
        assert_eq!(lease.valid_until(&Terms::DEFAULT), Some(at(9) + term));
        assert!(lease.answered(first));
        assert_eq!(lease.valid_until(&Terms::DEFAULT), Some(at(20) + term));
        assert!(lease.answered(second));
        assert!(lease.answered(first), "an answer that is late");
        assert_eq!(lease.valid_until(&Terms::DEFAULT), Some(at(30) + term));
        assert!(!lease.answered(second + 1));
    }

    #[test]
    fn an_acknowledgement_proves_the_sending_of_its_first_mark_only() {
        let (mut lease, _) = lease();
        let term = client_term(&Terms::DEFAULT);
        lease.sent(at(40), 100);
        lease.sent(at(50), 200);
        lease.acked(99);
        assert_eq!(lease.valid_until(&Terms::DEFAULT), Some(at(9) + term));
        lease.acked(200);
        assert_eq!(lease.valid_until(&Terms::DEFAULT), Some(at(40) + term));
    }

    #[test]
    fn heartbeats_are_spread_by_a_fifth() {
        let (mut lease, mut spread) = lease();
        let (mut least, mut most) = (Duration::MAX, Duration::ZERO);
        for _ in 0..1000 {
            let due = lease.ping_at().unwrap();
            lease.ping(due, &Terms::DEFAULT, &mut spread).unwrap();
            let wait = lease.ping_at().unwrap().since(due);
            least = least.min(wait);
            most = most.max(wait);
        }
        assert!(
            least >= Duration::from_secs(4) && least < Duration::from_millis(4100),
            "{least:?}"
        );
        assert!(
            most <= Duration::from_secs(6) && most > Duration::from_millis(5900),
            "{most:?}"
        );
    }

    #[test]
    fn who_slept_asks_at_once_and_waits_a_third_of_the_silence() {
        let (mut lease, mut spread) = lease();
        lease.woke(at(500), &Terms::DEFAULT);
        assert_eq!(lease.dead_at(&Terms::DEFAULT), at(505));
        assert!(lease.ping(at(500), &Terms::DEFAULT, &mut spread).is_some());
    }

    #[test]
    fn the_margin_is_a_hundredth_or_a_quarter_second() {
        assert_eq!(client_term(&Terms::METERED), Duration::from_millis(3_742_200));
        assert_eq!(client_term(&Terms::ROBOT), Duration::from_millis(12_750));
    }
}
