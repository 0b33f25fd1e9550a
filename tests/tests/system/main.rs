//! The whole system: real processes of `qk`, real libp2p over loopback, the command line as people
//! type it. Exit codes are those that `qk fetch --help` lists.

mod bad_input;
mod cache;
mod fetch;
mod hostile;
mod interrupted;
mod networks;
mod node;
mod node_kill;
mod private;
mod providers;
mod secret;
mod sources;
mod trust;
