//! Descriptors in flight: those that lie in sockets' buffers because their readers have not taken them.
//!
//! The kernel limits how many there may be of each user that *sends*, and all that a bus passes on is its own user's. So readers
//! that take none would keep descriptors from everybody. Therefore the bus counts what it has put into each socket, gives each
//! user of readers a share with something left for one more, and keeps the rest in its own queues.
//!
//! What a reader has taken the kernel tells in part: how much of a socket's buffer is not read (`SIOCOUTQ`), counted with what
//! it takes to keep it, so never less than the bytes. What lies further back was read. That is asked only where it matters.

use std::collections::{BTreeMap, VecDeque};

use super::rotation::UserSlot;

/// Of the descriptors that the process may have open, which is also the kernel's limit of those in flight, this part may be.
const PART: u64 = 2;
/// For the readers of the bus's own user. On a session bus all clients are this user, and each of them can pass a descriptor
/// only as long as no more of their user's are in flight than it may have open itself: 1,024 as a rule.
const OWN_MOST: u64 = 768;
/// So many descriptors passed to one link, and to all, are taken for unread without asking: each question is a system call,
/// and a message often comes with one or two descriptors only.
const UNASKED: u64 = 64;
const UNASKED_IN_ALL: u64 = 256;
/// Where more than that were passed to all, they are asked about whenever so many more were.
const ASKED_AFTER: u64 = 16;

/// What one user's readers have not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Held {
    descriptors: u64,
    /// Links in whose buffers they lie.
    links: u64,
}

/// Who shares how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// May have all that is left.
    Root,
    /// The user that the bus runs as.
    Own,
    Ordinary,
}

/// All descriptors in flight, by the users of their readers.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: u64,
    own_uid: u32,
    users: BTreeMap<UserSlot, (Standing, Held)>,
    /// Ordinary users whose readers have not taken some.
    ordinary: u64,
    total: u64,
    /// Passed since it was last worth asking about them.
    since_asked: u64,
}

/// Those of one link.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    /// At which offset of the link's output there are how many, in order.
    marks: VecDeque<(u64, u64)>,
    descriptors: u64,
    /// Passed since the link was last asked.
    since_asked: u64,
    /// Before this offset there are some, nobody knows how many: a worker before this one has sent them.
    unknown: u64,
    /// The link is in the list of those that are asked now and then.
    pub(super) is_listed: bool,
}

impl Unread {
    /// Of a link that another worker has written so much to.
    pub(crate) fn after(sent: u64) -> Self {
        Self {
            unknown: sent,
            ..Self::default()
        }
    }

    /// How many were not taken, as far as is known.
    pub(crate) fn descriptors(&self) -> u64 {
        self.descriptors
    }

    /// Whether it is worth asking.
    pub(crate) fn is_many(&self) -> bool {
        self.since_asked > UNASKED
    }
}

impl InFlight {
    /// None yet, in a process of this user that may have so many descriptors open.
    pub(crate) fn new(most_open: u64, own_uid: u32) -> Self {
        Self {
            most: most_open / PART,
            own_uid,
            users: BTreeMap::new(),
            ordinary: 0,
            total: 0,
            since_asked: 0,
        }
    }

    /// Who has this slot.
    pub(crate) fn know(&mut self, user: UserSlot, uid: Option<u32>) {
        let standing = match uid {
            Some(0) => Standing::Root,
            Some(uid) if uid == self.own_uid => Standing::Own,
            Some(_) | None => Standing::Ordinary,
        };
        self.users.entry(user).or_insert((standing, Held::default()));
    }

    /// Whether so many descriptors may be passed to a link of this user.
    pub(crate) fn has_room(&self, user: UserSlot, unread: &Unread, count: u64) -> bool {
        if unread.unknown > 0 {
            return false;
        }
        let Some((standing, held)) = self.users.get(&user).copied() else {
            return true;
        };
        if held.descriptors == 0 {
            // However little there is to share out: it goes on with somebody who has taken everything.
            return true;
        }
        let of_others = self.total - held.descriptors;
        let room = match standing {
            Standing::Root => self.most.saturating_sub(of_others),
            Standing::Own => self.most.saturating_sub(of_others).min(OWN_MOST),
            Standing::Ordinary => {
                let shared = self.most - self.most / 16;
                shared.saturating_sub(of_others) / (self.ordinary + 1)
            }
        };
        if held.descriptors + count > room {
            return false;
        }
        if unread.descriptors == 0 {
            return true;
        }
        // A quarter is for links that have taken all that they were passed.
        let of_other_links = held.descriptors - unread.descriptors;
        (held.links + 1) * (unread.descriptors + count) + of_other_links <= room - room / 4
    }

    /// Descriptors were passed to a link of this user, with the byte at this offset of its output. True: it is worth asking
    /// some of those that were passed some before.
    pub(crate) fn passed(&mut self, user: UserSlot, unread: &mut Unread, at: u64, count: u64) -> bool {
        let Some((standing, held)) = self.users.get_mut(&user) else {
            return false;
        };
        if held.descriptors == 0 && *standing == Standing::Ordinary {
            self.ordinary += 1;
        }
        held.links += u64::from(unread.descriptors == 0);
        held.descriptors += count;
        self.total += count;
        unread.descriptors += count;
        unread.since_asked += count;
        unread.marks.push_back((at, count));
        self.since_asked += count;
        let is_worth_asking = self.total > UNASKED_IN_ALL && self.since_asked >= ASKED_AFTER;
        if is_worth_asking {
            self.since_asked = 0;
        }
        is_worth_asking
    }

