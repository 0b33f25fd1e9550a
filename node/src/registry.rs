//! Reads registries as cargo does.
