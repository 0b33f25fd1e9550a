//! The whole system: real processes of `qk`, real libp2p over loopback, the command line as people
//! type it. Exit codes are those that `qk fetch --help` lists.

mod attacks;
mod bad_input;
mod bundle;
mod cache;
mod churn;
mod compare;
mod container;
mod crowd;
mod enemies;
mod fetch;
mod formats;
mod gateway;
mod gateways;
mod hidden;
mod hostile;
mod interrupted;
mod logs;
mod manifest;
mod manners;
mod nat;
mod networks;
mod node;
mod node_kill;
mod private;
mod providers;
mod run;
mod search;
mod secret;
mod service;
mod shared_node;
mod shells;
mod sources;
mod stopped_builds;
mod trust;
mod watch;
