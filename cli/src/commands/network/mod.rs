//! `qk network` and `qk join`: define networks, look at them, take part in them.

mod draft;
mod members;
pub(crate) mod news;
pub(crate) mod next;
pub(crate) mod request;
mod settings;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use qk_node::home::{Home, Joined};
use qk_node::net;
use qk_node::node::unix_now;
use qk_node::secret::{self, Secret, SecretError};
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Blake3, NetworkId, PrincipalId, PublicKey};
use qk_protocol::manifest::changes::changes;
use qk_protocol::manifest::{
    Change, Committee, KeyState, Manifest, NETWORK_FILE_BYTES_MAX, Network, NetworkFile, Principal,
    PrincipalKey, PrincipalRole, RootKeys,
};
use qk_protocol::policy::Policy;
use serde::Serialize;

pub(crate) use self::news::{tell, warn_of_end};
use crate::args::{
    JoinArgs, NetworkCommand, NetworkKeyArgs, NetworkNewArgs, NetworkOrderArgs, NetworkRenewArgs,
    NetworkShowArgs, Role,
};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{ago, lasting};
use crate::session::{Session, failed};

/// Members of a committee, unless the manifest says another number.
const COMMITTEE_SIZE: u32 = 5;

/// A network as `--json` shows it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Network"))]
pub(crate) struct Shown {
    network: NetworkId,
    #[serde(flatten)]
    manifest: Manifest,
    timestamp_issued: u64,
    timestamp_expires: u64,
    fresh: bool,
    /// Seconds until the timestamp ends, where that is to be warned of.
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_soon: Option<u64>,
    /// What this command, or the versions since the one that was shown last, changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Change>,
    /// What each version changed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    history: Vec<Version>,
    own_roles: BTreeSet<PrincipalRole>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
    /// Where the secret lies; never the secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_file: Option<String>,
}

/// What one version changed about the one before.
#[derive(Debug, Serialize)]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(rename = "VersionChanges")
)]
struct Version {
    version: u64,
    changes: Vec<Change>,
}

pub(crate) async fn run(session: &Session, command: NetworkCommand) -> Outcome {
    match command {
        NetworkCommand::New(args) => new(session, &args).await,
        NetworkCommand::Show(args) => show(session, &args),
        NetworkCommand::Key(args) => key(session, &args),
        NetworkCommand::Request(args) => request::request(session, &args),
        NetworkCommand::Add(args) => members::add(session, args).await,
        NetworkCommand::Remove(args) => members::remove(session, &args).await,
        NetworkCommand::Change(args) => members::change(session, &args).await,
        NetworkCommand::State(args) => members::state(session, &args).await,
        NetworkCommand::Block(args) => settings::block(session, &args).await,
        NetworkCommand::Unblock(args) => settings::unblock(session, &args).await,
        NetworkCommand::Root(args) => settings::root(session, &args).await,
        NetworkCommand::Set(args) => settings::set(session, &args).await,
        NetworkCommand::Edit(args) => settings::edit(session, &args).await,
        NetworkCommand::Sign(args) => draft::sign(session, &args).await,
        NetworkCommand::Publish(args) => draft::publish(session, &args).await,
        NetworkCommand::Renew(args) => renew(session, &args).await,
        NetworkCommand::Accept(args) => news::accept(session, &args).await,
        NetworkCommand::Order(args) => order(session, &args).await,
    }
}

/// A public key of this machine, and its peer id.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Key {
    key: PublicKey,
    peer: String,
}

/// The joined networks.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct AllShown {
    networks: Vec<Shown>,
}

/// The joined networks, in the order in which they are asked.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Order {
    networks: Vec<Place>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "NetworkPlace"))]
struct Place {
    network: NetworkId,
    name: String,
    private: bool,
}

fn key(session: &Session, args: &NetworkKeyArgs) -> Outcome {
    let shown = Key {
        key: public_key(
            &session
                .home
                .key(match args {
                    NetworkKeyArgs { node: true, .. } => "node",
                    NetworkKeyArgs { root: true, .. } => "root",
                    NetworkKeyArgs {
                        timestamp: true, ..
                    } => "timestamp",
                    NetworkKeyArgs { .. } => "observer",
                })
                .map_err(failed)?,
        ),
        peer: peer_id(&session.home)?,
    };
    session.output.result(&shown, |shown| {
        format!("{}\n(peer id {})", shown.key, shown.peer)
    });
    Ok(())
}

