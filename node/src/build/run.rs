//! The two phases of a build.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use qk_protocol::hash::Sha256;
use qk_protocol::time::UnixTime;

use super::environment::Environment;
use super::host::Host;
use super::log::Log;
use super::outputs::{self, TakeError};
use super::sandbox::{Bind, End, Line, Run};
use super::sources::{self, Access};
use super::toolchain::{ZIG, ZIGBUILD, sha256_file};
use super::{
    BuildError, Cancel, Collected, Event, InUse, NotHere, Options, Order, Reason, RustToolchain,
    Sandbox, Toolchains, rustc, warm,
};

/// `SOURCE_DATE_EPOCH` and the time of every source file: 2020-01-01. Part of recipe 1.
const EPOCH: u64 = 1_577_836_800;
/// Most executables of one crate.
const BINS_MAX: usize = 256;
/// A licence text is at most this large, and a crate has at most this many.
const LICENSE_BYTES_MAX: u64 = 1 << 20;
const LICENSES_MAX: usize = 32;
/// What `cargo metadata` may print.
const METADATA_BYTES_MAX: usize = 8 << 20;

/// The targets that zig links for with this version of qk.
const TARGETS: &[&str] = &[rustc::TARGET, "x86_64-unknown-linux-musl"];

/// Builds crates on this machine.
#[derive(Debug, Clone)]
pub struct Builder {
    sandbox: Sandbox,
    toolchains: Toolchains,
    work: PathBuf,
    access: Access,
}

impl Builder {
    /// Checks that builds can run here. `work` takes the temporary directories of builds.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn new(toolchains: Toolchains, work: &Path) -> Result<Self, BuildError> {
        fs::create_dir_all(work).map_err(doing("create the work directory"))?;
        sweep(work);
        Ok(Self {
            sandbox: Sandbox::probe()?,
            toolchains,
            work: work.to_path_buf(),
            access: Access::of_user(),
        })
    }

    /// What builds run on here.
    pub fn environment(&self) -> Environment {
        Environment::of(Path::new("/"), &self.sandbox, false)
    }

    /// Fetches with `access` instead of the user's configuration.
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Builds in the sandbox. Blocks for as long as it takes: call it from a thread of its own.
    /// `cancel` stops it within a tenth of a second; nothing of it is left then.
    ///
    /// # Errors
    /// See [`BuildError`]; only [`BuildError::Failed`] says something about the crate.
    pub fn build(
        &self,
        order: &Order,
        options: &Options,
        cancel: &Cancel,
        event: &mut dyn FnMut(Event),
    ) -> Result<Collected, BuildError> {
        let started = now();
        let tools = Tools::find(&self.toolchains, order, options)?;
        check_source(order)?;
        self.warm(order, options, cancel, &tools, event)?;
        let work = Work::new(&self.work, &self.sandbox)?;
        let mut job = self.job(order, options, cancel, event, &tools, &work)?;
        let collected = job.run(started)?;
        Ok(collected.into_public(work.keep_out()))
    }

    /// Fills zig's cache if this is the first build with the toolchain.
    fn warm(
        &self,
        order: &Order,
        options: &Options,
        cancel: &Cancel,
        tools: &Tools,
        event: &mut dyn FnMut(Event),
    ) -> Result<(), BuildError> {
        let place = warm::place(&self.toolchains, order);
        if place.is_dir() {
            return Ok(());
        }
        event(Event::Preparing);
        let work = Work::new(&self.work, &self.sandbox)?;
        let plain = Order {
            target: order.target.clone(),
            glibc: order.glibc.clone(),
            ..Order::new("", "warm", "0.0.0", PathBuf::new(), order.source)
        };
        warm::write_package(&work.at("src")).map_err(doing("write a package"))?;
        let mut quiet = |_| {};
        let mut job = self.job(&plain, options, cancel, &mut quiet, tools, &work)?;
        let lock = job.lock()?;
        job.prepare(&lock)?;
        job.compile(0)?;
        warm::keep(&work.at("cache").join("zig"), &place).map_err(doing("keep zig's cache"))
    }

    fn job<'a>(
        &'a self,
        order: &'a Order,
        options: &'a Options,
        cancel: &'a Cancel,
        event: &'a mut dyn FnMut(Event),
        tools: &'a Tools,
        work: &'a Work,
    ) -> Result<Job<'a>, BuildError> {
        let log = Log::create(&work.out().join("build.log"), options.limits.log_bytes);
        Ok(Job {
            builder: self,
            order,
            options,
            cancel,
            event,
            tools,
            log: log.map_err(doing("create the log"))?,
            work,
            cgroup: false,
        })
    }

    /// [`build`](Self::build) on a thread of its own. Dropping the future stops the build.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build_in_background(
        &self,
        order: Order,
        options: Options,
        mut event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Collected, BuildError> {
        struct OnDrop(Cancel);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let guard = OnDrop(Cancel::default());
        let (builder, cancel) = (self.clone(), guard.0.clone());
        let (sender, done) = tokio::sync::oneshot::channel();
        // Not of a pool: bubblewrap dies with the thread that started it.
        std::thread::Builder::new()
            .name("build".into())
            .spawn(move || {
                let result = builder.build(&order, &options, &cancel, &mut event);
                let _ = sender.send(result);
            })
            .map_err(doing("start a thread"))?;
        done.await.unwrap_or(Err(BuildError::Cancelled))
    }
}

