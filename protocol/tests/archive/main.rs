//! Archives from outside: what is written, what is read, what is refused.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests compare with what tar and readelf say; the library does no I/O"
)]

mod fixture;
mod golden;
mod hostile;
mod inspect;
mod properties;