async fn new(session: &Session, args: &NetworkNewArgs) -> Outcome {
    let home = &session.home;
    let peer = peer_id(home)?;
    let own = |address: &String| match address.contains("/p2p/") {
        true => address.clone(),
        false => format!("{address}/p2p/{peer}"),
    };
    let (root, timestamp): (SigningKey, SigningKey) = (random_key(), random_key());
    let observer = home.key("observer").map_err(failed)?;
    let build = session.compiled_in_build()?;
    let secret = args.private.then(Secret::random);
    let secret_file = match &secret {
        Some(_) => Some(secret_path(args)?),
        None => None,
    };
    let manifest = Manifest {
        format: 1,
        name: args.name.clone(),
        network: None,
        version: 1,
        timestamp: public_key(&timestamp),
        bootstrap: args.bootstrap.iter().map(own).collect(),
        registries: [qk_node::registry::crates_io_id()].into(),
        secret_id: secret.as_ref().map(Secret::id),
        root: RootKeys {
            threshold: 1,
            keys: [public_key(&root)].into(),
        },
        committee: Committee {
            size: COMMITTEE_SIZE,
            seed: Blake3(rand::random()),
        },
        policy: Policy {
            threshold: args.threshold,
            ..Policy::default()
        },
        builds: vec![build],
        principals: vec![Principal {
            id: PrincipalId(rand::random()),
            name: args.principal.clone().unwrap_or_else(user_name),
            roles: [PrincipalRole::Publisher, PrincipalRole::Verifier].into(),
            targets: BTreeSet::new(),
            toolchains: BTreeSet::new(),
            keys: vec![active(public_key(&observer))],
        }],
        blocked: Vec::new(),
    };
    check_addresses(&manifest.bootstrap)?;
    let usage = |error| Failure::new(Kind::Usage, error);
    let network = Network::create(&manifest, &[&root], &timestamp, unix_now()).map_err(usage)?;
    // First: without this file nobody else could ever join.
    if let (Some(secret), Some(path)) = (&secret, &secret_file) {
        secret.write_new(path).map_err(|error| of_secret(&error))?;
    }
    home.keep_key(&root_name(network.id()), &root)
        .map_err(failed)?;
    home.keep_key(&timestamp_name(network.id()), &timestamp)
        .map_err(failed)?;
    let kept = Kept {
        secret,
        file: args.output.as_deref(),
        secret_file: secret_file.as_deref(),
        ..Kept::of(network)
    };
    keep(session, kept).await
}

/// Where the secret of a new network goes.
fn secret_path(args: &NetworkNewArgs) -> Outcome<PathBuf> {
    if let Some(path) = &args.secret_output {
        return Ok(path.clone());
    }
    if args.name.contains('/') || args.name.starts_with('.') {
        let message = "this name is no file name: say with --secret-output where the secret goes";
        return Err(Failure::new(Kind::Usage, message));
    }
    let beside = args.output.as_deref().and_then(Path::parent);
    Ok(beside
        .unwrap_or_else(|| Path::new(""))
        .join(format!("{}.secret", args.name)))
}

fn of_secret(error: &SecretError) -> Failure {
    let failure = Failure::new(Kind::Usage, error);
    match error {
        SecretError::Missing { .. } => failure.hint(
            "ask whoever runs it for the file with the secret, and add `--secret FILE` or QK_SECRET_FILE",
        ),
        SecretError::Wrong { .. } | SecretError::Malformed { .. } => failure
            .hint("`qk network new` wrote it beside the network file; has it been mixed up?"),
        SecretError::NotPrivate { .. } => failure.hint("join it without --secret"),
        SecretError::Io { .. } => failure,
    }
}

async fn renew(session: &Session, args: &NetworkRenewArgs) -> Outcome {
    let network = session.network(args.network.as_deref())?.network;
    let key = timestamp_key(&session.home, network.id(), network.manifest())?;
    let renewed = network.renew(&key, unix_now()).map_err(usage)?;
    let kept = Kept {
        file: args.output.as_deref(),
        ..Kept::of(renewed)
    };
    keep(session, kept).await
}

