//! What qk carries out: network, store, sandbox and control socket around `qk-protocol`.

pub mod access;
pub mod blocks;
pub mod build;
pub mod compare;
pub mod control;
pub mod counters;
mod crowd;
pub mod deadline;
pub mod gateway;
pub mod home;
pub mod install;
pub mod logs;
pub mod manners;
pub mod net;
pub mod node;
pub mod programs;
pub mod registry;
pub mod secret;
pub mod service;
pub mod store;
pub mod supply;
pub mod unpack;
pub mod watch;
