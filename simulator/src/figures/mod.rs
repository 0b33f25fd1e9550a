//! Figures: which runs answer which question, and how they are told.
//!
//! Each figure is made of runs of a scenario file with some fields set, so that a reader can play any of
//! them again: the command stands beside its row. Each run is a process of its own, so that its memory is
//! its own, too.

mod campaigns;
mod network;
mod page;
mod rebuilding;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;
use serde::de::DeserializeOwned;

use crate::plot::{Line, Plot, draw};
use crate::report::{Report, number};

/// How many runs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// A few small ones, for tests.
    Small,
    /// All, in sizes that take minutes.
    Medium,
    /// All, up to 100,000 nodes and keys, and a thousand seeds.
    Full,
}

/// A question with the runs that answer it.
struct Figure {
    name: &'static str,
    title: &'static str,
    /// What is asked, and how to read the answer.
    text: &'static str,
    rows: Vec<Row>,
    columns: Vec<Column>,
    plots: Vec<Axes>,
    /// Columns of which it is said how they grow with `x`.
    grows: Vec<usize>,
}

/// One run.
struct Row {
    file: &'static str,
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
    /// How many there are.
    Count(&'static str),
    Nodes,
    Hours,
    Events,
    Memory,
    MemoryPerNode,
    EventsPerSecond,
    WallSeconds,
    ProcessorSeconds,
    ChecksHeld,
    ChecksFailed,
}

struct Axes {
    x: &'static str,
    y: &'static str,
    /// The column that is drawn.
    column: usize,
    log_x: bool,
    log_y: bool,
}

impl Of {
    fn value(self, report: &Report) -> Option<f64> {
        let quantiles = |name: &str| report.quantiles.get(name);
        let checks = |held| report.checks.iter().filter(|one| one.held == held).count();
        let speed = &report.performance;
        match self {
            Self::Measure(name) => Some(report.measure(name)),
            Self::P50(name) => quantiles(name).map(|one| one.p50),
            Self::P90(name) => quantiles(name).map(|one| one.p90),
            Self::P99(name) => quantiles(name).map(|one| one.p99),
            Self::Max(name) => quantiles(name).map(|one| one.max),
            Self::Count(name) => Some(quantiles(name).map_or(0.0, |one| one.count as f64)),
            Self::Nodes => Some(report.nodes as f64),
            Self::Hours => Some(report.hours),
            Self::Events => Some(report.events as f64),
            Self::Memory => Some(speed.memory_bytes as f64 / 1e6),
            Self::MemoryPerNode => Some(speed.bytes_per_node as f64),
            Self::EventsPerSecond => Some(speed.events_per_second),
            Self::WallSeconds => Some(speed.wall_seconds),
            Self::ProcessorSeconds => Some(speed.processor_seconds),
            Self::ChecksHeld => Some(checks(true) as f64),
            Self::ChecksFailed => Some(checks(false) as f64),
        }
    }
}

fn row<S: AsRef<str>>(file: &'static str, line: impl Into<String>, x: f64, sets: &[S]) -> Row {
    Row {
        file,
        line: line.into(),
        x,
        sets: sets.iter().map(|one| one.as_ref().to_owned()).collect(),
    }
}

/// A row without anything set.
fn plain(file: &'static str, line: impl Into<String>, x: f64) -> Row {
    row::<&str>(file, line, x, &[])
}

fn column(name: &'static str, of: Of) -> Column {
    Column { name, of }
}

fn axes(x: &'static str, y: &'static str, column: usize) -> Axes {
    Axes {
        x,
        y,
        column,
        log_x: true,
        log_y: false,
    }
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

fn all(size: Size) -> Vec<Figure> {
    let mut all = rebuilding::figures(size);
    all.extend(network::figures(size));
    if size == Size::Small {
        all.retain(|figure| !network::LONG.contains(&figure.name));
        for figure in &mut all {
            figure.rows.truncate(2);
        }
    }
    all
}

/// All figures are of this seed.
const SEED: u64 = 1;
/// Where a reader finds a scenario.
const SCENARIOS: &str = "simulator/scenarios/";

/// What the figures are made from and go to.
struct Press<'a> {
    /// The simulator itself.
    program: &'a Path,
    dir: &'a Path,
    runs: Runs<'a>,
    tell: &'a (dyn Fn(&str) + Sync),
}

/// What was played, by its command, in a file if there is one.
struct Runs<'a> {
    file: Option<&'a Path>,
    by_command: Mutex<BTreeMap<String, serde_json::Value>>,
}

