//! `qk run`: an executable of a crate, without installing it.
//!
//! What was run before and has not changed costs a few reads of small files: no runtime is started, no
//! store opened and nobody asked.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use qk_node::access::Access;
use qk_node::deadline::Clock;
use qk_node::home::Home;
use qk_node::node::{FetchSpec, NodeOptions, unix_now};
use qk_node::programs::{Ask, Asked, PROGRAMS_QUOTA_BYTES, Program, Programs};
use qk_node::registry::Ask as Which;
use qk_protocol::candidate::{Candidate, Wanted};

use super::fetch::{How, Ready, Want, fetch, fetched, introduce, may_build, obtain};
use super::of_programs;
use crate::args::{Fallback, RegistryArgs, RunArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::bytes;
use crate::session::{Session, failed};

/// The executable, if it is here, unchanged, and what decided that it may be run is as it was.
pub(crate) fn at_hand(args: &RunArgs) -> Option<Outcome<PathBuf>> {
    if args.refresh {
        return None;
    }
    let home = Home::from_env().ok()?;
    let programs = Programs::of(&home);
    let asked = programs.asked(&ask(args))?;
    if !asked.holds(&home, unix_now()) {
        return None;
    }
    Some(choose(&programs.get(asked.root)?, args))
}

/// Becomes the program. Returns only if that fails.
pub(crate) fn turn_into(program: &Path, args: &RunArgs) -> Failure {
    let error = Command::new(program).args(&args.args).exec();
    Failure::new(Kind::Other, format!("{}: {error}", program.display()))
}

/// Makes the executable ready to be run.
pub(crate) async fn run(session: &Session, args: &RunArgs) -> Outcome<PathBuf> {
    super::network::tell(session)?;
    let programs = Programs::of(&session.home);
    if let Some(program) = built_here(session, args, &programs)? {
        return choose(&program, args);
    }
    let options = NodeOptions {
        offline: args.offline,
        only: args.only.gateway.clone(),
        ..NodeOptions::default()
    };
    let access = session.access(options).await?;
    let ready = get(session, &access, args, &programs).await?;
    if ready.how != How::Store {
        let (key, size) = (&ready.key, bytes(ready.subject.size));
        let how = match ready.how {
            How::Built => "built here",
            How::Store | How::Network => "fetched",
        };
        let text = format!("{} {}  {size}  {how}", key.name, key.version);
        session.output.note(text);
    }
    let program = unpack(session, &programs, &ready).await?;
    access.shutdown().await;
    let (wanted, built) = (wanted_of(&ready), ready.how == How::Built);
    let root = ready.subject.root;
    if let Some(asked) = Asked::new(&session.home, wanted, root, built, unix_now()) {
        let kept = programs.keep_asked(&ask(args), &asked);
        kept.map_err(|error| of_programs(&error))?;
    }
    choose(&program, args)
}

/// What was built here before, as nobody vouched for it: one's own build suffices for oneself, as long as no
/// network blocks it.
fn built_here(session: &Session, args: &RunArgs, programs: &Programs) -> Outcome<Option<Program>> {
    let before = programs.asked(&ask(args));
    let built = before.filter(|asked| asked.built && !args.refresh);
    let Some(program) = built.and_then(|asked| programs.get(asked.root)) else {
        return Ok(None);
    };
    let (key, root) = (program.key.id(), program.subject.root);
    for joined in session.home.networks().map_err(failed)? {
        if let Some(reason) = joined.network.blocked(key, Some(root)) {
            let text = format!(
                "{}: blocked by the network: {reason}",
                program.key.release()
            );
            return Err(Failure::new(Kind::Disputed, text));
        }
    }
    Ok(Some(program))
}

/// What was asked for before is decided about again; otherwise the registry names the release.
async fn get(
    session: &Session,
    access: &Access,
    args: &RunArgs,
    programs: &Programs,
) -> Outcome<Ready> {
    let before = programs.asked(&ask(args)).filter(|_| !args.refresh);
    if let Some(asked) = before.filter(|asked| !asked.built) {
        let spec = FetchSpec {
            wanted: asked.wanted,
            refresh: false,
            offline: args.offline,
            network: None,
            policy: session.project_policy()?,
        };
        match fetch(session, access, &spec, Clock::default()).await {
            Ok(report) => return fetched(session, report),
            Err(failure) if args.fallback == Fallback::Build && may_build(&failure) => {}
            Err(failure) => return Err(failure),
        }
    }
    let resolved = session.resolve(&args.krate, args.offline).await?;
    let registries = [&*resolved.release.registry].into();
    introduce(session, session.project_policy()?.as_ref(), &registries).await?;
    let want = Want {
        flags: &args.flags,
        targets: &args.target,
        registry: &RegistryArgs::default(),
        fallback: args.fallback,
        jobs: None,
        offline: args.offline,
        refresh: args.refresh,
        policy: session.project_policy()?,
        clock: Clock::default(),
    };
    obtain(session, access, &want, &resolved).await
}

/// Off this thread, and within the quota.
async fn unpack(session: &Session, programs: &Programs, ready: &Ready) -> Outcome<Program> {
    let config = session.config()?;
    let quota = config.programs_quota_bytes.unwrap_or(PROGRAMS_QUOTA_BYTES);
    let programs = programs.clone();
    let (archive, subject, key) = (ready.archive.clone(), ready.subject, ready.key.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        let program = programs.add(&archive, &subject, &key)?;
        if let Err(error) = programs.clean(quota) {
            tracing::warn!(%error, "unpacked executables could not be cleaned up");
        }
        Ok(program)
    });
    let unpacked = unpacked.await.map_err(failed)?;
    unpacked.map_err(|error| of_programs(&error))
}

fn wanted_of(ready: &Ready) -> Wanted {
    let candidate = Candidate::of(&ready.key);
    Wanted {
        release: candidate.release,
        source: candidate.source,
        targets: vec![candidate.build.target],
        features: candidate.features,
        default_features: candidate.default_features,
        rustflags: candidate.rustflags,
    }
}

fn ask(args: &RunArgs) -> Ask {
    Ask {
        name: args.krate.name.clone(),
        version: match &args.krate.ask {
            Which::Newest => None,
            Which::Exact(version) => Some(version.to_string()),
            Which::Matching(req) => Some(req.to_string()),
        },
        features: args.flags.features.clone(),
        all_features: args.flags.all_features,
        no_default_features: args.flags.no_default_features,
        targets: args.target.clone(),
    }
}

/// The executable that is meant: the named one, else that with the crate's name, else the only one.
fn choose(program: &Program, args: &RunArgs) -> Outcome<PathBuf> {
    let bins = &program.bins;
    let named = args.bin.as_deref();
    let only = (bins.len() == 1).then(|| bins.values().next()).flatten();
    let chosen = match named {
        Some(name) => bins.get(name),
        None => bins.get(&program.key.name).or(only),
    };
    chosen.cloned().ok_or_else(|| {
        let release = program.key.release();
        let names: Vec<&str> = bins.keys().map(String::as_str).collect();
        let failure = match named {
            Some(name) => Failure::new(
                Kind::NotFound,
                format!("{release} has no executable {name}"),
            ),
            None => Failure::new(Kind::Usage, format!("{release} has several executables")),
        };
        failure.hint(format!("--bin names one of: {}", names.join(", ")))
    })
}
