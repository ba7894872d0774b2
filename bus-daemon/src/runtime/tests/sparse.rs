//! A client that wants little, beside many of the same user that want very much: how much work is done for them before it has its
//! answer. Counted in the broker's units, so it is the same on any machine.

use std::io::{ErrorKind, Read, Write};

use super::{Client, Rig};

/// Questions in one write, the answers to which are long.
const QUESTIONS: usize = 40;

/// All that a client has to write, as far as its socket takes it.
fn write(client: &mut Client) {
    match client.stream.write(&client.waiting) {
        Ok(written) => drop(client.waiting.drain(..written)),
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
}

/// Reads all there is; whether that was anything.
fn read(client: &mut Client) -> bool {
    let mut bytes = vec![0; 1 << 18];
    let mut is_any = false;
    while client.stream.read(&mut bytes).is_ok_and(|count| count > 0) {
        is_any = true;
    }
    is_any
}

/// The most work that was done before a question was answered.
fn longest_wait(flooders: usize) -> u64 {
    let mut rig = Rig::new(false);
    for _ in 0..=flooders {
        rig.connect();
        let last = rig.clients.len() - 1;
        rig.write_all(last);
        read(&mut rig.clients[last]);
    }
    // Each has some names, so that the answers are long.
    for (number, client) in rig.clients.iter_mut().enumerate().skip(1) {
        for n in 0..400 / flooders {
            let name = format!("org.example.Long.Name.P{number}.N{n}");
            client.call("RequestName", |w| {
                w.str(&name).u32(0);
            });
        }
        write(client);
    }
    rig.worker.turns();
    let mut longest = 0;
    for round in 0..60 {
        for client in &mut rig.clients[1..] {
            read(client);
            if client.waiting.is_empty() {
                (0..QUESTIONS).for_each(|_| client.call("ListNames", |_| {}));
            }
            write(client);
        }
        // They are being served when it asks.
        rig.worker.turn();
        if round < 10 {
            continue;
        }
        let begin = rig.worker.broker().work();
        let innocent = &mut rig.clients[0];
        innocent.call("GetId", |_| {});
        write(innocent);
        while !read(&mut rig.clients[0]) {
            rig.worker.turn();
        }
        longest = longest.max(rig.worker.broker().work() - begin);
    }
    longest
}

/// A turn is 512 units, and one that has begun ends with what is being served.
#[test]
fn who_wants_little_waits_no_longer_however_many_want_much() {
    for flooders in [10, 80] {
        let longest = longest_wait(flooders);
        eprintln!("beside {flooders} flooders: {longest} units of work");
        assert!(longest <= 2 * 1024 + 512, "beside {flooders}: {longest} units");
    }
}
