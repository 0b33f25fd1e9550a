//! Manners of a node on somebody's machine: what it gives and takes at most, and when it pauses.
//!
//! One [`Manners`] a process. Rates and budgets are of blocks, in which all that is large travels;
//! answers of the index are small and bounded by `net::Limits`. While the node pauses it gives no
//! blocks, announces nothing and cleans nothing; it stays reachable, answers the index and keeps up
//! with its networks, and the owner's own fetches go on.

mod config;
mod meter;
mod metered;
mod month;
mod pause;
mod power;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use qk_protocol::time::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use self::config::{PauseConfig, RATE_MIN, ShareConfig, ShareFlags, Size};
pub use self::meter::{Downloads, Grant, Rate, Uploads};
pub use self::month::Traffic;
use self::month::{Month, Way};
use self::pause::{Noticed, Pause};
pub use self::pause::{PauseReason, PauseRequest};
use crate::home::{Home, create_private_dir};
use crate::node::unix_now;

/// How often power supplies are looked at: the kernel tells of changes only those who may listen to
/// its events.
const POWER_EVERY: Duration = Duration::from_secs(10);
/// How long the first answers about power and links may take before the node goes on without.
const SETTLE_MAX: Duration = Duration::from_secs(2);
/// A request for a pause is a few bytes.
const REQUEST_BYTES_MAX: u64 = 4096;

/// For whom something is downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// For the owner, who waits for it.
    Owner,
    /// For others, or in the background.
    Others,
}

/// What a node does for others, as its status tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ShareStatus {
    /// Whether it gives blocks now.
    pub gives: bool,
    /// Whether it gives and announces what was fetched, too.
    pub fetched: bool,
    /// Whether it was told to give nothing.
    pub leech: bool,
    /// Whether it tells others what it has.
    pub announces: bool,
    /// Bytes a second that may leave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_rate: Option<u64>,
    /// Bytes a second that may be downloaded for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_rate: Option<u64>,
    /// Bytes that may leave this month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_month: Option<u64>,
    /// Bytes that may be downloaded for others this month.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_month: Option<u64>,
    /// Blocks that were given and taken this month, in bytes.
    #[serde(flatten)]
    pub month: Traffic,
}

/// What a process gives and takes, and whether it pauses.
#[derive(Debug)]
pub struct Manners {
    share: ShareConfig,
    paths: Paths,
    upload_rate: Option<Rate>,
    download_rate: Option<Arc<Rate>>,
    month: Month,
    counts: bool,
    /// Bytes granted and not sent yet.
    waiting: meter::Waiting,
    pause: Mutex<Pause>,
    reasons: watch::Sender<Vec<PauseReason>>,
}

#[derive(Debug)]
struct Paths {
    request: PathBuf,
    power: PathBuf,
}

impl Manners {
    /// As `share` and `pause` say, continuing this month's count and a pause that was asked for.
    /// `runs` says that this is a running node, which counts all that it gives and takes; a command's
    /// own does so only where a cap asks for it.
    pub fn open(home: &Home, share: ShareConfig, pause: PauseConfig, runs: bool) -> Arc<Self> {
        let paths = Paths {
            request: home.dir().join("pause.json"),
            power: power::dir(),
        };
        let request = read_request(&paths.request);
        let bytes = |size: Option<Size>| size.map(|size| size.0);
        let month = Month::open(
            home.dir().join("traffic.json"),
            bytes(share.upload_month),
            bytes(share.download_month),
            unix_now(),
        );
        let pause = Pause::new(pause, request);
        let reasons = watch::Sender::new(pause.reasons(unix_now()));
        Arc::new(Self {
            upload_rate: share.upload_rate.map(|rate| Rate::new(rate.0)),
            download_rate: share.download_rate.map(|rate| Arc::new(Rate::new(rate.0))),
            counts: runs || share.download_month.is_some(),
            share,
            paths,
            month,
            waiting: meter::Waiting::default(),
            pause: Mutex::new(pause),
            reasons,
        })
    }

    /// What is given goes through this.
    pub fn uploads(self: &Arc<Self>) -> Uploads {
        Uploads::new(self.clone())
    }

    /// What is taken goes through this.
    pub fn downloads(&self, whose: Whose) -> Downloads {
        let limited = whose == Whose::Others || self.share.download_own;
        Downloads::new(self.download_rate.clone().filter(|_| limited))
    }

    /// Counts bytes that were downloaded.
    pub fn downloaded(self: &Arc<Self>, bytes: u64) {
        if self.counts && self.month.count(Way::Down, bytes, unix_now()) {
            let manners = self.clone();
            tokio::task::spawn_blocking(move || manners.month.write(unix_now()));
        }
    }

    /// Whether something may be downloaded now: for others while the month's bytes last and nothing
    /// pauses, for the owner always, unless the owner wants the caps to hold for that, too.
    pub fn may_download(&self, whose: Whose) -> bool {
        let left = !self.month.is_spent(Way::Down, unix_now());
        match whose {
            Whose::Owner => left || !self.share.download_own,
            Whose::Others => left && !self.is_paused(),
        }
    }

    /// Whether blocks are given now.
    pub fn gives(&self) -> bool {
        !self.share.leech && !self.is_paused() && !self.month.is_spent(Way::Up, unix_now())
    }

    /// Whether what was fetched is given like what one built.
    pub fn shares_fetched(&self) -> bool {
        self.share.fetched.unwrap_or(false)
    }

