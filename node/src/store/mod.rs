//! Artifacts and statements on disk.
