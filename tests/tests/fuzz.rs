//! The fuzz targets as ordinary tests: always the same inputs, enough to notice a decoder that
//! breaks. `cargo xtask campaign fuzz` tries new ones.

use qk_tests::fuzz::{Budget, targets};

#[test]
fn every_seed_is_accepted() {
    for target in targets() {
        for (number, seed) in target.seeds.iter().enumerate() {
            assert!((target.run)(seed), "{}: seed {number}", target.name);
        }
    }
}

#[test]
fn no_decoder_panics() {
    for target in targets() {
        let summary = target.fuzz(1, Budget::Inputs(4000));
        let summary = summary.unwrap_or_else(|finding| {
            panic!(
                "{}: {:?}",
                target.name,
                String::from_utf8_lossy(&finding.input)
            )
        });
        // Most mutations must be refused; a target that takes anything tests nothing.
        assert!(
            summary.accepted < summary.inputs,
            "{}: {summary:?}",
            target.name
        );
    }
}
