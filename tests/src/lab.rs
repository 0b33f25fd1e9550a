//! A network of real processes on this machine: homes of their own, libp2p over loopback, the
//! command line that a person types. Only compiling is left out: artifacts are made directly
//! ([`crate::artifact`]), observed with the homes' own keys and published over the control socket.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ed25519_dalek::SigningKey;
use qk_node::access::{Access, Problem};
use qk_node::home::{Home, Joined};
use qk_node::node::{NodeOptions, Published, unix_now};
use qk_protocol::hash::{Blake3, NetworkId, Root};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::{Manifest, Network};
use qk_protocol::statement::{Body, Environment, Observation, Role, Statement, Subject};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::artifact::Artifact;
use crate::lan::Namespace;
pub use crate::process::{PATIENCE, Ran, feed, free_port, listing, run, send, until, wait};

/// Who founds the network, runs the node that its manifest names, and may sign for it.
pub const ALICE: &str = "alice";
/// A principal of the network.
pub const BOB: &str = "bob";
/// Another one.
pub const CAROL: &str = "carol";
/// Somebody who joined, and whom nobody has to believe.
pub const CLIENT: &str = "client";

/// What no test should do: look for nodes of others on the LAN, or speak what it does not test.
const CONFIG: &str = "mdns = false\nquic = false\n";

/// A network with the three principals alice, bob and carol, and a client. Its processes end and
/// its files vanish when it is dropped.
#[derive(Debug)]
pub struct Lab {
    dir: TempDir,
    address: String,
    toolchains: PathBuf,
    runtime: Runtime,
    nodes: BTreeMap<String, Node>,
    namespace: Option<Arc<Namespace>>,
    /// Network namespaces that people's commands run in, where they are not this process's.
    namespaces: BTreeMap<String, String>,
    /// Set for all commands.
    variables: BTreeMap<String, OsString>,
}

/// A process of `qk node`.
#[derive(Debug)]
struct Node {
    child: Child,
    addresses: Vec<String>,
}

impl Lab {
    /// Founds the network with alice, adds bob and carol as verifiers, and joins them and the
    /// client, all with the commands that people use. No node runs yet.
    ///
    /// # Panics
    /// When a command fails.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// As [`new`](Self::new), with more arguments for `qk network new`.
    ///
    /// # Panics
    /// When a command fails.
    pub fn with(args: &[&str]) -> Self {
        Self::empty().founded(args)
    }

    /// As [`new`](Self::new), with alice's node at another address of this machine than loopback's.
    ///
    /// # Panics
    /// When a command fails.
    pub fn on(host: Ipv4Addr) -> Self {
        let mut lab = Self::empty();
        let port = lab.address.rsplit('/').next().expect("a port").to_owned();
        lab.address = format!("/ip4/{host}/tcp/{port}");
        lab.founded(&[])
    }

    fn founded(self, args: &[&str]) -> Self {
        let lab = self;
        let file = lab.network_file();
        let file = file.to_str().expect("a path of ASCII");
        let address = lab.address.clone();
        let mut new = vec![
            "network",
            "new",
            "lab",
            "--principal",
            ALICE,
            "--bootstrap",
            &address,
            "--output",
            file,
        ];
        new.extend(args);
        lab.qk(ALICE, &new).done();
        fs::copy(lab.network_file(), lab.first_network_file()).expect("a copy");
        for name in [BOB, CAROL] {
            let key = lab.qk(name, &["network", "key"]).done();
            let key = key["key"].as_str().expect("a key");
            lab.qk(
                ALICE,
                &[
                    "network", "add", name, key, "--role", "verifier", "--output", file,
                ],
            )
            .done();
        }
        for name in [BOB, CAROL, CLIENT] {
            lab.qk(name, &["join", file]).done();
        }
        lab
    }

