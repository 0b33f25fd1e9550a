//! `qk network sign` and `publish`: a next version on its way from root key to root key.

use std::path::{Path, PathBuf};

use qk_protocol::manifest::draft::Draft;

use super::next::{complete, describe, drafted, read_draft, sign_here, write_draft};
use super::usage;
use crate::args::{NetworkPublishArgs, NetworkSignArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::ask;
use crate::session::{Session, failed};

pub(super) async fn sign(session: &Session, args: &NetworkSignArgs) -> Outcome {
    let draft = merged(&args.files)?;
    let output = args.output.as_ref().unwrap_or(&args.files[0]);
    let before = draft.signers().len();
    let signed = sign_here(session, draft.clone())?;
    let by_this_machine = signed.signers().len() > before;
    if !by_this_machine && args.files.len() == 1 {
        let message = match draft.signers().is_empty() {
            true => "no root key of this network is on this machine",
            false => "no root key that has not signed it yet is on this machine",
        };
        let hint = "`qk network key --root` prints this machine's, for `qk network root --add`";
        return Err(usage(message).hint(hint));
    }
    if by_this_machine && !args.yes && !agreed(output, &draft).await? {
        return Err(Failure::new(Kind::Other, "nothing was signed"));
    }
    write_draft(session, output, &signed)
}

pub(super) async fn publish(session: &Session, args: &NetworkPublishArgs) -> Outcome {
    let draft = merged(&args.files)?;
    let known = session.home.networks().map_err(failed)?;
    let known = known
        .iter()
        .find(|one| one.network.id() == draft.before().id());
    let Some(known) = known else {
        let message = format!("network {} is not joined here", draft.before().id());
        return Err(usage(message));
    };
    // The version that it follows has to be the one that is known here: another one is in force.
    let (here, there) = (known.network.manifest(), draft.before().manifest());
    if here.version != there.version || !known.network.same_history(draft.before()) {
        let message = format!(
            "version {} follows version {}, but here version {} is known",
            draft.next().version,
            there.version,
            here.version
        );
        return Err(usage(message).hint("make it again, from what is known here"));
    }
    complete(session, draft, args.output.as_deref()).await
}

fn merged(files: &[PathBuf]) -> Outcome<Draft> {
    let mut drafts = files.iter().map(|path| (path, read_draft(path)));
    let Some((_, first)) = drafts.next() else {
        return Err(usage("no file"));
    };
    drafts.try_fold(first?, |all, (path, one)| {
        let merged = all.merge(one?);
        merged.map_err(|error| usage(format!("{}: {error}", path.display())))
    })
}

/// Shows what is to be signed and asks: a signature cannot be taken back.
async fn agreed(path: &Path, draft: &Draft) -> Outcome<bool> {
    let shown = describe(&drafted(path, draft));
    let text = shown.lines().filter(|line| !line.starts_with("written to"));
    let text: Vec<&str> = text.collect();
    let asked = ask(&format!("{}\nSign it?", text.join("\n"))).await?;
    asked.ok_or_else(|| {
        let failure = usage("this asks before it signs, and nobody is there to answer");
        failure.hint("--yes agrees; `--json` shows what was signed")
    })
}
