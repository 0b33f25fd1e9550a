//! Campaigns: the executables of the package `qk-tests`, each of which repeats one thing for as
//! long as its arguments say. A new file in `tests/src/bin/` is a new campaign.

use anyhow::{Context, Result, bail};

use crate::cargo;

const PACKAGE: &str = "qk-tests";

/// Runs the campaign `name` with `args`, against a `qk` that is built before.
///
/// # Errors
/// When there is no such campaign, something does not compile, or the campaign fails.
pub fn run(name: &str, args: &[String]) -> Result<()> {
    let names = names()?;
    if !names.iter().any(|known| known == name) {
        bail!(
            "there is no campaign {name}; there are: {}",
            names.join(", ")
        );
    }
    let qk = cargo::build("qk", &["--package", "qk", "--package", PACKAGE])?;
    let campaign = qk.with_file_name(name);
    let mut campaign = std::process::Command::new(campaign);
    campaign.args(args).env("QK_BIN", qk);
    cargo::forget_caller(&mut campaign);
    cargo::run(&mut campaign)
}

/// The names of all campaigns, sorted.
///
/// # Errors
/// When cargo cannot say what the workspace holds.
pub fn names() -> Result<Vec<String>> {
    let output = cargo::command()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start `cargo metadata`")?;
    let metadata = serde_json::from_slice(&output.stdout)
        .context("`cargo metadata` did not print the JSON expected")?;
    Ok(executables(&metadata, PACKAGE))
}

fn executables(metadata: &serde_json::Value, package: &str) -> Vec<String> {
    let mut names: Vec<String> = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|found| found["name"] == package)
        .flat_map(|found| found["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"] == serde_json::json!(["bin"]))
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn campaigns_are_the_executables_of_the_package() {
        assert!(names().unwrap().contains(&"fuzz".to_owned()));
    }

    #[test]
    fn an_unknown_campaign_is_answered_with_the_known_ones() {
        let error = run("none", &[]).unwrap_err().to_string();
        assert!(
            error.starts_with("there is no campaign none; there are: "),
            "{error}"
        );
        assert!(error.contains("fuzz"), "{error}");
    }
}
