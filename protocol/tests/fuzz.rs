//! The fuzz targets as ordinary tests: over their seeds and over mutations of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a library of its own for libFuzzer")]
mod targets;

/// Of each seed.
const MUTATIONS: u64 = 2000;

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

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory("seeds").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
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
        assert!(!seeds(name).is_empty(), "{name} has no seed");
    }
}

#[test]
fn seeds_and_mutations_of_them() {
    for (name, target) in targets::TARGETS {
        let seeds = seeds(name);
        for (index, seed) in seeds.iter().enumerate() {
            target(seed);
            for round in 0..MUTATIONS {
                let mut rng = StdRng::seed_from_u64(round);
                let other = &seeds[rng.random_range(0..seeds.len())];
                let input = mutate(seed, other, &mut rng);
                let result = std::panic::catch_unwind(|| target(&input));
                assert!(result.is_ok(), "{name}, seed {index}, round {round}");
            }
        }
    }
}

fn mutate(seed: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut input = seed.to_vec();
    for _ in 0..rng.random_range(1..5) {
        let at = rng.random_range(0..=input.len());
        let end = rng.random_range(at..=input.len().min(at + 64));
        match rng.random_range(0..7) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            3 => input[at..end].fill([0, 1, 0x7f, 0xff][rng.random_range(0..4)]),
            4 => {
                let from = rng.random_range(0..=other.len());
                let to = rng.random_range(from..=other.len().min(from + 64));
                input.splice(at..end, other[from..to].iter().copied());
            }
            5 => input.insert(at, rng.random()),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << rng.random_range(0..8);
                }
            }
        }
    }
    input
}
