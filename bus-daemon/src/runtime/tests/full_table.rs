//! A table of descriptors that is full while several wait to be let in.

use std::io::{ErrorKind, Read};

use super::{Rig, state};

/// What became of a client that has written all that it writes before it is greeted.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Outcome {
    Greeted,
    Closed,
    Waits,
}

impl Rig {
    /// One more client, which has written its greeting. The worker has not looked yet.
    fn knock(&mut self) {
        self.connect();
        let client = self.clients.last_mut().unwrap();
        let greeting = client.waiting.split_off(0);
        std::io::Write::write_all(&mut client.stream, &greeting).unwrap();
    }

    fn outcomes(&mut self) -> Vec<Outcome> {
        let outcome = |client: &mut super::Client| match client.stream.read(&mut [0; 4096]) {
            Ok(0) => Outcome::Closed,
            Ok(_) => Outcome::Greeted,
            Err(error) if error.kind() == ErrorKind::WouldBlock => Outcome::Waits,
            Err(_) => Outcome::Closed,
        };
        self.clients.iter_mut().map(outcome).collect()
    }
}

/// Turns of a worker that is alone on its runtime, which looks at the level-triggered set before each wait; and of one that
/// is one task of several, which waits for an edge of the set once this is done: the last event of all must be enough.
fn work(rig: &mut Rig, is_alone: bool) {
    if is_alone {
        for _ in 0..8 {
            while rig.worker.turn() {}
        }
    } else {
        rig.worker.turns();
    }
}

#[test]
fn as_many_are_let_in_as_there_is_room_for_and_the_others_wait() {
    for (is_alone, waiting, closing) in [(true, 16, 1), (false, 16, 1), (true, 40, 3), (false, 40, 7)] {
        let mut rig = Rig::new(true);
        // Of 48 a quarter is for what comes in passing.
        rig.worker.set_descriptor_limit(48);
        for _ in 0..36 {
            rig.knock();
        }
        work(&mut rig, is_alone);
        assert_eq!(rig.outcomes(), [Outcome::Greeted; 36]);
        assert!(!rig.worker.broker().may_accept());
        let mut inside: Vec<_> = rig.clients.drain(..).collect();
        for _ in 0..waiting {
            rig.knock();
        }
        work(&mut rig, is_alone);
        assert_eq!(rig.outcomes(), vec![Outcome::Waits; waiting]);
        // Those who leave are the last event that there is; again and again, until nobody waits.
        let mut greeted = 0;
        while greeted < waiting {
            let leaving = closing.min(waiting - greeted);
            drop(inside.drain(..leaving));
            work(&mut rig, is_alone);
            let outcomes = rig.outcomes();
            assert_eq!(
                outcomes[..leaving],
                vec![Outcome::Greeted; leaving],
                "{outcomes:?}"
            );
            let others = &outcomes[leaving..];
            assert_eq!(others, vec![Outcome::Waits; others.len()]);
            inside.extend(rig.clients.drain(..leaving));
            greeted += leaving;
            assert_eq!(rig.worker.broker().peer_ids().count(), 36);
        }
        assert!(state(&rig.replay().broker) == state(rig.worker.broker()));
    }
}
