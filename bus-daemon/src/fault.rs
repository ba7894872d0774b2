//! Faults on demand, for tests of what must survive them. Compiled only with the feature `test-hooks`.

use crate::broker::Event;

/// Whether the environment asks for the fault of this name.
fn is_wanted(name: &str) -> bool {
    std::env::var_os("BUS_TEST_FAULT").is_some_and(|wanted| wanted == name)
}

/// Ends this process by its own fault if `BUS_TEST_FAULT` is `restore:PATH` of this binary (whoever it is handed on to
/// inherits the environment, and is not meant), or `restore:any`.
pub(crate) fn in_restore(binary: &std::path::Path) {
    if is_wanted("restore:any") || is_wanted(&format!("restore:{}", binary.display())) {
        std::process::abort();
    }
}

/// With `BUS_TEST_FAULT=poison`, input with one of these words in it is deadly, as a message would be that meets a
/// fault of the broker: `POISON-ABORT`, `POISON-PANIC`, `POISON-HANG`.
pub(crate) fn poison(event: &Event) {
    let Event::Received { data, .. } = event else {
        return;
    };
    let has = |word: &str| data.windows(word.len()).any(|window| window == word.as_bytes());
    if !is_wanted("poison") || !has("POISON-") {
        return;
    }
    if has("POISON-ABORT") {
        std::process::abort();
    }
    assert!(!has("POISON-PANIC"), "a panic on demand");
    while has("POISON-HANG") {
        std::hint::spin_loop();
    }
}
