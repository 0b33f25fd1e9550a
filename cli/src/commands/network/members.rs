//! `qk network add`, `remove`, `change`, `state`: who belongs to a network.

use std::collections::BTreeSet;
use std::path::Path;

use qk_node::node::unix_now;
use qk_protocol::hash::{PrincipalId, PublicKey};
use qk_protocol::manifest::membership::{MEMBERSHIP_BYTES_MAX, Membership};
use qk_protocol::manifest::{KeyState, Manifest, Network, Principal, PrincipalKey, PrincipalRole};

use super::next::make;
use super::{active, read_bytes, usage};
use crate::args::{
    NetworkAddArgs, NetworkChangeArgs, NetworkRemoveArgs, NetworkStateArgs, NextArgs, Role, State,
};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::ago;
use crate::session::Session;

pub(super) async fn add(session: &Session, args: NetworkAddArgs) -> Outcome {
    match args.key {
        Some(key) => add_key(session, &args.next, &args.who, key, &args.role).await,
        None => add_request(session, &args).await,
    }
}

async fn add_key(
    session: &Session,
    next: &NextArgs,
    name: &str,
    key: PublicKey,
    role: &[Role],
) -> Outcome {
    make(session, next, |manifest| {
        unused(manifest, key)?;
        match manifest.principals.iter_mut().find(|one| one.name == name) {
            Some(principal) => principal.keys.push(active(key)),
            None => manifest.principals.push(Principal {
                id: PrincipalId(rand::random()),
                name: name.to_owned(),
                roles: roles(role)
                    .unwrap_or([PrincipalRole::Publisher, PrincipalRole::Verifier].into()),
                targets: BTreeSet::new(),
                toolchains: BTreeSet::new(),
                keys: vec![active(key)],
            }),
        }
        Ok(())
    })
    .await
}

/// Adds whoever signed a request. What it says is shown with the next version.
async fn add_request(session: &Session, args: &NetworkAddArgs) -> Outcome {
    let path = Path::new(&args.who);
    let bytes = read_bytes(path, MEMBERSHIP_BYTES_MAX)
        .map_err(|failure| failure.hint("`qk network add NAME KEY` adds a key by hand"))?;
    let request = Membership::read(bytes.trim_ascii())
        .map_err(|error| Failure::new(Kind::Corrupt, format!("{}: {error}", path.display())))?;
    let network = session.network(args.next.network.as_deref())?.network;
    meant_for(&request, &network)?;
    session.output.note(format!(
        "{} asked {}, signed by each of its keys",
        request.name,
        ago(unix_now().since(request.issued))
    ));
    make(session, &args.next, |manifest| {
        for key in &request.keys {
            unused(manifest, *key)?;
        }
        let mut principal = request.principal(PrincipalId(rand::random()));
        if let Some(name) = &args.name {
            principal.name.clone_from(name);
        }
        if let Some(roles) = roles(&args.role) {
            principal.roles = roles;
        }
        let name = &principal.name;
        // Whoever writes a request chooses its name: that alone must not make it somebody's key.
        if manifest.principals.iter().any(|one| one.name == *name) {
            let failure = usage(format!("there is a principal {name} already"));
            return Err(failure.hint(format!(
                "--name adds it under another name; `qk network add {name} KEY` adds its key to that principal"
            )));
        }
        manifest.principals.push(principal);
        Ok(())
    })
    .await
}

fn meant_for(request: &Membership, network: &Network) -> Outcome {
    if request.network == network.id() {
        return Ok(());
    }
    let message = format!(
        "the request is for network {}, not for {} ({})",
        request.network,
        network.manifest().name,
        network.id()
    );
    Err(Failure::new(Kind::Corrupt, message))
}

fn unused(manifest: &Manifest, key: PublicKey) -> Outcome {
    let has = |principal: &&Principal| principal.keys.iter().any(|one| one.key == key);
    match manifest.principals.iter().find(has) {
        None => Ok(()),
        Some(principal) => Err(usage(format!(
            "key {key} belongs to principal {} already",
            principal.name
        ))),
    }
}

pub(super) async fn remove(session: &Session, args: &NetworkRemoveArgs) -> Outcome {
    make(session, &args.next, |manifest| {
        let at = position(manifest, &args.principal)?;
        let removed = manifest.principals.remove(at);
        let policy = &manifest.policy;
        let named = policy.principals.contains(&removed.id)
            || policy
                .groups
                .iter()
                .any(|group| group.of.contains(&removed.id));
        if named {
            let message = format!("the policy names principal {}", removed.name);
            return Err(usage(message).hint("change the policy first, with `qk network edit`"));
        }
        Ok(())
    })
    .await
}

pub(super) async fn change(session: &Session, args: &NetworkChangeArgs) -> Outcome {
    make(session, &args.next, |manifest| {
        let at = position(manifest, &args.principal)?;
        if let Some(name) = &args.name
            && manifest.principals.iter().any(|one| one.name == *name)
            && manifest.principals[at].name != *name
        {
            return Err(usage(format!("there is a principal {name} already")));
        }
        let principal = &mut manifest.principals[at];
        if let Some(roles) = roles(&args.role) {
            principal.roles = roles;
        }
        for (given, set) in [
            (&args.target, &mut principal.targets),
            (&args.toolchain, &mut principal.toolchains),
        ] {
            match &given[..] {
                [] => {}
                [all] if all == "all" => set.clear(),
                given => *set = given.iter().cloned().collect(),
            }
        }
        if let Some(name) = &args.name {
            principal.name.clone_from(name);
        }
        Ok(())
    })
    .await
}

pub(super) async fn state(session: &Session, args: &NetworkStateArgs) -> Outcome {
    make(session, &args.next, |manifest| {
        let mut keys = manifest.principals.iter_mut().flat_map(|one| &mut one.keys);
        let Some(key) = keys.find(|one| one.key == args.key) else {
            let message = format!("no principal has key {}", args.key);
            return Err(Failure::new(Kind::NotFound, message));
        };
        *key = match args.state {
            State::Active => active(args.key),
            // It keeps the time at which it retired first.
            State::Retired => PrincipalKey {
                state: KeyState::Retired,
                retired: key.retired.or(Some(unix_now())),
                ..*key
            },
            State::Compromised => PrincipalKey {
                state: KeyState::Compromised,
                retired: None,
                ..*key
            },
        };
        Ok(())
    })
    .await
}

/// A principal by its name, or by the beginning of its id.
fn position(manifest: &Manifest, wanted: &str) -> Outcome<usize> {
    let is = |one: &Principal| {
        one.name == wanted || (wanted.len() >= 8 && one.id.to_string().starts_with(wanted))
    };
    let all = manifest.principals.iter();
    let found: Vec<usize> = all
        .enumerate()
        .filter_map(|(at, one)| is(one).then_some(at))
        .collect();
    match found[..] {
        [at] => Ok(at),
        [] => {
            let names: Vec<_> = manifest
                .principals
                .iter()
                .map(|one| one.name.as_str())
                .collect();
            let failure = Failure::new(Kind::NotFound, format!("no principal {wanted}"));
            Err(failure.hint(format!("there are: {}", names.join(", "))))
        }
        _ => {
            let failure = usage(format!("several principals are called {wanted}"));
            Err(failure.hint("`qk network show --json` has their ids"))
        }
    }
}

/// All roles that were typed; `None` for none.
pub(super) fn roles(typed: &[Role]) -> Option<BTreeSet<PrincipalRole>> {
    let roles: BTreeSet<_> = typed.iter().map(|role| role.of_principal()).collect();
    (!roles.is_empty()).then_some(roles)
}
