//! The order, and how much work is done for whom.

use std::collections::BTreeMap;

use super::*;

fn peer(index: u32) -> Ready {
    Ready::Peer(PeerId { index, generation: 1 })
}

/// A rotation and those who are in it.
#[derive(Default)]
struct Bus {
    rotation: Rotation<Ready>,
    turns: BTreeMap<Ready, Turn>,
}

impl Bus {
    fn connect(&mut self, uid: u32, index: u32) {
        let user = self.rotation.user(Some(uid));
        self.turns.insert(peer(index), Turn::of(user));
    }

    fn add(&mut self, ready: Ready) {
        let turn = self.turns.entry(ready).or_insert_with(Turn::accepting);
        self.rotation.add(turn, ready);
    }

    /// Serves the next one, which `wants` so much, and is ready again if that is true.
    fn serve(&mut self, wants: impl FnOnce(Ready) -> (u64, bool)) -> Option<(Ready, u64)> {
        let ready = self.rotation.next()?;
        let (work, is_ready_again) = wants(ready);
        if is_ready_again {
            self.add(ready);
        }
        self.rotation.done(self.turns.get_mut(&ready), work);
        Some((ready, work))
    }

    /// The order in which all are served, each with so much work.
    fn serve_all(&mut self, work: u64) -> Vec<Ready> {
        std::iter::from_fn(|| self.serve(|_| (work, false)))
            .map(|(ready, _)| ready)
            .collect()
    }
}

#[test]
fn a_user_with_many_peers_is_served_as_often_as_one_with_one() {
    let mut bus = Bus::default();
    for index in 0..100 {
        bus.connect(1, index);
        bus.add(peer(index));
    }
    bus.connect(2, 500);
    bus.add(peer(500));
    bus.add(Ready::Listener(0));
    let order = bus.serve_all(1);
    assert_eq!(order[..3], [peer(0), peer(500), Ready::Listener(0)]);
    assert_eq!(order[3..], (1..100).map(peer).collect::<Vec<_>>());
    assert!(bus.rotation.is_empty());
}

#[test]
fn who_is_added_again_goes_behind_the_others_of_its_user() {
    let mut bus = Bus::default();
    bus.connect(7, 1);
    bus.connect(7, 2);
    let user = bus.rotation.user(Some(7));
    assert_eq!(bus.turns[&peer(1)].user, user);
    assert_ne!(bus.rotation.user(None), user);
    bus.add(peer(1));
    bus.add(peer(2));
    assert_eq!(bus.serve(|_| (1, true)), Some((peer(1), 1)));
    assert_eq!(bus.serve_all(1), [peer(2), peer(1)]);
}

#[test]
fn nobody_is_forgotten_and_nobody_is_served_twice() {
    let mut bus = Bus::default();
    for index in 0..1_000 {
        bus.connect(index * 7 % 10, index);
    }
    for round in 0..3 {
        for index in 0..1_000 {
            bus.add(peer(index));
        }
        let mut all: Vec<Ready> = std::iter::from_fn(|| {
            let work = |ready| match ready {
                Ready::Peer(peer) => u64::from(peer.index) * 31 % 512,
                Ready::Listener(_) => 0,
            };
            bus.serve(|ready| (work(ready) + round, false))
        })
        .map(|(ready, _)| ready)
        .collect();
        all.sort_unstable();
        assert_eq!(all, (0..1_000).map(peer).collect::<Vec<_>>());
    }
}

#[test]
fn whoever_is_gone_when_it_was_served_is_not_served_again() {
    let mut bus = Bus::default();
    bus.connect(7, 1);
    bus.connect(7, 2);
    bus.add(peer(1));
    bus.add(peer(2));
    let served = bus.rotation.next();
    assert_eq!(served, Some(peer(1)));
    bus.add(peer(1));
    bus.rotation.done(None, 5);
    assert_eq!(bus.serve_all(1), [peer(2)]);
}

/// Units of work for one user's peers, of which there are so many and each of which always wants more, and for another user's
/// one peer, of which the same is true.
fn shares(peers: u32, greedy: u64, modest: u64) -> [u64; 2] {
    let mut bus = Bus::default();
    for index in 0..peers {
        bus.connect(1, index);
        bus.add(peer(index));
    }
    bus.connect(2, peers);
    bus.add(peer(peers));
    let mut work = [0; 2];
    for _ in 0..20_000 {
        let wants = |ready| ((if ready == peer(peers) { modest } else { greedy }), true);
        let (ready, done) = bus.serve(wants).unwrap();
        work[usize::from(ready == peer(peers))] += done;
    }
    work
}

#[test]
fn users_get_the_same_work_however_many_peers_they_have_and_however_much_each_wants() {
    let mut counts = Vec::new();
    for peers in [1, 6, 50, 400] {
        for (greedy, modest) in [(1, 1), (512, 1), (512, 500), (8_000, 3)] {
            let [theirs, ours] = shares(peers, greedy, modest);
            assert!(
                theirs.abs_diff(ours) <= greedy + modest,
                "{peers} peers that want {greedy} each got {theirs}, one that wants {modest} got {ours}"
            );
            counts.push((greedy, theirs));
        }
    }
    // Not even a little depends on the number of peers.
    for (at, count) in counts.iter().enumerate() {
        assert_eq!(*count, counts[at % 4]);
    }
}

