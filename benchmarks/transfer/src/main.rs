//! What benchmarks need beside `qk` itself, above all one blob between real nodes, each a process of
//! its own: its network side over TCP, its block server, its store on disk.
//!
//! `serve` prints a JSON line when it can be asked; it ends with its standard input and says then
//! what it sent. `get` prints one when the blob is in its store.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser};
use qk_node::net::Multiaddr;
use qk_protocol::hash::Root;

mod fill;
mod get;
mod link;
mod net;
mod peers;
mod serve;
mod throttle;

/// Parts of qk that are measured, as processes of their own
#[derive(Parser)]
enum Task {
    /// Serve a file until standard input ends
    Serve(Serve),
    /// Download a blob into a store
    Get(Get),
    /// Join two network namespaces by a wire that takes its time, until standard input ends
    Link(Link),
    /// Put statements into the store of a node that is not running
    Fill(Fill),
    /// Run several nodes until standard input ends
    Peers(Peers),
}

#[derive(Args)]
struct Serve {
    /// The blob
    file: PathBuf,
    /// Where the store is to be
    store: PathBuf,
    /// Bytes a second that leave at most, over all lanes
    #[arg(long)]
    cap: Option<u64>,
    /// Send so many bytes, and then no more, without a word
    #[arg(long)]
    stall_after: Option<u64>,
}

#[derive(Args)]
struct Get {
    /// BLAKE3 of the blob
    root: Root,
    /// Its bytes
    size: u64,
    /// Where the store is to be
    store: PathBuf,
    /// The nodes that have it
    #[arg(long = "provider", required = true)]
    providers: Vec<Multiaddr>,
    /// Write what comes without comparing anything with the root: to see what verification costs
    #[arg(long)]
    no_verify: bool,
    /// Lanes to each provider, where nothing is verified
    #[arg(long, default_value_t = 1)]
    lanes: usize,
}

#[derive(Args)]
struct Link {
    /// Name of the interface at one end, to be moved where it is needed
    left: String,
    /// Name of the interface at the other end
    right: String,
    /// Milliseconds from either end to the other
    #[arg(long)]
    delay_ms: u64,
}

#[derive(Args)]
struct Fill {
    /// The node's home; it has joined a network
    home: PathBuf,
    /// The home of who states them
    signer: PathBuf,
    /// How many
    statements: usize,
}

#[derive(Args)]
struct Peers {
    /// The host where they listen
    host: Ipv4Addr,
    /// The port where the first of them listens; the others listen at the next ones
    port: u16,
    /// Where the node is that they stay connected with
    with: Ipv4Addr,
    /// A home for each of them, which has joined a network
    #[arg(required = true)]
    homes: Vec<PathBuf>,
}

fn main() -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr).init();
    let task = Task::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match task {
            Task::Serve(args) => serve::run(args).await,
            Task::Get(args) => get::run(args).await,
            Task::Link(args) => link::run(args),
            Task::Fill(args) => fill::run(args),
            Task::Peers(args) => peers::run(args).await,
        }
    })
}
