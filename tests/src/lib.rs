//! qk
