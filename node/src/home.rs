//! Where qk keeps things on this machine: keys, joined networks, store, toolchains, socket.
//!
//! All of it lies below one directory, `$QK_HOME` or the user's data directory. Files with secrets
//! have mode 0600; every file is replaced as a whole, so that a crash leaves the old one or the new.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use qk_protocol::hash::{Blake3, NetworkId, NetworkKey};
use qk_protocol::manifest::{Change, ManifestError, NETWORK_FILE_BYTES_MAX, Network, NetworkFile};
use qk_protocol::policy::Policy;
use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};

use crate::node::{CacheConfig, NetworkConfig};
use crate::secret::Secret;
use crate::watch::VerifyConfig;
use tempfile::{NamedTempFile, PersistError};

use crate::deadline::FetchConfig;
use crate::gateway::GatewayConfig;
use crate::logs::Logs;
use crate::manners::{PauseConfig, ShareConfig};

/// A configuration file may be this long.
const CONFIG_BYTES_MAX: u64 = 256 * 1024;

/// The directory that everything of one user of qk lies in.
#[derive(Debug, Clone)]
pub struct Home {
    dir: PathBuf,
    toolchains: PathBuf,
    /// Where the control socket is by the user's word.
    socket: Option<PathBuf>,
}

/// A network that the user joined, and what only this machine knows about it.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The verified network.
    pub network: Network,
    /// When it was joined.
    pub joined: UnixTime,
    /// The secret of a private network.
    pub secret: Option<Secret>,
    /// Its place among the networks as the user put them: lower ones are asked first. Among equals
    /// private ones are, then those that were joined first.
    pub place: i64,
    /// The newest version that the user was shown what it changes.
    pub accepted: u64,
}

/// What the user configured: `config.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// A floor under every network's policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Whether a newer version of a network that widens what is trusted counts only after `qk network
    /// accept`: until then nothing new is trusted in that network.
    pub confirm_changes: bool,
    /// Whether look-ups ask by a prefix that many releases share, so that who is asked does not learn which
    /// one it is about.
    pub hidden_reads: bool,
    /// Nodes to ask first, multiaddresses that end in a peer id.
    pub parent: Vec<String>,
    /// Where a node listens; empty for a free TCP port on all interfaces.
    pub listen: Vec<String>,
    /// Bytes that the store may take.
    pub quota_bytes: Option<u64>,
    /// Bytes that are to stay free on its disk.
    pub free_floor_bytes: Option<u64>,
    /// Whether to look for nodes on the local network.
    pub mdns: Option<bool>,
    /// Whether to use QUIC beside TCP.
    pub quic: Option<bool>,
    /// What this node does as a cache for its neighbours.
    pub cache: CacheConfig,
    /// What holds for one network alone, by its name or fingerprint.
    pub networks: BTreeMap<String, NetworkConfig>,
    /// The HTTP gateway, and gateways of others.
    pub gateway: GatewayConfig,
    /// Bytes that toolchains may take.
    pub toolchains_quota_bytes: Option<u64>,
    /// Bytes that executables may take that `qk run` unpacked.
    pub programs_quota_bytes: Option<u64>,
    /// What is given to others, and how much.
    pub share: ShareConfig,
    /// When background work rests.
    pub pause: PauseConfig,
    /// What `qk verify --watch` gives.
    pub verify: VerifyConfig,
    /// How this node and others reach each other.
    pub relay: RelayConfig,
    /// How long a fetch may take.
    pub fetch: FetchConfig,
}

/// `[relay]`: how this node and others reach each other across NATs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RelayConfig {
    /// Whether to relay for nodes of a network that cannot be reached, once this one can be.
    pub serve: bool,
    /// Whether to find out if this node can be reached, and to use relays where it or another one
    /// cannot; that is so unless it says no.
    pub traverse: Option<bool>,
    /// Addresses at which others reach this node beside those it listens on, as behind a forwarded
    /// port.
    pub external: Vec<String>,
}

