//! `qk verify --watch`: notices what is owed, and rebuilds one after another within the budget.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use qk_node::access::Access;
use qk_node::build::{BuildError, Cancel, Limits, Reason};
use qk_node::home::Joined;
use qk_node::manners::Manners;
use qk_node::node::{NodeOptions, store_options, unix_now};
use qk_node::watch::{Keeper, Kept, Machine, Settings, VerifyConfig, children_cpu_millis};
use qk_protocol::decide::Held;
use qk_protocol::dsse::public_key;
use qk_protocol::hash::{NetworkId, Point, PrincipalId, PublicKey};
use qk_protocol::key::ArtifactKey;
use qk_protocol::manifest::KeyState;
use qk_protocol::time::UnixTime;
use qk_protocol::watch::budget::Wait;
use qk_protocol::watch::patrol::Patrol;
use qk_protocol::watch::{Agreement, Class, End, Entry, Why, duties};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::super::build::{Maker, STRANGER, state_failure};
use super::super::of_problem;
use super::event::{Event, What};
use super::{Report, Task, published};
use crate::args::{BudgetArgs, VerifyArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::session::{Session, Stops, failed, stopped};

/// How often it is looked at whether a rebuild may begin, or has to stop.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a node of this process's own asks for newer manifests, as a running one does.
const REFRESH_EVERY: Duration = Duration::from_secs(600);
/// How long one network's part of a round may take: what nobody answers by then has its turn in the next.
const ROUND_MAX: Duration = Duration::from_secs(60);
/// Rounds after which it is drawn again where nothing was left to audit.
const DRAW_AGAIN_ROUNDS: u32 = 10;
/// Before what is shown on a terminal while nothing is built.
const NAME: &str = "verify";
/// What a shell makes of a process that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

pub(super) async fn run(session: &Session, args: &VerifyArgs) -> Outcome {
    // From now on, so that nothing begins that a stop would not end in order.
    let stopped = stopped();
    let watcher = Arc::new(Watcher::start(session, &args.budget).await?);
    watcher.greet()?;
    let (ready, settled) = tokio::sync::oneshot::channel();
    let background = async {
        tokio::join!(
            watcher.manners.watch(|| {
                let _ = ready.send(());
            }),
            watcher.go_round(),
        );
    };
    let rebuilding = async {
        // Told or dropped, both will do.
        let _ = settled.await;
        watcher.rebuild_all().await;
    };
    let mut rebuilding = std::pin::pin!(rebuilding);
    tokio::select! {
        () = background => {}
        () = &mut rebuilding => {}
        () = stopped => {}
    }
    watcher.stop.cancel();
    let mut again = Stops::new();
    tokio::select! {
        () = rebuilding => {}
        () = again.next() => std::process::exit(INTERRUPTED),
    }
    watcher.nodes.shutdown().await;
    watcher.bar.finish_and_clear();
    Ok(())
}

/// A volunteer at work.
struct Watcher<'a> {
    session: &'a Session,
    settings: Settings,
    maker: Maker<'a>,
    manners: Arc<Manners>,
    machine: Machine,
    nodes: Nodes<'a>,
    keeper: Mutex<Keeper>,
    observer: PublicKey,
    /// Told when something was added to the queue.
    added: Notify,
    stop: CancellationToken,
    bar: ProgressBar,
    /// What was noted last, which is not noted again at once.
    noted: Mutex<String>,
}

/// Why a rebuild was stopped.
enum Stop {
    /// The person, or the budget.
    Ended,
    Disk(u64),
}

