//! Making the next version of a network: signed here if this machine can, a draft otherwise.

use std::path::Path;

use qk_node::node::unix_now;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{NetworkId, PublicKey};
use qk_protocol::manifest::changes::changes;
use qk_protocol::manifest::draft::{DRAFT_BYTES_MAX, Draft, Quorum};
use qk_protocol::manifest::{Change, Manifest, Network};
use serde::Serialize;

use super::{Kept, keep, news, read_bytes, timestamp_key, usage, write_bytes};
use crate::args::NextArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed};

/// A version whose signatures are being gathered, as `--json` shows it.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Drafted {
    pub(super) network: NetworkId,
    pub(super) name: String,
    pub(super) version: u64,
    pub(super) changes: Vec<Change>,
    pub(super) signers: Vec<PublicKey>,
    pub(super) quorums: [Quorum; 2],
    pub(super) ready: bool,
    pub(super) draft: String,
}

/// Makes the next version of a joined network with one change, and signs and keeps it, or writes it
/// for others to sign.
pub(super) async fn make(
    session: &Session,
    args: &NextArgs,
    change: impl FnOnce(&mut Manifest) -> Outcome,
) -> Outcome {
    let network = session.network(args.network.as_deref())?.network;
    let begun = match &args.draft {
        Some(path) if path.exists() => Some(gone_on_with(path, &network)?),
        _ => None,
    };
    let so_far = begun
        .as_ref()
        .map_or(network.manifest(), |draft| draft.next());
    let mut next = so_far.clone();
    change(&mut next)?;
    let differ = changes(so_far, &next);
    if differ.is_empty() {
        return Err(usage("that is so already: nothing was changed"));
    }
    super::check_addresses(&next.bootstrap)?;
    let put = |manifest: &mut Manifest| {
        *manifest = Manifest {
            version: manifest.version,
            network: manifest.network,
            ..next
        };
    };
    let draft = match begun {
        Some(draft) => draft.change(put),
        None => Draft::begin(&network, put),
    };
    let draft = draft.map_err(usage)?;
    if let Some(path) = &args.draft {
        return write_draft(session, path, &draft);
    }
    let signed = sign_here(session, draft)?;
    if let Some(quorum) = signed.quorums().iter().find(|quorum| !quorum.met()) {
        let failure = Failure::new(Kind::Usage, format!("not signed: {}", needs(quorum)));
        return Err(failure.hint(
            "add `--draft FILE`, then run `qk network sign FILE` where root keys are, and `qk network publish FILE` beside the timestamp key",
        ));
    }
    complete(session, signed, args.output.as_deref()).await
}

/// A draft that is there already has to be of what is known here.
fn gone_on_with(path: &Path, network: &Network) -> Outcome<Draft> {
    let draft = read_draft(path)?;
    if draft.before().id() != network.id()
        || draft.before().manifest().version != network.manifest().version
    {
        let message = format!(
            "{}: it is of another network, or of an older version",
            path.display()
        );
        return Err(usage(message).hint("write the version to another file"));
    }
    Ok(draft)
}

pub(super) fn read_draft(path: &Path) -> Outcome<Draft> {
    let bytes = read_bytes(path, DRAFT_BYTES_MAX)?;
    Draft::parse(&bytes).map_err(|error| {
        Failure::new(Kind::Corrupt, format!("{}: {error}", path.display()))
            .hint("a draft is what `--draft FILE` of the commands that change a network writes")
    })
}

/// Adds the signatures of all root keys that are here.
pub(super) fn sign_here(session: &Session, draft: Draft) -> Outcome<Draft> {
    let keys = session.home.keys_for("root", draft.before().id());
    let keys = keys.map_err(failed)?;
    let mut may: Vec<_> = keys
        .iter()
        .filter(|key| draft.may_sign(public_key(key)))
        .collect();
    may.dedup_by_key(|key| public_key(key));
    match may[..] {
        [] => Ok(draft),
        _ => draft.sign(&may).map_err(usage),
    }
}