impl<'a> Runs<'a> {
    fn open(file: Option<&'a Path>) -> anyhow::Result<Self> {
        let mut by_command = BTreeMap::new();
        if let Some(file) = file.filter(|file| file.exists()) {
            let name = || file.display().to_string();
            let text = std::fs::read_to_string(file).with_context(name)?;
            by_command = serde_json::from_str(&text).with_context(name)?;
        }
        Ok(Self {
            file,
            by_command: Mutex::new(by_command),
        })
    }

    fn get(&self, command: &str) -> Option<serde_json::Value> {
        let runs = self.by_command.lock().expect("no thread panics with it");
        runs.get(command).cloned()
    }

    fn keep(&self, command: String, run: serde_json::Value) -> anyhow::Result<()> {
        let mut runs = self.by_command.lock().expect("no thread panics with it");
        runs.insert(command, run);
        if let Some(file) = self.file {
            std::fs::write(file, serde_json::to_vec(&*runs)?)
                .with_context(|| file.display().to_string())?;
        }
        Ok(())
    }
}

/// Plays all figures and writes the report: `REPORT.md` into `dir`, plots and a page below `dir/report`.
/// `program` is `qk-simulator` itself, which plays each run as a process; `tell` is told of each. What
/// the file `runs` has is not played again, and what is played is added to it.
///
/// # Errors
/// When a file cannot be read or written, or a scenario cannot be played.
pub fn figures(
    dir: &Path,
    size: Size,
    program: &Path,
    runs: Option<&Path>,
    tell: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<PathBuf> {
    let press = Press {
        program,
        dir,
        runs: Runs::open(runs)?,
        tell,
    };
    let mut paper = page::Paper::new(&dir.join("report"))?;
    for figure in all(size) {
        tell(figure.title);
        let reports = press.play(&figure.rows)?;
        paper.section(figure.title, figure.text);
        paper.table(&figure.table(&reports));
        for (number, axes) in figure.plots.iter().enumerate() {
            let name = match number {
                0 => figure.name.to_owned(),
                more => format!("{}-{}", figure.name, more + 1),
            };
            paper.plot(&name, axes.y, &draw(&figure.plotted(axes, &reports))?)?;
        }
        if !figure.grows.is_empty() {
            paper.text(&figure.growth(&reports));
        }
        paper.commands(&figure.commands());
    }
    campaigns::write(&press, size, &mut paper)?;
    paper.finish(&dir.join("REPORT.md"))
}

impl Press<'_> {
    /// Runs the simulator with these arguments, of which one is a scenario of `dir`, and reads the JSON that
    /// it prints.
    fn run<T: DeserializeOwned>(&self, arguments: &[String]) -> anyhow::Result<T> {
        let command = arguments.join(" ");
        if let Some(run) = self.runs.get(&command) {
            return serde_json::from_value(run).context(command);
        }
        let here = |word: &String| match word.strip_prefix(SCENARIOS) {
            Some(name) => self.dir.join("scenarios").join(name).into_os_string(),
            None => word.into(),
        };
        let output = Command::new(self.program)
            .args(arguments.iter().map(here))
            .arg("--json")
            .output()
            .with_context(|| command.clone())?;
        // A check that failed is a result, too.
        let run: serde_json::Value = serde_json::from_slice(&output.stdout).with_context(|| {
            let told = String::from_utf8_lossy(&output.stderr);
            format!("{command}: {}", told.trim())
        })?;
        self.runs.keep(command, run.clone())?;
        Ok(serde_json::from_value(run)?)
    }

    /// Plays rows, as many at once as there are processors.
    fn play(&self, rows: &[Row]) -> anyhow::Result<Vec<Report>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(BTreeMap::new());
        let work = || -> anyhow::Result<()> {
            while let Some((at, row)) = {
                let at = next.fetch_add(1, Ordering::Relaxed);
                rows.get(at).map(|row| (at, row))
            } {
                let report: Report = self.run(&row.arguments())?;
                let (line, x) = (&row.line, number(row.x));
                let seconds = report.performance.wall_seconds;
                (self.tell)(&format!("  {line} {x}: {seconds:.1} s"));
                done.lock()
                    .expect("no thread panics with it")
                    .insert(at, report);
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism()?.get();
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let mut ended = all
                .into_iter()
                .map(|one| one.join().expect("a run does not panic"));
            ended.try_for_each(|one| one)
        })?;
        let done = done.into_inner().expect("no thread panics with it");
        Ok(done.into_values().collect())
    }
}