impl<'a> Watcher<'a> {
    async fn start(session: &'a Session, args: &BudgetArgs) -> Outcome<Self> {
        let usage = |why: String| Failure::new(Kind::Usage, why);
        let config = session
            .home
            .config()
            .map_err(|error| Failure::new(Kind::Usage, error))?;
        let store = store_options(&config, &session.home.store());
        let settings = config.verify.clone().with(&flags(args));
        let settings = settings.settings(store.free_floor_bytes).map_err(usage)?;
        if session.home.networks().map_err(failed)?.is_empty() {
            return Err(Session::no_network());
        }
        let budget = settings.budget.clone();
        let opened = Keeper::open(&session.home, budget.clone(), unix_now());
        let (keeper, lost) = opened.map_err(|problem| of_problem(&problem))?;
        if let Some(why) = lost {
            session.output.note(format!(
                "note: the queue could not be read ({why}); what is owed will be found again"
            ));
        }
        let mut maker = Maker::new(session).await?;
        let bar = session.output.spinner(NAME);
        maker.bar = Some(bar.clone());
        maker.options.jobs = budget.jobs;
        maker.options.cores = Some(budget.jobs);
        maker.options.background = true;
        let limit = Duration::from_secs(budget.time_limit_seconds);
        maker.options.limits = Limits {
            wall: limit,
            cpu: limit.saturating_mul(budget.jobs),
            file_bytes: Limits::default().file_bytes.min(budget.disk_bytes),
            ..Limits::default()
        };
        let observer = session.home.key("observer").map_err(failed)?;
        Ok(Self {
            session,
            settings,
            maker,
            manners: Manners::open(&session.home, config.share, config.pause, false),
            machine: Machine::new(session.home.work()),
            nodes: Nodes {
                session,
                own: tokio::sync::Mutex::default(),
            },
            keeper: Mutex::new(keeper),
            observer: public_key(&observer),
            added: Notify::new(),
            stop: CancellationToken::new(),
            bar,
            noted: Mutex::default(),
        })
    }

    /// Says for whom this machine rebuilds.
    fn greet(&self) -> Outcome {
        for joined in self.session.home.networks().map_err(failed)? {
            let name = &joined.network.manifest().name;
            let text = match self.own_principal(&joined) {
                Some((_, principal)) => format!("rebuilds for {principal} in network {name}"),
                None => format!("audits in network {name}: {STRANGER}"),
            };
            self.tell(&Event::Note { text: &text });
        }
        Ok(())
    }