fn show(session: &Session, args: &NetworkShowArgs) -> Outcome {
    let networks = match &args.network {
        Some(_) => vec![session.network(args.network.as_deref())?],
        None => session.home.networks().map_err(failed)?,
    };
    if networks.is_empty() {
        return Err(Session::no_network());
    }
    if let (Some(path), [one]) = (&args.output, &networks[..]) {
        write_file(path, &one.network)?;
    } else if args.output.is_some() {
        return Err(Failure::new(
            Kind::Usage,
            "several networks are joined: name the one to write",
        ));
    }
    if args.toml {
        let [one] = &networks[..] else {
            return Err(Failure::new(
                Kind::Usage,
                "several networks are joined: name the one whose TOML is wanted",
            ));
        };
        let toml = one.network.manifest().to_toml().map_err(failed)?;
        session.output.bytes(toml.as_bytes());
        return Ok(());
    }
    let own = public_key(&session.home.key("observer").map_err(failed)?);
    let shown: Vec<Shown> = networks
        .iter()
        .map(|one| Shown {
            changes: one.news(),
            history: if args.history {
                history(&one.network)
            } else {
                Vec::new()
            },
            ..shown(&one.network, own, args.output.as_deref())
        })
        .collect();
    session.output.result(&AllShown { networks: shown }, |all| {
        let networks = all.networks.iter().map(describe);
        networks.collect::<Vec<_>>().join("\n\n")
    });
    Ok(())
}

/// What each version changed, the newest first.
fn history(network: &Network) -> Vec<Version> {
    let versions = (2..=network.manifest().version).rev();
    let changed = versions.filter_map(|version| {
        let [before, after] = [version - 1, version].map(|number| network.version(number));
        Some(Version {
            version,
            changes: changes(&before?, &after?),
        })
    });
    changed.collect()
}

pub(crate) async fn join(session: &Session, args: &JoinArgs) -> Outcome {
    let kept = joining(session, args).await?;
    keep(session, kept).await
}

/// Joins a network that a project names and its user accepts.
pub(crate) async fn accept_named(session: &Session, from: &str, id: NetworkId) -> Outcome {
    let args = JoinArgs {
        from: from.to_owned(),
        fingerprint: Some(id.to_string()),
        secret: std::env::var_os("QK_SECRET_FILE").map(PathBuf::from),
        first: false,
    };
    let kept = joining(session, &args).await?;
    let name = kept.network.manifest().name.clone();
    take(session, kept)?;
    session.reload_node().await;
    session.output.note(format!("joined network {name}, {id}"));
    Ok(())
}

async fn joining(session: &Session, args: &JoinArgs) -> Outcome<Kept<'static>> {
    let bytes = match args.from.strip_prefix("https://") {
        Some(_) => {
            let from = args.from.clone();
            let got = tokio::task::spawn_blocking(move || {
                qk_node::registry::get_small(&from, NETWORK_FILE_BYTES_MAX)
                    .map_err(|error| Failure::new(Kind::Network, format!("{from}: {error}")))
            });
            got.await.map_err(failed)??
        }
        None if args.from.starts_with("http://") => {
            let message = "a network file is fetched over https only";
            return Err(Failure::new(Kind::Usage, message));
        }
        None => read_bytes(Path::new(&args.from), NETWORK_FILE_BYTES_MAX)?,
    };
    let corrupt = |error| Failure::new(Kind::Corrupt, format!("{}: {error}", args.from));
    let file = NetworkFile::parse(&bytes).map_err(corrupt)?;
    let network = Network::verify(file).map_err(corrupt)?;
    if let Some(wanted) = &args.fingerprint
        && *wanted != network.id().to_string()
    {
        let message = format!(
            "{} defines network {}, not {wanted}",
            args.from,
            network.id()
        );
        return Err(Failure::new(Kind::Corrupt, message));
    }
    let known = session.home.networks().map_err(failed)?;
    let joined = known.iter().find(|one| one.network.id() == network.id());
    let network = match joined {
        Some(known) => {
            let newer = known.network.advance(network.file().clone());
            newer.map_err(corrupt)?
        }
        None => network,
    };
    if !network.fresh(unix_now()) {
        let message = format!(
            "the timestamp of network {} ended {}",
            network.manifest().name,
            ago(unix_now().since(network.timestamp().expires))
        );
        return Err(Failure::new(Kind::Stale, message).hint("ask whoever runs it for a newer file"));
    }
    let given = match &args.secret {
        Some(path) => Some(Secret::read(path).map_err(|error| of_secret(&error))?),
        None => joined.and_then(|known| known.secret.clone()),
    };
    let secret = secret::fitting(network.manifest(), given).map_err(|error| of_secret(&error))?;
    let first = known.iter().map(|one| one.place).min();
    Ok(Kept {
        secret,
        place: first.filter(|_| args.first).map(|first| first - 1),
        ..Kept::of(network)
    })
}