    /// Whether others are told what is here.
    pub fn announces(&self) -> bool {
        self.share.announce.unwrap_or(true) && self.gives()
    }

    /// Connections that a network may have, if the owner said so.
    pub fn connections(&self) -> Option<usize> {
        self.share.connections
    }

    /// Whether background work rests.
    pub fn is_paused(&self) -> bool {
        !self.reasons.borrow().is_empty()
    }

    /// Why it does; not at all, if nothing is named.
    pub fn reasons(&self) -> Vec<PauseReason> {
        self.reasons.borrow().clone()
    }

    /// Tells whenever the reasons change.
    pub fn changes(&self) -> watch::Receiver<Vec<PauseReason>> {
        self.reasons.subscribe()
    }

    /// For a status.
    pub fn status(&self) -> ShareStatus {
        let bytes = |size: Option<Size>| size.map(|size| size.0);
        ShareStatus {
            gives: self.gives(),
            fetched: self.shares_fetched(),
            leech: self.share.leech,
            announces: self.announces(),
            upload_rate: bytes(self.share.upload_rate),
            download_rate: bytes(self.share.download_rate),
            upload_month: bytes(self.share.upload_month),
            download_month: bytes(self.share.download_month),
            month: self.month.traffic(unix_now()),
        }
    }

    /// Pauses until then, or until [`resume`](Self::resume): also through a restart of the node.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn pause(&self, until: Option<UnixTime>) -> io::Result<()> {
        let request = PauseRequest { until };
        let bytes = serde_json::to_vec(&request).map_err(io::Error::other)?;
        replace_file(&self.paths.request, &bytes)?;
        self.notice(Noticed::Request(Some(request)));
        Ok(())
    }

    /// Notices a pause that another process of this home was asked for, or its end.
    pub fn look_at_request(&self) {
        self.notice(Noticed::Request(read_request(&self.paths.request)));
    }

    /// Ends a pause that was asked for.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn resume(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.paths.request) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        self.notice(Noticed::Request(None));
        Ok(())
    }

    /// Watches power, links and the clock for as long as it is polled; `ready` is told once the
    /// first answers are in, or late.
    pub async fn watch(self: &Arc<Self>, ready: impl FnOnce()) {
        let (seen, metered) = watch::channel(None);
        tokio::join!(
            metered::watch(seen),
            self.watch_metered(metered.clone()),
            self.watch_power(),
            self.watch_clock(),
            async {
                let mut metered = metered;
                let answered = metered.wait_for(Option::is_some);
                let _ = tokio::time::timeout(SETTLE_MAX, answered).await;
                if let Some(metered) = *metered.borrow() {
                    self.notice(Noticed::Metered(metered));
                }
                self.look_at_power().await;
                ready();
            },
        );
    }

    async fn watch_metered(&self, mut metered: watch::Receiver<Option<bool>>) {
        while metered.changed().await.is_ok() {
            let metered = metered.borrow_and_update().unwrap_or(false);
            self.notice(Noticed::Metered(metered));
        }
    }

    async fn watch_power(&self) {
        loop {
            tokio::time::sleep(POWER_EVERY).await;
            self.look_at_power().await;
        }
    }

    async fn look_at_power(&self) {
        let dir = self.paths.power.clone();
        let looked = tokio::task::spawn_blocking(move || power::on_battery(&dir)).await;
        self.notice(Noticed::Battery(looked.unwrap_or(false)));
    }

    /// Ends a pause whose time is over. The calendar's clock may be set, so it is looked at often
    /// while there is one.
    async fn watch_clock(&self) {
        let mut reasons = self.changes();
        loop {
            let ends = self.pause_state().deadline(unix_now());
            let left = ends.map(|ends| Duration::from_secs(ends.since(unix_now())));
            match left {
                Some(left) => tokio::select! {
                    () = tokio::time::sleep(left.clamp(Duration::from_secs(1), POWER_EVERY)) => {}
                    _ = reasons.changed() => {}
                },
                None => {
                    let _ = reasons.changed().await;
                }
            }
            self.told();
        }
    }

    /// Writes this month's bytes as they are: for an end in order.
    pub fn close(&self) {
        if self.counts {
            self.month.close(unix_now());
        }
    }

    fn notice(&self, noticed: Noticed) {
        self.pause_state().handle(noticed);
        self.told();
    }

    /// Brings the reasons that others see up to date.
    fn told(&self) {
        let now = self.pause_state().reasons(unix_now());
        self.reasons.send_if_modified(|before| {
            if *before == now {
                return false;
            }
            match now.is_empty() {
                true => tracing::info!("works again"),
                false => tracing::info!(reasons = ?now, "pauses"),
            }
            *before = now;
            true
        });
    }

    fn pause_state(&self) -> MutexGuard<'_, Pause> {
        // Plain values: whole after every step.
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that cannot be read pauses nothing, and says so.
fn read_request(path: &Path) -> Option<PauseRequest> {
    let read = std::fs::metadata(path).and_then(|found| match found.len() {
        ..=REQUEST_BYTES_MAX => std::fs::read(path),
        _ => Err(io::ErrorKind::InvalidData.into()),
    });
    let read = read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(io::Error::other));
    match read {
        Ok(request) => Some(request),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a pause that was asked for is forgotten");
            None
        }
    }
}

/// Replaces a small file as a whole: after a crash there is the old one or the new.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    create_private_dir(dir)?;
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    file.persist(path).map_err(|error| error.error)?;
    std::fs::File::open(dir)?.sync_all()
}