    fn own_principal(&self, joined: &Joined) -> Option<(PrincipalId, String)> {
        let (principal, key) = joined.network.principal(self.observer)?;
        (key.state == KeyState::Active).then(|| (principal.id, principal.name.clone()))
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is kept. That it cannot be written is said and changes nothing else: it is written
    /// with the next change, and at worst found again.
    fn change<T: Default>(&self, change: impl FnOnce(&mut Kept) -> T) -> T {
        let mut changed = T::default();
        let written = self.keeper().change(|kept| changed = change(kept));
        if let Err(problem) = written {
            self.note(&format!("the queue could not be kept: {problem}"));
        }
        changed
    }

    /// Says something, unless it was what was said last.
    fn note(&self, text: &str) {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if *noted != text {
            text.clone_into(&mut noted);
            drop(noted);
            self.tell(&Event::Note { text });
        }
    }

    fn tell(&self, event: &Event<'_>) {
        let output = self.session.output;
        self.bar.suspend(|| match output.json {
            true => output.document(event),
            false => output.line(event.text()),
        });
    }

    /// Goes round the index of all networks, one range at a time.
    async fn go_round(&self) {
        let mut patrols: BTreeMap<NetworkId, Patrol> = BTreeMap::new();
        let mut every = tokio::time::interval(self.settings.every);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut draw_in = 0_u32;
        loop {
            every.tick().await;
            self.manners.look_at_request();
            if self.manners.is_paused() {
                continue;
            }
            let networks = match self.session.home.networks() {
                Ok(networks) => networks,
                Err(error) => {
                    self.note(&error.to_string());
                    continue;
                }
            };
            self.forget_left(&networks);
            for joined in &networks {
                let id = joined.network.id();
                let new = || Patrol::new(Point(rand::random()));
                let patrol = patrols.entry(id).or_insert_with(new);
                let survey = tokio::time::timeout(ROUND_MAX, self.survey(joined, patrol));
                let why = match survey.await {
                    Ok(Ok(())) => continue,
                    Ok(Err(failure)) => failure.error,
                    Err(_) => format!("nothing came of {} s of looking", ROUND_MAX.as_secs()),
                };
                let name = &joined.network.manifest().name;
                self.note(&format!("network {name}: {why}"));
                self.nodes.renew().await;
            }
            draw_in = draw_in.saturating_sub(1);
            if draw_in == 0 && self.keeper().kept().queue.wants_audit(unix_now()) {
                let drawn = tokio::time::timeout(ROUND_MAX, self.draw(&networks)).await;
                draw_in = match drawn {
                    Ok(true) => 0,
                    Ok(false) | Err(_) => DRAW_AGAIN_ROUNDS,
                };
            }
        }
    }

    /// Entries of networks that were left, or of registries that these serve no more, are owed to
    /// nobody.
    fn forget_left(&self, networks: &[Joined]) {
        let serves = |entry: &Entry| {
            let mut joined = networks.iter();
            let joined = joined.find(|one| one.network.id() == entry.network);
            joined.is_some_and(|one| {
                let registries = &one.network.manifest().registries;
                registries.contains(&entry.key.registry)
            })
        };
        self.change(|kept| kept.queue.retain(serves));
    }

    /// Looks through one range of a network's index.
    async fn survey(&self, joined: &Joined, patrol: &mut Patrol) -> Outcome {
        let access = self.nodes.get().await?;
        let network = joined.network.id();
        let survey = access.survey(network, patrol.at()).await;
        let survey = survey.map_err(|problem| of_problem(&problem))?;
        if survey.answered == 0 {
            return Err(Failure::new(Kind::Network, "no node answers"));
        }
        let points = patrol.take(&survey);
        let owner = self.own_principal(joined);
        let (Some((own, _)), false) = (owner, points.is_empty()) else {
            return Ok(());
        };
        let held = access.look(network, points).await;
        let held = held.map_err(|problem| of_problem(&problem))?;
        for (key, why) in duties(&joined.network, &held, own) {
            let after_seconds = published_ago(&held, &key);
            self.add(joined, key, why, after_seconds);
        }
        Ok(())
    }

    /// Draws an entry to audit; whether there was one.
    async fn draw(&self, networks: &[Joined]) -> bool {
        // Anyone may be the first: none is to take all audits.
        let first: usize = rand::random::<u32>() as usize % networks.len().max(1);
        for joined in networks.iter().cycle().skip(first).take(networks.len()) {
            let drawn = match self.nodes.get().await {
                Ok(access) => access.draw(joined.network.id()).await,
                Err(failure) => return self.none_drawn(&failure.error),
            };
            match drawn {
                Ok(Some(key)) => return self.add(joined, key, Why::Audit, None),
                Ok(None) => {}
                Err(problem) => return self.none_drawn(&problem.message),
            }
        }
        false
    }

    fn none_drawn(&self, why: &str) -> bool {
        self.note(why);
        false
    }

    fn add(&self, joined: &Joined, key: ArtifactKey, why: Why, after_seconds: Option<u64>) -> bool {
        let network = joined.network.id();
        let what = What::of(joined.network.manifest().name.clone(), &key, why);
        let is_new = self.change(|kept| kept.queue.add(network, key, why, unix_now()));
        if is_new {
            self.tell(&Event::Noticed {
                what,
                after_seconds,
            });
            self.added.notify_one();
        }
        is_new
    }

    /// Rebuilds what is due, one after another, until this process is to stop.
    async fn rebuild_all(&self) {
        while !self.stop.is_cancelled() {
            let begun = match self.may_begin() {
                true => self.change(|kept| kept.queue.begin(unix_now()).cloned()),
                false => None,
            };
            match begun {
                Some(entry) => self.rebuild(entry).await,
                None => tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = self.added.notified() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                },
            }
        }
    }

