//! What qk carries out: network, store, sandbox and control socket around `qk-protocol`.

pub mod blocks;
pub mod build;
pub mod home;
pub mod install;
pub mod net;
pub mod registry;
pub mod store;
