//! `qk status` and `qk peers`: what the node does now, once or every second.

use std::io::Write;
use std::time::{Duration, Instant};

use console::Term;
use qk_node::access::{Access, ConnectionReport, NetworkStatus, PeerReport, Status};
use qk_node::node::{NodeOptions, unix_now};
use qk_protocol::time::UnixTime;
use serde::Serialize;

use super::super::of_problem;
use super::manners::{sharing, told};
use crate::args::StatusArgs;
use crate::documents::document;
use crate::failure::Outcome;
use crate::output::{ago, bytes, count, lasting};
use crate::session::{Session, stopped};

/// How often a live view is renewed.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// What is shown where no node runs.
const NOT_RUNNING: &str = "no node is running: `qk node` starts one, `qk node install` for good";

pub(crate) async fn run(session: &Session, args: &StatusArgs) -> Outcome {
    if args.watch {
        return watch(session).await;
    }
    let access = session.access(alone()).await?;
    let status = access.status().await;
    let status = status.map_err(|problem| of_problem(&problem))?;
    session
        .output
        .result(&status, |status| describe(status, None, unix_now()));
    Ok(())
}

pub(crate) async fn peers(session: &Session) -> Outcome {
    let access = session.access(alone()).await?;
    let peers = access.peers().await;
    let peers = peers.map_err(|problem| of_problem(&problem))?;
    let running = access.is_daemon();
    session
        .output
        .result(&Peers { running, peers }, |said| match said.running {
            true => describe_peers(&said.peers),
            false => NOT_RUNNING.to_owned(),
        });
    Ok(())
}

/// Who is connected.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Peers {
    /// Whether a node runs.
    running: bool,
    peers: Vec<PeerReport>,
}

/// A look at what is on disk, where no node runs.
fn alone() -> NodeOptions {
    NodeOptions {
        offline: true,
        ..NodeOptions::default()
    }
}

/// What went in and out in the last second or so.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Rates {
    sent_bytes_per_second: u64,
    received_bytes_per_second: u64,
}

impl Rates {
    /// From two looks at the same node; `None` when it was started anew in between.
    fn between(before: &Status, after: &Status, elapsed: Duration) -> Option<Self> {
        let rate = |before: u64, after: u64| {
            let bytes = after.checked_sub(before)?;
            let seconds = elapsed.as_secs_f64();
            (seconds > 0.0).then(|| (bytes as f64 / seconds) as u64)
        };
        let (from, to) = (&before.counters, &after.counters);
        (before.process == after.process).then_some(())?;
        Some(Self {
            sent_bytes_per_second: rate(from.sent_bytes, to.sent_bytes)?,
            received_bytes_per_second: rate(from.received_bytes, to.received_bytes)?,
        })
    }
}

/// A line of `qk status --watch --json`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Watched<'a> {
    #[serde(flatten)]
    status: &'a Status,
    #[serde(flatten)]
    rates: Option<Rates>,
}

/// The same where no node runs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct NotRunning {
    running: bool,
}

/// Shows the node every second until Ctrl-C, or until nobody reads it any more.
async fn watch(session: &Session) -> Outcome {
    let mut stopped = std::pin::pin!(stopped());
    let mut every = tokio::time::interval(WATCH_EVERY);
    let mut view = View::new(session);
    let mut last: Option<(Instant, Status)> = None;
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = &mut stopped => break,
        }
        let looked = tokio::select! {
            looked = look(session) => looked?,
            () = &mut stopped => break,
        };
        let at = Instant::now();
        let rates = match (&last, &looked) {
            (Some((before, old)), Some(new)) => Rates::between(old, new, at - *before),
            _ => None,
        };
        if view.show(looked.as_ref(), rates).is_err() {
            break;
        }
        last = looked.map(|status| (at, status));
    }
    view.end();
    Ok(())
}

/// The running node's status; `None` when none runs, or it just ended.
async fn look(session: &Session) -> Outcome<Option<Status>> {
    use qk_node::access::ProblemKind;
    let access = match Access::running(&session.home).await {
        Ok(access) => access,
        Err(problem) => return Err(of_problem(&problem)),
    };
    match access {
        Some(access) => match access.status().await {
            Ok(status) => Ok(Some(status)),
            Err(problem) if problem.kind == ProblemKind::Stopping => Ok(None),
            Err(problem) => Err(of_problem(&problem)),
        },
        None => Ok(None),
    }
}

