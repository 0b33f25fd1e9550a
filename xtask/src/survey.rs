//! How many crates are reproducible: `qk repro` on a list of them, the second build with tools and
//! libraries of another distribution.
//!
//! The report is a file of JSON lines, one a crate, written as soon as it is known: a survey that was
//! stopped goes on where it was. The table beside it is made from the report.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cargo;

/// The other distribution: what the recipe names and a minimal Debian lacks.
const SUITE: &str = "trixie";
const PACKAGES: &str = "make,binutils";
/// Exit code of `qk` for two builds that differ, and for one that failed.
const DIFFERS: i32 = 12;
const BUILD_FAILED: i32 = 13;
/// A list, and what one `qk` may print.
const TEXT_BYTES_MAX: u64 = 16 << 20;

/// What is surveyed, and how.
#[derive(Debug)]
pub struct Options {
    /// A crate a line, `NAME` or `NAME@VER`, and after a blank what to say about it in the table.
    pub list: PathBuf,
    /// Root directory of another distribution; made by debootstrap when absent.
    pub other: Option<PathBuf>,
    /// Parallel jobs of the first build.
    pub jobs: Option<u32>,
}

/// A line of the report.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    /// As in the list.
    #[serde(rename = "crate")]
    krate: String,
    note: String,
    /// Whether both builds came to an artifact.
    built: bool,
    /// If not, the class of the reason, and what was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// Of the two builds.
    seconds: Vec<u64>,
    systems: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    same_root: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    same_work: Option<bool>,
    /// The first thing that was linked and differs, and where the archives differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    differs: Option<String>,
    exit_code: i32,
}

/// Surveys what is not in the report yet, and writes the table.
///
/// # Errors
/// When `qk`, the list or the other system cannot be had. That a crate does not build is no error.
pub fn run(qk: &Path, options: &Options) -> Result<()> {
    let wanted = list(&options.list)?;
    let report = options.list.with_extension("jsonl");
    let table = options.list.with_extension("md");
    let other = match &options.other {
        Some(other) => other.clone(),
        None => debootstrap()?,
    };
    let mut rows = read_report(&report)?;
    for (number, (krate, note)) in wanted.iter().enumerate() {
        if rows.iter().any(|row| row.krate == *krate && row.is_final()) {
            continue;
        }
        eprintln!("{}/{} {krate}", number + 1, wanted.len());
        let row = survey(qk, krate, note, &other, options.jobs)?;
        eprintln!("  {}", row.in_short());
        rows.retain(|row| row.krate != *krate);
        rows.push(row);
        write_report(&report, &rows)?;
    }
    let known: BTreeSet<&String> = wanted.iter().map(|(krate, _)| krate).collect();
    rows.retain(|row| known.contains(&row.krate));
    rows.sort_by_key(|row| wanted.iter().position(|(krate, _)| *krate == row.krate));
    fs::write(&table, markdown(&rows)).with_context(|| table.display().to_string())?;
    eprintln!("{} and {}", report.display(), table.display());
    Ok(())
}

fn survey(qk: &Path, krate: &str, note: &str, other: &Path, jobs: Option<u32>) -> Result<Row> {
    let mut repro = Command::new(qk);
    repro
        .args(["repro", krate, "--json", "--sandbox-root"])
        .arg(other)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    if let Some(jobs) = jobs {
        repro.args(["--jobs", &jobs.to_string()]);
    }
    cargo::forget_caller(&mut repro);
    let mut child = repro.spawn().context("cannot start qk")?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(TEXT_BYTES_MAX).read_to_end(&mut said)?;
    }
    let status = child.wait()?;
    let exit_code = status.code().unwrap_or(-1);
    ensure!(exit_code >= 0, "qk was stopped: {status}");
    let said: Value = serde_json::from_slice(&said).unwrap_or_default();
    Ok(Row::new(krate, note, exit_code, &said))
}

