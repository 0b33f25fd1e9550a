//! Builds crates in the sandbox.
