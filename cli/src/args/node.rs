//! The node, and what it gives.

use clap::{Args, Subcommand, ValueEnum};
use qk_node::manners::Size;
use qk_node::watch::Time;

/// Run a node in the foreground until Ctrl-C, or as a service in the background
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  qk node\n  qk node --listen /ip4/0.0.0.0/tcp/4433\n  qk node --share --upload-rate 2MiB\n  qk node --cache --listen /ip4/0.0.0.0/tcp/4433\n  qk node install\n  qk node pause --for 2h\n\n\
Signals: INT and TERM end the node, a second one at once; HUP reads the configuration and the joined\n\
networks again. QK_LOG sets what is logged, for instance QK_LOG=info,qk_node::net=debug\n\n\
QK_PARENT names nodes to ask first, as --parent does, here and for `qk fetch`: multiaddresses,\n\
separated by commas; /p2p/PEER alone is looked for on the local network"
)]
pub(crate) struct NodeCli {
    #[command(subcommand)]
    pub command: Option<NodeCommand>,
    #[command(flatten)]
    pub args: NodeArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Install the node as a service that starts by itself, and start it
    #[command(
        after_help = "Examples:\n  qk node install\n  qk node install --listen /ip4/0.0.0.0/tcp/4433\n  qk node install --no-share\n  qk node install --system"
    )]
    Install(NodeInstallArgs),
    /// Stop the service and remove it
    #[command(after_help = "Examples:\n  qk node uninstall\n  qk node uninstall --purge")]
    Uninstall(NodeUninstallArgs),
    /// Let the node rest: it gives no blocks, announces nothing and cleans nothing
    #[command(after_help = "Examples:\n  qk node pause\n  qk node pause --for 2h")]
    Pause {
        /// For how long, such as 90s, 30m, 2h or 1d [default: until `qk node resume`]
        #[arg(long = "for", value_name = "TIME")]
        time: Option<Time>,
    },
    /// End a pause that was asked for
    #[command(after_help = "Example:\n  qk node resume")]
    Resume,
    /// Print the key that the gateway signs what it packs with, for minisign and cargo-binstall; one is
    /// made if there is none
    #[command(
        after_help = "Example:\n  minisign -Vm hexyl.tgz -x hexyl.tgz.sig -P \"$(qk node gateway-key)\""
    )]
    GatewayKey,
}

#[derive(Debug, Args)]
pub(crate) struct NodeInstallArgs {
    /// For all users of this machine: with a user and a home of its own, for root to look after and
    /// for members of the group qk to use
    #[arg(long)]
    pub system: bool,
    /// Keep what was fetched to yourself: a service gives and announces it otherwise, as with --share
    #[arg(long, conflicts_with = "share")]
    pub no_share: bool,
    /// What the node is started with
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NodeUninstallArgs {
    /// The service of all users of this machine
    #[arg(long)]
    pub system: bool,
    /// Remove the node's home too: keys, joined networks, store
    #[arg(long)]
    pub purge: bool,
    /// Do not ask before keys are removed
    #[arg(long, requires = "purge")]
    pub yes: bool,
}

/// How a node logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// What a node is started with
#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Addresses to listen on, as multiaddresses [default: the configuration's]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Nodes to ask first, as multiaddresses that end in a peer id
    #[arg(long, value_name = "ADDR")]
    pub parent: Vec<String>,
    /// Be the cache of a local network: keep the whole index, and fetch for the neighbours what they
    /// ask for, once
    #[arg(long)]
    pub cache: bool,
    /// Serve artifacts, health and metrics over HTTP at this address, as 127.0.0.1:8080
    #[arg(long, value_name = "ADDR")]
    pub gateway: Option<String>,
    /// How to log, to standard error
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Let the members of this group fetch and query over the control socket
    #[arg(long, value_name = "GROUP", help_heading = "Advanced")]
    pub socket_group: Option<String>,
    #[command(flatten)]
    pub share: ShareArgs,
}

/// Show what this node is doing
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  qk status\n  qk status --watch\n  qk status --json")]
pub(crate) struct StatusArgs {
    /// Show it every second until Ctrl-C
    #[arg(long, short)]
    pub watch: bool,
}

/// What is given to others; each stands before `[share]` of the configuration
#[derive(Debug, Args)]
#[command(next_help_heading = "Sharing")]
pub(crate) struct ShareArgs {
    /// Give and announce what was fetched, too, not only what was built here; `fetched = false` in
    /// the configuration forbids it
    #[arg(long)]
    pub share: bool,
    /// Give nothing: no blocks, no announcements
    #[arg(long, conflicts_with = "share")]
    pub leech: bool,
    /// Tell nobody what is here; who asks is served all the same
    #[arg(long)]
    pub no_announce: bool,
    /// Bytes a second that may leave, such as 2MiB
    #[arg(long, value_name = "SIZE")]
    pub upload_rate: Option<Size>,
    /// Bytes a second that may be downloaded for others; one's own fetches are not slowed down
    #[arg(long, value_name = "SIZE")]
    pub download_rate: Option<Size>,
    /// Connections that each network may have
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Bytes that the store may take, such as 20GiB
    #[arg(long, value_name = "SIZE")]
    pub quota: Option<Size>,
}