    /// Homes and nothing in them: no network.
    ///
    /// # Panics
    /// When no directory or port is to be had.
    pub fn empty() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("qk-lab-")
            .tempdir()
            .expect("a directory");
        for name in [ALICE, BOB, CAROL, CLIENT] {
            fs::create_dir(dir.path().join(name)).expect("a home");
            fs::write(dir.path().join(name).join("config.toml"), CONFIG).expect("a configuration");
        }
        Self {
            dir,
            address: format!("/ip4/127.0.0.1/tcp/{}", free_port()),
            toolchains: Home::from_env()
                .expect("a home directory")
                .toolchains()
                .to_owned(),
            runtime: Runtime::new().expect("a runtime"),
            nodes: BTreeMap::new(),
            namespace: None,
            namespaces: BTreeMap::new(),
            variables: BTreeMap::new(),
        }
    }

    /// The same lab with all its processes from now on in a network namespace.
    #[must_use]
    pub fn inside(mut self, namespace: &Arc<Namespace>) -> Self {
        self.namespace = Some(namespace.clone());
        self
    }

    /// The home of one more, who joined the network as the client did.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn add(&self, name: &str, configuration: &str) {
        let home = self.dir.path().join(name);
        let networks = home.join("networks");
        fs::create_dir_all(&networks).expect("a home");
        let joined = self.home(CLIENT).dir().join("networks");
        for file in fs::read_dir(joined).into_iter().flatten() {
            let file = file.expect("a file").path();
            let name = file.file_name().expect("a name");
            fs::copy(&file, networks.join(name)).expect("a copy");
        }
        self.configure(name, configuration);
    }

    /// Where the files of this lab lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What others join the network with.
    pub fn network_file(&self) -> PathBuf {
        self.dir.path().join("lab.qknet")
    }

    /// The same in version 1, before bob and carol were added.
    pub fn first_network_file(&self) -> PathBuf {
        self.dir.path().join("first.qknet")
    }

    /// The install root that [`fetch`](Self::fetch) uses.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Somebody's home.
    pub fn home(&self, name: &str) -> Home {
        Home::at(self.dir.path().join(name))
    }

    /// The network as somebody knows it.
    ///
    /// # Panics
    /// When it is not joined there.
    pub fn joined(&self, name: &str) -> Joined {
        let mut networks = self.home(name).networks().expect("networks");
        assert!(!networks.is_empty(), "{name} joined no network");
        networks.remove(0)
    }

    /// The next version of the network that alice knows, changed like this and signed by her keys. Nobody
    /// knows it yet.
    ///
    /// # Panics
    /// When it is no version.
    pub fn next_version(&self, change: impl FnOnce(&mut Manifest)) -> Network {
        let network = self.joined(ALICE).network;
        let mut next = network.manifest().clone();
        next.version += 1;
        next.network = Some(network.id());
        change(&mut next);
        let [root, clock] = ["root", "timestamp"].map(|name| self.network_key(name));
        let next = network.succeed(&next, &[&root], &clock, unix_now());
        next.expect("a version")
    }

    /// One of the keys of the network, which are alice's: `root` or `timestamp`.
    ///
    /// # Panics
    /// When alice has none.
    pub fn network_key(&self, name: &str) -> SigningKey {
        let name = format!("{name}-{}", self.joined(ALICE).network.id());
        let key = self.home(ALICE).existing_key(&name);
        key.expect("a home").expect("a key")
    }

    /// Lets somebody who joined the network know this of it, be it older than what was known: somebody who
    /// was away.
    ///
    /// # Panics
    /// When it cannot be kept.
    pub fn know(&self, name: &str, network: Network) {
        let home = self.home(name);
        let joined = Joined {
            network,
            ..self.joined(name)
        };
        home.leave_network(joined.network.id()).expect("a network");
        home.keep_network(&joined).expect("a network");
    }

    /// Adds to somebody's configuration.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure(&self, name: &str, more: &str) {
        fs::write(
            self.home(name).dir().join("config.toml"),
            format!("{CONFIG}{more}"),
        )
        .expect("a configuration");
    }

    /// Replaces somebody's configuration by one that looks around on the LAN.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn configure_lan(&self, name: &str, more: &str) {
        let path = self.home(name).dir().join("config.toml");
        fs::write(path, format!("quic = false\n{more}")).expect("a configuration");
    }

    /// Puts somebody's commands from now on into a network namespace, which is there already.
    pub fn place(&mut self, name: &str, namespace: &str) {
        let namespace = namespace.to_owned();
        self.namespaces.insert(name.to_owned(), namespace);
    }

    /// Sets an environment variable for all commands from now on.
    pub fn set(&mut self, variable: &str, value: impl Into<OsString>) {
        self.variables.insert(variable.to_owned(), value.into());
    }

    /// A command of somebody's, not started yet.
    pub fn command<S: AsRef<OsStr>>(&self, name: &str, args: &[S]) -> Command {
        let mut command = match self.namespaces.get(name) {
            None => self.program(&crate::qk()),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(crate::qk());
                command
            }
        };
        command
            .args(args)
            .env("QK_HOME", self.home(name).dir())
            .env("QK_TOOLCHAINS", &self.toolchains)
            .env_remove("QK_LOG")
            .env_remove("QK_PARENT")
            .env_remove("QK_GATEWAY")
            .env_remove("QK_GATEWAY_ONLY")
            .env_remove("QK_GATEWAY_TOKEN_FILE")
            .env_remove("QK_SECRET_FILE")
            // Whatever the machine of this test runs on: a node there would pause.
            .env("QK_POWER_SUPPLY_DIR", self.dir.path().join("no-supplies"))
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus")
            .envs(&self.variables)
            .stdin(Stdio::null());
        command
    }

    /// A program, in the namespace of this lab if it has one.
    pub fn program(&self, path: &Path) -> Command {
        match &self.namespace {
            Some(namespace) => namespace.command(path),
            None => Command::new(path),
        }
    }

    /// Runs a command of somebody's with `--json`.
    #[track_caller]
    pub fn qk<S: AsRef<OsStr>>(&self, name: &str, args: &[S]) -> Ran {
        let mut command = self.command(name, args);
        command.arg("--json");
        run(&mut command)
    }

    /// `qk fetch` by the client, without building, into [`root`](Self::root).
    pub fn fetch<S: AsRef<OsStr>>(&self, args: &[S]) -> Ran {
        run(&mut self.fetch_command(CLIENT, args))
    }

    /// The command of [`fetch`](Self::fetch) for somebody. It fetches whatever is installed already.
    pub fn fetch_command<S: AsRef<OsStr>>(&self, name: &str, args: &[S]) -> Command {
        let mut command = self.command(name, &["fetch", "--fallback", "none", "--json"]);
        command.arg("--root").arg(self.root()).args(args);
        if args.iter().all(|arg| arg.as_ref() != "--force") {
            command.arg("--force");
        }
        command
    }

    /// Every file below the install root, with its size and digest; nothing if there is no root.
    pub fn installed(&self) -> BTreeMap<PathBuf, (u64, Blake3)> {
        listing(&self.root())
    }

    /// Starts alice's node at the address of the manifest.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_alice(&mut self) {
        let address = self.address.clone();
        self.start_at(ALICE, &[&address]);
    }

    /// Starts somebody's node at a free port.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_any(&mut self, name: &str) {
        self.start_at(name, &["/ip4/127.0.0.1/tcp/0"]);
    }

    /// Starts alice's node and kills it after a while, whatever it does by then.
    ///
    /// # Panics
    /// When it cannot be started, or ends by itself.
    pub fn start_alice_and_kill(&self, after: Duration) {
        let mut child = self.spawn(ALICE, &self.address);
        thread::sleep(after);
        child.kill().expect("a signal");
        let status = child.wait().expect("an end");
        assert_eq!(
            status.signal(),
            Some(9),
            "it ended by itself: {status}, {}",
            self.log(ALICE)
        );
    }

    fn spawn(&self, name: &str, listen: &str) -> Child {
        self.spawn_with(name, &[listen], &[], &[])
    }

    fn spawn_with(
        &self,
        name: &str,
        listen: &[&str],
        args: &[&str],
        env: &[(&str, &OsStr)],
    ) -> Child {
        let listen = listen.iter().flat_map(|address| ["--listen", address]);
        let all: Vec<&str> = ["node", "--json"].into_iter().chain(listen).collect();
        let mut command = self.command(name, &all);
        if self.namespaces.contains_key(name) {
            // Where a real network is involved, more may go wrong.
            command.env("QK_LOG", "info,qk_node=debug");
        }
        command
            .args(args)
            .envs(env.iter().copied())
            .stdout(Stdio::piped())
            .stderr(File::create(self.log_path(name)).expect("a log file"))
            .spawn()
            .expect("qk starts")
    }

    /// Where alice's node listens, as the manifest says.
    pub fn alices_address(&self) -> &str {
        &self.address
    }

    /// Starts somebody's node at an address, with more arguments and variables.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_with(&mut self, name: &str, listen: &str, args: &[&str], env: &[(&str, &OsStr)]) {
        self.begin(name, self.spawn_with(name, &[listen], args, env));
    }

    /// Starts somebody's node at these addresses.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start_at(&mut self, name: &str, listen: &[&str]) {
        self.begin(name, self.spawn_with(name, listen, &[], &[]));
    }

    fn begin(&mut self, name: &str, mut child: Child) {
        let mut line = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the node's first line");
        let event: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{name}'s node said {line:?}, and {}", self.log(name)));
        let addresses = event["addresses"].as_array().into_iter().flatten();
        let addresses = addresses
            .filter_map(|one| one.as_str().map(str::to_owned))
            .collect();
        self.nodes
            .insert(name.to_owned(), Node { child, addresses });
    }

    /// Where somebody's node listens, with its peer id.
    ///
    /// # Panics
    /// When it does not run.
    pub fn addresses(&self, name: &str) -> &[String] {
        &self.nodes[name].addresses
    }

    /// Bytes of artifacts that somebody's node sent to others, in their wire form.
    ///
    /// # Panics
    /// When it does not run.
    pub fn sent_bytes(&self, name: &str) -> u64 {
        let status = self.with_access(name, async |access| access.status().await);
        let status = status.expect("a running node");
        assert!(status.running, "{name}'s node does not run");
        status
            .networks
            .iter()
            .map(|network| network.sent_bytes)
            .sum()
    }

    /// What somebody's node logged.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.log_path(name)).unwrap_or_default()
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// The process of somebody's node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn process(&self, name: &str) -> u32 {
        self.nodes[name].child.id()
    }

    /// Sends a signal to somebody's node.
    pub fn signal(&self, name: &str, signal: &str) {
        send(self.process(name), signal);
    }

    /// Ends somebody's node by a signal, and says how it ended and how long it took.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self, name: &str, signal: &str) -> (ExitStatus, Duration) {
        let mut node = self.nodes.remove(name).expect("a running node");
        let began = Instant::now();
        send(node.child.id(), signal);
        let status = wait(&mut node.child);
        (status, began.elapsed())
    }

    /// `kill -9` of somebody's node.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self, name: &str) {
        let mut node = self.nodes.remove(name).expect("a running node");
        node.child.kill().expect("a signal");
        let status = node.child.wait().expect("an end");
        assert_eq!(status.signal(), Some(9), "it ended by itself: {status}");
    }

    /// What somebody observed of a key: this artifact, just now.
    ///
    /// # Panics
    /// When nobody could state this.
    pub fn observe(&self, name: &str, key: &ArtifactKey, subject: Subject) -> Statement {
        let network = self.joined(name).network.id();
        let signer = self.home(name).key("observer").expect("a key");
        let role = if name == ALICE {
            Role::Publisher
        } else {
            Role::Verifier
        };
        observe(network, role, key, subject, &signer)
    }

    /// Publishes an artifact and somebody's observation of it, through their node if it runs.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn publish(&self, name: &str, artifact: &Artifact) -> Published {
        let statement = self.observe(name, &artifact.key, artifact.subject);
        let done = self.put(name, Some(artifact.path()), statement);
        done.unwrap_or_else(|problem| panic!("{name} cannot publish: {problem}"))
    }

    /// Publishes somebody's observation alone.
    ///
    /// # Panics
    /// When it is not taken.
    pub fn state(&self, name: &str, artifact: &Artifact) -> Published {
        let statement = self.observe(name, &artifact.key, artifact.subject);
        let done = self.put(name, None, statement);
        done.unwrap_or_else(|problem| panic!("{name} cannot publish: {problem}"))
    }

    /// Publishes what is given.
    ///
    /// # Errors
    /// When it is not taken.
    pub fn put(
        &self,
        name: &str,
        archive: Option<PathBuf>,
        statement: Statement,
    ) -> Result<Published, Problem> {
        self.with_access(name, async move |access| {
            access.publish(archive, statement).await
        })
    }

    /// Does something with somebody's node: the running one, or one of this process.
    ///
    /// # Errors
    /// Those of opening it, and of `work`.
    pub fn with_access<T>(
        &self,
        name: &str,
        work: impl AsyncFnOnce(&Access) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        self.runtime.block_on(async {
            let access = Access::open(self.home(name), NodeOptions::default()).await?;
            let done = work(&access).await;
            access.shutdown().await;
            done
        })
    }

    /// The runtime of this process's own part in the network.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The file of an artifact in somebody's store.
    pub fn blob(&self, name: &str, root: Root) -> PathBuf {
        let root = root.to_string();
        self.home(name)
            .store()
            .join("blobs")
            .join(&root[..2])
            .join(format!("{root}.tar"))
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            // Also one that was stopped ends at once; nothing here has to be left in order.
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// An observation, made just now.
///
/// # Panics
/// When nobody could state this.
pub fn observe(
    network: NetworkId,
    role: Role,
    key: &ArtifactKey,
    subject: Subject,
    signer: &SigningKey,
) -> Statement {
    let body = Body::Observation(observation(role, subject));
    Statement::sign(network, key.clone(), body, signer).expect("a statement")
}

/// What an observation says that was made just now, without a work digest.
pub fn observation(role: Role, subject: Subject) -> Observation {
    let now = unix_now();
    Observation {
        subject,
        role,
        environment: Environment {
            os: "a test".to_owned(),
            kernel: "none".to_owned(),
            tools: BTreeMap::new(),
            sandbox: "none".to_owned(),
            cpus: 1,
        },
        log: Blake3::of(b"nothing was built"),
        started: now,
        finished: now,
        work: None,
        work_checks: BTreeMap::new(),
    }
}