/// What goes wrong with files below the home directory.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// A file or directory cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// No directory to keep things in.
    #[error(
        "neither QK_HOME, XDG_DATA_HOME nor HOME is set: set QK_HOME to a directory for qk's data"
    )]
    NoHome,
    /// A file is not of the expected form.
    #[error("{path}: {why}")]
    Malformed {
        /// Which one.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A network file that was stored earlier does not verify.
    #[error("{path}: {error}")]
    Network {
        /// Which one.
        path: PathBuf,
        /// Why.
        error: ManifestError,
    },
}

/// A joined network on disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinedFile {
    joined: UnixTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    place: i64,
    /// Absent in files of older versions of qk: what was there then is known to the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    accepted: Option<u64>,
    network: NetworkFile,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(place: &i64) -> bool {
    *place == 0
}

impl Joined {
    /// What the newest version widens, of which the user was not told yet.
    pub fn news(&self) -> Vec<Change> {
        if self.accepted >= self.network.manifest().version {
            return Vec::new();
        }
        let mut changes = self.network.changes_since(self.accepted);
        changes.retain(|change| change.widens);
        changes
    }

    /// What locations are keyed with in this network.
    pub fn key(&self) -> NetworkKey {
        self.network.key(self.secret.as_ref().map(Secret::bytes))
    }

    /// What decides the order in which networks are asked.
    pub(crate) fn rank(&self) -> impl Ord + use<> {
        let public = self.network.manifest().secret_id.is_none();
        (self.place, public, self.joined, self.network.id())
    }
}

