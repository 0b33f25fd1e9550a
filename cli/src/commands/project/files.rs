//! `qk.lock` on disk, and the network that `qk.toml` names.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::time::Duration;

use qk_protocol::hash::{Blake3, NetworkId};
use qk_protocol::project::Project;
use qk_protocol::project::lock::{LOCK_BYTES_MAX, Lock};

use crate::commands::network::accept_named;
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, failed};

/// Its name.
pub(super) const LOCK: &str = "qk.lock";
/// How the names of new ones begin and end; an editor's own files beside it have other ones.
const NEW: (&str, &str) = (".qk.lock.", ".new");
/// No process needs longer to write one.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// A lock as it was read.
#[derive(Debug)]
pub(super) struct OnDisk {
    pub lock: Lock,
    /// Of its bytes.
    pub digest: Blake3,
}

/// The lock in this directory, if there is one.
pub(super) fn read() -> Outcome<Option<OnDisk>> {
    let bad = |kind, why: String| Failure::new(kind, format!("{LOCK}: {why}"));
    let file = match File::open(LOCK) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(bad(Kind::Usage, error.to_string())),
    };
    let mut bytes = Vec::new();
    let read = file.take(LOCK_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| bad(Kind::Usage, error.to_string()))?;
    let lock = Lock::parse(&bytes).map_err(|error| bad(Kind::Corrupt, error.to_string()))?;
    Ok(Some(OnDisk {
        lock,
        digest: Blake3::of(&bytes),
    }))
}

/// Writes it as a whole, if that changes it; says whether it did. One that may not be written stays.
pub(super) fn write(lock: &Lock) -> Outcome<(Blake3, bool)> {
    let bytes = lock.to_bytes();
    let digest = Blake3::of(&bytes);
    let bad = |error: std::io::Error| Failure::new(Kind::Other, format!("{LOCK}: {error}"));
    // Behind a link, where it is one.
    let path = fs::canonicalize(LOCK).unwrap_or_else(|_| Path::new(LOCK).to_owned());
    match fs::metadata(&path) {
        Ok(_) if fs::read(&path).is_ok_and(|before| before == bytes) => return Ok((digest, false)),
        Ok(found) if found.permissions().readonly() => {
            let failure = Failure::new(
                Kind::Other,
                format!("{LOCK} is read-only, and would change"),
            );
            return Err(failure.hint("`qk fetch --locked` takes what it pins"));
        }
        Ok(_) | Err(_) => {}
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    clean(dir);
    let mut file = tempfile::Builder::new()
        .prefix(NEW.0)
        .suffix(NEW.1)
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(dir)
        .map_err(bad)?;
    file.write_all(&bytes).map_err(bad)?;
    file.as_file().sync_all().map_err(bad)?;
    file.persist(&path).map_err(|error| bad(error.error))?;
    Ok((digest, true))
}

/// Removes what processes left that were killed while they wrote.
fn clean(dir: &Path) {
    for file in fs::read_dir(dir).into_iter().flatten().flatten() {
        let modified = file.metadata().and_then(|about| about.modified());
        let age = modified.ok().and_then(|at| at.elapsed().ok());
        let is_left = age.is_some_and(|age| age > WRITTEN_WITHIN);
        let name = file.file_name();
        let name = name.to_string_lossy();
        if is_left && name.starts_with(NEW.0) && name.ends_with(NEW.1) {
            // It will be tried again.
            let _ = fs::remove_file(file.path());
        }
    }
}

/// The network that the tools have to be proven in, if `qk.toml` names one. It has to be joined, or accepted here
/// by its fingerprint.
pub(super) async fn network(
    session: &Session,
    project: &Project,
    accepted: Option<&str>,
) -> Outcome<Option<NetworkId>> {
    let Some(named) = &project.network else {
        return match accepted {
            None => Ok(None),
            Some(_) => Err(Failure::new(
                Kind::Usage,
                "qk.toml names no network to accept",
            )),
        };
    };
    let id = named.fingerprint;
    if let Some(accepted) = accepted
        && accepted != id.to_string()
    {
        let text = format!("qk.toml names network {id}, and not {accepted}");
        return Err(Failure::new(Kind::Usage, text));
    }
    let joined = session.home.networks().map_err(failed)?;
    if joined.iter().any(|one| one.network.id() == id) {
        return Ok(Some(id));
    }
    if accepted.is_none() {
        let text = format!("qk.toml names network {id}, which is not joined here");
        let hint = format!(
            "whoever it names could run programs here. If it is the one that you mean: `qk fetch --accept-network {id}`"
        );
        return Err(Failure::new(Kind::Unproven, text).hint(hint));
    }
    accept_named(session, &named.from, id).await?;
    Ok(Some(id))
}