/// What a build is made with.
struct Tools {
    rust: RustToolchain,
    host: Host,
    zig: PathBuf,
    zigbuild: PathBuf,
    _in_use: InUse,
}

impl Tools {
    fn find(toolchains: &Toolchains, order: &Order, options: &Options) -> Result<Self, BuildError> {
        let pinned = |wheel| {
            toolchains.executable(wheel).ok_or_else(|| NotHere {
                what: format!("{} {}", wheel.project, wheel.version),
                run: "qk setup".into(),
            })
        };
        if !TARGETS.contains(&order.target.as_str()) {
            let what = format!("a toolchain for {}", order.target);
            let run = format!("qk build --target {}", rustc::TARGET);
            return Err(NotHere { what, run }.into());
        }
        let rust = match &order.rustc {
            Some(wanted) => RustToolchain::find(wanted, toolchains, &order.target)?,
            None => RustToolchain::active(toolchains, &order.target)?,
        };
        let zig = toolchains.unpacked(&ZIG).join("ziglang");
        // Before they are looked for: what is found then stays.
        let in_use = toolchains.in_use(&[&ZIG, &ZIGBUILD]);
        pinned(&ZIG)?;
        Ok(Self {
            host: Host::find(&options.root, &rust.programs())?,
            zigbuild: pinned(&ZIGBUILD)?,
            rust,
            zig,
            _in_use: in_use,
        })
    }

    fn binds(&self) -> Vec<Bind> {
        let mut binds = self.host.binds.clone();
        binds.extend(self.rust.binds(Path::new("/qk/rust")));
        binds.push(Bind::read(&self.zig, "/qk/zig"));
        binds.push(Bind::read(&self.zigbuild, "/usr/bin/cargo-zigbuild"));
        binds
    }

    fn links(&self) -> Vec<(String, String)> {
        let mut links = self.host.links.clone();
        for tool in ["cargo", "rustc"] {
            links.push((format!("/qk/rust/bin/{tool}"), format!("/usr/bin/{tool}")));
        }
        links
    }
}

/// The directories of one build on the host.
struct Work {
    root: Scratch,
    out: tempfile::TempDir,
}

/// A directory that goes with this value, whatever untrusted code did to it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        remove_all(&self.0);
    }
}

impl Work {
    /// Directories below `parent`; those that a phase may write belong to the build's uid.
    fn new(parent: &Path, sandbox: &Sandbox) -> Result<Self, BuildError> {
        let prefix = format!("{WORK_PREFIX}{}-", std::process::id());
        let make = || tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
        let work = Self {
            root: Scratch(make().map_err(doing("create a work directory"))?.keep()),
            out: make().map_err(doing("create a work directory"))?,
        };
        for name in ["scratch", "src", "tools"] {
            fs::create_dir(work.at(name)).map_err(doing("create a work directory"))?;
        }
        for name in ["vendor", "fetch-home", "home", "cargo", "cache", "target"] {
            fs::create_dir(work.at(name)).map_err(doing("create a work directory"))?;
            sandbox.own(&work.at(name))?;
        }
        Ok(work)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.0.join(name)
    }