    fn may_begin(&self) -> bool {
        let now = self.machine.circumstances(self.manners.is_paused());
        let budget = &self.settings.budget;
        let (waits, before) = {
            let keeper = self.keeper();
            let spent = keeper.kept().queue.spent();
            (
                budget.waits(spent, &now, unix_now()),
                keeper.kept().waits.clone(),
            )
        };
        if waits != before {
            self.change(|kept| kept.waits.clone_from(&waits));
            self.tell(&Event::Waiting { waits: &waits });
        }
        self.bar.set_message(match waits.first() {
            Some(wait) => wait.to_string(),
            None => {
                let waiting = self.keeper().kept().queue.waiting(unix_now()).len();
                format!("{waiting} in the queue, none due")
            }
        });
        waits.is_empty()
    }

    async fn rebuild(&self, entry: Entry) {
        let networks = match self.session.home.networks() {
            Ok(networks) => networks,
            Err(error) => {
                self.note(&error.to_string());
                self.change(|kept| kept.queue.end(End::Stopped, unix_now()));
                return tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let mut networks = networks.into_iter();
        let joined = networks.find(|one| one.network.id() == entry.network);
        let Some(joined) = joined else {
            self.change(|kept| kept.queue.end(End::Dropped, unix_now()));
            return;
        };
        let name = joined.network.manifest().name.clone();
        let what = What::of(name, &entry.key, entry.why);
        self.tell(&Event::Rebuilding { what: what.clone() });
        let cpu_before = children_cpu_millis();
        let cancel = Cancel::default();
        let (end, report) = {
            let trying = self.try_out(&entry, &joined, &cancel);
            let mut trying = std::pin::pin!(trying);
            tokio::select! {
                end = &mut trying => end,
                stop = self.until_stopped() => {
                    // Nothing of the build is left when it has ended.
                    cancel.cancel();
                    let (end, report) = trying.await;
                    let end = match (end, stop) {
                        (End::Stopped, Stop::Disk(bytes)) => End::Failed {
                            class: Class::DiskFull,
                            detail: format!("it took {bytes} bytes of the disk"),
                        },
                        (end, _) => end,
                    };
                    (end, report)
                }
            }
        };
        self.bar.set_prefix(NAME);
        let spent = children_cpu_millis().saturating_sub(cpu_before);
        let budget = &self.settings.budget;
        let again = self.change(|kept| {
            kept.queue.spend(spent, budget, unix_now());
            kept.queue.end(end.clone(), unix_now())
        });
        match &end {
            End::Built(agreement) => {
                if let Some(report) = report {
                    self.tell(&Event::Rebuilt {
                        why: entry.why,
                        agreement: *agreement,
                        report: &report,
                    });
                }
            }
            End::Dropped => {}
            End::Stopped => self.tell(&Event::Stopped { what }),
            End::Failed { class, detail } => {
                self.tell(&Event::Failed {
                    what,
                    class: *class,
                    detail,
                    again,
                });
            }
        }
    }

    /// Until this process is to end, or the budget says that what is being rebuilt has to stop.
    async fn until_stopped(&self) -> Stop {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return Stop::Ended,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let machine = self.machine.clone();
            let paused = self.manners.is_paused();
            let looked = tokio::task::spawn_blocking(move || {
                (machine.circumstances(paused), machine.used_bytes())
            });
            let Ok((now, used)) = looked.await else {
                continue;
            };
            let budget = &self.settings.budget;
            let stops = budget.stops(&now);
            if used > budget.disk_bytes || stops.contains(&Wait::Disk) {
                return Stop::Disk(used);
            }
            if !stops.is_empty() {
                return Stop::Ended;
            }
        }
    }

    /// How a rebuild ended, with a report where an artifact came out and there was time for one.
    async fn try_out(
        &self,
        entry: &Entry,
        joined: &Joined,
        cancel: &Cancel,
    ) -> (End, Option<Report>) {
        let prepared = tokio::select! {
            prepared = self.prepare(entry, joined) => prepared,
            () = self.stop.cancelled() => return (End::Stopped, None),
        };
        let (task, order) = match prepared {
            Ok(Ok(prepared)) => prepared,
            Ok(Err(end)) => return (end, None),
            Err(failure) => return (failed_before(&failure), None),
        };
        let started = unix_now();
        let key = task.key(&order);
        let end = match self.maker.try_until(order, cancel.clone()).await {
            Ok(Ok(built)) => match self.publish(task, &built).await {
                Ok((agreement, report)) => return (End::Built(agreement), report),
                Err(failure) => End::Failed {
                    class: Class::NotHad,
                    detail: failure.error,
                },
            },
            Ok(Err(BuildError::Cancelled)) => End::Stopped,
            Ok(Err(error)) => {
                let class = class_of(&error);
                // Once for each reason: repeating it says nothing new.
                if entry.last != Some(class) {
                    let stated = self.state(task.network, &key, started, &error).await;
                    if let Err(failure) = stated {
                        self.note(&format!("a failure was not published: {}", failure.error));
                    }
                }
                let detail = match &error {
                    BuildError::Failed { detail, .. } => detail.clone(),
                    other => other.to_string(),
                };
                End::Failed { class, detail }
            }
            Err(failure) => End::Failed {
                class: Class::Other,
                detail: failure.error,
            },
        };
        (end, None)
    }

    /// What is needed to rebuild it, or how it ends without that.
    async fn prepare(
        &self,
        entry: &Entry,
        joined: &Joined,
    ) -> Outcome<Result<(Task, qk_node::build::Order), End>> {
        let access = self.nodes.get().await?;
        let Some(task) = published(self.session, &access, joined, &entry.key).await? else {
            return Ok(Err(End::Failed {
                class: Class::OtherSource,
                detail: "it names another source than the registry".to_owned(),
            }));
        };
        let mut about = task.held.iter().map(|held| &held.statement);
        let is_done = about.any(|one| {
            one.observer() == self.observer
                && one.observation().is_some()
                && *one.key() == entry.key
        });
        if is_done {
            return Ok(Err(End::Dropped));
        }
        let order = task.order(&self.maker).await?;
        Ok(Ok((task, order)))
    }

    /// Publishes what was seen, and compares it with what others saw.
    async fn publish(
        &self,
        task: Task,
        built: &super::Built,
    ) -> Outcome<(Agreement, Option<Report>)> {
        let statement = task.observe(self.session, built)?;
        let access = self.nodes.get().await?;
        let published = access
            .publish(Some(built.archive.clone()), statement.clone())
            .await;
        let published = published.map_err(|problem| of_problem(&problem))?;
        let others = super::others(&task);
        let same = others.iter().all(|(subject, _)| *subject == built.subject);
        let agreement = match same {
            _ if others.is_empty() => Agreement::First,
            true => Agreement::Identical,
            false => Agreement::Differs,
        };
        // It is published: a comparison that takes long keeps nobody from stopping.
        let report = tokio::select! {
            report = task.report(self.session, built, &statement, published) => Some(report),
            () = self.stop.cancelled() => None,
        };
        Ok((agreement, report))
    }

    async fn state(
        &self,
        network: NetworkId,
        key: &ArtifactKey,
        started: UnixTime,
        error: &BuildError,
    ) -> Outcome {
        let on = self.maker.environment();
        let statement = state_failure(self.session, network, key, started, &on, error)?;
        if let Some(statement) = statement {
            let access = self.nodes.get().await?;
            let told = access.publish(None, statement).await;
            told.map_err(|problem| of_problem(&problem))?;
        }
        Ok(())
    }
}

/// The running node while one runs, and one of this process's own otherwise.
struct Nodes<'a> {
    session: &'a Session,
    own: tokio::sync::Mutex<Option<Own>>,
}

