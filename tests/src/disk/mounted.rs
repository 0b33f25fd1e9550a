//! ext4 on such a disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How long what the kernel does behind a command may take.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(5);

/// Makes an ext4 file system in the file at `image`.
///
/// # Errors
/// When that fails.
pub fn format(image: &Path) -> Result<()> {
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F", "-m", "0", "-J", "size=8", "-E"])
        .arg("nodiscard,lazy_itable_init=0,lazy_journal_init=0")
        .arg(image);
    run(&mut mkfs).map(drop)
}

/// A mounted image, with a loop device that goes with it.
#[derive(Debug)]
pub struct Mounted {
    image: PathBuf,
    at: PathBuf,
}

impl Mounted {
    /// Mounts the ext4 of `image` at the directory `at`.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(image: &Path, at: &Path, options: &str) -> Result<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", &format!("loop,{options}")]);
        run(mount.arg(image).arg(at))?;
        Ok(Self {
            image: image.to_owned(),
            at: at.to_owned(),
        })
    }

    /// Unmounts it, and returns when the loop device is free.
    ///
    /// # Errors
    /// When it stays busy.
    pub fn unmount(self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        // sled's threads close its files a moment after it is dropped.
        while let Err(error) = run(Command::new("umount").arg(&self.at)) {
            anyhow::ensure!(Instant::now() < until, error);
            std::thread::sleep(PAUSE);
        }
        loop {
            let attached = run(Command::new("losetup").arg("-j").arg(&self.image))?;
            if attached.stdout.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < until, "still attached: {attached:?}");
            std::thread::sleep(PAUSE);
        }
    }
}

fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}