impl Row {
    /// What `qk repro --json` said.
    fn new(krate: &str, note: &str, exit_code: i32, said: &Value) -> Self {
        let built = matches!(exit_code, 0 | DIFFERS);
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let builds = said["builds"].as_array().map_or(&[][..], Vec::as_slice);
        let reason = match exit_code {
            0 | DIFFERS => None,
            _ => text(&said["reason"]).or_else(|| text(&said["kind"])),
        };
        Self {
            krate: krate.to_owned(),
            note: note.to_owned(),
            built,
            reason,
            error: text(&said["error"]).filter(|_| !built),
            seconds: builds
                .iter()
                .filter_map(|one| one["seconds"].as_u64())
                .collect(),
            systems: builds.iter().filter_map(|one| text(&one["os"])).collect(),
            root: builds.first().and_then(|one| text(&one["root"])),
            same_root: said["same_root"].as_bool(),
            same_work: said["same_work"].as_bool(),
            differs: differs(said),
            exit_code,
        }
    }

    /// Whether another try would say nothing else: not where the machine or the network was in the way.
    fn is_final(&self) -> bool {
        let machine = ["fetch", "disk-full"].map(Some);
        let ours = machine.contains(&self.reason.as_deref());
        (self.built || self.exit_code == BUILD_FAILED) && !ours
    }

    fn in_short(&self) -> String {
        match (&self.reason, self.same_root) {
            (Some(reason), _) => format!("not built: {reason}"),
            (None, Some(true)) => "same root".to_owned(),
            (None, _) => format!("differs: {}", self.differs.as_deref().unwrap_or("unknown")),
        }
    }
}

/// What differs, in a line: the first input of the linker with the likely causes, and the files.
fn differs(said: &Value) -> Option<String> {
    let list = |value: &Value| {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
    };
    let mut parts = Vec::new();
    if let Some(package) = said["first"]["package"].as_str() {
        let causes = list(&said["first"]["causes"]);
        let own = if said["first"]["own"] == true {
            " itself"
        } else {
            ""
        };
        let causes = if causes.is_empty() {
            "cause not seen"
        } else {
            &causes
        };
        parts.push(format!("{package}{own}: {causes}"));
    }
    for file in said["comparison"]["files"].as_array().into_iter().flatten() {
        let sections = file["sections"].as_array().into_iter().flatten();
        let names: Vec<_> = sections.filter_map(|one| one["name"].as_str()).collect();
        let path = file["path"].as_str().unwrap_or_default();
        parts.push(format!("{path} ({})", names.join(" ")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// The crates of a list.
///
/// # Errors
/// When it cannot be read.
pub fn crates(path: &Path) -> Result<Vec<String>> {
    Ok(list(path)?.into_iter().map(|(krate, _)| krate).collect())
}

/// The crates of a list, each with its remark.
fn list(path: &Path) -> Result<Vec<(String, String)>> {
    let mut text = String::new();
    let file = File::open(path).with_context(|| path.display().to_string())?;
    file.take(TEXT_BYTES_MAX).read_to_string(&mut text)?;
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &str| {
        let (krate, note) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (krate.to_owned(), note.trim().to_owned())
    };
    Ok(lines.map(split).collect())
}

/// The rows so far; none without a report. A last line that was cut off is done again.
fn read_report(path: &Path) -> Result<Vec<Row>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(file) => file.take(TEXT_BYTES_MAX).read_to_string(&mut text)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => bail!("{}: {error}", path.display()),
    };
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect())
}

/// Replaces the report as a whole, so that a crash leaves the old one or the new.
fn write_report(path: &Path, rows: &[Row]) -> Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let mut temp = tempfile::NamedTempFile::new_in(parent.unwrap_or(Path::new(".")))?;
    for row in rows {
        serde_json::to_writer(&mut temp, row)?;
        temp.write_all(b"\n")?;
    }
    fs::set_permissions(
        temp.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )?;
    temp.as_file().sync_all()?;
    temp.persist(path)?;
    Ok(())
}

/// A minimal Debian of another release than this machine's, kept for the next survey.
fn debootstrap() -> Result<PathBuf> {
    let system = cargo::workspace().join("target/survey").join(SUITE);
    if system.is_dir() {
        return Ok(system);
    }
    let hint = "name the root directory of another distribution with --other";
    ensure!(
        rustix::process::geteuid().is_root(),
        "debootstrap needs root: {hint}"
    );
    let part = system.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part)?;
    }
    fs::create_dir_all(&part)?;
    let mut command = Command::new("debootstrap");
    let include = format!("--include={PACKAGES}");
    command
        .args(["--variant=minbase", &include, SUITE])
        .arg(&part);
    command.args(mirror());
    cargo::run_aside(&mut command).with_context(|| format!("no {SUITE}: {hint}"))?;
    fs::rename(&part, &system)?;
    Ok(system)
}

