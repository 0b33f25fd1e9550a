//! Mutates inputs that are accepted and keeps those that are accepted again, so that later ones
//! differ from valid documents in a few places only. Everything follows from the seed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::mutate::mutate;

/// Most inputs that are kept to be mutated further.
const CORPUS_MAX: usize = 512;
/// Longest input.
const INPUT_BYTES_MAX: usize = 64 * 1024;

/// One decoder.
pub(crate) struct Target {
    /// What it decodes.
    pub(crate) name: &'static str,
    /// Valid inputs to begin with.
    pub(crate) seeds: Vec<Vec<u8>>,
    /// Inputs that broke it once.
    pub(crate) found: Vec<Vec<u8>>,
    /// Decodes, panics if a promise is broken, and returns whether the input was accepted.
    pub(crate) run: fn(&[u8]) -> bool,
}

/// How long to go on.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Budget {
    /// This many inputs.
    Inputs(u64),
    /// Until this much time has passed.
    Time(Duration),
}

/// What a run without a finding did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Inputs tried.
    pub(crate) inputs: u64,
    /// How many of them were accepted.
    pub(crate) accepted: u64,
}

/// An input that made a target panic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The input.
    pub(crate) input: Vec<u8>,
    /// How many inputs had been tried before it.
    pub(crate) after: u64,
}

impl Target {
    /// Tries the seeds, what was found before, and then mutations of them until the budget is spent.
    ///
    /// # Errors
    /// The first input that makes the target panic.
    pub(crate) fn fuzz(&self, seed: u64, budget: Budget) -> Result<Summary, Finding> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut corpus: Vec<Vec<u8>> = self.seeds.iter().chain(&self.found).cloned().collect();
        let mut summary = Summary {
            inputs: 0,
            accepted: 0,
        };
        for input in &corpus {
            self.one(input, &mut summary)?;
        }
        let start = Instant::now();
        while budget.allows(summary.inputs, start) {
            let mut input = corpus[rng.random_range(0..corpus.len())].clone();
            let other = &corpus[rng.random_range(0..corpus.len())];
            mutate(&mut input, other, &mut rng);
            input.truncate(INPUT_BYTES_MAX);
            if self.one(&input, &mut summary)? {
                keep(&mut corpus, input, self.seeds.len(), &mut rng);
            }
        }
        Ok(summary)
    }

    fn one(&self, input: &[u8], summary: &mut Summary) -> Result<bool, Finding> {
        let accepted =
            catch_unwind(AssertUnwindSafe(|| (self.run)(input))).map_err(|_| Finding {
                input: input.to_vec(),
                after: summary.inputs,
            })?;
        summary.inputs += 1;
        summary.accepted += u64::from(accepted);
        Ok(accepted)
    }
}

impl Budget {
    fn allows(self, inputs: u64, start: Instant) -> bool {
        match self {
            Self::Inputs(most) => inputs < most,
            Self::Time(most) => start.elapsed() < most,
        }
    }
}

/// Adds an input, in place of another one that is no seed when the corpus is full.
fn keep(corpus: &mut Vec<Vec<u8>>, input: Vec<u8>, seeds: usize, rng: &mut StdRng) {
    if corpus.len() < CORPUS_MAX {
        corpus.push(input);
    } else {
        let place = rng.random_range(seeds..corpus.len());
        corpus[place] = input;
    }
}

/// Accepts what begins with `q`, and has a mistake in what follows.
fn flawed() -> Target {
    Target {
        name: "flawed",
        found: Vec::new(),
        seeds: vec![b"qk, a valid document".to_vec()],
        run: |input| {
            assert!(!input.starts_with(b"qkk"), "the mistake");
            input.starts_with(b"q")
        },
    }
}

#[test]
fn a_mistake_is_found_and_found_again_with_the_same_seed() {
    let finding = flawed().fuzz(1, Budget::Inputs(200_000)).unwrap_err();
    assert!(finding.input.starts_with(b"qkk"));
    let again = flawed().fuzz(1, Budget::Inputs(200_000)).unwrap_err();
    assert_eq!(finding, again);
}

#[test]
fn the_budget_is_kept() {
    let mut target = flawed();
    target.run = |input| input.starts_with(b"q");
    let summary = target.fuzz(1, Budget::Inputs(1000)).unwrap();
    assert_eq!(summary.inputs, 1000);
    assert!(summary.accepted > 100 && summary.accepted < 1000);
}
