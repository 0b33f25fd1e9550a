//! A project's tools: `qk fetch` without crates, and `qk update`.

mod files;
mod tool;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures::StreamExt;
use qk_node::access::FetchReport;
use qk_node::deadline::Clock;
use qk_node::node::{From, NodeOptions, unix_now};
use qk_node::programs::{Links, PROGRAMS_QUOTA_BYTES, Program, Programs};
use qk_protocol::bundle::Bundle;
use qk_protocol::hash::Root;
use qk_protocol::project::lock::{Lock, Locked};
use qk_protocol::project::{Project, Tool};
use serde::Serialize;

use self::tool::Call;
use super::fetch::introduce;
use super::fetch::report::Word;
use super::installed::CRATES_IO;
use super::of_programs;
use crate::args::{FetchArgs, UpdateArgs};
use crate::failure::{Failure, Failures, Kind, Outcome};
use crate::output::{bytes, count};
use crate::session::{Session, failed, host_target};

/// Tools that are fetched at once.
const FETCHES_MAX: usize = 8;
/// Where a project's executables are linked.
const DIR: &str = ".qk";

/// What came of a call.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Summary {
    tools: Vec<Done>,
    /// Whether everything was as it should be.
    up_to_date: bool,
    /// Where the executables are.
    bin: PathBuf,
    lock_written: bool,
    #[serde(flatten)]
    failures: Failures,
}

/// A tool that is there now.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "FetchedTool"))]
struct Done {
    name: String,
    version: String,
    target: String,
    root: Root,
    bytes: u64,
    how: From,
    /// Whether it was pinned by this call.
    pinned: bool,
    #[serde(flatten)]
    word: Word,
    executables: BTreeSet<String>,
}

