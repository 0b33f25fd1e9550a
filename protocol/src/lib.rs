//! What qk decides, without I/O, clock or ambient randomness.
//!
//! Time ([`time::Now`]) and random bytes are arguments; everything that arrives from outside is
//! bounded before it is read and has a type that says what was checked.

pub mod archive;
pub mod canonical;
pub mod hash;
pub mod key;
pub mod time;
