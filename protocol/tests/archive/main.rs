//! Archives from outside: what is written, what is read, what is refused.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests read golden files and run tar; the library does neither"
)]

mod fixture;
mod golden;
mod hostile;
mod inspect;
mod properties;
