//! The second phase of a build: the crate's code, without network.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::linked::Linked;
use super::outputs::{self, TakeError};
use super::run::{EPOCH, Job, doing};
use super::sandbox::{Bind, End, Line, Run};
use super::toolchain::ZIG;
use super::{BuildError, Event, Order, Reason};

/// Most executables of one crate.
const BINS_MAX: usize = 256;
/// What `cargo metadata` may print.
const METADATA_BYTES_MAX: usize = 8 << 20;

impl Job<'_> {
    /// A command of the build phase.
    fn offline(&self, words: &[&str]) -> Run {
        let work = self.work;
        let mut binds = self.tools.binds();
        for (name, _) in shims() {
            let inside = Path::new("/qk/bin").join(name);
            binds.push(Bind::read(work.at("tools").join(name), inside));
        }
        binds.push(Bind::read(work.at("tools").join("linker"), "/qk/linker"));
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
        // Stands before the one that cargo-zigbuild would set.
        let target = self.order.target.replace('-', "_").to_uppercase();
        let linker = format!("CARGO_TARGET_{target}_LINKER");
        run.env.push((linker, "/qk/linker".into()));
        if !self.order.rustflags.is_empty() {
            let flags: Vec<&str> = self.order.rustflags.iter().map(String::as_str).collect();
            run.env.push(("RUSTFLAGS".into(), flags.join(" ").into()));
        }
        run
    }

    /// The executables that the manifest declares, and whether they need features. Asked before
    /// any code of the crate runs.
    pub(super) fn metadata(&mut self) -> Result<BTreeMap<String, bool>, BuildError> {
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
    pub(super) fn count(&mut self) -> Result<usize, BuildError> {
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

    pub(super) fn compile(&mut self, total: usize) -> Result<(), BuildError> {
        let order = self.order;
        let target = match order.linked_glibc() {
            Some(glibc) => format!("{}.{glibc}", order.target),
            None => order.target.clone(),
        };
        let mut words: Vec<&str> = "/qk/bin/cargo-zigbuild zigbuild --locked --offline --bins \
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

    pub(super) fn collect(
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

    /// What the linker was given. That nothing can be made of the record is nobody's failure: then
    /// there is no work digest.
    pub(super) fn linked(&self) -> Option<Linked> {
        let keep = self
            .options
            .keep_linked
            .then(|| self.work.out().join("linked"));
        let read = Linked::read(&self.work.at("target"), keep);
        read.inspect_err(
            |why| tracing::info!(%why, "no work digest: the linker's record is of no use"),
        )
        .ok()
    }
}

/// What stands in for the host's C compiler, linker and archiver: zig, with the same glibc for
/// build scripts and proc macros on every host.
pub(super) fn shims() -> [(&'static str, String); 4] {
    let compiler = |kind: &str| {
        format!(
            "#!/bin/sh\nexec /qk/bin/cargo-zigbuild zig {kind} -- -g -fno-sanitize=all \
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
