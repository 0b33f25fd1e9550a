//! What can be typed after `qk network`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use qk_protocol::hash::{Blake3, PublicKey};

/// Define a network, change it, or look at one
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  qk network show\n  qk network add bob.request --output lab.qknet\n\n\
Commands that change a network sign its next version with the root keys of this machine. Where those do \
not suffice, --draft FILE writes the version unsigned; `qk network sign FILE` adds signatures on machines \
that need no network, and `qk network publish FILE` completes it where the timestamp key lies."
)]
pub(crate) enum NetworkCommand {
    /// Define a network with this machine as its first principal, and join it
    #[command(
        after_help = "Example:\n  qk network new lab --bootstrap /ip4/192.0.2.1/tcp/4433 --output lab.qknet"
    )]
    New(NetworkNewArgs),
    /// Show a joined network: who belongs to it, what it builds with, what it asks for
    #[command(
        after_help = "Examples:\n  qk network show --output lab.qknet\n  qk network show --history\n  qk network show lab --toml > lab.toml"
    )]
    Show(NetworkShowArgs),
    /// Print one of this machine's own keys, for whoever runs the network
    #[command(
        after_help = "Examples:\n  qk network key\n  qk network key --node\n  qk network key --root"
    )]
    Key(NetworkKeyArgs),
    /// Ask to become a principal: prints a block, signed by this machine's key, for `qk network add`
    #[command(
        after_help = "Examples:\n  qk network request --role verifier > bob.request\n  qk network request --role mirror --name lab-cache"
    )]
    Request(NetworkRequestArgs),
    /// Add a principal by its request or its key, or one more key of one
    #[command(
        after_help = "Examples:\n  qk network add bob.request --output lab.qknet\n  qk network add alice 5f21… --role verifier --output lab.qknet"
    )]
    Add(NetworkAddArgs),
    /// Remove a principal: what it stated counts no more
    #[command(after_help = "Example:\n  qk network remove bob --output lab.qknet")]
    Remove(NetworkRemoveArgs),
    /// Change a principal's roles, targets, toolchains or name
    #[command(
        after_help = "Examples:\n  qk network change bob --role verifier --role mirror\n  qk network change bob --target x86_64-unknown-linux-gnu"
    )]
    Change(NetworkChangeArgs),
    /// Say what a principal's key is worth: active, retired or compromised
    #[command(
        after_help = "Examples:\n  qk network state 5f21… compromised\n  qk network state 5f21… retired"
    )]
    State(NetworkStateArgs),
    /// Block an artifact key or a root: nobody takes it any more
    #[command(
        after_help = "Examples:\n  qk network block --root 5f21… --reason \"built with a trojaned linker\"\n  qk network block --key 5f21… --reason \"malicious release\""
    )]
    Block(NetworkBlockArgs),
    /// Lift a block
    #[command(after_help = "Example:\n  qk network unblock 5f21…")]
    Unblock(NetworkUnblockArgs),
    /// Change the root keys, or how many of them have to sign
    #[command(
        after_help = "Example:\n  qk network root --add 5f21… --add a7c3… --remove 90de… --threshold 2 --draft next.qkdraft\n\n\
The version is signed by enough keys of both, the old and the new ones."
    )]
    Root(NetworkRootArgs),
    /// Change what the network asks for, builds with, and is reached by
    #[command(
        after_help = "Examples:\n  qk network set --threshold 3\n  qk network set --add-build --remove-build 1.94.0\n  qk network set --timestamp 5f21…"
    )]
    Set(NetworkSetArgs),
    /// Make the next version from a file that `qk network show --toml` printed and you changed
    #[command(
        after_help = "Example:\n  qk network show lab --toml > lab.toml\n  qk network edit lab.toml --output lab.qknet"
    )]
    Edit(NetworkEditArgs),
    /// Sign a next version with the root keys of this machine; needs neither network nor membership
    #[command(
        after_help = "Examples:\n  qk network sign next.qkdraft\n  qk network sign mine.qkdraft theirs.qkdraft --output both.qkdraft\n\n\
Shows what the version changes and asks before it signs; --yes does not ask. Several files are put \
together first."
    )]
    Sign(NetworkSignArgs),
    /// Complete a signed next version with a timestamp, and take it
    #[command(
        after_help = "Example:\n  qk network publish next.qkdraft --output lab.qknet\n\n\
Runs where the timestamp key lies. The node that runs here gives the version to others."
    )]
    Publish(NetworkPublishArgs),
    /// Renew the timestamp now; the node beside its key does so daily
    #[command(after_help = "Example:\n  qk network renew --output lab.qknet")]
    Renew(NetworkRenewArgs),
    /// Accept what a newer version widened, as `confirm_changes = true` in config.toml wants it
    #[command(after_help = "Example:\n  qk network accept lab")]
    Accept(NetworkAcceptArgs),
    /// Show in which order networks are asked, or change it
    #[command(
        after_help = "Examples:\n  qk network order\n  qk network order work public\n\n\
Without a given order private networks are asked before public ones, and those that were joined first \
before others. The next one is asked only if the one before knows too little."
    )]
    Order(NetworkOrderArgs),
}