    fn out(&self) -> &Path {
        self.out.path()
    }

    fn keep_out(self) -> tempfile::TempDir {
        self.out
    }
}

/// Before the id of the process that a work directory belongs to.
const WORK_PREFIX: &str = "build-";

/// Removes the work directories of processes that were killed.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(WORK_PREFIX);
        let pid = pid.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_all(&entry.path());
        }
    }
}

/// Removes what untrusted code may have made hard to remove.
fn remove_all(path: &Path) {
    // The last process of a stopped sandbox may still be on its way out.
    for _ in 0..20 {
        if fs::remove_dir_all(path).is_ok() || !path.exists() {
            return;
        }
        for entry in walkdir::WalkDir::new(path).into_iter().flatten() {
            if entry.file_type().is_dir() {
                let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o700);
                let _ = fs::set_permissions(entry.path(), open);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    tracing::warn!("could not remove {}", path.display());
}

/// One build under way.
struct Job<'a> {
    builder: &'a Builder,
    order: &'a Order,
    options: &'a Options,
    cancel: &'a Cancel,
    event: &'a mut dyn FnMut(Event),
    tools: &'a Tools,
    work: &'a Work,
    log: Log,
    cgroup: bool,
}

struct Parts {
    bins: BTreeMap<String, PathBuf>,
    lock: Vec<u8>,
    licenses: BTreeMap<String, Vec<u8>>,
    log: PathBuf,
    environment: Environment,
    key: Option<qk_protocol::key::ArtifactKey>,
    started: UnixTime,
}

impl Parts {
    fn into_public(self, directory: tempfile::TempDir) -> Collected {
        Collected {
            bins: self.bins,
            lock: self.lock,
            licenses: self.licenses,
            log: self.log,
            environment: self.environment,
            key: self.key,
            started: self.started,
            finished: now(),
            directory,
        }
    }
}

impl Job<'_> {
    fn run(&mut self, started: UnixTime) -> Result<Parts, BuildError> {
        (self.event)(Event::Unpacking);
        let own_lock = self.unpack()?;
        self.fetch(own_lock)?;
        let lock = self.lock()?;
        if own_lock
            && self
                .order
                .lock
                .is_some_and(|want| want != Sha256::of(&lock))
        {
            let detail = "its Cargo.lock is not the one that the key names".to_owned();
            return Err(self.failed(Reason::BadCrate, detail));
        }
        let licenses = licenses(&self.work.at("src")).map_err(doing("read the licences"))?;
        settle(&[self.work.at("src"), self.work.at("vendor")])
            .map_err(doing("set the times of the sources"))?;
        self.prepare(&lock)?;
        let cache = warm::place(&self.builder.toolchains, self.order);
        warm::give(
            &cache,
            &self.work.at("cache").join("zig"),
            &self.builder.sandbox,
        )
        .map_err(doing("copy zig's cache"))?;
        let bins = self.metadata()?;
        let total = self.count()?;
        self.compile(total)?;
        (self.event)(Event::Collecting);
        let bins = self.collect(&bins)?;
        let sandbox = &self.builder.sandbox;
        let key = own_lock.then(|| {
            let rustc = &self.tools.rust.rustc;
            self.order.key(rustc, Sha256::of(&lock))
        });
        Ok(Parts {
            bins,
            lock,
            licenses,
            log: self.log.path().to_path_buf(),
            environment: Environment::of(&self.options.root, sandbox, self.cgroup),
            key,
            started,
        })
    }

    /// Returns whether the crate brings its own lock.
    fn unpack(&mut self) -> Result<bool, BuildError> {
        let order = self.order;
        let prefix = format!("{}-{}", order.name, order.version);
        let source = self.work.at("src");
        sources::unpack(&order.crate_file, &prefix, &source)
            .map_err(|error| self.failed(Reason::BadCrate, error.to_string()))?;
        if source.join("Cargo.lock").is_file() {
            return Ok(true);
        }
        if !order.resolve_lock {
            let detail = "the .crate holds no Cargo.lock".to_owned();
            return Err(self.failed(Reason::NoLock, detail));
        }
        // cargo writes the lock beside the manifest; no code of the crate runs while it may.
        self.builder.sandbox.own(&source)?;
        Ok(false)
    }

    fn fetch(&mut self, own_lock: bool) -> Result<(), BuildError> {
        let access = &self.builder.access;
        let config = self.work.at("scratch").join("fetch.toml");
        fs::write(&config, access.config()).map_err(doing("write cargo's configuration"))?;
        let nsswitch = self.work.at("scratch").join("nsswitch.conf");
        fs::write(&nsswitch, "hosts: files dns\n").map_err(doing("write nsswitch.conf"))?;
        let mut binds = self.tools.binds();
        binds.extend(access.binds());
        binds.push(Bind::read(nsswitch, "/etc/nsswitch.conf"));
        binds.push(Bind::write(self.work.at("fetch-home"), "/qk/cargo"));
        binds.push(Bind::read(config, "/qk/cargo/config.toml"));
        binds.push(Bind::write(self.work.at("vendor"), "/qk/vendor"));
        binds.push(Bind {
            writable: !own_lock,
            ..Bind::read(self.work.at("src"), "/qk/src")
        });
        let mut words = vec!["/qk/rust/bin/cargo", "vendor", "--versioned-dirs"];
        words.extend(own_lock.then_some("--locked"));
        words.extend(["--respect-source-config", "--color=never", "/qk/vendor"]);
        let mut run = self.base(binds, &words);
        run.network = true;
        run.env.extend(access.env().iter().cloned());
        let end = self.watch(&run, |line| {
            let Line::Err(text) = line else {
                return None;
            };
            let line = text.trim();
            let worth = line.starts_with("Download") || line.starts_with("Updating");
            worth.then(|| Event::Fetching { line: line.into() })
        })?;
        self.judge(end, Reason::Fetch)
    }

    fn lock(&mut self) -> Result<Vec<u8>, BuildError> {
        let path = self.work.at("src").join("Cargo.lock");
        let text = sources::read_text(&path, sources::LOCK_BYTES_MAX);
        let text = text.map_err(|error| {
            let detail = format!("its Cargo.lock cannot be read: {error}");
            self.failed(Reason::BadCrate, detail)
        })?;
        Ok(text.into_bytes())
    }

    /// Writes what the build phase needs besides the sources.
    fn prepare(&mut self, lock: &[u8]) -> Result<(), BuildError> {
        let text = String::from_utf8_lossy(lock);
        let config = sources::vendored_config(&text, "/qk/vendor")
            .map_err(|why| self.failed(Reason::BadCrate, format!("its Cargo.lock: {why}")))?;
        let tools = self.work.at("tools");
        let write = |name: &str, text: &str| {
            let mut file = File::create(tools.join(name))?;
            file.write_all(text.as_bytes())?;
            let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
            file.set_permissions(mode)
        };
        write("config.toml", &config).map_err(doing("write cargo's configuration"))?;
        for (name, text) in shims() {
            write(name, &text).map_err(doing("write the linker's shims"))?;
        }
        Ok(())
    }

    fn base(&self, binds: Vec<Bind>, words: &[&str]) -> Run {
        let env = [
            ("PATH", "/usr/bin"),
            ("HOME", "/qk/home"),
            ("CARGO_HOME", "/qk/cargo"),
            ("CARGO", "/qk/rust/bin/cargo"),
            ("RUSTC", "/qk/rust/bin/rustc"),
            ("LC_ALL", "C"),
            ("TZ", "UTC"),
            ("TERM", "dumb"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), OsString::from(value)));
        Run {
            argv: words.iter().map(OsString::from).collect(),
            env: env.into(),
            cwd: "/qk/src".into(),
            binds,
            links: self.tools.links(),
            network: false,
            hostname: self.options.hostname.clone(),
        }
    }

    /// A command of the build phase.
    fn offline(&self, words: &[&str]) -> Run {
        let work = self.work;
        let mut binds = self.tools.binds();
        for (name, _) in shims() {
            let inside = Path::new("/usr/bin").join(name);
            binds.push(Bind::read(work.at("tools").join(name), inside));
        }
        binds.push(Bind::read(work.at("src"), "/qk/src"));
        binds.push(Bind::read(work.at("vendor"), "/qk/vendor"));
        binds.push(Bind::write(work.at("cargo"), "/qk/cargo"));
        let config = work.at("tools").join("config.toml");
        binds.push(Bind::read(config, "/qk/cargo/config.toml"));
        for name in ["home", "cache", "target"] {
            binds.push(Bind::write(work.at(name), format!("/qk/{name}")));
        }
        let mut run = self.base(binds, words);
        let rustc = &self.tools.rust.rustc.version;
        let env = [
            ("SOURCE_DATE_EPOCH", EPOCH.to_string()),
            ("CARGO_INCREMENTAL", "0".into()),
            ("CARGO_TARGET_DIR", "/qk/target".into()),
            ("CARGO_BUILD_JOBS", self.options.jobs.to_string()),
            ("CARGO_ZIGBUILD_ZIG_COMMAND", "/qk/zig/zig".into()),
            ("CARGO_ZIGBUILD_ZIG_VERSION", ZIG.version.into()),
            ("CARGO_ZIGBUILD_RUSTC_VERSION", rustc.clone()),
            ("CARGO_ZIGBUILD_CACHE_DIR", "/qk/cache/zigbuild".into()),
            ("ZIG_GLOBAL_CACHE_DIR", "/qk/cache/zig".into()),
            ("ZIG_LOCAL_CACHE_DIR", "/qk/cache/zig-local".into()),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), OsString::from(value)));
        run.env.extend(env);
        if !self.order.rustflags.is_empty() {
            let flags: Vec<&str> = self.order.rustflags.iter().map(String::as_str).collect();
            run.env.push(("RUSTFLAGS".into(), flags.join(" ").into()));
        }
        run
    }

    /// The executables that the manifest declares, and whether they need features. Asked before
    /// any code of the crate runs.
    fn metadata(&mut self) -> Result<BTreeMap<String, bool>, BuildError> {
        let run = self.offline(&[
            "/qk/rust/bin/cargo",
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version=1",
        ]);
        let mut text = String::new();
        let end = self.watch(&run, |line| {
            if let Line::Out(line) = line
                && text.len() + line.len() <= METADATA_BYTES_MAX
            {
                text.push_str(line);
            }
            None
        })?;
        self.judge(end, Reason::BadCrate)?;
        let metadata: cargo_metadata::Metadata = serde_json::from_str(&text)
            .map_err(|error| self.failed(Reason::BadCrate, format!("cargo metadata: {error}")))?;
        let bins = executables(&metadata, self.order);
        match bins {
            Ok(bins) if bins.len() > BINS_MAX => {
                let detail = format!("it has more than {BINS_MAX} executables");
                Err(self.failed(Reason::BadCrate, detail))
            }
            Ok(bins) if bins.is_empty() => {
                let detail = "it has no executables".to_owned();
                Err(self.failed(Reason::NoBinaries, detail))
            }
            Ok(bins) => Ok(bins),
            Err(detail) => Err(self.failed(Reason::BadCrate, detail)),
        }
    }

    /// How many packages will be compiled, for the progress bar.
    fn count(&mut self) -> Result<usize, BuildError> {
        let order = self.order;
        let mut words: Vec<&str> = "/qk/rust/bin/cargo tree --offline --locked --prefix=none \
             --edges=normal,build --format={p} --no-dedupe --target"
            .split(' ')
            .collect();
        words.push(&order.target);
        let features = features(order);
        words.extend(features.iter().map(String::as_str));
        let run = self.offline(&words);
        let mut packages = BTreeSet::new();
        let end = self.watch(&run, |line| {
            if let Line::Out(line) = line {
                let mut parts = line.split(' ');
                packages.insert((
                    parts.next().map(str::to_owned),
                    parts.next().map(str::to_owned),
                ));
            }
            None
        })?;
        // Only for the eye: what really is wrong, the build itself will say.
        if end == End::Cancelled {
            return Err(BuildError::Cancelled);
        }
        Ok(packages.len())
    }

    fn compile(&mut self, total: usize) -> Result<(), BuildError> {
        let order = self.order;
        let target = match order.linked_glibc() {
            Some(glibc) => format!("{}.{glibc}", order.target),
            None => order.target.clone(),
        };
        let mut words: Vec<&str> = "/usr/bin/cargo-zigbuild zigbuild --locked --offline --bins \
             --color=never --message-format=json-render-diagnostics --target"
            .split(' ')
            .collect();
        words.extend([target.as_str(), "--profile", order.profile.as_str()]);
        let features = features(order);
        words.extend(features.iter().map(String::as_str));
        let run = self.offline(&words);
        let mut seen = BTreeSet::new();
        let end = self.watch(&run, |line| {
            let Line::Out(text) = line else {
                return None;
            };
            let krate = finished_package(text)?;
            let new = seen.len() <= total && seen.insert(krate.clone());
            let done = seen.len().min(total);
            new.then_some(Event::Compiling { krate, done, total })
        })?;
        self.judge(end, Reason::Compile)
    }

    fn collect(
        &mut self,
        bins: &BTreeMap<String, bool>,
    ) -> Result<BTreeMap<String, PathBuf>, BuildError> {
        let out = self.work.out().join("bin");
        fs::create_dir(&out).map_err(doing("create the output directory"))?;
        let profile = match self.order.profile.as_str() {
            "dev" | "test" => "debug",
            "bench" => "release",
            other => other,
        };
        let below = Path::new(&self.order.target).join(profile);
        let mut taken = BTreeMap::new();
        for (name, needs_features) in bins {
            let to = out.join(name);
            match outputs::take(&self.work.at("target"), &below.join(name), &to) {
                Ok(()) => {
                    taken.insert(name.clone(), to);
                }
                Err(TakeError::Missing(_)) if *needs_features => {}
                Err(error) => {
                    let detail = error.to_string();
                    return Err(self.failed(Reason::Compile, detail));
                }
            }
        }
        if taken.is_empty() {
            let detail = "none of its executables is built with these features".to_owned();
            return Err(self.failed(Reason::NoBinaries, detail));
        }
        Ok(taken)
    }

    /// Runs, logs what it says, and passes on what `event` makes of it.
    fn watch(
        &mut self,
        run: &Run,
        mut event: impl FnMut(&Line) -> Option<Event>,
    ) -> Result<End, BuildError> {
        let (log, sink) = (&mut self.log, &mut *self.event);
        let words: Vec<_> = run.argv.iter().map(|word| word.to_string_lossy()).collect();
        log.line(&format!("$ {}", words.join(" ")));
        let scratch = self.work.at("scratch");
        let sandbox = &self.builder.sandbox;
        let (end, used) =
            sandbox.run(run, &self.options.limits, &scratch, self.cancel, |line| {
                if let Line::Err(text) = &line {
                    log.line(text);
                }
                if let Some(event) = event(&line) {
                    sink(event);
                }
            })?;
        self.cgroup = used.cgroup;
        Ok(end)
    }

    /// Makes an error of everything but success.
    fn judge(&mut self, end: End, reason: Reason) -> Result<(), BuildError> {
        let tail = self.log.tail();
        let (reason, detail) = match end {
            End::Exit(0) => return Ok(()),
            End::Cancelled => return Err(BuildError::Cancelled),
            End::OutOfTime => {
                let wall = self.options.limits.wall.as_secs();
                (Reason::TimeOut, format!("stopped after {wall} s"))
            }
            End::OutOfMemory => {
                let memory = self.options.limits.memory_bytes >> 20;
                (
                    Reason::OutOfMemory,
                    format!("more than {memory} MiB of memory"),
                )
            }
            End::Exit(_) | End::Signal(_) => match super::log::classify(&tail, reason) {
                super::log::Found::Reason(reason, line) => (reason, line),
                super::log::Found::NewerRustc(version) => {
                    let what = format!("rustc {version} or later, which the crate asks for,");
                    let run = format!("rustup toolchain install {version} --profile minimal");
                    return Err(NotHere { what, run }.into());
                }
            },
        };
        Err(self.failed(reason, detail))
    }

    fn failed(&self, reason: Reason, detail: String) -> BuildError {
        BuildError::Failed {
            release: format!("{}@{}", self.order.name, self.order.version),
            reason,
            detail,
            tail: self.log.tail(),
        }
    }
}

