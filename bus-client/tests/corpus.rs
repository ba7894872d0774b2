//! The fuzzing corpus of the session core, replayed.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../../fuzz/src/corpus.rs"]
mod corpus;
#[path = "../../fuzz/src/session.rs"]
mod session;

#[test]
fn the_corpus_of_sessions() {
    corpus::replay("session", session::session);
}

/// What the fuzzer does, without its guidance: changed inputs of the corpus, from one seed.
#[test]
fn sessions_with_a_bus_that_does_anything() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..4000 {
        let length = (random() % 400) as usize;
        let mut data = vec![0, (random() % 2) as u8, 7, 255, 4, 0];
        while data.len() < length {
            data.extend([(random() % 16) as u8, random() as u8]);
        }
        session::session(&data);
    }
}