/// Where apt gets Debian from here.
fn mirror() -> Option<String> {
    let said = Command::new("apt-get")
        .args(["indextargets", "--format", "$(SITE)"])
        .args(["Identifier: Packages", "Origin: Debian", "Component: main"])
        .output()
        .ok()?;
    let first = String::from_utf8(said.stdout)
        .ok()?
        .lines()
        .next()?
        .to_owned();
    Some(first)
}

/// The table.
fn markdown(rows: &[Row]) -> String {
    let built: Vec<&Row> = rows.iter().filter(|row| row.built).collect();
    let count = |which: fn(&Row) -> Option<bool>| {
        built.iter().filter(|row| which(row) == Some(true)).count()
    };
    let systems: BTreeSet<&String> = built.iter().flat_map(|row| &row.systems).collect();
    let systems: Vec<_> = systems.into_iter().map(String::as_str).collect();
    let mut text = format!(
        "Made by `cargo xtask survey`. Each crate is built twice by `qk repro`, the second time with half\n\
         the jobs, another host name, and tools and libraries of another distribution ({}).\n\n\
         {} of {} built; of these {} have the same root, and {} the same work digest.\n\n\
         | crate | has | built | seconds | root | work digest | what differs |\n\
         |---|---|---|---|---|---|---|\n",
        systems.join(", "),
        built.len(),
        rows.len(),
        count(|row| row.same_root),
        count(|row| row.same_work),
    );
    for row in rows {
        let seconds: Vec<_> = row.seconds.iter().map(u64::to_string).collect();
        let same = |same: Option<bool>| match same {
            Some(true) => "same",
            Some(false) => "differs",
            None => "",
        };
        let why = row.reason.as_deref().unwrap_or("no");
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.krate,
            row.note,
            if row.built { "yes" } else { why },
            seconds.join(", "),
            same(row.same_root),
            same(row.same_work),
            row.differs.as_deref().unwrap_or("").replace('|', "/"),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rows() -> Vec<Row> {
        let same = json!({
            "builds": [{"root": "5f", "seconds": 20, "os": "A"}, {"root": "5f", "seconds": 30, "os": "B"}],
            "same_root": true, "same_work": true,
        });
        let differs = json!({
            "builds": [{"root": "5f", "seconds": 20, "os": "A"}, {"root": "60", "seconds": 30, "os": "B"}],
            "same_root": false, "same_work": false,
            "first": {"package": "x 1.0.0", "own": false, "causes": ["order"]},
            "comparison": {"files": [{"path": "bin/y", "sections": [{"name": ".text"}]}]},
        });
        let failed =
            json!({"kind": "build-failed", "reason": "compile", "error": "it does not compile"});
        let network = json!({"kind": "network", "error": "no answer"});
        vec![
            Row::new("a@1.0.0", "C", 0, &same),
            Row::new("b@1.0.0", "", DIFFERS, &differs),
            Row::new("c@1.0.0", "", BUILD_FAILED, &failed),
            Row::new("d@1.0.0", "", 14, &network),
        ]
    }

    #[test]
    fn the_table_says_what_the_rows_say() {
        let text = markdown(&rows());
        assert!(text.contains("2 of 4 built; of these 1 have the same root, and 1 the same work"));
        assert!(text.contains("| a@1.0.0 | C | yes | 20, 30 | same | same |  |"));
        let line =
            "| b@1.0.0 |  | yes | 20, 30 | differs | differs | x 1.0.0: order; bin/y (.text) |";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("| c@1.0.0 |  | compile |  |  |  |  |"));
    }

    #[test]
    fn a_survey_goes_on_where_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let report = directory.path().join("tools.jsonl");
        assert!(read_report(&report).unwrap().is_empty());
        write_report(&report, &rows()).unwrap();
        let mut text = fs::read_to_string(&report).unwrap();
        text.push_str("{\"crate\":\"e@1.0");
        fs::write(&report, text).unwrap();
        let read = read_report(&report).unwrap();
        let again: Vec<_> = read
            .iter()
            .filter(|row| !row.is_final())
            .map(|row| row.krate.as_str())
            .collect();
        // What the network was in the way of is tried again.
        assert_eq!((read.len(), again), (4, vec!["d@1.0.0"]));
    }
}
