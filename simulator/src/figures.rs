//! Figures: which runs answer which question, and how they are told.
//!
//! Each figure is made of runs of a scenario file with some fields set, so that a reader can play any of
//! them again: the command stands beside its row.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use qk_protocol::watch::ENTRIES_MAX;

use crate::plot::{Line, Plot, draw};
use crate::report::{Report, number};
use crate::run::run;
use crate::scenario::Scenario;

/// How many runs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// A few small ones, for tests.
    Small,
    /// All, in sizes that take minutes.
    Medium,
    /// All, up to 100,000 nodes and keys.
    Full,
}

/// A question with the runs that answer it.
struct Figure {
    name: &'static str,
    title: &'static str,
    /// What is asked, and how to read the answer.
    text: &'static str,
    file: &'static str,
    rows: Vec<Row>,
    columns: Vec<Column>,
    plot: Option<Axes>,
}

/// One run.
struct Row {
    /// The line of the plot that it belongs to.
    line: String,
    /// Its place on it.
    x: f64,
    sets: Vec<String>,
}

struct Column {
    name: &'static str,
    of: Of,
}

#[derive(Clone, Copy)]
enum Of {
    Measure(&'static str),
    P50(&'static str),
    P90(&'static str),
    P99(&'static str),
    Max(&'static str),
    MemoryPerNode,
    EventsPerSecond,
    Seconds,
}

struct Axes {
    x: &'static str,
    y: &'static str,
    /// The column that is drawn.
    column: usize,
    log_x: bool,
}

impl Of {
    fn value(self, report: &Report) -> Option<f64> {
        let quantiles = |name: &str| report.quantiles.get(name);
        match self {
            Self::Measure(name) => Some(report.measure(name)),
            Self::P50(name) => quantiles(name).map(|one| one.p50),
            Self::P90(name) => quantiles(name).map(|one| one.p90),
            Self::P99(name) => quantiles(name).map(|one| one.p99),
            Self::Max(name) => quantiles(name).map(|one| one.max),
            Self::MemoryPerNode => Some(report.performance.bytes_per_node as f64),
            Self::EventsPerSecond => Some(report.performance.events_per_second),
            Self::Seconds => Some(report.performance.wall_seconds),
        }
    }
}

fn row(line: impl Into<String>, x: f64, sets: &[&str]) -> Row {
    Row {
        line: line.into(),
        x,
        sets: sets.iter().map(|one| (*one).to_owned()).collect(),
    }
}

fn column(name: &'static str, of: Of) -> Column {
    Column { name, of }
}

/// Plays all figures and writes the report: `REPORT.md` into `dir`, plots and a page below `dir/report`.
/// `tell` is told of each run.
///
/// # Errors
/// When a file cannot be read or written, or a scenario cannot be played.
pub fn figures(dir: &Path, size: Size, tell: &dyn Fn(&str)) -> anyhow::Result<PathBuf> {
    let out = dir.join("report");
    std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let mut markdown = String::from(INTRODUCTION);
    let mut page = String::from(PAGE_HEAD);
    for figure in all(size) {
        tell(figure.title);
        let reports = figure.play(dir, tell)?;
        let table = figure.table(&reports);
        write!(
            markdown,
            "\n## {}\n\n{}\n\n{table}",
            figure.title, figure.text
        )?;
        writeln!(
            page,
            "<h2>{}</h2><p>{}</p>",
            escaped(figure.title),
            escaped(figure.text)
        )?;
        if let Some(plot) = figure.plotted(&reports) {
            let name = format!("{}.svg", figure.name);
            let svg = draw(&plot)?;
            std::fs::write(out.join(&name), &svg).with_context(|| name.clone())?;
            write!(markdown, "\n![{}](report/{name})\n", figure.title)?;
            page.push_str(&svg);
        }
        writeln!(
            page,
            "<details><summary>Runs</summary><pre>{}</pre></details>",
            escaped(&table)
        )?;
        writeln!(markdown, "\n{}", figure.commands())?;
    }
    page.push_str("</body></html>\n");
    std::fs::write(out.join("index.html"), page)?;
    let path = dir.join("REPORT.md");
    std::fs::write(&path, markdown).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// All figures are of this seed.
const SEED: u64 = 1;

impl Figure {
    fn play(&self, dir: &Path, tell: &dyn Fn(&str)) -> anyhow::Result<Vec<Report>> {
        let file = dir.join("scenarios").join(self.file);
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let play = |row: &Row| {
            let scenario = Scenario::parse_with(&text, &row.sets)
                .with_context(|| format!("{} {}", self.file, row.sets.join(" ")))?;
            let report = run(&scenario, SEED)?;
            tell(&format!(
                "  {} {}: {:.1} s",
                row.line,
                number(row.x),
                report.performance.wall_seconds
            ));
            Ok(report)
        };
        self.rows.iter().map(play).collect()
    }

    fn table(&self, reports: &[Report]) -> String {
        let mut text = String::from("| run | x |");
        let mut rule = String::from("|---|---:|");
        for column in &self.columns {
            text += &format!(" {} |", column.name);
            rule += "---:|";
        }
        text += &format!("\n{rule}\n");
        for (row, report) in self.rows.iter().zip(reports) {
            text += &format!("| {} | {} |", row.line, number(row.x));
            for column in &self.columns {
                let value = column.of.value(report).map_or("–".to_owned(), number);
                text += &format!(" {value} |");
            }
            text.push('\n');
        }
        text
    }

    /// How to play each run again.
    fn commands(&self) -> String {
        let mut text = format!(
            "Scenario `scenarios/{}`, seed {SEED}; the rows are, in their order:\n\n",
            self.file
        );
        for row in &self.rows {
            let sets: Vec<String> = row.sets.iter().map(|one| format!(" --set {one}")).collect();
            text += &format!(
                "    run simulator/scenarios/{} --seed {SEED}{}\n",
                self.file,
                sets.concat()
            );
        }
        text
    }

    fn plotted(&self, reports: &[Report]) -> Option<Plot> {
        let axes = self.plot.as_ref()?;
        let mut lines: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        for (row, report) in self.rows.iter().zip(reports) {
            if let Some(y) = self.columns[axes.column].of.value(report) {
                lines.entry(&row.line).or_default().push((row.x, y));
            }
        }
        let lines = lines.into_iter().map(|(name, points)| Line {
            name: name.to_owned(),
            points,
        });
        Some(Plot {
            title: self.title.to_owned(),
            x: axes.x.to_owned(),
            y: axes.y.to_owned(),
            log_x: axes.log_x,
            lines: lines.collect(),
        })
    }
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

const INTRODUCTION: &str = include_str!("figures/introduction.md");
const PAGE_HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<title>qk in virtual time</title><style>body{font-family:sans-serif;max-width:60em;margin:2em auto}\
pre{overflow-x:auto}svg{max-width:100%}</style></head><body><h1>qk in virtual time</h1>\n";

fn all(size: Size) -> Vec<Figure> {
    let figures = [proofs(size), wrong(size), copier(), liar()];
    let network = [
        look_ups(size),
        stale(size),
        hints(size),
        lab(size),
        availability(size),
        prefix(size),
    ];
    let mut all: Vec<Figure> = figures.into_iter().chain(network).collect();
    if size == Size::Small {
        for figure in &mut all {
            figure.rows.truncate(2);
        }
    }
    all
}

/// The values of a size: the first ones in small and medium runs.
fn up_to(size: Size, values: &[u32], medium: usize) -> Vec<u32> {
    let count = if size == Size::Full {
        values.len()
    } else {
        medium
    };
    values.iter().take(count).copied().collect()
}

fn proofs(size: Size) -> Figure {
    let mut rows = Vec::new();
    for keys in up_to(size, &[1000, 10_000, 100_000], 2) {
        for verifiers in up_to(size, &[10, 30, 100, 300, 1000], 3) {
            // What a committee of five owes has to fit its members' queues.
            if keys * 5 / verifiers > ENTRIES_MAX as u32 {
                continue;
            }
            for (name, set) in [
                ("committee", "principals.committee=true"),
                ("audit only", "principals.committee=false"),
            ] {
                let crates = format!("workload.crates={keys}");
                let who = format!("principals.verifiers={verifiers}");
                rows.push(row(
                    format!("{name}, {keys} keys"),
                    f64::from(verifiers),
                    &[&crates, &who, set],
                ));
            }
        }
    }
    for floor in ["true", "false"] {
        let line = format!("uniform floor {floor}, 1000 keys");
        rows.push(row(
            line,
            100.0,
            &[&format!("principals.uniform_floor={floor}")],
        ));
    }
    Figure {
        name: "proofs",
        title: "Time from publication to proofs",
        text: "Hours from a release to its first, second and third rebuild by a verifier, while a backlog of so many keys waits; verifiers (x) build ten a day each, 100 releases come a day, and the run is three days. A dash: it did not happen in that time. Rows in which a committee would owe more than the 1,024 entries of a queue are left out: there the backlog never ends. What the uniform floor costs are builds of what was proven already.",
        file: "rebuilds.toml",
        rows,
        columns: vec![
            column("1 proof, p50 h", Of::P50("hours to 1 proof")),
            column("2 proofs, p50 h", Of::P50("hours to 2 proofs")),
            column("3 proofs, p50 h", Of::P50("hours to 3 proofs")),
            column("3 proofs, p90 h", Of::P90("hours to 3 proofs")),
            column("keys with 3", Of::Measure("keys with 3 proofs, share")),
            column(
                "builds of what was proven",
                Of::Measure("builds spent on what was proven, share"),
            ),
        ],
        plot: Some(Axes {
            x: "verifiers",
            y: "hours to 1 proof, median",
            column: 0,
            log_x: true,
        }),
    }
}

fn wrong(size: Size) -> Figure {
    let mut rows = Vec::new();
    let shares = [0, 5, 10, 20, 30, 40];
    let shares: &[u32] = if size == Size::Small {
        &shares[..1]
    } else {
        &shares
    };
    for (name, count, threshold) in [
        ("any, 2", "any", 2),
        ("any, 4", "any", 4),
        ("assigned, 4 of 5", "assigned", 4),
    ] {
        for percent in shares {
            let bad = format!("principals.colluding={}", percent / 2);
            let count = format!("policy.count=\"{count}\"");
            let threshold = format!("policy.threshold={threshold}");
            rows.push(row(name, f64::from(*percent), &[&bad, &count, &threshold]));
        }
    }
    rows.push(row(
        "64 Sybils in no manifest, any, 2",
        0.0,
        &["hostile.strangers=64"],
    ));
    rows.push(row(
        "64 Sybils, assigned, 4 of 5",
        0.0,
        &[
            "hostile.strangers=64",
            "policy.count=\"assigned\"",
            "policy.threshold=4",
        ],
    ));
    Figure {
        name: "wrong",
        title: "Wrong roots that clients accept",
        text: "Share of decisions that trust a wrong root, by the share of 50 principals that collude (x, percent). They are the first to state anything of each release, all at once; the honest committee comes later and dissents, which refuses. Clients decide at random times.",
        file: "wrong.toml",
        rows,
        columns: vec![
            column("trusted wrong", Of::Measure("trusted wrong, share")),
            column("trusted right", Of::Measure("trusted right, share")),
        ],
        plot: Some(Axes {
            x: "colluding principals, percent",
            y: "share of decisions that trust a wrong root",
            column: 0,
            log_x: false,
        }),
    }
}

fn copier() -> Figure {
    Figure {
        name: "copier",
        title: "A lone copier",
        text: "Hours until an honest rebuild says that a copied observation's work differs, with the work digest and without it. Without it nothing ever does, as long as what was copied is right.",
        file: "copier.toml",
        rows: vec![
            row("with the work digest", 1.0, &[]),
            row("without", 0.0, &["without.work_digest=true"]),
        ],
        columns: vec![
            column("copies", Of::Measure("copies")),
            column("found after h, p50", Of::P50("hours to find a copy")),
            column("p90", Of::P90("hours to find a copy")),
            column("longest", Of::Max("hours to find a copy")),
            column("not found", Of::Measure("copies not found")),
        ],
        plot: None,
    }
}

fn liar() -> Figure {
    Figure {
        name: "liar",
        title: "A lying dissenter",
        text: "Hours for which one principal that states a root of its own keeps a client that knows all statements from trusting, where a dissent calls the next ranks and where it only refuses.",
        file: "copier.toml",
        rows: vec![
            row("escalate", 1.0, &[]),
            row("refuse", 0.0, &["policy.on_dissent=\"refuse\""]),
            row(
                "escalate, 4 builds a day",
                1.0,
                &["principals.builds_a_day=4"],
            ),
        ],
        columns: vec![
            column("lies", Of::Measure("lies")),
            column("blocked h, p50", Of::P50("hours that a lie blocks")),
            column("p90", Of::P90("hours that a lie blocks")),
            column("longest", Of::Max("hours that a lie blocks")),
            column("still blocked", Of::Measure("lies that still block")),
        ],
        plot: None,
    }
}

fn look_ups(size: Size) -> Figure {
    let sizes: &[(u32, u32)] = match size {
        Size::Small => &[(60, 37)],
        Size::Medium => &[(60, 37), (200, 120), (600, 370), (2000, 1200), (6000, 3700)],
        Size::Full => &[
            (60, 37),
            (200, 120),
            (600, 370),
            (2000, 1200),
            (6000, 3700),
            (20_000, 12_000),
            (60_000, 37_000),
        ],
    };
    let rows = sizes.iter().map(|(servers, laptops)| {
        let sets = [
            format!("nodes.servers={servers}"),
            format!("nodes.laptops={laptops}"),
            format!("workload.fetches_a_day={}", (4000 / laptops).max(1)),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        row("half an hour", f64::from(servers + laptops), &sets)
    });
    Figure {
        name: "look-ups",
        title: "Look-ups and upkeep as the network grows",
        text: "Success, hops to the nearest node that answered, time to a decision, and what a node sends to stay known (newer manifests every ten minutes from twenty nodes, announcements every six hours), by nodes (x). Tables' own upkeep is kad's and not in it. Memory and events per second are the simulator's, on a machine that others used at the same time.",
        file: "scale.toml",
        rows: rows.collect(),
        columns: vec![
            column("success", Of::Measure("look-up success")),
            column("hops p50", Of::P50("hops")),
            column("hops p99", Of::P99("hops")),
            column("decision s, p50", Of::P50("seconds to a decision")),
            column("p99", Of::P99("seconds to a decision")),
            column(
                "upkeep B/h/node",
                Of::Measure("upkeep bytes per node and hour"),
            ),
            column("bytes/node", Of::MemoryPerNode),
            column("events/s", Of::EventsPerSecond),
            column("wall s", Of::Seconds),
        ],
        plot: Some(Axes {
            x: "nodes",
            y: "seconds to a decision, p99",
            column: 4,
            log_x: true,
        }),
    }
}

fn stale(size: Size) -> Figure {
    let minutes = up_to(size, &[10, 30, 60, 240, 720], 5);
    let rows = minutes.iter().map(|minutes| {
        let sets = [
            format!("network.table_minutes={minutes}"),
            "nodes.servers=1000".to_owned(),
            "churn.server_up_hours=3".to_owned(),
            "churn.down_hours=1".to_owned(),
            "hours=3".to_owned(),
            "network.refresh_minutes=240".to_owned(),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        row(
            "1,000 servers that stay three hours",
            f64::from(*minutes),
            &sets,
        )
    });
    Figure {
        name: "stale",
        title: "Look-ups against the upkeep of tables",
        text: "How often a node looks through its table (x, minutes) under heavy churn. Each time costs about log2(N/20) look-ups of twenty answers of some 1,500 bytes: here six, 180 kB, which is computed and not simulated. Between two times it names nodes that have gone, and each of these costs a look-up a time-out.",
        file: "scale.toml",
        rows: rows.collect(),
        columns: vec![
            column("success", Of::Measure("look-up success")),
            column("decision s, p50", Of::P50("seconds to a decision")),
            column("p90", Of::P90("seconds to a decision")),
            column("p99", Of::P99("seconds to a decision")),
            column("whole look-up s, p50", Of::P50("whole look-up seconds")),
        ],
        plot: Some(Axes {
            x: "minutes between looks through the table",
            y: "seconds of a whole look-up, median",
            column: 4,
            log_x: true,
        }),
    }
}

fn hints(size: Size) -> Figure {
    let keys = up_to(size, &[1000, 10_000, 100_000], 2);
    let rows = keys.iter().map(|keys| {
        let sets = [
            format!("workload.crates={keys}"),
            "workload.proofs=0".to_owned(),
            "nodes.servers=1000".to_owned(),
            "hours=0.02".to_owned(),
        ];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        row("1,000 servers, 3 providers a key", f64::from(*keys), &sets)
    });
    Figure {
        name: "hints",
        title: "Hints and statements of one node",
        text: "What one server holds with so many keys (x), each with three providers and its publisher's statement, at twenty holders. A node takes at most 65,536 hints in all.",
        file: "scale.toml",
        rows: rows.collect(),
        columns: vec![
            column("hints p50", Of::P50("hints of a server")),
            column("p99", Of::P99("hints of a server")),
            column("most", Of::Max("hints of a server")),
            column(
                "statements, mean",
                Of::Measure("statements held per server"),
            ),
        ],
        plot: None,
    }
}

fn lab(size: Size) -> Figure {
    let mut rows = vec![
        row("with a cache", 1.0, &[]),
        row("without", 0.0, &["nodes.lab_cache=false"]),
    ];
    if size == Size::Full {
        rows.push(row("with a cache, 50 machines", 1.0, &["nodes.lab=50"]));
        rows.push(row(
            "without, 50 machines",
            0.0,
            &["nodes.lab=50", "nodes.lab_cache=false"],
        ));
    }
    Figure {
        name: "lab",
        title: "What a cache saves a laboratory",
        text: "Bytes that 200 machines fetch from outside, with the cache as their parent and without one: 60 crates by Zipf's law, 16 fetches a machine and day, for twelve hours.",
        file: "lab.toml",
        rows,
        columns: vec![
            column(
                "bytes from outside",
                Of::Measure("bytes into the laboratory"),
            ),
            column("fetches", Of::Measure("fetches")),
            column("arrived", Of::Measure("arrived")),
            column("arrives after s, p50", Of::P50("seconds to arrive")),
            column("p99", Of::P99("seconds to arrive")),
        ],
        plot: None,
    }
}

fn availability(size: Size) -> Figure {
    let providers = up_to(size, &[1, 2, 3, 5, 10, 20], 6);
    let rows = providers.iter().map(|providers| {
        let set = format!("workload.providers={providers}");
        row(
            "servers that are there a third of the time",
            f64::from(*providers),
            &[&set],
        )
    });
    Figure {
        name: "availability",
        title: "Availability under churn",
        text: "Share of trusted artifacts that arrive when so many providers (x) have them, none of whom stays: sessions of four hours, eight hours away.",
        file: "availability.toml",
        rows: rows.collect(),
        columns: vec![
            column("delivered", Of::Measure("delivered, share of trusted")),
            column(
                "providers not reached",
                Of::Measure("providers not reached"),
            ),
            column("arrives after s, p50", Of::P50("seconds to arrive")),
            column(
                "load: bytes given, p50",
                Of::P50("bytes given by a provider"),
            ),
            column("p99", Of::P99("bytes given by a provider")),
            column("most", Of::Max("bytes given by a provider")),
        ],
        plot: Some(Axes {
            x: "providers",
            y: "share of trusted artifacts that arrive",
            column: 0,
            log_x: true,
        }),
    }
}

fn prefix(size: Size) -> Figure {
    let bits = up_to(size, &[256, 10, 8, 6, 4, 3], 5);
    let rows = bits.iter().map(|bits| {
        let set = format!("workload.prefix_bits={bits}");
        row("2,000 releases, 200 servers", f64::from(*bits), &[&set])
    });
    Figure {
        name: "prefix",
        title: "Reading by prefix",
        text: "What a reader gets that names only the first bits (x) of a point, so that holders do not learn which of the releases it is after: bytes of all answers of one look-up, and releases among which it hides. 256 is the whole point.",
        file: "prefix.toml",
        rows: rows.collect(),
        columns: vec![
            column("releases, p50", Of::P50("releases by prefix")),
            column("bytes, p50", Of::P50("bytes by prefix")),
            column("bytes, p99", Of::P99("bytes by prefix")),
            column("answers, p50", Of::P50("answers by prefix")),
        ],
        plot: Some(Axes {
            x: "bits that are named",
            y: "bytes of one look-up, median",
            column: 1,
            log_x: true,
        }),
    }
}