/// What is known of a tool before anything is fetched.
enum Job<'a> {
    Locked(&'a Locked),
    Pin(&'a Tool),
}

/// What came of it, and what is to be pinned.
struct Came {
    report: FetchReport,
    bundle: Option<Bundle>,
}

/// Fetches the tools of the project in this directory and links their executables.
pub(crate) async fn fetch(session: &Session, args: &FetchArgs) -> Outcome {
    alone(args)?;
    let project = project(session)?;
    let before = files::read()?;
    let root = args.how.root.as_deref().unwrap_or(Path::new(DIR));
    let bin = std::path::absolute(root.join("bin")).map_err(failed)?;
    let programs = Programs::of(&session.home);
    if let (Some(before), false) = (&before, args.how.refresh)
        && let Some(links) = programs.current(&session.home, &bin, before.digest, unix_now())
        && drift(&project, &before.lock).is_empty()
    {
        return current(session, &links, bin);
    }
    let network = files::network(session, &project, args.accept_network.as_deref()).await?;
    let mut lock = match (before, args.locked) {
        (Some(before), _) => before.lock,
        (None, false) => Lock::default(),
        (None, true) => {
            let failure = Failure::new(Kind::Usage, "there is no qk.lock");
            return Err(failure.hint("`qk fetch` without --locked writes it"));
        }
    };
    let differs = drift(&project, &lock);
    if args.locked && !differs.is_empty() {
        let text = format!(
            "qk.lock is not what qk.toml asks for: {}",
            differs.join("; ")
        );
        let failure = Failure::new(Kind::Usage, text);
        return Err(failure.hint("`qk fetch` without --locked brings it in line"));
    }
    super::network::tell(session)?;
    let registries = lock.tools().iter().map(|one| &*one.key.registry);
    let registries = registries.chain([CRATES_IO]).collect();
    introduce(session, project.policy.as_ref(), &registries).await?;
    let access = session
        .access(NodeOptions {
            offline: args.how.offline,
            only: args.how.only.gateway.clone(),
            ..NodeOptions::default()
        })
        .await?;
    let call = Call {
        session,
        access: &access,
        policy: project.policy.clone(),
        network,
        offline: args.how.offline,
        clock: super::fetch::clock(session, &args.how)?,
    };
    let came = all(&call, &project, &lock, args.how.refresh && !args.locked).await;
    let mut summary = Summary {
        tools: Vec::new(),
        up_to_date: false,
        bin,
        lock_written: false,
        failures: Failures::default(),
    };
    let mut links = BTreeMap::new();
    for (name, came) in came {
        let placed = match came {
            Ok(came) => placed(&programs, &project, &mut lock, came, &mut links).await,
            Err(failure) => Err(failure),
        };
        match placed {
            Ok(done) => {
                session.output.outcome(describe(&done));
                summary.tools.push(done);
            }
            Err(failure) => {
                let at_once = project.tools.len() > 1;
                summary.failures.add(session.output, name, failure, at_once);
            }
        }
    }
    access.shutdown().await;
    if summary.failures.is_empty() {
        lock.prune(&project);
    }
    let (digest, written) = match args.locked {
        true => (
            files::read()?.map_or_else(|| qk_protocol::hash::Blake3::of(b""), |read| read.digest),
            false,
        ),
        false => files::write(&lock)?,
    };
    summary.lock_written = written;
    if args.how.root.is_none() {
        ignore()?;
    }
    // Of a tool that failed the links stay as they are.
    if !summary.failures.is_empty() {
        for (name, root) in programs.links_in(&summary.bin) {
            links.entry(name).or_insert(root);
        }
    }
    let made = Links::new(&session.home, &summary.bin, links, digest, unix_now());
    let made = made.ok_or_else(Session::no_network)?;
    let (to, force) = (programs.clone(), args.force);
    let config = session.config()?;
    let quota = config.programs_quota_bytes.unwrap_or(PROGRAMS_QUOTA_BYTES);
    let linked = tokio::task::spawn_blocking(move || {
        to.link(&made, force)?;
        if let Err(error) = to.clean(quota) {
            tracing::warn!(%error, "unpacked executables could not be cleaned up");
        }
        Ok(())
    });
    let linked = linked.await.map_err(failed)?;
    linked.map_err(|error| of_programs(&error))?;
    finish(session, summary)
}

/// Flags that a project's own file stands for.
fn alone(args: &FetchArgs) -> Outcome {
    let flags = &args.flags;
    let named = [
        ("--features", !flags.features.is_empty()),
        ("--all-features", flags.all_features),
        ("--no-default-features", flags.no_default_features),
        ("--target", !args.target.is_empty()),
        ("--bin", !args.bin.is_empty()),
        ("--version", args.req.is_some()),
        ("--registry", args.how.registry.registry.is_some()),
        ("--index", args.how.registry.index.is_some()),
        ("--no-track", args.no_track),
        ("--dry-run", args.how.dry_run),
    ];
    match named.into_iter().find(|(_, is_named)| *is_named) {
        Some((flag, _)) => {
            let text = format!("{flag} needs a crate to be named");
            let hint = "what is fetched for a project is said in qk.toml; `qk update --dry-run` shows what would be pinned";
            Err(Failure::new(Kind::Usage, text).hint(hint))
        }
        None => Ok(()),
    }
}

fn project(session: &Session) -> Outcome<Project> {
    match session.project()? {
        Some(project) if !project.tools.is_empty() => Ok(project),
        Some(_) => {
            let failure = Failure::new(Kind::Usage, "qk.toml lists no tools");
            Err(failure.hint(
                "[tools] with a line such as `ripgrep = \"14\"`, or name a crate: `qk fetch CRATE`",
            ))
        }
        None => {
            let failure = Failure::new(
                Kind::Usage,
                "no crate is named, and there is no qk.toml in this directory",
            );
            Err(failure.hint("`qk fetch CRATE`, or a qk.toml with [tools]"))
        }
    }
}

/// How a lock differs from what a project asks for on this machine.
fn drift(project: &Project, lock: &Lock) -> Vec<String> {
    let host = host_target();
    let tools = project.tools.iter();
    let missing = tools.filter_map(|(name, tool)| {
        let why = lock.locked(name, tool, &host).err()?;
        Some(format!("{name} {why}"))
    });
    let surplus = lock.surplus(project);
    let surplus = surplus.map(|one| format!("{} is locked, and not asked for", one.name));
    let mut differs: Vec<String> = missing.chain(surplus).collect();
    differs.dedup();
    differs
}

/// All tools at once, by name.
async fn all(
    call: &Call<'_>,
    project: &Project,
    lock: &Lock,
    refresh: bool,
) -> Vec<(String, Outcome<Came>)> {
    let host = host_target();
    let jobs = project.tools.iter().map(|(name, tool)| {
        let job = match lock.locked(name, tool, &host) {
            Ok(locked) => Job::Locked(locked),
            Err(_) => Job::Pin(tool),
        };
        async move {
            let came = match job {
                Job::Locked(locked) => {
                    let report = call.locked(lock, locked).await;
                    report.map(|report| Came {
                        report,
                        bundle: None,
                    })
                }
                Job::Pin(tool) => {
                    let pinned = call.pin(name, tool, refresh).await;
                    pinned.map(|pinned| Came {
                        report: pinned.report,
                        bundle: Some(pinned.bundle),
                    })
                }
            };
            (name.clone(), came)
        }
    });
    let jobs: Vec<_> = jobs.collect();
    futures::stream::iter(jobs)
        .buffered(FETCHES_MAX)
        .collect()
        .await
}

/// Unpacks what came, and says what is to be linked and pinned.
async fn placed(
    programs: &Programs,
    project: &Project,
    lock: &mut Lock,
    came: Came,
    links: &mut BTreeMap<String, Root>,
) -> Outcome<Done> {
    let Came { report, bundle } = came;
    let (key, subject) = (report.trusted.key.clone(), report.trusted.subject);
    let tool = &project.tools[&key.name];
    let (to, archive, of) = (programs.clone(), report.archive.clone(), key.clone());
    let unpacked = tokio::task::spawn_blocking(move || to.add(&archive, &subject, &of));
    let unpacked = unpacked.await.map_err(failed)?;
    let program = unpacked.map_err(|error| of_programs(&error))?;
    let executables = chosen(tool, &program)?;
    for name in &executables {
        if let Some(other) = links.get(name).filter(|other| **other != subject.root) {
            let owner = lock.tools().iter().find(|one| one.root == *other);
            let owner = owner.map_or("another tool", |owner| &owner.name);
            let text = format!("{}: {owner} has an executable {name}, too", key.name);
            return Err(
                Failure::new(Kind::Usage, text).hint("`bins` in qk.toml says which are wanted")
            );
        }
    }
    links.extend(executables.iter().map(|name| (name.clone(), subject.root)));
    if let Some(bundle) = &bundle {
        let pin = lock.pin(tool, bundle, &subject, unix_now());
        pin.map_err(failed)?;
    }
    Ok(Done {
        name: key.name,
        version: key.version,
        target: key.target,
        root: subject.root,
        bytes: subject.size,
        how: report.from,
        pinned: bundle.is_some(),
        word: Word::of(report.network_name, None, &report.lines, &report.notes),
        executables,
    })
}

fn chosen(tool: &Tool, program: &Program) -> Outcome<BTreeSet<String>> {
    let all: BTreeSet<String> = program.bins.keys().cloned().collect();
    if tool.bins.is_empty() {
        return Ok(all);
    }
    match tool.bins.iter().find(|name| !all.contains(*name)) {
        None => Ok(tool.bins.clone()),
        Some(missing) => {
            let text = format!("{} has no executable {missing}", program.key.release());
            let names: Vec<&str> = all.iter().map(String::as_str).collect();
            Err(Failure::new(Kind::NotFound, text).hint(format!("it has: {}", names.join(", "))))
        }
    }
}

/// Keeps the links out of the project's history.
fn ignore() -> Outcome {
    std::fs::create_dir_all(DIR).map_err(failed)?;
    let path = Path::new(DIR).join(".gitignore");
    match path.exists() {
        true => Ok(()),
        false => std::fs::write(path, "*\n").map_err(failed),
    }
}

/// A project where nothing is to be done.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Current<'a> {
    up_to_date: bool,
    bin: PathBuf,
    executables: BTreeMap<&'a str, Root>,
}

