//! What is counted and measured in a run.

use std::collections::BTreeMap;

use crate::report::Quantiles;
use crate::wire::Cause;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    counts: BTreeMap<&'static str, u64>,
    samples: BTreeMap<&'static str, Vec<f32>>,
    faults: BTreeMap<&'static str, u64>,
    bytes: [u64; Cause::ALL.len()],
    messages: [u64; Cause::ALL.len()],
    upstream: u64,
}

impl Tally {
    pub(crate) fn count(&mut self, what: &'static str) {
        self.add(what, 1);
    }

    pub(crate) fn add(&mut self, what: &'static str, number: u64) {
        *self.counts.entry(what).or_default() += number;
    }

    pub(crate) fn counted(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn measure(&mut self, what: &'static str, value: f64) {
        self.samples.entry(what).or_default().push(value as f32);
    }

    /// Something that was to go wrong did.
    pub(crate) fn fault(&mut self, what: &'static str) {
        *self.faults.entry(what).or_default() += 1;
    }

    pub(crate) fn fired(&self, what: &str) -> u64 {
        self.faults.get(what).copied().unwrap_or_default()
    }

    pub(crate) fn bytes(&mut self, cause: Cause, bytes: u64) {
        self.bytes[cause as usize] += bytes;
    }

    pub(crate) fn sent(&mut self, cause: Cause, bytes: u64, upstream: bool) {
        self.bytes(cause, bytes);
        self.messages[cause as usize] += 1;
        self.upstream += if upstream { bytes } else { 0 };
    }

    pub(crate) fn bytes_for(&self, cause: Cause) -> u64 {
        self.bytes[cause as usize]
    }

    pub(crate) fn messages(&self) -> u64 {
        self.messages.iter().sum()
    }

    pub(crate) fn upstream(&self) -> u64 {
        self.upstream
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.counts.iter().map(|(name, count)| (*name, *count))
    }

    pub(crate) fn quantiles(&mut self) -> BTreeMap<String, Quantiles> {
        let all = std::mem::take(&mut self.samples);
        let each = all
            .into_iter()
            .filter_map(|(name, samples)| Some((name.to_owned(), Quantiles::of(samples)?)));
        each.collect()
    }
}
