//! Whole-system tests of qk with real processes, and what they share.

pub mod store_load;