fn current(session: &Session, links: &Links, bin: PathBuf) -> Outcome {
    let current = Current {
        up_to_date: true,
        bin,
        executables: links.names().collect(),
    };
    session.output.result(&current, |current| {
        format!(
            "{}: {}, up to date",
            current.bin.display(),
            count(current.executables.len(), "executable")
        )
    });
    Ok(())
}

fn describe(done: &Done) -> String {
    let pinned = if done.pinned { ", pinned" } else { "" };
    let bins: Vec<&str> = done.executables.iter().map(String::as_str).collect();
    format!(
        "{} {}  {}  {}{pinned}{}\n  runs {}",
        done.name,
        done.version,
        bytes(done.bytes),
        done.word.in_words(),
        done.word.contest(),
        bins.join(", ")
    )
}

fn finish(session: &Session, mut summary: Summary) -> Outcome {
    let failure = summary.failures.end("tools");
    let written = match summary.lock_written {
        true => "; qk.lock written",
        false => "",
    };
    let tools = count(summary.tools.len(), "tool");
    let bin = summary.bin.display();
    session.output.line(format!("{bin}: {tools}{written}"));
    session.output.summary(&summary, failure)
}

/// What `qk update` did to a tool, or would.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Moved {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    to: String,
    /// Whether the artifact is another one now.
    moved: bool,
    /// What the network makes of it, with --dry-run.
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<String>,
}

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Updated {
    tools: Vec<Moved>,
    lock_written: bool,
    #[serde(flatten)]
    failures: Failures,
}