/// Join a network, or take a newer version of one
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  qk join lab.qknet\n  qk join https://example.org/lab.qknet --fingerprint 5f21…\n  qk join lab.qknet --secret lab.secret"
)]
pub(crate) struct JoinArgs {
    /// The network file, or where it is
    #[arg(value_name = "FILE|URL")]
    pub from: String,
    /// Refuse any other network than this one
    #[arg(long, value_name = "HEX")]
    pub fingerprint: Option<String>,
    /// The file with the secret of a private network
    #[arg(long, value_name = "FILE", env = "QK_SECRET_FILE")]
    pub secret: Option<PathBuf>,
    /// Ask this network before all that are joined already
    #[arg(long)]
    pub first: bool,
}

/// Where the next version of a network goes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Next version")]
pub(crate) struct NextArgs {
    /// Which network, by name or fingerprint [default: the only one]
    #[arg(long)]
    pub network: Option<String>,
    /// Write the network file here
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Sign nothing: write the version here, for `qk network sign`. One that is there and that nobody
    /// signed is gone on with
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub draft: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct NetworkKeyArgs {
    /// The key of the node, which stands for a mirror; not the one that signs what was observed
    #[arg(long)]
    pub node: bool,
    /// This machine's root key, made on first use: it signs versions of networks that name it
    #[arg(long)]
    pub root: bool,
    /// This machine's timestamp key, made on first use: the node here renews the timestamps of networks
    /// that name it
    #[arg(long)]
    pub timestamp: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkRequestArgs {
    /// What to be
    #[arg(long, value_enum, default_values_t = [Role::Verifier])]
    pub role: Vec<Role>,
    /// A name for people [default: the user's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Targets that can be built here [default: this machine's]
    #[arg(long)]
    pub target: Vec<String>,
    /// Versions of rustc that are here [default: those of the network that are installed]
    #[arg(long, value_name = "VERSION")]
    pub toolchain: Vec<String>,
    /// In which network, by name or fingerprint [default: the only one]
    #[arg(long)]
    pub network: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkOrderArgs {
    /// Networks by name or fingerprint, the first to be asked first; all others come after them
    pub networks: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkNewArgs {
    /// A name for people
    pub name: String,
    /// Name of this machine's operator [default: the user's name]
    #[arg(long)]
    pub principal: Option<String>,
    /// Where this node can be reached: a multiaddress; its peer id is added
    #[arg(long, value_name = "ADDR")]
    pub bootstrap: Vec<String>,
    /// Distinct principals that have to agree
    #[arg(long, default_value_t = 2)]
    pub threshold: u32,
    /// Let only those take part who have the network's secret, which is written to a file of its own
    #[arg(long)]
    pub private: bool,
    /// Where to write the secret [default: NAME.secret beside --output]
    #[arg(long, value_name = "FILE", requires = "private")]
    pub secret_output: Option<PathBuf>,
    /// Write the network file here, for others to join
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkAddArgs {
    /// The file with a request, or a name for people; a known name adds a key to that principal
    #[arg(value_name = "FILE|NAME")]
    pub who: String,
    /// The public key that `qk network key` prints there, after a name
    pub key: Option<PublicKey>,
    /// What the principal does [default: what it asks for; publisher and verifier, without a request]
    #[arg(long, value_enum)]
    pub role: Vec<Role>,
    /// Another name than the request has
    #[arg(long, conflicts_with = "key")]
    pub name: Option<String>,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkRemoveArgs {
    /// Its name or the beginning of its id
    pub principal: String,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkChangeArgs {
    /// Its name or the beginning of its id
    pub principal: String,
    /// All that it does from now on
    #[arg(long, value_enum)]
    pub role: Vec<Role>,
    /// All targets that it builds from now on; `all` for those of the network
    #[arg(long)]
    pub target: Vec<String>,
    /// All versions of rustc that it has from now on; `all` for those of the network
    #[arg(long, value_name = "VERSION")]
    pub toolchain: Vec<String>,
    /// Another name
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkStateArgs {
    /// The key
    pub key: PublicKey,
    /// What its statements are worth: all; those stored before now; none
    #[arg(value_enum)]
    pub state: State,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("blocked").args(["key", "root"]).required(true).multiple(true))]
pub(crate) struct NetworkBlockArgs {
    /// An artifact key by its id, as `qk fetch --json` has it, whatever its root
    #[arg(long, value_name = "ID")]
    pub key: Option<Blake3>,
    /// A root, whatever its key
    #[arg(long)]
    pub root: Option<Blake3>,
    /// Why, for whoever is refused it
    #[arg(long)]
    pub reason: String,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkUnblockArgs {
    /// The id of the artifact key, or the root
    pub what: Blake3,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkRootArgs {
    /// A root key more: what `qk network key --root` prints on its machine
    #[arg(long, value_name = "KEY")]
    pub add: Vec<PublicKey>,
    /// A root key less
    #[arg(long, value_name = "KEY")]
    pub remove: Vec<PublicKey>,
    /// How many have to sign
    #[arg(long, value_name = "N")]
    pub threshold: Option<u32>,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkSetArgs {
    /// Distinct principals that have to agree
    #[arg(long, value_name = "N")]
    pub threshold: Option<u32>,
    /// Days that observations count; `none` for ever
    #[arg(long, value_name = "DAYS")]
    pub max_age_days: Option<String>,
    /// Members of a committee
    #[arg(long, value_name = "N")]
    pub committee: Option<u32>,
    /// Build with this machine's Rust and the zig of this qk, too, before all others
    #[arg(long)]
    pub add_build: bool,
    /// Build no longer with this version of rustc
    #[arg(long, value_name = "VERSION")]
    pub remove_build: Vec<String>,
    /// An address more to find nodes at, with a peer id
    #[arg(long, value_name = "ADDR")]
    pub add_bootstrap: Vec<String>,
    /// One less
    #[arg(long, value_name = "ADDR")]
    pub remove_bootstrap: Vec<String>,
    /// Another timestamp key: what `qk network key --timestamp` prints on its machine
    #[arg(long, value_name = "KEY")]
    pub timestamp: Option<PublicKey>,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkEditArgs {
    /// The TOML; its version and network are those of the next version, whatever it says
    pub file: PathBuf,
    #[command(flatten)]
    pub next: NextArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkSignArgs {
    /// What --draft wrote; several copies that were signed apart
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Where the signed one goes [default: the first file]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Do not ask before signing
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkPublishArgs {
    /// What was signed; several copies that were signed apart
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Write the network file here
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkRenewArgs {
    /// Which network, by name or fingerprint [default: the only one]
    pub network: Option<String>,
    /// Write the network file here
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkAcceptArgs {
    /// Which network, by name or fingerprint [default: the only one]
    pub network: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct NetworkShowArgs {
    /// Which network, by name or fingerprint [default: all]
    pub network: Option<String>,
    /// Write the network file here
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What each version changed
    #[arg(long, conflicts_with = "toml")]
    pub history: bool,
    /// The manifest as it was signed, for `qk network edit`
    #[arg(long, conflicts_with = "output")]
    pub toml: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    Publisher,
    Verifier,
    Mirror,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum State {
    Active,
    Retired,
    Compromised,
}