/// Shows the order in which networks are asked, after it was changed if some are named.
async fn order(session: &Session, args: &NetworkOrderArgs) -> Outcome {
    let mut first: Vec<Joined> = Vec::new();
    for wanted in &args.networks {
        let joined = session.network(Some(wanted))?;
        if first
            .iter()
            .any(|one| one.network.id() == joined.network.id())
        {
            let message = format!("network {wanted} is named twice");
            return Err(Failure::new(Kind::Usage, message));
        }
        first.push(joined);
    }
    if !first.is_empty() {
        let count = i64::try_from(first.len()).unwrap_or(i64::MAX);
        for mut other in session.home.networks().map_err(failed)? {
            let named = first
                .iter()
                .position(|one| one.network.id() == other.network.id());
            let position = named.and_then(|at| i64::try_from(at).ok());
            other.place = position.map_or(0, |at| at - count);
            session.home.keep_network(&other).map_err(failed)?;
        }
        session.reload_node().await;
    }
    let joined = session.home.networks().map_err(failed)?;
    let shown: Vec<Place> = joined
        .iter()
        .map(|one| Place {
            network: one.network.id(),
            name: one.network.manifest().name.clone(),
            private: one.network.manifest().secret_id.is_some(),
        })
        .collect();
    if shown.is_empty() {
        return Err(Session::no_network());
    }
    session.output.result(&Order { networks: shown }, |order| {
        let lines = order.networks.iter().enumerate().map(|(at, one)| {
            let private = if one.private { ", private" } else { "" };
            format!(
                "{}. {} ({}{private})",
                at + 1,
                one.name,
                one.network.short()
            )
        });
        lines.collect::<Vec<_>>().join("\n")
    });
    Ok(())
}

/// A network that is to be kept, and what is to be said about it.
struct Kept<'a> {
    network: Network,
    /// Unless it is known already.
    secret: Option<Secret>,
    /// Unless it stays where it is.
    place: Option<i64>,
    file: Option<&'a Path>,
    secret_file: Option<&'a Path>,
}

impl Kept<'_> {
    fn of(network: Network) -> Self {
        Self {
            network,
            secret: None,
            place: None,
            file: None,
            secret_file: None,
        }
    }
}

/// Keeps a network and shows it, with all that changed since its user was told last; a node that runs
/// takes it at once.
async fn keep(session: &Session, kept: Kept<'_>) -> Outcome {
    let (file, secret_file) = (kept.file, kept.secret_file);
    if let Some(path) = file {
        write_file(path, &kept.network)?;
    }
    let (joined, changes) = take(session, kept)?;
    session.reload_node().await;
    let own = public_key(&session.home.key("observer").map_err(failed)?);
    let shown = Shown {
        secret_file: secret_file.map(|path| path.display().to_string()),
        changes,
        ..shown(&joined.network, own, file)
    };
    session.output.result(&shown, describe);
    Ok(())
}

/// Keeps a network; with it, what changed since its user was told last.
fn take(session: &Session, kept: Kept<'_>) -> Outcome<(Joined, Vec<Change>)> {
    let Kept {
        network,
        secret,
        place,
        ..
    } = kept;
    let known = session.home.networks().map_err(failed)?;
    let known = known
        .into_iter()
        .find(|one| one.network.id() == network.id());
    let told = known.as_ref().map(|known| known.accepted);
    let changes = told.map_or_else(Vec::new, |told| network.changes_since(told));
    let joined = Joined {
        joined: known.as_ref().map_or_else(unix_now, |known| known.joined),
        place: place.unwrap_or_else(|| known.as_ref().map_or(0, |known| known.place)),
        secret: secret.or_else(|| known.and_then(|known| known.secret)),
        // It is shown by whoever keeps it.
        accepted: network.manifest().version,
        network,
    };
    session.home.keep_network(&joined).map_err(failed)?;
    Ok((joined, changes))
}

fn shown(network: &Network, own: PublicKey, file: Option<&Path>) -> Shown {
    Shown {
        network: network.id(),
        manifest: Manifest {
            // It is there already.
            network: None,
            ..network.manifest().clone()
        },
        timestamp_issued: network.timestamp().issued.0,
        timestamp_expires: network.timestamp().expires.0,
        fresh: network.fresh(unix_now()),
        ends_soon: network.ends_soon(unix_now()),
        changes: Vec::new(),
        history: Vec::new(),
        own_roles: network
            .principal(own)
            .map(|(principal, _)| principal.roles.clone())
            .unwrap_or_default(),
        file: file.map(|path| path.display().to_string()),
        secret_file: None,
    }
}