/// Where a live view is seen.
enum View {
    /// A terminal: what was drawn last has so many lines.
    Terminal(Term, usize),
    Lines,
    Json,
}

impl View {
    fn new(session: &Session) -> Self {
        let term = Term::buffered_stdout();
        match session.output.json {
            true => Self::Json,
            false if term.features().is_attended() => Self::Terminal(term, 0),
            false => Self::Lines,
        }
    }

    fn show(&mut self, status: Option<&Status>, rates: Option<Rates>) -> std::io::Result<()> {
        match self {
            Self::Terminal(term, drawn) => {
                let text = match status {
                    Some(status) => describe(status, rates, unix_now()),
                    None => NOT_RUNNING.to_owned(),
                };
                let (rows, columns) = term.size();
                let lines = fit(&text, rows.into(), columns.into());
                // Upwards and over the old: clearing all of it first would flicker.
                term.move_cursor_up(*drawn)?;
                for line in &lines {
                    term.clear_line()?;
                    term.write_line(line)?;
                }
                term.clear_to_end_of_screen()?;
                *drawn = lines.len();
                term.flush()
            }
            Self::Lines => {
                let line =
                    status.map_or_else(|| NOT_RUNNING.to_owned(), |status| one_line(status, rates));
                writeln!(std::io::stdout().lock(), "{line}")
            }
            Self::Json => {
                let line = match status {
                    Some(status) => document(&Watched { status, rates }),
                    None => document(&NotRunning { running: false }),
                };
                writeln!(std::io::stdout().lock(), "{}", line?)
            }
        }
    }

    fn end(&self) {
        if let Self::Terminal(term, _) = self {
            // A terminal shows `^C` where the cursor is: nothing of the view is overwritten.
            let _ = term.write_line("").and_then(|()| term.flush());
        }
    }
}

/// Lines that fit into a terminal, so that each takes one row; the last row is the cursor's.
fn fit(text: &str, rows: usize, columns: usize) -> Vec<String> {
    let lines = text.lines().take(rows.saturating_sub(1).max(1));
    lines
        .map(|line| console::truncate_str(line, columns, "…").into_owned())
        .collect()
}

fn describe(status: &Status, rates: Option<Rates>, now: UnixTime) -> String {
    let mut lines = vec![match status.running {
        true => format!(
            "running for {}, process {}, qk {}",
            lasting(status.uptime_seconds),
            status.process,
            status.version
        ),
        false => NOT_RUNNING.to_owned(),
    }];
    if !status.paused.is_empty() {
        lines.push(row("paused", &told(&status.paused)));
    }
    for network in &status.networks {
        lines.push(row(
            "network",
            &describe_network(network, status.running, now),
        ));
        let addresses = network.listening.iter();
        lines.extend(addresses.map(|address| row("", &format!("on {address}"))));
        let relayed = network.reach.relayed.iter();
        lines.extend(relayed.map(|address| row("", &format!("over {address}"))));
        let news = network.news.iter();
        lines.extend(news.map(|change| row("", &format!("new: {}", change.text))));
    }
    if status.networks.is_empty() {
        lines.push(row("network", "none joined: `qk join FILE|URL`"));
    }
    if status.running {
        lines.push(row("peers", &status.peers.to_string()));
        lines.extend(describe_traffic(status, rates));
    }
    let store = &status.store;
    lines.push(row(
        "store",
        &format!(
            "{}, {} of {} ({} %), {}",
            count(store.artifacts, "artifact"),
            bytes(store.artifact_bytes),
            bytes(store.quota_bytes),
            percent(store.artifact_bytes, store.quota_bytes),
            count(store.counts.statements as usize, "statement")
        ),
    ));
    lines.push(row("home", &status.home.display().to_string()));
    lines.push(row("peer id", &status.peer));
    lines.push(row("signs as", &status.observer.to_string()));
    lines.join("\n")
}

