//! `qk network request`: ask to become a principal.

use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;
use qk_node::build::RustToolchain;
use qk_node::node::unix_now;
use qk_protocol::manifest::membership::Membership;
use qk_protocol::manifest::{Manifest, PrincipalRole};
use serde::Serialize;

use super::members::roles;
use super::{usage, user_name};
use crate::args::NetworkRequestArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed, host_target};

/// What is asked for, and the block that asks.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Asked {
    #[serde(flatten)]
    request: Membership,
    block: String,
}

pub(super) fn request(session: &Session, args: &NetworkRequestArgs) -> Outcome {
    let network = session.network(args.network.as_deref())?.network;
    let roles = roles(&args.role).unwrap_or([PrincipalRole::Verifier].into());
    let observes = roles.iter().any(|role| *role != PrincipalRole::Mirror);
    let targets: BTreeSet<String> = match &args.target[..] {
        [] if observes => [host_target()].into(),
        given => given.iter().cloned().collect(),
    };
    let toolchains = match &args.toolchain[..] {
        [] if observes => installed(session, network.manifest(), &targets)?,
        given => given.iter().cloned().collect(),
    };
    // A mirror's key is its node's, everybody else's is the one that signs what was observed.
    let mut keys: Vec<SigningKey> = Vec::new();
    if observes {
        keys.push(session.home.key("observer").map_err(failed)?);
    }
    if roles.contains(&PrincipalRole::Mirror) {
        keys.push(session.home.key("node").map_err(failed)?);
    }
    let request = Membership {
        format: 1,
        network: network.id(),
        name: args.name.clone().unwrap_or_else(user_name),
        roles,
        targets,
        toolchains,
        keys: BTreeSet::new(),
        issued: unix_now(),
    };
    let keys: Vec<&SigningKey> = keys.iter().collect();
    let block = request.sign(&keys).map_err(usage)?;
    let request = Membership::read(&block).map_err(failed)?;
    let block = String::from_utf8(block).map_err(failed)?;
    let name = &network.manifest().name;
    session.output.note(format!(
        "for whoever runs {name}: `qk network add FILE`, with this in the file"
    ));
    let asked = Asked { request, block };
    session.output.result(&asked, |asked| asked.block.clone());
    Ok(())
}

/// Versions of rustc that the network builds these targets with, and that are here.
fn installed(
    session: &Session,
    manifest: &Manifest,
    targets: &BTreeSet<String>,
) -> Outcome<BTreeSet<String>> {
    let toolchains = session.toolchains();
    let builds = manifest.builds.iter();
    let wanted: Vec<_> = builds.filter(|one| targets.contains(&one.target)).collect();
    let here: BTreeSet<String> = wanted
        .iter()
        .filter(|one| RustToolchain::find(&one.rustc, &toolchains, &one.target).is_ok())
        .map(|one| one.rustc.version.clone())
        .collect();
    if here.is_empty() {
        let versions: Vec<_> = wanted
            .iter()
            .map(|one| one.rustc.version.as_str())
            .collect();
        let message = "no toolchain that the network builds these targets with is here";
        return Err(
            Failure::new(Kind::Usage, message).hint(match versions.is_empty() {
                true => "the network builds nothing for them".to_owned(),
                false => format!(
                    "`rustup toolchain install {}`, or name versions with --toolchain",
                    versions.join(" ")
                ),
            }),
        );
    }
    Ok(here)
}