impl Row {
    fn arguments(&self) -> Vec<String> {
        let file = format!("{SCENARIOS}{}", self.file);
        let words = ["run", &file, "--seed"].map(str::to_owned).into_iter();
        let mut all: Vec<String> = words.chain([SEED.to_string()]).collect();
        for set in &self.sets {
            all.extend(["--set".to_owned(), set.clone()]);
        }
        all
    }
}

impl Figure {
    /// A head and a line for each row.
    fn table(&self, reports: &[Report]) -> Vec<Vec<String>> {
        let names = self.columns.iter().map(|one| one.name.to_owned());
        let head = ["run".to_owned(), "x".to_owned()].into_iter().chain(names);
        let mut table = vec![head.collect()];
        for (row, report) in self.rows.iter().zip(reports) {
            let values = self.columns.iter().map(|column| {
                let value = column.of.value(report);
                value.map_or("–".to_owned(), number)
            });
            let line = [row.line.clone(), number(row.x)].into_iter().chain(values);
            table.push(line.collect());
        }
        table
    }

    /// How to play each run again.
    fn commands(&self) -> Vec<String> {
        let command = |row: &Row| {
            let quoted = |word: &String| match word.contains('"') {
                true => format!("'{word}'"),
                false => word.clone(),
            };
            let words: Vec<String> = row.arguments().iter().map(quoted).collect();
            words.join(" ")
        };
        self.rows.iter().map(command).collect()
    }

    fn plotted(&self, axes: &Axes, reports: &[Report]) -> Plot {
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
        Plot {
            title: self.title.to_owned(),
            x: axes.x.to_owned(),
            y: axes.y.to_owned(),
            log_x: axes.log_x,
            log_y: axes.log_y,
            lines: lines.collect(),
        }
    }

    /// By which power of `x` columns grow, from a tenth of its largest value on and over all.
    fn growth(&self, reports: &[Report]) -> String {
        let largest = self.rows.iter().map(|row| row.x).fold(0.0, f64::max);
        let mut text = String::from(
            "By least squares of the logarithms, over all rows and over the upper decade:",
        );
        for column in &self.grows {
            let column = &self.columns[*column];
            let points = |from: f64| -> Vec<(f64, f64)> {
                let rows = self.rows.iter().zip(reports);
                let upper = rows.filter(|(row, _)| row.x >= from);
                upper
                    .filter_map(|(row, report)| Some((row.x, column.of.value(report)?)))
                    .collect()
            };
            let (over_all, upper) = (power(&points(0.0)), power(&points(largest / 11.0)));
            text += &format!(" {} as x^{over_all:.2} and x^{upper:.2};", column.name);
        }
        text.trim_end_matches(';').to_owned() + "."
    }
}

/// The slope of a line through the logarithms; 0 of fewer than two points.
fn power(points: &[(f64, f64)]) -> f64 {
    let logs = points.iter().filter(|(x, y)| *x > 0.0 && *y > 0.0);
    let logs: Vec<(f64, f64)> = logs.map(|(x, y)| (x.ln(), y.ln())).collect();
    let count = logs.len().max(1) as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let over: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let under: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    if under > 0.0 { over / under } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_is_that_of_its_points() {
        let points = |power: f64| [1.0, 10.0, 70.0].map(|x: f64| (x, 3.0 * x.powf(power)));
        for exponent in [0.0, 1.0, 1.3] {
            assert!((power(&points(exponent)) - exponent).abs() < 1e-9);
        }
        assert_eq!(power(&points(1.0)[..1]), 0.0);
    }

    #[test]
    fn every_scenario_that_is_named_is_there_and_can_be_played_as_it_is_named() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        for figure in all(Size::Full) {
            for row in figure.rows {
                let text = std::fs::read_to_string(dir.join(row.file)).unwrap();
                crate::scenario::Scenario::parse_with(&text, &row.sets).unwrap();
            }
        }
    }
}