fn describe_network(network: &NetworkStatus, running: bool, now: UnixTime) -> String {
    let fresh = match (network.fresh, network.ends_soon) {
        (true, None) => format!("fresh for {}", lasting(network.expires.since(now))),
        (true, Some(left)) => format!(
            "ends in {} and was not renewed: nothing new is trusted then",
            lasting(left)
        ),
        (false, _) => format!("its timestamp ended {}", ago(now.since(network.expires))),
    };
    let online = match network.online {
        true => format!(
            "{}, {} known, reachability {}",
            count(network.peers, "peer"),
            network.contacts,
            network.reach.reachability
        ),
        false if running => "could not be started and is tried again".to_owned(),
        false => "not connected".to_owned(),
    };
    let private = if network.private { ", private" } else { "" };
    format!(
        "{} version {}{private}, {fresh}, {online}",
        network.name, network.version
    )
}

fn describe_traffic(status: &Status, rates: Option<Rates>) -> Vec<String> {
    let per_second = |of: fn(&Rates) -> u64| {
        rates.map_or_else(String::new, |rates| format!(", {}/s", bytes(of(&rates))))
    };
    let counters = &status.counters;
    let mut lines = vec![
        row(
            "received",
            &format!(
                "{}{}",
                bytes(counters.received_bytes),
                per_second(|rates| rates.received_bytes_per_second)
            ),
        ),
        row(
            "sent",
            &format!(
                "{}{}, {} now",
                bytes(counters.sent_bytes),
                per_second(|rates| rates.sent_bytes_per_second),
                count(counters.readers, "reader")
            ),
        ),
        row(
            "answered",
            &format!(
                "{}, {} for blocks",
                count(counters.requests_answered as usize, "request"),
                counters.blocks_answered
            ),
        ),
        row("shares", &sharing(status)),
    ];
    lines.extend(status.downloads.iter().map(|download| {
        let average = match download.seconds > 0.0 {
            true => (download.received_bytes as f64 / download.seconds) as u64,
            false => 0,
        };
        let text = format!(
            "{}: {} of {} ({} %), {}/s",
            download.name,
            bytes(download.here_bytes),
            bytes(download.size_bytes),
            percent(download.here_bytes, download.size_bytes),
            bytes(average)
        );
        row("download", &text)
    }));
    lines
}

/// The same for a log.
fn one_line(status: &Status, rates: Option<Rates>) -> String {
    let counters = &status.counters;
    let rate = |of: fn(&Rates) -> u64| {
        rates.map_or_else(String::new, |rates| format!(" ({}/s)", bytes(of(&rates))))
    };
    let paused = match status.paused.is_empty() {
        true => String::new(),
        false => format!(", paused: {}", told(&status.paused)),
    };
    format!(
        "running for {}, {}, {}, received {}{}, sent {}{}, store {} of {}{paused}",
        lasting(status.uptime_seconds),
        count(status.peers, "peer"),
        count(status.downloads.len(), "download"),
        bytes(counters.received_bytes),
        rate(|rates| rates.received_bytes_per_second),
        bytes(counters.sent_bytes),
        rate(|rates| rates.sent_bytes_per_second),
        bytes(status.store.artifact_bytes),
        bytes(status.store.quota_bytes),
    )
}