/// What stands in for the host's C compiler, linker and archiver: zig, with the same glibc for
/// build scripts and proc macros on every host.
fn shims() -> [(&'static str, String); 4] {
    let compiler = |kind: &str| {
        format!(
            "#!/bin/sh\nexec /usr/bin/cargo-zigbuild zig {kind} -- -g -fno-sanitize=all \
             -target x86_64-linux-gnu.{} \"$@\"\n",
            super::GLIBC
        )
    };
    let archiver = |kind: &str| format!("#!/bin/sh\nexec /qk/zig/zig {kind} \"$@\"\n");
    [
        ("cc", compiler("cc")),
        ("c++", compiler("c++")),
        ("ar", archiver("ar")),
        ("ranlib", archiver("ranlib")),
    ]
}

fn features(order: &Order) -> Vec<String> {
    let mut words = Vec::new();
    if !order.default_features {
        words.push("--no-default-features".to_owned());
    }
    if !order.features.is_empty() {
        let features: Vec<&str> = order.features.iter().map(String::as_str).collect();
        words.push(format!("--features={}", features.join(",")));
    }
    words
}

/// The names of the executables, checked to be plain file names.
fn executables(
    metadata: &cargo_metadata::Metadata,
    order: &Order,
) -> Result<BTreeMap<String, bool>, String> {
    let is_ours = |package: &&cargo_metadata::Package| *package.name == order.name;
    let package = metadata.packages.iter().find(is_ours);
    let package = package.ok_or_else(|| format!("its manifest does not define {}", order.name))?;
    if package.version.to_string() != order.version {
        return Err(format!("its manifest says version {}", package.version));
    }
    let mut bins = BTreeMap::new();
    for target in package.targets.iter().filter(|target| target.is_bin()) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '+' | '.');
        let name = &target.name;
        if name.len() > 128 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("an executable has the name {name:?}"));
        }
        bins.insert(name.clone(), !target.required_features.is_empty());
    }
    Ok(bins)
}