/// Completes a version whose signatures suffice, keeps it and shows it.
pub(super) async fn complete(session: &Session, draft: Draft, output: Option<&Path>) -> Outcome {
    let key = timestamp_key(&session.home, draft.before().id(), draft.next())?;
    let network = draft.complete(&key, unix_now()).map_err(usage)?;
    let kept = Kept {
        file: output,
        ..Kept::of(network)
    };
    keep(session, kept).await
}

pub(super) fn write_draft(session: &Session, path: &Path, draft: &Draft) -> Outcome {
    write_bytes(path, &draft.to_bytes())?;
    let shown = drafted(path, draft);
    session.output.result(&shown, describe);
    Ok(())
}

pub(super) fn drafted(path: &Path, draft: &Draft) -> Drafted {
    let quorums = draft.quorums();
    Drafted {
        network: draft.before().id(),
        name: draft.next().name.clone(),
        version: draft.next().version,
        changes: changes(draft.before().manifest(), draft.next()),
        signers: draft.signers().iter().copied().collect(),
        ready: quorums.iter().all(Quorum::met),
        quorums,
        draft: path.display().to_string(),
    }
}

/// What a version says and who signed it.
pub(super) fn describe(shown: &Drafted) -> String {
    let mut lines = vec![
        format!("network {}, version {}", shown.name, shown.version),
        format!("  fingerprint {}", shown.network),
    ];
    lines.extend(news::lines(&shown.changes));
    for signer in &shown.signers {
        lines.push(format!("  signed by   {signer}"));
    }
    let missing: Vec<_> = shown
        .quorums
        .iter()
        .filter(|quorum| !quorum.met())
        .collect();
    for quorum in &missing {
        lines.push(format!("  missing     {}", needs(quorum)));
        lines.extend(
            quorum
                .missing
                .iter()
                .map(|key| format!("              {key}")),
        );
    }
    let file = &shown.draft;
    lines.push(match missing.is_empty() {
        true => {
            format!("written to {file}: run `qk network publish {file}` beside the timestamp key")
        }
        false => format!("written to {file}: run `qk network sign {file}` where root keys are"),
    });
    lines.join("\n")
}

fn needs(quorum: &Quorum) -> String {
    format!(
        "{} of {} signatures by root keys of version {}",
        quorum.have, quorum.need, quorum.keys_of
    )
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;

    use super::*;

    fn quorum(keys_of: u64, have: usize, missing: u8) -> Quorum {
        Quorum {
            keys_of,
            have,
            need: 2,
            missing: [PublicKey([missing; 32])].into(),
        }
    }

    #[test]
    fn a_draft_says_what_it_changes_and_who_is_missing() {
        let change = |text: &str, widens| Change {
            text: text.to_owned(),
            widens,
        };
        let mut shown = Drafted {
            network: NetworkId([0xab; 32]),
            name: "lab".to_owned(),
            version: 4,
            changes: vec![
                change("principals that have to agree: 3 becomes 2", true),
                change("principal carol is removed", false),
            ],
            signers: vec![PublicKey([1; 32])],
            quorums: [quorum(3, 2, 2), quorum(4, 1, 3)],
            ready: false,
            draft: "next.qkdraft".to_owned(),
        };
        assert_snapshot!(describe(&shown), @r"
        network lab, version 4
          fingerprint abababababababababababababababababababababababababababababababab
          ! principals that have to agree: 3 becomes 2
            principal carol is removed
          signed by   0101010101010101010101010101010101010101010101010101010101010101
          missing     1 of 2 signatures by root keys of version 4
                      0303030303030303030303030303030303030303030303030303030303030303
        written to next.qkdraft: run `qk network sign next.qkdraft` where root keys are
        ");
        shown.quorums[1].have = 2;
        assert!(
            describe(&shown)
                .ends_with("run `qk network publish next.qkdraft` beside the timestamp key")
        );
    }
}