    /// A link's output before this offset was read.
    pub(crate) fn read(&mut self, user: UserSlot, unread: &mut Unread, upto: u64) {
        unread.since_asked = 0;
        if unread.unknown <= upto {
            unread.unknown = 0;
        }
        let mut taken = 0;
        while let Some((_, count)) = unread.marks.front().filter(|(at, _)| *at < upto) {
            taken += *count;
            unread.marks.pop_front();
        }
        self.release(user, unread, taken);
    }

    /// A link is gone: nothing in its buffer concerns the bus any more.
    pub(crate) fn forget(&mut self, user: UserSlot, unread: &mut Unread) {
        unread.marks.clear();
        self.release(user, unread, unread.descriptors);
    }

    #[cfg(test)]
    pub(super) fn set_most(&mut self, most: u64, own_uid: u32) {
        assert_eq!(self.total, 0);
        self.most = most;
        self.own_uid = own_uid;
    }

    #[cfg(test)]
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn release(&mut self, user: UserSlot, unread: &mut Unread, count: u64) {
        let Some((standing, held)) = self.users.get_mut(&user).filter(|_| count > 0) else {
            return;
        };
        unread.descriptors -= count;
        held.links -= u64::from(unread.descriptors == 0);
        held.descriptors -= count;
        self.total -= count;
        if held.descriptors == 0 && *standing == Standing::Ordinary {
            self.ordinary -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rotation::Rotation;
    use super::*;

    const OWN: u32 = 77;
    const MOST: u64 = 4096;

    struct Bus {
        in_flight: InFlight,
        slots: Rotation<()>,
    }

    impl Bus {
        fn new() -> Self {
            Self {
                in_flight: InFlight::new(2 * MOST, OWN),
                slots: Rotation::default(),
            }
        }

        fn user(&mut self, uid: u32) -> UserSlot {
            let user = self.slots.user(Some(uid));
            self.in_flight.know(user, Some(uid));
            user
        }

        /// Passes messages with so many descriptors each until the share is full. How many descriptors these were.
        fn fill(&mut self, user: UserSlot, link: &mut Unread, each: u64) -> u64 {
            let mut at = 0;
            while self.in_flight.has_room(user, link, each) {
                self.in_flight.passed(user, link, at, each);
                at += 100;
                assert!(at < 100 * MOST, "there is no end");
            }
            link.descriptors()
        }
    }

    #[test]
    fn readers_that_take_nothing_leave_something_for_each_other_user() {
        let mut bus = Bus::new();
        let mut all = Vec::new();
        // Each with a thousand links that take nothing.
        for uid in 1..=20 {
            let user = bus.user(uid);
            let mut most = 0;
            for _ in 0..1_000 {
                let mut link = Unread::default();
                most += bus.fill(user, &mut link, 16);
                all.push((user, link));
            }
            assert!(most >= 16, "user {uid}: {most}");
            assert!(bus.in_flight.total <= MOST - MOST / 16, "{}", bus.in_flight.total);
        }
        // Whoever is new, and whoever takes what it is passed, can be passed as many as a message may have at once.
        for uid in [100, 0, OWN] {
            let user = bus.user(uid);
            let mut link = Unread::default();
            for n in 0..1_000 {
                assert!(bus.in_flight.has_room(user, &link, 16), "user {uid}");
                bus.in_flight.passed(user, &mut link, n * 100, 16);
                bus.in_flight.read(user, &mut link, n * 100 + 1);
            }
        }
        for (user, mut link) in all {
            bus.in_flight.forget(user, &mut link);
        }
        assert_eq!((bus.in_flight.total, bus.in_flight.ordinary), (0, 0));
        assert!(
            bus.in_flight
                .users
                .values()
                .all(|(_, held)| *held == Held::default())
        );
    }

    #[test]
    fn links_of_one_user_leave_something_for_each_other() {
        for uid in [1, OWN] {
            let mut bus = Bus::new();
            let user = bus.user(uid);
            let mut links: Vec<Unread> = (0..4).map(|_| Unread::default()).collect();
            let full: Vec<u64> = links.iter_mut().map(|link| bus.fill(user, link, 4)).collect();
            assert!(full.iter().all(|count| *count > 0), "{full:?}");
            let mut reader = Unread::default();
            for n in 0..1_000 {
                assert!(bus.in_flight.has_room(user, &reader, 1), "user {uid}: {full:?}");
                bus.in_flight.passed(user, &mut reader, n, 1);
                bus.in_flight.read(user, &mut reader, n + 1);
            }
        }
    }

    #[test]
    fn what_was_read_makes_room_and_what_is_not_known_does_not() {
        let mut bus = Bus::new();
        let user = bus.user(OWN);
        let mut link = Unread::default();
        let full = bus.fill(user, &mut link, 2);
        assert_eq!(full, (OWN_MOST - OWN_MOST / 4) / 2);
        bus.in_flight.read(user, &mut link, 0);
        assert!(!bus.in_flight.has_room(user, &link, 2));
        bus.in_flight.read(user, &mut link, 101);
        assert_eq!(link.descriptors(), full - 4);
        assert!(bus.in_flight.has_room(user, &link, 2));

        let mut carried = Unread::after(1_000);
        assert!(!bus.in_flight.has_room(user, &carried, 1));
        bus.in_flight.read(user, &mut carried, 999);
        assert!(!bus.in_flight.has_room(user, &carried, 1));
        bus.in_flight.read(user, &mut carried, 1_000);
        assert!(bus.in_flight.has_room(user, &carried, 1));
    }
}
