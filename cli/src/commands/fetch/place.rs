//! Places what was fetched as `cargo install` does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

use qk_node::install::{Incompatible, InstallError, InstallRoot, runs_here};
use qk_node::registry::{Registry, RegistryOptions};
use qk_node::unpack::{UnpackError, unpack};
use qk_protocol::archive::EXECUTABLES_PREFIX;
use qk_protocol::key::ArtifactKey;

use super::one::{Ready, stage};
use super::{Call, Job, meta};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed, of_registry};

/// Unpacks, checks that it runs here, and installs. Off this thread, for it may wait for another
/// installation to end, and can be interrupted meanwhile.
pub(super) async fn place(
    session: &Session,
    call: &Call<'_>,
    job: &Job,
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
    let bins = chosen(unpacked.bins, &job.bins, &ready.key.name)?;
    let (root, release, options) = (call.root.clone(), ready.key.release(), call.options);
    let meta = meta(job, &ready.key.target, rustc_of(&ready.key));
    let installed =
        tokio::task::spawn_blocking(move || root.install(&release, &bins, &meta, options));
    let installed = installed.await.map_err(failed)?;
    let installed = installed.map_err(|error| of_install(&error))?;
    ready.stages.push(stage("install", begin));
    let path = std::env::var_os("PATH").unwrap_or_default();
    if call.how.root.is_none() && !call.root.is_on_path(&path) {
        session.output.note(format!(
            "note: {} is not on PATH",
            call.root.bin().display()
        ));
    }
    Ok(installed.executables)
}

/// The executables that are wanted.
fn chosen(
    mut bins: BTreeMap<String, PathBuf>,
    wanted: &BTreeSet<String>,
    package: &str,
) -> Outcome<BTreeMap<String, PathBuf>> {
    if let Some(bin) = wanted.iter().find(|bin| !bins.contains_key(*bin)) {
        return Err(of_install(&InstallError::NoBin {
            package: package.to_owned(),
            bin: bin.clone(),
            has: bins.into_keys().collect(),
        }));
    }
    bins.retain(|bin, _| wanted.is_empty() || wanted.contains(bin));
    Ok(bins)
}

/// Where cargo would install.
pub(crate) fn install_root(explicit: Option<&Path>) -> Outcome<InstallRoot> {
    let registry = Registry::open(&RegistryOptions {
        offline: true,
        ..RegistryOptions::default()
    });
    let registry = registry.map_err(|error| of_registry(&error))?;
    InstallRoot::discover(explicit, registry.config()).map_err(|error| of_install(&error))
}

/// What `rustc -vV` prints of the compiler of a key.
fn rustc_of(key: &ArtifactKey) -> String {
    let rustc = &key.flags.rustc;
    format!(
        "rustc {} ({})\nbinary: rustc\ncommit-hash: {}\nhost: {}\nrelease: {}\n",
        rustc.version,
        &rustc.commit_hash[..9],
        rustc.commit_hash,
        rustc.host,
        rustc.version
    )
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

pub(crate) fn of_install(error: &InstallError) -> Failure {
    let kind = match error {
        InstallError::NotInstalled { .. } | InstallError::NoBin { .. } => Kind::NotFound,
        InstallError::Ambiguous { .. } => Kind::Usage,
        InstallError::Name(_) | InstallError::Count(..) => Kind::Corrupt,
        InstallError::Io { .. }
        | InstallError::Taken { .. }
        | InstallError::Tracking { .. }
        | InstallError::Busy(_) => Kind::Other,
    };
    let failure = Failure::new(kind, error);
    match error {
        InstallError::Io { error, .. } => match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                failure.hint("free some space; what was fetched is kept")
            }
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                failure.hint("--root DIR installs elsewhere; what was fetched is kept")
            }
            _ => failure,
        },
        InstallError::Ambiguous { .. } => failure.hint("name one as CRATE@VERSION"),
        InstallError::NotInstalled { .. } => failure.hint("`qk list` shows what is installed"),
        _ => failure,
    }
}
