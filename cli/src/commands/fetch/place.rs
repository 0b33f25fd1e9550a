//! Places what was fetched as `cargo install` does.

use std::path::{Path, PathBuf};
use std::time::Instant;

use qk_node::install::{Incompatible, InstallError, InstallMeta, InstallRoot, runs_here};
use qk_node::registry::{Registry, RegistryOptions};
use qk_node::unpack::{UnpackError, unpack};
use qk_protocol::archive::EXECUTABLES_PREFIX;
use qk_protocol::key::ArtifactKey;

use super::one::{Ready, stage};
use crate::args::FetchArgs;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed, of_registry};

/// Unpacks, checks that it runs here, and installs. Off this thread, for it may wait for another
/// installation to end, and can be interrupted meanwhile.
pub(super) async fn place(
    session: &Session,
    args: &FetchArgs,
    ready: &mut Ready,
) -> Outcome<Vec<PathBuf>> {
    let begin = Instant::now();
    let work = session.home.work();
    std::fs::create_dir_all(&work).map_err(failed)?;
    // Removed when this future is dropped, whatever the other thread is doing.
    let directory = tempfile::tempdir_in(&work).map_err(failed)?;
    let (archive, into) = (ready.archive.clone(), directory.path().to_owned());
    let (subject, key) = (ready.subject, ready.key.clone());
    let unpacked = tokio::task::spawn_blocking(move || {
        let unpacked = unpack(&archive, &subject, &key, &into);
        let unpacked = unpacked.map_err(|error| of_unpack(&error))?;
        for (name, executable) in &unpacked.contents.executables {
            runs_here(executable).map_err(|error| of_host(name, &error))?;
        }
        Outcome::Ok(unpacked)
    });
    let unpacked = unpacked.await.map_err(failed)??;
    ready.stages.push(stage("unpack", begin));
    let begin = Instant::now();
    let root = install_root(args.root.as_deref())?;
    let (to, release, force) = (root.clone(), ready.key.release(), args.force);
    let meta = meta(args, &ready.key);
    let installed =
        tokio::task::spawn_blocking(move || to.install(&release, &unpacked.bins, &meta, force));
    let installed = installed.await.map_err(failed)?;
    let installed = installed.map_err(|error| of_install(&error))?;
    ready.stages.push(stage("install", begin));
    if args.root.is_none() && !root.is_on_path(&std::env::var_os("PATH").unwrap_or_default()) {
        session
            .output
            .note(format!("note: {} is not on PATH", root.bin().display()));
    }
    Ok(installed.executables)
}

fn install_root(explicit: Option<&Path>) -> Outcome<InstallRoot> {
    let registry = Registry::open(&RegistryOptions {
        offline: true,
        ..RegistryOptions::default()
    });
    let registry = registry.map_err(|error| of_registry(&error))?;
    InstallRoot::discover(explicit, registry.config()).map_err(|error| of_install(&error))
}

fn meta(args: &FetchArgs, key: &ArtifactKey) -> InstallMeta {
    let rustc = &key.flags.rustc;
    let asked = args.crates.iter().find(|krate| krate.name == key.name);
    InstallMeta {
        version_req: asked
            .and_then(|krate| krate.version.as_ref())
            .map(|version| format!("={version}")),
        features: key.flags.features.clone(),
        all_features: args.flags.all_features,
        no_default_features: args.flags.no_default_features,
        profile: key.flags.profile.clone(),
        target: key.target.clone(),
        rustc: format!(
            "rustc {} ({})\nbinary: rustc\ncommit-hash: {}\nhost: {}\nrelease: {}\n",
            rustc.version,
            &rustc.commit_hash[..9],
            rustc.commit_hash,
            rustc.host,
            rustc.version
        ),
    }
}

pub(crate) fn of_unpack(error: &UnpackError) -> Failure {
    match error {
        UnpackError::Archive { .. }
        | UnpackError::OtherArchive { .. }
        | UnpackError::OtherKey(_)
        | UnpackError::Executable { .. } => Failure::new(Kind::Corrupt, error),
        UnpackError::Io { .. } => Failure::new(Kind::Other, error),
    }
}

pub(crate) fn of_host(name: &str, error: &Incompatible) -> Failure {
    let name = name.strip_prefix(EXECUTABLES_PREFIX).unwrap_or(name);
    Failure::new(Kind::Incompatible, format!("{name}: {error}"))
}

fn of_install(error: &InstallError) -> Failure {
    Failure::new(Kind::Other, error)
}
