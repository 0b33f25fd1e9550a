//! Places executables as `cargo install` does.
