//! The fuzz targets as ordinary tests: over their seeds, over what was found before, and over
//! mutations, always the same ones. With `QK_FUZZ_SECONDS` set, as `cargo xtask fuzz` does, other
//! ones for that long; `QK_FUZZ_SEED` and `QK_FUZZ_TARGET` choose among them.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests read the seeds, the clock and the environment; the library does not"
)]

mod engine;
mod mutate;
#[path = "../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a library of its own for libFuzzer")]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::engine::{Budget, Target};

/// Inputs for each target when nobody asks for more.
const INPUTS: u64 = 4000;

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz")
        .join(name)
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            path.file_stem().unwrap().to_str().unwrap().to_owned()
        })
        .collect()
}

/// The contents of all files in a directory, by name; none if there is no such directory.
fn contents(directory: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn all() -> Vec<Target> {
    targets::TARGETS
        .iter()
        .map(|(name, run)| Target {
            name,
            seeds: contents(&directory("seeds").join(name)),
            found: contents(&directory("found").join(name)),
            run: *run,
        })
        .collect()
}

#[test]
fn every_target_has_its_files() {
    let targets: BTreeSet<String> = targets::TARGETS
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(targets, names(&directory("fuzz_targets")));
    assert_eq!(targets, names(&directory("seeds")));
    let manifest = fs::read_to_string(directory("Cargo.toml")).unwrap();
    for name in &targets {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

#[test]
fn every_seed_is_accepted() {
    for target in all() {
        assert!(!target.seeds.is_empty(), "{} has no seed", target.name);
        for (number, seed) in target.seeds.iter().enumerate() {
            assert!((target.run)(seed), "{}: seed {number}", target.name);
        }
    }
}

#[test]
fn no_decoder_breaks_a_promise() {
    let mut targets = all();
    if let Ok(name) = std::env::var("QK_FUZZ_TARGET") {
        targets.retain(|target| target.name == name);
        assert!(!targets.is_empty(), "there is no target {name}");
    }
    let seed = number("QK_FUZZ_SEED").unwrap_or(1);
    let budget = number("QK_FUZZ_SECONDS").map_or(Budget::Inputs(INPUTS), |seconds| {
        Budget::Time(Duration::from_secs(seconds) / u32::try_from(targets.len()).unwrap())
    });
    let found: Vec<String> = targets
        .iter()
        .filter_map(|target| one(target, seed, budget))
        .collect();
    assert!(found.is_empty(), "seed {seed}:\n{}", found.join("\n"));
}

/// Fuzzes one target; a finding is stored, and described.
fn one(target: &Target, seed: u64, budget: Budget) -> Option<String> {
    let finding = match target.fuzz(seed, budget) {
        Ok(summary) => {
            println!(
                "{}: {} inputs, {} accepted",
                target.name, summary.inputs, summary.accepted
            );
            // Most mutations have to be refused: a target that takes anything tests nothing.
            assert!(summary.accepted < summary.inputs, "{}", target.name);
            return None;
        }
        Err(finding) => finding,
    };
    let file = &blake3::hash(&finding.input).to_hex()[..16];
    let directory = directory("found").join(target.name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(file), &finding.input).unwrap();
    Some(format!(
        "{} after {} inputs: fuzz/found/{}/{file}",
        target.name, finding.after, target.name
    ))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{name} is no number: {text:?}"),
    }
}