impl Home {
    /// The home that the environment names: `QK_HOME`, else `qk` in the user's data directory.
    /// `QK_TOOLCHAINS` puts toolchains elsewhere, so that several homes can share them, and
    /// `QK_SOCKET` the control socket.
    ///
    /// # Errors
    /// When no variable says where.
    pub fn from_env() -> Result<Self, HomeError> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let data = || set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
        let dir = set("QK_HOME")
            .or_else(|| Some(data()?.join("qk")))
            .ok_or(HomeError::NoHome)?;
        let dir = std::path::absolute(&dir).map_err(|error| HomeError::Io { path: dir, error })?;
        let mut home = Self::at(dir);
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(|error| HomeError::Io { path, error })
        };
        if let Some(toolchains) = set("QK_TOOLCHAINS") {
            home.toolchains = absolute(toolchains)?;
        }
        home.socket = set("QK_SOCKET").map(absolute).transpose()?;
        Ok(home)
    }

    /// The home in this directory.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        let dir = dir.into();
        Self {
            toolchains: dir.join("toolchains"),
            dir,
            socket: None,
        }
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the store lies.
    pub fn store(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Where the build toolchain lies.
    pub fn toolchains(&self) -> &Path {
        &self.toolchains
    }

    /// Where builds work; on the same disk as the store, so that artifacts move and are not copied.
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Where logs of builds are kept, by digest.
    pub fn logs(&self) -> Logs {
        Logs::at(self.dir.join("logs"))
    }

    /// Where comparisons of artifacts under dispute are kept, by artifact key.
    pub fn disputes(&self) -> PathBuf {
        self.dir.join("disputes")
    }

    /// Where `.crate` files are kept.
    pub fn crates(&self) -> PathBuf {
        self.dir.join("crates")
    }

    /// The same home with its control socket elsewhere, as `QK_SOCKET` has it.
    pub fn with_socket(self, socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: Some(socket.into()),
            ..self
        }
    }

    /// Where the control socket is by the user's word, if the user gave it.
    pub fn named_socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// The control socket of the node: where the user says, else below the home, or in `$XDG_RUNTIME_DIR` when the path below the home would pass
    /// the 108 bytes that Unix allows, named after the home so that two homes do not meet.
    pub fn socket(&self) -> PathBuf {
        if let Some(named) = &self.socket {
            return named.clone();
        }
        let own = self.dir.join("qk.sock");
        if own.as_os_str().len() < 100 {
            return own;
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime
            .filter(|dir| dir.is_absolute())
            .unwrap_or_else(std::env::temp_dir);
        let name = Blake3::of(self.dir.as_os_str().as_encoded_bytes()).short();
        runtime.join(format!("qk-{name}.sock"))
    }

    /// Reads `config.toml`; the defaults, if there is none.
    ///
    /// # Errors
    /// When it cannot be read or says something unknown.
    pub fn config(&self) -> Result<Config, HomeError> {
        let path = self.dir.join("config.toml");
        let Some(bytes) = read_optional(&path, CONFIG_BYTES_MAX)? else {
            return Ok(Config::default());
        };
        let malformed = |why: String| HomeError::Malformed {
            path: path.clone(),
            why,
        };
        let config: Config =
            toml::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        if let Some(policy) = &config.policy {
            policy.check().map_err(malformed)?;
        }
        config.share.check().map_err(malformed)?;
        Ok(config)
    }

    /// The signing key of this name, made on first use: `node` identifies the node, `observer` signs
    /// statements, `root-<network>` and `root` manifests, `timestamp-<network>` and `timestamp`
    /// timestamps.
    ///
    /// # Errors
    /// When the file cannot be read or written, or does not hold a key.
    pub fn key(&self, name: &str) -> Result<SigningKey, HomeError> {
        if let Some(key) = self.existing_key(name)? {
            return Ok(key);
        }
        let secret: [u8; 32] = rand::random();
        let key = SigningKey::from_bytes(&secret);
        match self.keep_key(name, &key) {
            // Another process was first: what is signed must be by the key that stays.
            Err(HomeError::Io { path, error }) if error.kind() == io::ErrorKind::AlreadyExists => {
                let existing = self.existing_key(name)?;
                existing.ok_or(HomeError::Io { path, error })
            }
            kept => kept.map(|()| key),
        }
    }

    /// The signing key of this name, if there is one.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold a key.
    pub fn existing_key(&self, name: &str) -> Result<Option<SigningKey>, HomeError> {
        let path = self.key_path(name);
        let Some(bytes) = read_optional(&path, 256)? else {
            return Ok(None);
        };
        let mut secret = [0; 32];
        let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        hex::decode_to_slice(text, &mut secret).map_err(|_| HomeError::Malformed {
            path,
            why: "expected 64 hex digits: the secret half of an ed25519 key".to_owned(),
        })?;
        Ok(Some(SigningKey::from_bytes(&secret)))
    }

    /// The keys here that may be a network's: the one that was made with it, and this machine's own.
    /// `what` is `root` or `timestamp`.
    ///
    /// # Errors
    /// As [`existing_key`](Self::existing_key).
    pub fn keys_for(&self, what: &str, id: NetworkId) -> Result<Vec<SigningKey>, HomeError> {
        let names = [format!("{what}-{id}"), what.to_owned()];
        let keys = names.iter().map(|name| self.existing_key(name));
        keys.filter_map(Result::transpose).collect()
    }

    /// Keeps a signing key under a name. One that is there already is not replaced.
    ///
    /// # Errors
    /// When there is one already, or the file cannot be written.
    pub fn keep_key(&self, name: &str, key: &SigningKey) -> Result<(), HomeError> {
        let path = self.key_path(name);
        let text = format!("{}\n", hex::encode(key.to_bytes()));
        self.write(&path, text.as_bytes(), |temp| temp.persist_noclobber(&path))
    }

    /// A secret text of this name beside the keys, of at most `bytes_max` bytes, made on first use.
    ///
    /// # Errors
    /// When the file cannot be read or written, or the text not be made.
    pub(crate) fn secret_text(
        &self,
        name: &str,
        bytes_max: u64,
        make: impl FnOnce() -> Result<String, String>,
    ) -> Result<String, HomeError> {
        let path = self.key_path(name);
        let existing = || -> Result<Option<String>, HomeError> {
            let Some(bytes) = read_optional(&path, bytes_max)? else {
                return Ok(None);
            };
            let text = String::from_utf8(bytes);
            text.map(Some)
                .map_err(|_| self.malformed_key(name, "is no text".to_owned()))
        };
        if let Some(text) = existing()? {
            return Ok(text);
        }
        let text = make().map_err(|why| self.malformed_key(name, why))?;
        let kept = self.write(&path, text.as_bytes(), |temp| temp.persist_noclobber(&path));
        match kept {
            // Another process was first.
            Err(HomeError::Io { path, error }) if error.kind() == io::ErrorKind::AlreadyExists => {
                existing()?.ok_or(HomeError::Io { path, error })
            }
            kept => kept.map(|()| text),
        }
    }

    /// That the file of a key does not hold one.
    pub(crate) fn malformed_key(&self, name: &str, why: String) -> HomeError {
        HomeError::Malformed {
            path: self.key_path(name),
            why,
        }
    }

    /// Where a gateway keeps what it packed.
    pub fn packed(&self) -> PathBuf {
        self.dir.join("packed")
    }

    /// The networks that the user joined, in the order in which they are asked.
    ///
    /// # Errors
    /// When a file cannot be read or no longer verifies.
    pub fn networks(&self) -> Result<Vec<Joined>, HomeError> {
        let dir = self.dir.join("networks");
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(HomeError::Io { path: dir, error }),
        };
        let mut joined = Vec::new();
        for entry in entries {
            let path = entry
                .map_err(|error| HomeError::Io {
                    path: dir.clone(),
                    error,
                })?
                .path();
            if path
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                joined.extend(read_joined(&path)?);
            }
        }
        joined.sort_by_key(Joined::rank);
        Ok(joined)
    }

    /// Keeps a network: a new one, or a newer version of one that is joined. A file with a newer
    /// version stays: another process may have signed or learned one meanwhile.
    ///
    /// # Errors
    /// When the file cannot be written, or the one that is there cannot be read.
    pub fn keep_network(&self, joined: &Joined) -> Result<(), HomeError> {
        let path = self.network_path(joined.network.id());
        let _one_at_a_time = self.lock_networks()?;
        let age = |one: &Joined| {
            let network = &one.network;
            (network.manifest().version, network.timestamp().issued)
        };
        let there = read_joined(&path)?;
        if there.as_ref().is_some_and(|there| age(there) > age(joined)) {
            return Ok(());
        }
        let accepted = there.map_or(joined.accepted, |there| there.accepted.max(joined.accepted));
        self.write_joined(&Joined {
            accepted,
            ..joined.clone()
        })
    }

    /// Remembers that the user was told of everything up to this version of a network.
    ///
    /// # Errors
    /// When the network is not joined, or its file cannot be read or written.
    pub fn accept(&self, id: NetworkId, version: u64) -> Result<(), HomeError> {
        let path = self.network_path(id);
        let _one_at_a_time = self.lock_networks()?;
        let there = read_joined(&path)?.ok_or_else(|| HomeError::Malformed {
            path,
            why: "this network is not joined".to_owned(),
        })?;
        self.write_joined(&Joined {
            accepted: there.accepted.max(version),
            ..there
        })
    }

    /// Whether the user was shown who vouches for what in a network.
    pub fn is_introduced(&self, id: NetworkId) -> bool {
        self.introduced_path(id).exists()
    }

    /// Remembers that the user was.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn introduce(&self, id: NetworkId) -> Result<(), HomeError> {
        let path = self.introduced_path(id);
        self.write(&path, b"", |temp| temp.persist(&path))
    }

    fn introduced_path(&self, id: NetworkId) -> PathBuf {
        self.network_path(id).with_extension("introduced")
    }

    /// The caller holds the lock.
    fn write_joined(&self, joined: &Joined) -> Result<(), HomeError> {
        let path = self.network_path(joined.network.id());
        let file = JoinedFile {
            joined: joined.joined,
            secret: joined.secret.as_ref().map(Secret::to_hex),
            place: joined.place,
            accepted: Some(joined.accepted),
            network: joined.network.file().clone(),
        };
        let bytes = serde_json::to_vec_pretty(&file).map_err(|error| HomeError::Malformed {
            path: path.clone(),
            why: error.to_string(),
        })?;
        self.write(&path, &bytes, |temp| temp.persist(&path))
    }

    /// Held while a file in `networks` is compared and replaced.
    fn lock_networks(&self) -> Result<File, HomeError> {
        let dir = self.dir.join("networks");
        let path = dir.join("lock");
        let locked = create_private_dir(&dir).and_then(|()| {
            let file = File::options()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            file.lock().map(|()| file)
        });
        locked.map_err(|error| HomeError::Io { path, error })
    }

    /// Leaves a network. Its statements stay in the store.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn leave_network(&self, id: NetworkId) -> Result<(), HomeError> {
        let path = self.network_path(id);
        fs::remove_file(&path).map_err(|error| HomeError::Io { path, error })?;
        // Who joins it again is shown again who vouches there.
        let _ = fs::remove_file(self.introduced_path(id));
        Ok(())
    }

    fn key_path(&self, name: &str) -> PathBuf {
        self.dir.join("keys").join(name)
    }

    fn network_path(&self, id: NetworkId) -> PathBuf {
        self.dir.join("networks").join(format!("{id}.json"))
    }

    /// Writes beside the file, syncs, renames, syncs the directory. Mode 0600, directories 0700.
    fn write(
        &self,
        path: &Path,
        bytes: &[u8],
        persist: impl FnOnce(NamedTempFile) -> Result<File, PersistError>,
    ) -> Result<(), HomeError> {
        let dir = path.parent().unwrap_or(&self.dir);
        let written = || {
            create_private_dir(dir)?;
            // One of its own, readable by its owner only; removed unless it is persisted.
            let mut temp = NamedTempFile::new_in(dir)?;
            temp.write_all(bytes)?;
            temp.as_file().sync_all()?;
            persist(temp).map_err(|error| error.error)?;
            File::open(dir)?.sync_all()
        };
        written().map_err(|error| HomeError::Io {
            path: path.to_owned(),
            error,
        })
    }
}