struct Own {
    access: Arc<Access>,
    refreshed: Instant,
}

impl Nodes<'_> {
    async fn get(&self) -> Outcome<Arc<Access>> {
        let mut own = self.own.lock().await;
        let running = Access::running(&self.session.home).await;
        if let Some(running) = running.map_err(|problem| of_problem(&problem))? {
            if let Some(own) = own.take() {
                own.access.shutdown().await;
            }
            return Ok(Arc::new(running));
        }
        if let Some(own) = own.as_mut() {
            if own.refreshed.elapsed() >= REFRESH_EVERY
                && let Access::Node(node) = &*own.access
            {
                own.refreshed = Instant::now();
                if let Err(error) = node.refresh().await {
                    tracing::warn!(%error, "newer manifests could not be asked for");
                }
            }
            return Ok(own.access.clone());
        }
        let access = Arc::new(self.session.access(NodeOptions::default()).await?);
        if !access.is_daemon() {
            *own = Some(Own {
                access: access.clone(),
                refreshed: Instant::now(),
            });
        }
        Ok(access)
    }

    /// Begins anew with the next question, if the node is this process's own: whatever keeps it from
    /// being answered.
    async fn renew(&self) {
        if let Some(own) = self.own.lock().await.take() {
            tokio::spawn(async move { own.access.shutdown().await });
        }
    }

    async fn shutdown(&self) {
        if let Some(own) = self.own.lock().await.take() {
            own.access.shutdown().await;
        }
    }
}

