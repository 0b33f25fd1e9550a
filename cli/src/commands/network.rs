//! `qk network` and `qk join`: define networks, look at them, take part in them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;

use ed25519_dalek::SigningKey;
use qk_node::home::{Home, Joined};
use qk_node::net;
use qk_node::node::unix_now;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{Blake3, NetworkId, PrincipalId, PublicKey};
use qk_protocol::manifest::{
    Committee, KeyState, Manifest, NETWORK_FILE_BYTES_MAX, Network, NetworkFile, Principal,
    PrincipalKey, PrincipalRole, RootKeys,
};
use qk_protocol::policy::Policy;
use serde::Serialize;

use crate::args::{JoinArgs, NetworkAddArgs, NetworkNewArgs, NetworkShowArgs, Role};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::ago;
use crate::session::{Session, failed};

/// Members of a committee, unless the manifest says another number.
const COMMITTEE_SIZE: u32 = 5;

/// A network as `--json` shows it.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    network: NetworkId,
    #[serde(flatten)]
    manifest: Manifest,
    timestamp_issued: u64,
    timestamp_expires: u64,
    fresh: bool,
    own_roles: BTreeSet<PrincipalRole>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<String>,
}

pub(crate) fn key(session: &Session) -> Outcome {
    #[derive(Serialize)]
    struct Key {
        key: PublicKey,
        peer: String,
    }
    let shown = Key {
        key: public_key(&session.home.key("observer").map_err(failed)?),
        peer: peer_id(&session.home)?,
    };
    session.output.result(&shown, |shown| {
        format!("{}\n(peer id {})", shown.key, shown.peer)
    });
    Ok(())
}

pub(crate) async fn new(session: &Session, args: &NetworkNewArgs) -> Outcome {
    let home = &session.home;
    let peer = peer_id(home)?;
    let own = |address: &String| match address.contains("/p2p/") {
        true => address.clone(),
        false => format!("{address}/p2p/{peer}"),
    };
    let (root, timestamp): (SigningKey, SigningKey) = (random_key(), random_key());
    let observer = home.key("observer").map_err(failed)?;
    let build = session.compiled_in_build()?;
    let manifest = Manifest {
        format: 1,
        name: args.name.clone(),
        network: None,
        version: 1,
        timestamp: public_key(&timestamp),
        bootstrap: args.bootstrap.iter().map(own).collect(),
        registries: [qk_node::registry::crates_io_id()].into(),
        secret_id: None,
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
    home.keep_key(&root_name(network.id()), &root)
        .map_err(failed)?;
    home.keep_key(&timestamp_name(network.id()), &timestamp)
        .map_err(failed)?;
    keep(session, network, args.output.as_deref()).await
}

pub(crate) async fn add(session: &Session, args: &NetworkAddArgs) -> Outcome {
    let joined = session.network(args.network.as_deref())?;
    let network = &joined.network;
    let key = args.key.parse().map_err(|error| {
        Failure::new(Kind::Usage, format!("{error}"))
            .hint("`qk network key` prints it on the other machine")
    })?;
    if let Some((principal, _)) = network.principal(key) {
        let message = format!("this key belongs to principal {} already", principal.name);
        return Err(Failure::new(Kind::Usage, message));
    }
    let mut manifest = network.manifest().clone();
    manifest.network = Some(network.id());
    manifest.version += 1;
    match manifest
        .principals
        .iter_mut()
        .find(|one| one.name == args.name)
    {
        Some(principal) => principal.keys.push(active(key)),
        None => manifest.principals.push(Principal {
            id: PrincipalId(rand::random()),
            name: args.name.clone(),
            roles: args.role.iter().map(|role| role.of_principal()).collect(),
            targets: BTreeSet::new(),
            toolchains: BTreeSet::new(),
            keys: vec![active(key)],
        }),
    }
    let root = own_key(&session.home, &root_name(network.id()), "root")?;
    let timestamp = own_key(&session.home, &timestamp_name(network.id()), "timestamp")?;
    let usage = |error| Failure::new(Kind::Usage, error);
    let next = network
        .succeed(&manifest, &[&root], &timestamp, unix_now())
        .map_err(usage)?;
    keep(session, next, args.output.as_deref()).await
}

pub(crate) fn show(session: &Session, args: &NetworkShowArgs) -> Outcome {
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
    let own = public_key(&session.home.key("observer").map_err(failed)?);
    let shown: Vec<Shown> = networks
        .iter()
        .map(|one| shown(&one.network, own, None))
        .collect();
    session.output.result(&shown, |shown| {
        shown.iter().map(describe).collect::<Vec<_>>().join("\n\n")
    });
    Ok(())
}

pub(crate) async fn join(session: &Session, args: &JoinArgs) -> Outcome {
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
        None => read_file(Path::new(&args.from))?,
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
    let network = match known.iter().find(|one| one.network.id() == network.id()) {
        Some(known) => known
            .network
            .advance(network.file().clone())
            .map_err(corrupt)?,
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
    keep(session, network, None).await
}

/// Keeps a network and shows it; a node that runs takes it at once.
async fn keep(session: &Session, network: Network, file: Option<&Path>) -> Outcome {
    if let Some(path) = file {
        write_file(path, &network)?;
    }
    let known = session.home.networks().map_err(failed)?;
    let known = known
        .into_iter()
        .find(|one| one.network.id() == network.id());
    let joined = Joined {
        joined: known.as_ref().map_or_else(unix_now, |known| known.joined),
        secret: known.and_then(|known| known.secret),
        network,
    };
    session.home.keep_network(&joined).map_err(failed)?;
    session.reload_node().await;
    let own = public_key(&session.home.key("observer").map_err(failed)?);
    let shown = shown(&joined.network, own, file);
    session.output.result(&shown, describe);
    Ok(())
}

fn shown(network: &Network, own: PublicKey, file: Option<&Path>) -> Shown {
    Shown {
        network: network.id(),
        manifest: network.manifest().clone(),
        timestamp_issued: network.timestamp().issued.0,
        timestamp_expires: network.timestamp().expires.0,
        fresh: network.fresh(unix_now()),
        own_roles: network
            .principal(own)
            .map(|(principal, _)| principal.roles.clone())
            .unwrap_or_default(),
        file: file.map(|path| path.display().to_string()),
    }
}

fn describe(shown: &Shown) -> String {
    let manifest = &shown.manifest;
    let mut lines = vec![
        format!("network {} (version {})", manifest.name, manifest.version),
        format!("  fingerprint {}", shown.network),
        format!(
            "  timestamp   {}",
            if shown.fresh {
                "in force"
            } else {
                "ended: nothing new is trusted until it is renewed"
            }
        ),
        format!(
            "  trusts      what {} principals observed alike",
            manifest.policy.threshold
        ),
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
    if let Some(file) = &shown.file {
        lines.push(format!("written to {file}: others run `qk join {file}`"));
    }
    lines.join("\n")
}

fn own_key(home: &Home, name: &str, what: &str) -> Outcome<SigningKey> {
    home.existing_key(name).map_err(failed)?.ok_or_else(|| {
        Failure::new(
            Kind::Usage,
            format!("the {what} key of this network is not on this machine"),
        )
        .hint("run this where `qk network new` was run")
    })
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
    let failed =
        |error: std::io::Error| Failure::new(Kind::Other, format!("{}: {error}", path.display()));
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temp = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    temp.write_all(&network.file().to_bytes()).map_err(failed)?;
    temp.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn read_file(path: &Path) -> Outcome<Vec<u8>> {
    let failed =
        |error: std::io::Error| Failure::new(Kind::Usage, format!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(NETWORK_FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}
