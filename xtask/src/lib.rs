//! The project's own commands, run as `cargo xtask NAME`.
//!
//! What a person or CI runs is here and nowhere else: `.ci/run` and the documents call these.
//! Everything that xtask has to say goes to standard error; standard output belongs to the command
//! that was asked for.

pub mod bench;
pub mod campaign;
pub mod cargo;
pub mod deny;
pub mod release;
pub mod setup;
pub mod survey;
pub mod test;
