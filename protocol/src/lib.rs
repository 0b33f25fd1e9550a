//! What qk decides, without I/O, clock or ambient randomness.
//!
//! Time ([`time::Now`]) and random bytes are arguments; everything that arrives from outside is
//! bounded before it is read and has a type that says what was checked.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod archive;
pub mod assign;
pub mod blocks;
pub mod bundle;
pub mod candidate;
pub mod canonical;
pub mod decide;
pub mod dsse;
pub mod fetch;
pub mod hash;
pub mod hidden;
pub mod index;
pub mod key;
pub mod log;
pub mod lookup;
pub mod manifest;
pub mod message;
pub mod mirror;
pub mod policy;
pub mod project;
pub mod repair;
pub mod search;
pub mod statement;
#[cfg(test)]
pub(crate) mod testing;
pub mod time;
pub mod transfer;
pub mod upkeep;
pub mod watch;
pub mod work;
