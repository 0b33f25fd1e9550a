//! `qk network block`, `unblock`, `root`, `set`, `edit`: what a network asks for and is made of.

use qk_protocol::hash::{KeyId, Root};
use qk_protocol::manifest::{Blocked, MANIFEST_BYTES_MAX, Manifest};

use super::next::make;
use super::{read_bytes, usage};
use crate::args::{
    NetworkBlockArgs, NetworkEditArgs, NetworkRootArgs, NetworkSetArgs, NetworkUnblockArgs,
};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::Session;

pub(super) async fn block(session: &Session, args: &NetworkBlockArgs) -> Outcome {
    let entry = Blocked {
        key: args.key.map(|id| KeyId(id.0)),
        root: args.root.map(|root| Root(root.0)),
        reason: args.reason.clone(),
    };
    make(session, &args.next, |manifest| {
        let same = |one: &Blocked| (one.key, one.root) == (entry.key, entry.root);
        manifest.blocked.retain(|one| !same(one));
        manifest.blocked.push(entry);
        Ok(())
    })
    .await
}

pub(super) async fn unblock(session: &Session, args: &NetworkUnblockArgs) -> Outcome {
    let what = args.what.0;
    make(session, &args.next, |manifest| {
        let before = manifest.blocked.len();
        let is = |one: &Blocked| one.key == Some(KeyId(what)) || one.root == Some(Root(what));
        manifest.blocked.retain(|one| !is(one));
        if manifest.blocked.len() == before {
            let message = format!("{} is not blocked", args.what);
            let failure = Failure::new(Kind::NotFound, message);
            return Err(failure.hint("`qk network show` names what is blocked"));
        }
        Ok(())
    })
    .await
}

pub(super) async fn root(session: &Session, args: &NetworkRootArgs) -> Outcome {
    make(session, &args.next, |manifest| {
        let root = &mut manifest.root;
        for key in &args.remove {
            if !root.keys.remove(key) {
                let message = format!("{key} is no root key of this network");
                return Err(Failure::new(Kind::NotFound, message));
            }
        }
        root.keys.extend(&args.add);
        root.threshold = args.threshold.unwrap_or(root.threshold);
        Ok(())
    })
    .await
}

pub(super) async fn set(session: &Session, args: &NetworkSetArgs) -> Outcome {
    let build = match args.add_build {
        true => Some(session.compiled_in_build()?),
        false => None,
    };
    let max_age = match args.max_age_days.as_deref() {
        None => None,
        Some("none") => Some(None),
        Some(days) => Some(Some(days.parse().map_err(|_| {
            usage(format!("{days:?} is neither a number of days nor `none`"))
        })?)),
    };
    make(session, &args.next, |manifest| {
        let policy = &mut manifest.policy;
        policy.threshold = args.threshold.unwrap_or(policy.threshold);
        policy.max_age_days = max_age.unwrap_or(policy.max_age_days);
        let committee = &mut manifest.committee;
        committee.size = args.committee.unwrap_or(committee.size);
        manifest.timestamp = args.timestamp.unwrap_or(manifest.timestamp);
        for version in &args.remove_build {
            let before = manifest.builds.len();
            manifest.builds.retain(|one| one.rustc.version != *version);
            if manifest.builds.len() == before {
                let message = format!("the network does not build with rustc {version}");
                return Err(Failure::new(Kind::NotFound, message));
            }
        }
        if let Some(build) = build.filter(|build| !manifest.builds.contains(build)) {
            manifest.builds.insert(0, build);
        }
        for address in &args.remove_bootstrap {
            if !manifest.bootstrap.remove(address) {
                let message = format!("{address} is no bootstrap address of this network");
                return Err(Failure::new(Kind::NotFound, message));
            }
        }
        manifest
            .bootstrap
            .extend(args.add_bootstrap.iter().cloned());
        Ok(())
    })
    .await
}

pub(super) async fn edit(session: &Session, args: &NetworkEditArgs) -> Outcome {
    let bytes = read_bytes(&args.file, MANIFEST_BYTES_MAX)?;
    let edited = Manifest::parse(&bytes);
    let edited = edited.map_err(|error| usage(format!("{}: {error}", args.file.display())))?;
    make(session, &args.next, |manifest| {
        *manifest = edited;
        Ok(())
    })
    .await
}