fn describe(shown: &Shown) -> String {
    let manifest = &shown.manifest;
    let mut lines = vec![
        format!("network {} (version {})", manifest.name, manifest.version),
        format!("  fingerprint {}", shown.network),
        format!(
            "  timestamp   {}",
            match (shown.fresh, shown.ends_soon) {
                (true, None) => "in force".to_owned(),
                (true, Some(left)) => format!(
                    "ends in {}: does the node beside its key run, and can it be reached?",
                    lasting(left)
                ),
                (false, _) => "ended: nothing new is trusted until it is renewed".to_owned(),
            }
        ),
        match manifest.policy.threshold {
            1 => "  trusts      what 1 principal observed".to_owned(),
            threshold => format!("  trusts      what {threshold} principals observed alike"),
        },
    ];
    for principal in &manifest.principals {
        let roles: Vec<_> = principal
            .roles
            .iter()
            .map(|role| format!("{role:?}").to_lowercase())
            .collect();
        lines.push(format!(
            "  principal   {} ({})",
            principal.name,
            roles.join(", ")
        ));
        let odd = principal
            .keys
            .iter()
            .filter(|key| key.state != KeyState::Active);
        lines.extend(odd.map(|key| {
            let state = format!("{:?}", key.state).to_lowercase();
            format!("              key {} is {state}", key.key)
        }));
    }
    for build in &manifest.builds {
        lines.push(format!(
            "  builds      {} with rustc {}",
            build.target, build.rustc.version
        ));
    }
    for address in &manifest.bootstrap {
        lines.push(format!("  bootstrap   {address}"));
    }
    for blocked in &manifest.blocked {
        let key = blocked.key.map(|key| format!("key {key}"));
        let root = blocked.root.map(|root| format!("root {root}"));
        let what: Vec<String> = key.into_iter().chain(root).collect();
        lines.push(format!(
            "  blocked     {}: {}",
            what.join(" and "),
            blocked.reason
        ));
    }
    if manifest.root.keys.len() > 1 {
        lines.push(format!(
            "  signed by   {} of {} root keys",
            manifest.root.threshold,
            manifest.root.keys.len()
        ));
    }
    lines.extend(news::lines(&shown.changes));
    for version in &shown.history {
        lines.push(format!("  version {}", version.version));
        lines.extend(news::lines(&version.changes));
    }
    if manifest.secret_id.is_some() {
        lines.push("  private     only those who have its secret take part".to_owned());
    }
    match (&shown.file, &shown.secret_file) {
        (Some(file), Some(secret)) => lines.push(format!(
            "written to {file}, and its secret to {secret}: others run `qk join {file} --secret {secret}`"
        )),
        (Some(file), None) => {
            lines.push(format!("written to {file}: others run `qk join {file}`"));
        }
        (None, Some(secret)) => lines.push(format!(
            "its secret is written to {secret}: whoever has that can take part"
        )),
        (None, None) => {}
    }
    lines.join("\n")
}

/// The key here that signs the timestamps of a version.
fn timestamp_key(home: &Home, id: NetworkId, manifest: &Manifest) -> Outcome<SigningKey> {
    let keys = home.keys_for("timestamp", id).map_err(failed)?;
    let named = |key: &SigningKey| public_key(key) == manifest.timestamp;
    keys.into_iter().find(named).ok_or_else(|| {
        let key = manifest.timestamp;
        let message = format!("the timestamp key of this network, {key}, is not on this machine");
        Failure::new(Kind::Usage, message)
            .hint("run this where it is, beside the node that renews it")
    })
}

fn usage(error: impl std::fmt::Display) -> Failure {
    Failure::new(Kind::Usage, error)
}

fn peer_id(home: &Home) -> Outcome<String> {
    let secret = home.key("node").map_err(failed)?.to_bytes();
    let identity = net::identity_of(secret).map_err(|error| Failure::new(Kind::Other, error))?;
    Ok(identity.public().to_peer_id().to_string())
}

fn check_addresses(addresses: &BTreeSet<String>) -> Outcome {
    for address in addresses {
        let parsed = address.parse::<net::Multiaddr>();
        let parsed = parsed.map_err(|error| error.to_string());
        let named = parsed
            .and_then(|parsed| net::Contact::named(&parsed).map_err(|error| error.to_string()));
        if let Err(error) = named {
            let failure = Failure::new(Kind::Usage, format!("{address}: {error}"));
            return Err(failure.hint("a multiaddress such as /ip4/192.0.2.1/tcp/4433"));
        }
    }
    Ok(())
}

