//! A build, from the order to what came out.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use qk_protocol::hash::Sha256;
use qk_protocol::time::UnixTime;

use super::directories::{Work, settle, sweep};
use super::environment::Environment;
use super::fetch::licenses;
use super::host::Host;
use super::linked::Linked;
use super::log::Log;
use super::sandbox::{Bind, End, Line, Run};
use super::sources::{self, Access};
use super::toolchain::{ZIG, ZIGBUILD, sha256_file};
use super::{
    BuildError, Cancel, Collected, Event, InUse, NotHere, Options, Order, Reason, RustToolchain,
    Sandbox, SandboxError, Toolchains, rustc, warm,
};

/// `SOURCE_DATE_EPOCH` and the time of every source file: 2020-01-01. Part of recipe 1.
pub(super) const EPOCH: u64 = 1_577_836_800;

/// The targets that zig links for with this version of qk.
const TARGETS: &[&str] = &[rustc::TARGET, "x86_64-unknown-linux-musl"];

/// Builds crates on this machine.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) sandbox: Sandbox,
    toolchains: Toolchains,
    work: PathBuf,
    pub(super) access: Access,
}

impl Builder {
    /// Checks that builds can run here. `work` takes the temporary directories of builds.
    ///
    /// # Errors
    /// Says what is missing and how to get it.
    pub fn new(toolchains: Toolchains, work: &Path) -> Result<Self, BuildError> {
        Self::in_sandbox(Sandbox::probe()?, toolchains, work)
    }

    /// The same in a sandbox that the caller chose.
    ///
    /// # Errors
    /// When the work directory cannot be made.
    pub fn in_sandbox(
        sandbox: Sandbox,
        toolchains: Toolchains,
        work: &Path,
    ) -> Result<Self, BuildError> {
        fs::create_dir_all(work).map_err(doing("create the work directory"))?;
        sweep(work);
        Ok(Self {
            sandbox,
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
        if options.root != Path::new("/") && self.sandbox.name() != "bubblewrap" {
            let what = "another system's tools cannot be shown to a build here".to_owned();
            let how = "leave --sandbox-root away, or use bubblewrap".to_owned();
            return Err(SandboxError::Unavailable { what, how }.into());
        }
        let tools = Tools::find(&self.toolchains, order, options)?;
        check_source(order)?;
        self.warm(order, options, cancel, &tools, event)?;
        let work = Work::new(&self.work, &self.sandbox, cancel)?;
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
        let work = Work::new(&self.work, &self.sandbox, cancel)?;
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

    /// [`build`](Self::build) on a thread of its own. Dropping the future stops the build, as `cancel`
    /// does; whoever cancels and waits knows that nothing of it is left.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build_in_background(
        &self,
        order: Order,
        options: Options,
        cancel: Cancel,
        mut event: impl FnMut(Event) + Send + 'static,
    ) -> Result<Collected, BuildError> {
        struct OnDrop(Cancel);
        impl Drop for OnDrop {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let guard = OnDrop(cancel);
        let (builder, cancel) = (self.clone(), guard.0.clone());
        let (sender, done) = tokio::sync::oneshot::channel();
        // Not of a pool: bubblewrap dies with the thread that started it.
        std::thread::Builder::new()
            .name("build".into())
            .spawn(move || {
                if let Some(cores) = options.cores {
                    keep_to(cores);
                }
                let result = builder.build(&order, &options, &cancel, &mut event);
                let _ = sender.send(result);
            })
            .map_err(doing("start a thread"))?;
        done.await.unwrap_or(Err(BuildError::Cancelled))
    }
}

/// What a build is made with.
pub(super) struct Tools {
    pub(super) rust: RustToolchain,
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

    pub(super) fn binds(&self) -> Vec<Bind> {
        let mut binds = self.host.binds.clone();
        binds.extend(self.rust.binds(Path::new("/qk/rust")));
        binds.push(Bind::read(&self.zig, "/qk/zig"));
        binds.push(Bind::read(&self.zigbuild, "/qk/bin/cargo-zigbuild"));
        binds
    }

    fn links(&self) -> Vec<(String, String)> {
        let mut links = self.host.links.clone();
        for tool in ["cargo", "rustc"] {
            links.push((format!("/qk/rust/bin/{tool}"), format!("/qk/bin/{tool}")));
        }
        links
    }
}

/// One build under way.
pub(super) struct Job<'a> {
    pub(super) builder: &'a Builder,
    pub(super) order: &'a Order,
    pub(super) options: &'a Options,
    pub(super) cancel: &'a Cancel,
    pub(super) event: &'a mut dyn FnMut(Event),
    pub(super) tools: &'a Tools,
    pub(super) work: &'a Work,
    pub(super) log: Log,
    cgroup: bool,
}

struct Parts {
    bins: BTreeMap<String, PathBuf>,
    linked: Option<Linked>,
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
            linked: self.linked,
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
            linked: self.linked(),
            lock,
            licenses,
            log: self.log.path().to_path_buf(),
            environment: Environment::of(&self.options.root, sandbox, self.cgroup),
            key,
            started,
        })
    }

    pub(super) fn base(&self, binds: Vec<Bind>, words: &[&str]) -> Run {
        let env = [
            ("PATH", "/qk/bin"),
            ("TMPDIR", "/qk/tmp"),
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
            background: self.options.background,
        }
    }

    /// Runs, logs what it says, and passes on what `event` makes of it.
    pub(super) fn watch(
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
    pub(super) fn judge(&mut self, end: End, reason: Reason) -> Result<(), BuildError> {
        let tail = self.log.tail();
        let (reason, detail) = match end {
            End::Exit(0) => return Ok(()),
            End::Cancelled => return Err(BuildError::Cancelled),
            End::OutOfTime => {
                let wall = self.options.limits.wall.as_secs();
                (Reason::TimeOut, format!("stopped after {wall} s"))
            }
            End::OutOfDisk => {
                let limits = &self.options.limits;
                let (free, files) = (limits.disk_free_bytes >> 20, limits.disk_free_files);
                (
                    Reason::DiskFull,
                    format!(
                        "stopped when less than {free} MiB were free on the disk, or room for fewer than \
                         {files} files"
                    ),
                )
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

    pub(super) fn failed(&self, reason: Reason, detail: String) -> BuildError {
        BuildError::Failed {
            release: format!("{}@{}", self.order.name, self.order.version),
            reason,
            detail,
            tail: self.log.tail(),
        }
    }
}

/// Keeps this thread, and what it starts, to so many of the processors that it may use. That this does
/// not work is no reason to build nothing.
fn keep_to(cores: u32) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let kept = sched_getaffinity(None).and_then(|may| {
        let mut kept = CpuSet::new();
        // The last ones: the first have more to do for the machine itself.
        let all = (0..CpuSet::MAX_CPU).rev().filter(|cpu| may.is_set(*cpu));
        all.take(cores.max(1) as usize)
            .for_each(|cpu| kept.set(cpu));
        sched_setaffinity(None, &kept)
    });
    if let Err(error) = kept {
        tracing::warn!(%error, "the build is not kept to {cores} processors");
    }
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

fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

pub(super) fn doing(doing: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |error| BuildError::Io { doing, error }
}