/// Moves pins.
pub(crate) async fn update(session: &Session, args: &UpdateArgs) -> Outcome {
    let project = project(session)?;
    if let Some(other) = args
        .tools
        .iter()
        .find(|name| !project.tools.contains_key(*name))
    {
        let names: Vec<&str> = project.tools.keys().map(String::as_str).collect();
        let failure = Failure::new(Kind::Usage, format!("qk.toml has no tool {other}"));
        return Err(failure.hint(format!("it has: {}", names.join(", "))));
    }
    let mut lock = files::read()?.map_or_else(Lock::default, |read| read.lock);
    let network = files::network(session, &project, None).await?;
    super::network::tell(session)?;
    let access = session.access(NodeOptions::default()).await?;
    let call = Call {
        session,
        access: &access,
        policy: project.policy.clone(),
        network,
        offline: false,
        clock: Clock::default(),
    };
    let mut updated = Updated {
        tools: Vec::new(),
        lock_written: false,
        failures: Failures::default(),
    };
    let named = project.tools.iter();
    let named = named.filter(|(name, _)| args.tools.is_empty() || args.tools.contains(name));
    for (name, tool) in named {
        match moved(&call, &mut lock, name, tool, args.dry_run).await {
            Ok(moved) => {
                session.output.outcome(describe_moved(&moved));
                updated.tools.push(moved);
            }
            Err(failure) => updated.failures.add(session.output, name, failure, true),
        }
    }
    access.shutdown().await;
    if !args.dry_run {
        lock.prune(&project);
        updated.lock_written = files::write(&lock)?.1;
    }
    let failure = updated.failures.end("tools");
    if updated.lock_written {
        session
            .output
            .line("qk.lock written; `qk fetch` links what it pins");
    }
    session.output.summary(&updated, failure)
}

async fn moved(
    call: &Call<'_>,
    lock: &mut Lock,
    name: &str,
    tool: &Tool,
    dry_run: bool,
) -> Outcome<Moved> {
    let before = lock.find(name, &tool.targets(&host_target()));
    let (from, root) = before.map(|one| (one.version.clone(), one.root)).unzip();
    if dry_run {
        let (to, verdict) = call.preview(name, tool).await?;
        return Ok(Moved {
            name: name.to_owned(),
            moved: from.as_ref() != Some(&to),
            from,
            to,
            verdict: Some(verdict),
        });
    }
    let pinned = call.pin(name, tool, true).await?;
    let trusted = &pinned.report.trusted;
    lock.pin(tool, &pinned.bundle, &trusted.subject, unix_now())
        .map_err(failed)?;
    Ok(Moved {
        name: name.to_owned(),
        from,
        to: trusted.key.version.clone(),
        moved: root != Some(trusted.subject.root),
        verdict: None,
    })
}

fn describe_moved(moved: &Moved) -> String {
    let verdict = moved
        .verdict
        .as_ref()
        .map_or_else(String::new, |said| format!("  {said}"));
    let name = &moved.name;
    match (&moved.from, moved.moved) {
        (Some(from), true) => format!("{name} {from} -> {}{verdict}", moved.to),
        (Some(_), false) => format!("{name} {} stays{verdict}", moved.to),
        (None, _) => format!("{name} {}{verdict}", moved.to),
    }
}