fn describe_peers(peers: &[PeerReport]) -> String {
    if peers.is_empty() {
        return "no peer is connected".to_owned();
    }
    let connection = |one: &ConnectionReport| {
        let direction = if one.dialled { "to" } else { "from" };
        format!("{direction} {} ({})", one.address, one.transport)
    };
    let line = |peer: &PeerReport| {
        let rtt = match peer.rtt_seconds {
            Some(seconds) => format!("{:.1} ms", seconds * 1000.0),
            None => "-".to_owned(),
        };
        let role = if peer.server { "server" } else { "client" };
        let connections: Vec<_> = peer.connections.iter().map(connection).collect();
        format!(
            "{}  {:10}  {role}  {rtt:>9}  {:>8}  {}  {}",
            peer.peer,
            peer.network,
            lasting(peer.connected_seconds as u64),
            peer.agent,
            connections.join(", ")
        )
    };
    peers.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn row(name: &str, text: &str) -> String {
    format!("{name:9} {text}")
}

fn percent(part: u64, whole: u64) -> u128 {
    u128::from(part) * 100 / u128::from(whole).max(1)
}

#[cfg(test)]
mod tests {
    use insta::assert_snapshot;
    use qk_node::access::{Counters, DownloadStatus, ReachStatus, StoreStatus};
    use qk_node::manners::{PauseReason, ShareStatus, Traffic};
    use qk_node::store::Counts;
    use qk_protocol::hash::{Blake3, NetworkId, PublicKey};
    use qk_protocol::manifest::Change;

    use super::*;

    fn status() -> Status {
        Status {
            running: true,
            version: "0.1.0".to_owned(),
            process: 4711,
            home: "/home/alice/.local/share/qk".into(),
            peer: "12D3KooWExample".to_owned(),
            observer: PublicKey([7; 32]),
            uptime_seconds: 8_000,
            peers: 3,
            networks: vec![NetworkStatus {
                name: "lab".to_owned(),
                id: NetworkId(*Blake3::of(b"lab").as_bytes()),
                version: 3,
                expires: UnixTime(1_000_000 + 6 * 86_400),
                fresh: true,
                ends_soon: None,
                news: Vec::new(),
                online: true,
                listening: vec!["/ip4/192.0.2.1/tcp/4433".to_owned()],
                peers: 3,
                contacts: 12,
                private: false,
                sent_bytes: 33 << 20,
                reach: ReachStatus {
                    reachability: "private".to_owned(),
                    relayed: vec!["/ip4/198.51.100.1/tcp/4433/p2p/12D3KooWRelay".to_owned()],
                    ..ReachStatus::default()
                },
            }],
            store: StoreStatus {
                dir: "/home/alice/.local/share/qk/store".into(),
                artifacts: 33,
                artifact_bytes: 120 << 20,
                quota_bytes: 10 << 30,
                counts: Counts {
                    statements: 77,
                    journal_bytes: 0,
                    live_bytes: 0,
                    segments: 1,
                },
            },
            counters: Counters {
                sent_bytes: 33 << 20,
                received_bytes: 12 << 20,
                requests_answered: 124,
                blocks_answered: 50,
                readers: 2,
            },
            downloads: vec![DownloadStatus {
                name: "hexyl 0.17.0".to_owned(),
                size_bytes: 1 << 20,
                here_bytes: 512 << 10,
                received_bytes: 256 << 10,
                seconds: 0.5,
            }],
            announced: 5,
            share: ShareStatus {
                gives: true,
                fetched: false,
                leech: false,
                announces: true,
                upload_rate: None,
                download_rate: None,
                upload_month: Some(10 << 30),
                download_month: None,
                month: Traffic::default(),
            },
            paused: Vec::new(),
        }
    }

    #[test]
    fn a_node_at_work() {
        let rates = Rates {
            sent_bytes_per_second: 1 << 20,
            received_bytes_per_second: 0,
        };
        assert_snapshot!(describe(&status(), Some(rates), UnixTime(1_000_000)), @r"
        running for 2 h 13 min, process 4711, qk 0.1.0
        network   lab version 3, fresh for 6 days, 3 peers, 12 known, reachability private
                  on /ip4/192.0.2.1/tcp/4433
                  over /ip4/198.51.100.1/tcp/4433/p2p/12D3KooWRelay
        peers     3
        received  12.00 MiB, 0 B/s
        sent      33.00 MiB, 1.00 MiB/s, 2 readers now
        answered  124 requests, 50 for blocks
        shares    what was built here, 5 artifacts announced; this month 0 B of 10.00 GiB given, 0 B taken
        download  hexyl 0.17.0: 512.00 KiB of 1.00 MiB (50 %), 512.00 KiB/s
        store     33 artifacts, 120.00 MiB of 10.00 GiB (1 %), 77 statements
        home      /home/alice/.local/share/qk
        peer id   12D3KooWExample
        signs as  0707070707070707070707070707070707070707070707070707070707070707
        ");
    }

    #[test]
    fn a_node_that_is_paused_and_out_of_date() {
        let mut status = status();
        status.paused = vec![PauseReason::Battery];
        status.networks[0].fresh = false;
        status.networks[0].expires = UnixTime(1_000_000 - 7_200);
        status.downloads.clear();
        assert_snapshot!(describe(&status, None, UnixTime(1_000_000)), @r"
        running for 2 h 13 min, process 4711, qk 0.1.0
        paused    on battery
        network   lab version 3, its timestamp ended 2 h ago, 3 peers, 12 known, reachability private
                  on /ip4/192.0.2.1/tcp/4433
                  over /ip4/198.51.100.1/tcp/4433/p2p/12D3KooWRelay
        peers     3
        received  12.00 MiB
        sent      33.00 MiB, 2 readers now
        answered  124 requests, 50 for blocks
        shares    nothing while it is paused, 5 artifacts announced; this month 0 B of 10.00 GiB given, 0 B taken
        store     33 artifacts, 120.00 MiB of 10.00 GiB (1 %), 77 statements
        home      /home/alice/.local/share/qk
        peer id   12D3KooWExample
        signs as  0707070707070707070707070707070707070707070707070707070707070707
        ");
        assert_snapshot!(one_line(&status, None), @r"
        running for 2 h 13 min, 3 peers, 0 downloads, received 12.00 MiB, sent 33.00 MiB, store 120.00 MiB of 10.00 GiB, paused: on battery
        ");
    }

    #[test]
    fn a_network_that_ends_soon_and_trusts_more_than_it_did() {
        let mut status = status();
        status.networks[0].ends_soon = Some(86_400);
        status.networks[0].news = vec![Change {
            text: "principals that have to agree: 3 becomes 2".to_owned(),
            widens: true,
        }];
        let text = describe(&status, None, UnixTime(1_000_000));
        let network: Vec<&str> = text.lines().skip(1).take(4).collect();
        assert_snapshot!(network.join("\n"), @r"
        network   lab version 3, ends in 24 h 0 min and was not renewed: nothing new is trusted then, 3 peers, 12 known, reachability private
                  on /ip4/192.0.2.1/tcp/4433
                  over /ip4/198.51.100.1/tcp/4433/p2p/12D3KooWRelay
                  new: principals that have to agree: 3 becomes 2
        ");
    }

    #[test]
    fn no_node() {
        let mut status = status();
        status.running = false;
        status.networks.clear();
        assert_snapshot!(describe(&status, None, UnixTime(1_000_000)), @r"
        no node is running: `qk node` starts one, `qk node install` for good
        network   none joined: `qk join FILE|URL`
        store     33 artifacts, 120.00 MiB of 10.00 GiB (1 %), 77 statements
        home      /home/alice/.local/share/qk
        peer id   12D3KooWExample
        signs as  0707070707070707070707070707070707070707070707070707070707070707
        ");
    }

    #[test]
    fn peers_of_a_node() {
        assert_snapshot!(describe_peers(&[]), @"no peer is connected");
        let peer = PeerReport {
            network: "lab".to_owned(),
            peer: "12D3KooWOther".to_owned(),
            agent: "qk/0.1.0".to_owned(),
            server: true,
            rtt_seconds: Some(0.0123),
            connected_seconds: 300.0,
            connections: vec![ConnectionReport {
                address: "/ip4/192.0.2.2/tcp/4433".to_owned(),
                transport: "tcp".to_owned(),
                dialled: true,
            }],
        };
        assert_snapshot!(describe_peers(&[peer]), @r"
        12D3KooWOther  lab         server    12.3 ms     5 min  qk/0.1.0  to /ip4/192.0.2.2/tcp/4433 (tcp)
        ");
    }

    #[test]
    fn a_view_fits_into_its_terminal() {
        let text = describe(&status(), None, UnixTime(1_000_000));
        let lines = fit(&text, 5, 20);
        assert_eq!(lines.len(), 4, "one row is the cursor's");
        assert!(
            lines
                .iter()
                .all(|line| console::measure_text_width(line) <= 20)
        );
        assert_eq!(fit(&text, 100, 1_000).join("\n"), text);
    }

    #[test]
    fn rates_are_of_one_node() {
        let (before, mut after) = (status(), status());
        after.counters.sent_bytes += 3_000;
        let rates = Rates::between(&before, &after, Duration::from_secs(2)).unwrap();
        assert_eq!(rates.sent_bytes_per_second, 1_500);
        assert_eq!(rates.received_bytes_per_second, 0);
        after.process += 1;
        assert_eq!(
            Rates::between(&before, &after, Duration::from_secs(2)),
            None
        );
    }
}