#[test]
fn peers_of_one_user_get_the_same_work_however_much_each_wants() {
    for others in [6, 48] {
        let mut bus = Bus::default();
        for index in 0..=others {
            bus.connect(1, index);
            bus.add(peer(index));
        }
        let mut work = vec![0; others as usize + 1];
        for _ in 0..200_000 {
            let wants = |ready| (if ready == peer(0) { 512 } else { 7 }, true);
            if let Some((Ready::Peer(peer), done)) = bus.serve(wants) {
                work[peer.index as usize] += done;
            }
        }
        let (least, most) = (work.iter().min().unwrap(), work.iter().max().unwrap());
        assert!(most - least <= 512, "{others}: {work:?}");
    }
}

/// How much work is done for others before a peer of the first user is served that wants little: it is added while the others,
/// who want more all the time, are.
fn waits(users: u32, peers: u32, work: u64) -> u64 {
    let mut bus = Bus::default();
    for index in 0..peers {
        bus.connect(index % users, index);
        bus.add(peer(index));
    }
    let sparse = peer(peers);
    bus.connect(0, peers);
    for _ in 0..10 * peers {
        bus.serve(|_| (work, true));
    }
    let mut longest = 0;
    for _ in 0..200 {
        bus.add(sparse);
        let mut waited = 0;
        while let Some((ready, done)) = bus.serve(|ready| {
            let is_sparse = ready == sparse;
            (if is_sparse { 1 } else { work }, !is_sparse)
        }) && ready != sparse
        {
            waited += done;
        }
        longest = longest.max(waited);
        for _ in 0..peers / 3 {
            bus.serve(|_| (work, true));
        }
    }
    longest
}

#[test]
fn who_wants_little_waits_for_the_other_users_and_not_for_their_peers() {
    for users in [1, 3, 20] {
        for peers in [40, 320] {
            let waited = waits(users, peers, 512);
            // Each of the others is served once, or twice where it was a little behind.
            assert!(
                waited <= 2 * u64::from(users - 1) * 512,
                "behind {peers} peers of {users} users: {waited}"
            );
        }
    }
}

#[test]
fn a_debt_is_forgotten_after_a_while() {
    for (pause, is_forgotten) in [(0, false), (100, false), (2 * SPAN_MILLIS, true)] {
        let mut bus = Bus::default();
        for index in 0..2 {
            bus.connect(1, index);
            bus.connect(2, 10 + index);
        }
        bus.rotation.note_time(Millis(1_000 * SPAN_MILLIS));
        bus.add(peer(0));
        bus.serve(|_| (10_000, false));
        bus.rotation.note_time(Millis(1_000 * SPAN_MILLIS + pause));
        // Between peers, and between users.
        for index in [0, 1, 10] {
            bus.add(peer(index));
        }
        let order = bus.serve_all(5_000);
        if is_forgotten {
            assert_eq!(order, [peer(0), peer(10), peer(1)], "after {pause} ms");
        } else {
            assert_eq!(order, [peer(10), peer(1), peer(0)], "after {pause} ms");
        }
    }
}

#[test]
fn turns_are_short_while_users_alternate_and_no_longer() {
    let mut bus = Bus::default();
    for index in 0..4 {
        bus.connect(1, index);
    }
    bus.connect(2, 10);
    let turn = |bus: &mut Bus, peers: &[u32]| {
        for index in peers {
            bus.add(peer(*index));
        }
        while bus.serve(|_| (1, false)).is_some() {}
        bus.rotation.begin_turn()
    };
    // One user's peers, however many, are served in long turns.
    for _ in 0..10 {
        assert!(!turn(&mut bus, &[0, 1, 2, 3]));
    }
    assert!(turn(&mut bus, &[0, 10]));
    assert!(turn(&mut bus, &[1, 2]));
    let long_again = (0..200).position(|_| !turn(&mut bus, &[0, 1]));
    assert!(long_again.is_some_and(|turns| turns < 70), "{long_again:?}");
    assert!(!turn(&mut bus, &[3]));
}

#[test]
fn who_connects_all_the_time_waits_for_its_connections_and_others_wait_for_a_few_of_them() {
    const ACCEPTED: u64 = 128;
    let mut bus = Bus::default();
    for index in 0..50 {
        bus.connect(1, index);
        bus.add(peer(index));
    }
    bus.connect(2, 500);
    let flooder = bus.rotation.user(Some(1));
    bus.add(Ready::Listener(0));
    let (mut accepted, mut heard, mut longest) = (0, 0, 0);
    let mut waited = None;
    for round in 0..2_000 {
        if round % 7 == 0 && waited.is_none() {
            bus.add(peer(500));
            waited = Some(0);
        }
        let ready = bus.rotation.next().unwrap();
        let work = match ready {
            Ready::Listener(_) => {
                bus.rotation.charge(flooder, ACCEPTED);
                accepted += ACCEPTED;
                ACCEPTED
            }
            one if one == peer(500) => {
                longest = longest.max(waited.take().unwrap());
                5
            }
            Ready::Peer(_) => {
                heard += 10;
                10
            }
        };
        if ready != peer(500) {
            bus.add(ready);
            waited = waited.map(|waited| waited + work);
        }
        bus.rotation.done(bus.turns.get_mut(&ready), work);
    }
    assert!(longest <= 2 * ACCEPTED, "somebody else waited for {longest}");
    assert!(
        heard * 20 <= accepted,
        "{heard} of work for the peers, {accepted} for their connections"
    );
    // When no more come its peers are heard again.
    bus.rotation.note_time(Millis(2 * SPAN_MILLIS));
    let next = bus.serve(|_| (10, false)).unwrap().0;
    let after = bus.serve(|_| (10, false)).unwrap().0;
    assert!([next, after].iter().any(|ready| matches!(ready, Ready::Peer(_))));
}