/// Makes a directory that only its owner may enter, and those above it, if it is not there.
///
/// # Errors
/// When it cannot be made.
pub fn create_private_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// The bytes of a file that may be missing, and of which there may be `bytes_max`.
fn read_optional(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, HomeError> {
    let failed = |error| HomeError::Io {
        path: path.to_owned(),
        error,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(HomeError::Malformed {
            path: path.to_owned(),
            why: format!("more than {bytes_max} bytes"),
        });
    }
    Ok(Some(bytes))
}

fn read_joined(path: &Path) -> Result<Option<Joined>, HomeError> {
    let malformed = |why: String| HomeError::Malformed {
        path: path.to_owned(),
        why,
    };
    let Some(bytes) = read_optional(path, NETWORK_FILE_BYTES_MAX as u64 + 4096)? else {
        return Ok(None);
    };
    let file: JoinedFile =
        serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
    let secret = match file.secret {
        None => None,
        Some(text) => Some(
            Secret::from_hex(&text)
                .ok_or_else(|| malformed("the secret is not 64 hex digits".to_owned()))?,
        ),
    };
    let network = Network::verify(file.network).map_err(|error| HomeError::Network {
        path: path.to_owned(),
        error,
    })?;
    Ok(Some(Joined {
        accepted: file.accepted.unwrap_or(network.manifest().version),
        network,
        joined: file.joined,
        secret,
        place: file.place,
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Barrier;

    use super::*;

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("qk"));
        (dir, home)
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_readable_by_their_owner_only_and_never_replaced() {
        let (_dir, home) = home();
        assert!(home.existing_key("observer").unwrap().is_none());
        let key = home.key("observer").unwrap();
        assert_eq!(home.key("observer").unwrap(), key);
        let path = home.dir().join("keys/observer");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(home.dir()), 0o700);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let other = SigningKey::from_bytes(&[7; 32]);
        let refused = home.keep_key("observer", &other).unwrap_err();
        assert!(refused.to_string().contains("keys/observer"), "{refused}");
        assert_eq!(home.key("observer").unwrap(), key);
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn whoever_asks_first_everybody_gets_the_same_key() {
        let (_dir, home) = home();
        let begin = Barrier::new(8);
        let keys: Vec<SigningKey> = std::thread::scope(|scope| {
            let ask = || {
                begin.wait();
                home.key("observer").unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn what_the_user_was_told_stays_when_a_newer_version_comes() {
        let lab = crate::control::tests::fixture::TestHome::new();
        let id = lab.join("lab", &[]);
        let joined = || lab.home.networks().unwrap().remove(0);
        let first = joined();
        assert_eq!((first.accepted, first.news().len()), (1, 0));
        lab.rename(id, "laboratory");
        let renamed = joined();
        assert_eq!(renamed.accepted, 1);
        assert!(renamed.news().is_empty(), "another name widens nothing");
        lab.change(id, |next| next.policy.threshold = 1);
        let news = joined().news();
        assert_eq!(news.len(), 1);
        assert_eq!(news[0].text, "principals that have to agree: 2 becomes 1");
        lab.home.accept(id, 3).unwrap();
        assert!(joined().news().is_empty());
        // A node that has not heard of it keeps a newer timestamp.
        lab.home.keep_network(&renamed).unwrap();
        assert_eq!(joined().accepted, 3);
        // A file of before.
        let path = lab.home.network_path(id);
        let mut file: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        file.as_object_mut().unwrap().remove("accepted");
        fs::write(&path, serde_json::to_vec(&file).unwrap()).unwrap();
        assert_eq!(joined().accepted, 3);
    }

    #[test]
    fn malformed_files_are_named() {
        let (_dir, home) = home();
        home.key("observer").unwrap();
        fs::create_dir(home.dir().join("networks")).unwrap();
        let says = |file: &str, text: &[u8]| {
            fs::write(home.dir().join(file), text).unwrap();
            let error = match file {
                "config.toml" => home.config().unwrap_err(),
                "keys/observer" => home.key("observer").unwrap_err(),
                _ => home.networks().unwrap_err(),
            };
            assert!(error.to_string().contains(file), "{error}");
            error.to_string()
        };
        assert!(says("keys/observer", b"no key\n").contains("64 hex digits"));
        assert!(says("keys/observer", &[0xff; 64]).contains("64 hex digits"));
        assert!(says("keys/observer", &[b'0'; 300]).contains("more than 256 bytes"));
        assert!(says("config.toml", b"quota = 3\n").contains("quota"));
        says("config.toml", b"\xff\xfe");
        says("config.toml", &vec![b'#'; 300 * 1024]);
        says("networks/x.json", b"{}");
        says("networks/x.json", &vec![b' '; 8 << 20]);
    }

    #[test]
    fn a_socket_path_fits_into_what_unix_allows() {
        let short = Home::at("/tmp/qk");
        assert_eq!(short.socket(), Path::new("/tmp/qk/qk.sock"));
        let long = |last: char| Home::at(format!("/tmp/{}{last}", "d".repeat(100))).socket();
        assert!(long('a').as_os_str().len() < 108 && long('a').is_absolute());
        assert_ne!(long('a'), long('b'));
    }
}
