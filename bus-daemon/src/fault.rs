//! Faults on demand, for tests of what must survive them. Compiled only with the feature `test-hooks`.

/// Ends this process by its own fault if `BUS_TEST_FAULT` names this point.
pub(crate) fn point(name: &str) {
    if std::env::var_os("BUS_TEST_FAULT").is_some_and(|wanted| wanted == name) {
        std::process::abort();
    }
}
