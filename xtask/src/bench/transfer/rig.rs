//! One file, and everybody who carries it.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::bench::nginx::{self, Nginx};
use crate::bench::service::Service;
use crate::bench::{lab, sample};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The file in the directory of files.
const FILE: &str = "blob";

/// One transfer of the whole file.
#[derive(Debug)]
pub(super) struct Pull {
    /// From the dial to the last byte in the file, and in the store where there is one.
    pub(super) seconds: f64,
    /// Processor seconds, with the process's start and end.
    pub(super) reader_cpu: f64,
    /// Of all providers together.
    pub(super) provider_cpu: f64,
    /// Bytes of the blob that were taken.
    pub(super) bytes: u64,
    /// The same with their proofs.
    pub(super) wire_bytes: u64,
    /// What the providers sent, taken or not.
    pub(super) sent_bytes: u64,
}

/// A file of random bytes, which nobody can compress, in a directory that is gone with this.
#[derive(Debug)]
pub(super) struct Rig {
    dir: tempfile::TempDir,
    program: PathBuf,
    pub(super) mib: u64,
}

impl Rig {
    /// Writes the file. `program` serves and downloads it as qk does.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn new(program: &Path, mib: u64) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("qk-bench-").tempdir()?;
        let files = dir.path().join("files");
        std::fs::create_dir(&files)?;
        let mut random = File::open("/dev/urandom")?.take(mib << 20);
        io::copy(&mut random, &mut File::create(files.join(FILE))?)?;
        Ok(Self {
            dir,
            program: program.to_owned(),
            mib,
        })
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.mib << 20
    }

    /// Its size in units of 10^6 bytes.
    pub(super) fn mb(&self) -> f64 {
        self.bytes() as f64 / 1e6
    }

    /// A node that has it.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn provider(&self, args: &[&str]) -> Result<Service> {
        let mut serve = Command::new(&self.program);
        serve.arg("serve").arg(self.file()).arg(self.empty()?);
        Service::start(serve.args(args))
    }

    /// Downloads it from `providers` into an empty store.
    ///
    /// # Errors
    /// When it does not arrive.
    pub(super) fn get(&self, providers: &mut [&mut Service], args: &[&str]) -> Result<Pull> {
        let first = providers.first().context("no provider")?;
        let size = &first.ready["size"];
        let store = self.empty()?;
        let mut get = Command::new(&self.program);
        get.args(["get", first.text("root")?, &size.to_string()]);
        get.arg(&store).args(args);
        for provider in &*providers {
            get.args(["--provider", provider.text("address")?]);
        }
        let before = sums(providers)?;
        let (done, reader_cpu) = timed(&mut get)?;
        let after = sums(providers)?;
        std::fs::remove_dir_all(store)?;
        let number = |name: &str| done[name].as_u64().context("a number is missing");
        let pull = Pull {
            seconds: seconds(&done)?,
            reader_cpu,
            provider_cpu: after.0 - before.0,
            bytes: number("bytes")?,
            wire_bytes: number("wire_bytes")?,
            sent_bytes: after.1 - before.1,
        };
        ensure!(
            pull.bytes >= self.bytes(),
            "only {} bytes arrived",
            pull.bytes
        );
        Ok(pull)
    }

    /// nginx that serves it.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn nginx(&self) -> Result<Nginx> {
        Nginx::start(&self.files(), &self.dir.path().join("nginx"), LOOPBACK)
    }

    /// Downloads it with curl.
    ///
    /// # Errors
    /// When it does not arrive.
    pub(super) fn curl(&self, nginx: &Nginx) -> Result<Pull> {
        let into = self.dir.path().join("curled");
        let (before, served) = (sample::cpu_of_children()?, nginx.cpu()?);
        let seconds = nginx::seconds(&mut nginx.curl(FILE), &into)?;
        let (reader_cpu, provider_cpu) =
            (sample::cpu_of_children()? - before, nginx.cpu()? - served);
        let bytes = std::fs::metadata(&into)?.len();
        ensure!(bytes == self.bytes(), "curl wrote {bytes} bytes");
        std::fs::remove_file(into)?;
        Ok(Pull {
            seconds,
            reader_cpu,
            provider_cpu,
            bytes,
            wire_bytes: bytes,
            sent_bytes: bytes,
        })
    }

    /// iroh-blobs that serves it; `program` is both sides of it.
    ///
    /// # Errors
    /// When it does not start.
    pub(super) fn iroh(&self, program: &Path) -> Result<Iroh> {
        let mut serve = Command::new(program);
        serve.arg("serve").arg(self.file()).arg(self.empty()?);
        Ok(Iroh {
            program: program.to_owned(),
            provider: Service::start(&mut serve)?,
        })
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    fn file(&self) -> PathBuf {
        self.files().join(FILE)
    }

    fn empty(&self) -> Result<PathBuf> {
        let dir = tempfile::Builder::new().tempdir_in(self.dir.path())?;
        Ok(dir.keep())
    }
}

/// A provider of iroh-blobs.
#[derive(Debug)]
pub(super) struct Iroh {
    program: PathBuf,
    provider: Service,
}

impl Iroh {
    /// Downloads the file into an empty store.
    ///
    /// # Errors
    /// When it does not arrive.
    pub(super) fn get(&self, rig: &Rig) -> Result<Pull> {
        let store = rig.empty()?;
        let mut get = Command::new(&self.program);
        get.arg("get");
        for name in ["provider", "address", "hash"] {
            get.arg(self.provider.text(name)?);
        }
        get.arg(&store);
        let before = self.provider.cpu()?;
        let (done, reader_cpu) = timed(&mut get)?;
        let provider_cpu = self.provider.cpu()? - before;
        std::fs::remove_dir_all(store)?;
        Ok(Pull {
            seconds: seconds(&done)?,
            reader_cpu,
            provider_cpu,
            bytes: rig.bytes(),
            wire_bytes: rig.bytes(),
            sent_bytes: rig.bytes(),
        })
    }
}

/// Processor seconds and bytes sent so far, of all providers.
fn sums(providers: &mut [&mut Service]) -> Result<(f64, u64)> {
    let (mut cpu, mut sent) = (0.0, 0);
    for provider in providers {
        sent += self::sent(provider)?;
        cpu += provider.cpu()?;
    }
    Ok((cpu, sent))
}

/// Bytes that a provider sent so far.
pub(super) fn sent(provider: &mut Service) -> Result<u64> {
    let said = provider.ask()?;
    said["sent_bytes"].as_u64().context("no sent_bytes")
}

/// Runs a program to its end: what it printed, and its processor seconds.
fn timed(command: &mut Command) -> Result<(Value, f64)> {
    let before = sample::cpu_of_children()?;
    let done = lab::json(command.stdin(Stdio::null()))?;
    Ok((done, sample::cpu_of_children()? - before))
}

fn seconds(done: &Value) -> Result<f64> {
    done["seconds"].as_f64().context("no seconds")
}