/// The package of a message that says that it was compiled. The crate can forge these messages:
/// they move the progress bar and nothing else.
fn finished_package(line: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Message {
        reason: String,
        package_id: Option<String>,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    let id = message
        .package_id
        .filter(|_| message.reason == "compiler-artifact")?;
    let name = id.rsplit(['#', '/']).next()?.replace('@', " ");
    Some(name.chars().filter(|c| !c.is_control()).take(80).collect())
}

fn check_source(order: &Order) -> Result<(), BuildError> {
    let got = sha256_file(&order.crate_file, sources::CRATE_BYTES_MAX)
        .map_err(doing("read the .crate"))?;
    if got == order.source {
        return Ok(());
    }
    Err(BuildError::Source {
        release: format!("{}@{}", order.name, order.version),
        want: order.source,
        got,
    })
}

/// The texts at the top of the crate whose names begin as those of licences do; part of recipe 1.
fn licenses(source: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    const BEGINNINGS: &[&str] = &["license", "licence", "copying", "notice", "unlicense"];
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(source)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let lower = name.to_ascii_lowercase();
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        let chosen = BEGINNINGS.iter().any(|start| lower.starts_with(start));
        if chosen && entry.file_type()?.is_file() && name.chars().all(plain) && name.len() <= 80 {
            names.insert(name);
        }
    }
    let mut texts = BTreeMap::new();
    for name in names.into_iter().take(LICENSES_MAX) {
        let mut bytes = Vec::new();
        let file = File::open(source.join(&name))?;
        file.take(LICENSE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 <= LICENSE_BYTES_MAX {
            texts.insert(name, bytes);
        }
    }
    Ok(texts)
}

/// Gives all sources one time, which build scripts can see. Nothing runs in them meanwhile.
fn settle(roots: &[PathBuf]) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let time = Timespec {
        tv_sec: EPOCH.cast_signed(),
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    for entry in roots.iter().flat_map(walkdir::WalkDir::new) {
        utimensat(CWD, entry?.path(), &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |error| BuildError::Io { doing, error }
}
