//! Whole-system tests: real processes, a real network, real crates; and the campaigns that repeat
//! one thing for as long as somebody is willing to wait.

pub mod alone;
pub mod artifact;
pub mod disk;
pub mod enemy;
pub mod faults;
pub mod lab;
pub mod lan;
pub mod namespace;
pub mod node_load;
pub mod peer;
pub mod process;
pub mod python;
pub mod registry;
pub mod schema;
pub mod store_load;
pub mod web;
pub mod writer;

use std::path::PathBuf;

/// The `qk` executable under test: what `QK_BIN` names, as `cargo xtask test` sets it, or the one
/// that cargo built beside this program.
///
/// # Panics
/// When neither is there.
pub fn qk() -> PathBuf {
    if let Some(path) = std::env::var_os("QK_BIN") {
        return path.into();
    }
    let this = std::env::current_exe().expect("the path of this program");
    // Tests lie in target/PROFILE/deps, executables in target/PROFILE.
    this.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("qk"))
        .find(|candidate| candidate.is_file())
        .expect("qk is not built: run `cargo xtask test`, or `cargo build -p qk` first")
}