fn active(key: PublicKey) -> PrincipalKey {
    PrincipalKey {
        key,
        state: KeyState::Active,
        retired: None,
    }
}

fn random_key() -> SigningKey {
    SigningKey::from_bytes(&rand::random())
}

fn root_name(id: NetworkId) -> String {
    format!("root-{id}")
}

fn timestamp_name(id: NetworkId) -> String {
    format!("timestamp-{id}")
}

fn user_name() -> String {
    std::env::var("USER")
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "founder".to_owned())
}

impl Role {
    fn of_principal(self) -> PrincipalRole {
        match self {
            Self::Publisher => PrincipalRole::Publisher,
            Self::Verifier => PrincipalRole::Verifier,
            Self::Mirror => PrincipalRole::Mirror,
        }
    }
}

fn write_file(path: &Path, network: &Network) -> Outcome {
    write_bytes(path, &network.file().to_bytes())
}

/// Replaces a file as a whole. Others may read it as they may what the user writes otherwise.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Outcome {
    let failed =
        |error: std::io::Error| Failure::new(Kind::Other, format!("{}: {error}", path.display()));
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temp = tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(failed)?;
    temp.write_all(bytes).map_err(failed)?;
    temp.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// The bytes of a file, one more than `bytes_max` at most: who reads them says that it is too long.
pub(crate) fn read_bytes(path: &Path, bytes_max: usize) -> Outcome<Vec<u8>> {
    let failed =
        |error: std::io::Error| Failure::new(Kind::Usage, format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(bytes_max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use qk_protocol::hash::Root;
    use qk_protocol::manifest::Blocked;

    use super::*;

    #[test]
    fn a_network_as_a_person_sees_it() {
        let change = |text: &str, widens| Change {
            text: text.to_owned(),
            widens,
        };
        let mut lost = active(PublicKey([2; 32]));
        lost.state = KeyState::Compromised;
        let manifest = Manifest {
            format: 1,
            name: "lab".to_owned(),
            network: None,
            version: 3,
            timestamp: PublicKey([9; 32]),
            bootstrap: ["/ip4/192.0.2.1/tcp/4433/p2p/12D3KooWExample".to_owned()].into(),
            registries: BTreeSet::new(),
            secret_id: None,
            root: RootKeys {
                threshold: 2,
                keys: [3, 4, 5].map(|seed| PublicKey([seed; 32])).into(),
            },
            committee: Committee {
                size: 5,
                seed: Blake3([0; 32]),
            },
            policy: Policy::default(),
            builds: Vec::new(),
            principals: vec![Principal {
                id: PrincipalId([1; 32]),
                name: "alice".to_owned(),
                roles: [PrincipalRole::Publisher, PrincipalRole::Verifier].into(),
                targets: BTreeSet::new(),
                toolchains: BTreeSet::new(),
                keys: vec![active(PublicKey([1; 32])), lost],
            }],
            blocked: vec![Blocked {
                key: None,
                root: Some(Root([7; 32])),
                reason: "a trojan".to_owned(),
            }],
        };
        let shown = Shown {
            network: NetworkId([0xab; 32]),
            manifest,
            timestamp_issued: 0,
            timestamp_expires: 0,
            fresh: true,
            ends_soon: Some(36 * 3600),
            changes: vec![change("principals that have to agree: 3 becomes 2", true)],
            history: vec![Version {
                version: 3,
                changes: vec![change("principal bob is removed", false)],
            }],
            own_roles: BTreeSet::new(),
            file: None,
            secret_file: None,
        };
        assert_snapshot!(describe(&shown), @r"
        network lab (version 3)
          fingerprint abababababababababababababababababababababababababababababababab
          timestamp   ends in 36 h 0 min: does the node beside its key run, and can it be reached?
          trusts      what 2 principals observed alike
          principal   alice (publisher, verifier)
                      key 0202020202020202020202020202020202020202020202020202020202020202 is compromised
          bootstrap   /ip4/192.0.2.1/tcp/4433/p2p/12D3KooWExample
          blocked     root 0707070707070707070707070707070707070707070707070707070707070707: a trojan
          signed by   2 of 3 root keys
          ! principals that have to agree: 3 becomes 2
          version 3
            principal bob is removed
        ");
    }
}
