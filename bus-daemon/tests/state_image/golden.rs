//! Images that earlier builds wrote. Every build must read them, and find in them what was there.
//!
//! A golden file is written once, by the build that begins a version of the format, and never again:
//! `cargo test -p bus-daemon --test state_image -- --ignored write_golden`

use std::path::PathBuf;

use bus_daemon::handoff::image;

use crate::image::save;
use crate::rich::rich;

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

#[test]
#[ignore = "writes the golden file of a new version of the format; never for one that was released"]
fn write_golden_image() {
    std::fs::write(path("image-v1.bin"), save(&rich().bus.broker)).unwrap();
}

#[test]
fn version_1_is_read() {
    let bytes = std::fs::read(path("image-v1.bin")).unwrap();
    let restored = image::load(&bytes).unwrap();
    assert_eq!(
        (restored.dropped.as_slice(), restored.damage.as_slice()),
        (&[][..], &[][..])
    );
    restored.broker.check_invariants().unwrap();
    let state = restored.broker.save();
    insta::with_settings!({ snapshot_path => "../golden", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("image-v1", format!("{:#?}\n{:#?}", restored.worker, state));
    });
}