fn flags(args: &BudgetArgs) -> VerifyConfig {
    VerifyConfig {
        cpu_hours: args.cpu_hours,
        jobs: args.jobs,
        disk: args.disk,
        hours: args.hours,
        idle: args.idle.then_some(true),
        time_limit: args.time_limit,
        every: args.every,
    }
}

/// How long ago the first observation of a key was finished.
fn published_ago(held: &[Held], key: &ArtifactKey) -> Option<u64> {
    let about = held.iter().filter(|one| one.statement.key() == key);
    let finished = about.filter_map(|one| Some(one.statement.observation()?.finished));
    finished.min().map(|first| unix_now().since(first))
}

/// Something that went wrong before the build.
fn failed_before(failure: &Failure) -> End {
    let class = match (failure.kind, failure.reason) {
        (Kind::Network | Kind::NotFound, _) => Class::NotHad,
        (Kind::Corrupt, _) => Class::OtherSource,
        (Kind::BuildFailed, Some(reason)) => class_of_reason(reason),
        (Kind::BuildFailed, None) => Class::ToolchainNotHere,
        _ => Class::Other,
    };
    End::Failed {
        class,
        detail: failure.error.clone(),
    }
}

fn class_of(error: &BuildError) -> Class {
    match error {
        BuildError::Failed { reason, .. } => class_of_reason(*reason),
        BuildError::NotHere(_)
        | BuildError::Rustc(_)
        | BuildError::Sandbox(_)
        | BuildError::Host(_) => Class::ToolchainNotHere,
        BuildError::Source { .. } => Class::OtherSource,
        BuildError::Io { error, .. } if error.kind() == std::io::ErrorKind::StorageFull => {
            Class::DiskFull
        }
        BuildError::Cancelled | BuildError::Io { .. } => Class::Other,
    }
}

fn class_of_reason(reason: Reason) -> Class {
    match reason {
        Reason::SystemLibrary | Reason::BuildTool => Class::MissingSystemLibrary,
        Reason::Compile => Class::CompileError,
        Reason::TimeOut => Class::TimeOut,
        Reason::OutOfMemory => Class::OutOfMemory,
        Reason::DiskFull => Class::DiskFull,
        Reason::Fetch => Class::NotHad,
        Reason::StaleLock | Reason::NoLock | Reason::NoBinaries | Reason::BadCrate => {
            Class::BadCrate
        }
    }
}
