//! All that fuzzing has found, and the seeds it began with.

use std::path::Path;

use bus_daemon::broker::{Event, PeerId};
use bus_wire::Fd;

use crate::bus::{Bus, config};
use crate::fuzz::state_image;
use crate::fuzz_corpus;
use crate::image::save;
use crate::rich::rich;

#[test]
fn the_corpus_of_fuzzing_is_survived() {
    fuzz_corpus::replay("state_image", state_image);
}

#[test]
#[ignore = "writes the seeds of the corpus, after the format has changed"]
fn write_seeds() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/state_image");
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(format!("{name}-v2")), bytes).unwrap();
    let mut bus = Bus::new(config(), false);
    write("empty-bus", &save(&bus.broker));
    bus.accept();
    write("one-peer", &save(&bus.broker));
    let who = bus.connect();
    bus.request_name(who, "x.y", 0);
    bus.read(who);
    bus.add_match(who, "member='M',arg0='a'");
    let other = bus.connect();
    bus.call(other, "x.y", "M");
    write("open-call", &save(&bus.broker));
    let fd: Fd = bus.descriptors.make();
    bus.event(Event::Received {
        peer: bus.peer(other),
        upto: bus.written(other) + 4,
        data: vec![b'l', 1, 0, 1].into(),
        fds: [fd].into_iter().collect(),
    });
    bus.close(who);
    write("mid-message", &save(&bus.broker));
    let peers: Vec<PeerId> = bus.broker.peer_ids().collect();
    assert_eq!(peers.len(), 2);
    let whole = save(&rich().bus.broker);
    write("everything", &whole);
    write("cut-off", &whole[..whole.len() * 2 / 3]);
    write("no-image", b"something else");
}
