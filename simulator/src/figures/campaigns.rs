//! Many seeds of the scenario in which everything is hostile, with all defences and with each one off.

use std::collections::BTreeMap;

use super::page::Paper;
use super::{Press, SCENARIOS, Size};
use crate::report::number;
use crate::run::Campaign;
use crate::scenario::Without;

const FILE: &str = "hostile.toml";
const TEXT: &str = "`hostile.toml` has everything hostile switched on among 50 nodes and 20 Sybils; principals that are for a wrong root stay below the threshold. With all defences no check is to fail. With one of them off, a named check does: what it is good for.";

/// Plays the campaigns and writes what came out.
pub(super) fn write(press: &Press<'_>, size: Size, paper: &mut Paper) -> anyhow::Result<()> {
    let title = "Everything hostile, and each defence off";
    (press.tell)(title);
    let (seeds, off) = match size {
        Size::Small => (1, 1),
        Size::Medium => (50, 5),
        Size::Full => (1000, 5),
    };
    let defences = match size {
        Size::Small => &Without::ALL[..1],
        Size::Medium | Size::Full => &Without::ALL[..],
    };
    let head = [
        "defences",
        "seeds",
        "failed",
        "events",
        "s",
        "checks that failed",
    ];
    let mut table = vec![head.map(str::to_owned).to_vec()];
    let mut commands = Vec::new();
    let all = std::iter::once((None, seeds)).chain(defences.iter().map(|one| (Some(*one), off)));
    for (without, seeds) in all {
        let file = format!("{SCENARIOS}{FILE}");
        let words = ["campaign", &file, "--seeds"]
            .map(str::to_owned)
            .into_iter();
        let mut arguments: Vec<String> = words.chain([seeds.to_string()]).collect();
        if let Some(defence) = without {
            arguments.extend(["--without".to_owned(), defence.to_owned()]);
        }
        let done: Campaign = press.run(&arguments)?;
        commands.push(arguments.join(" "));
        let name = without.map_or("all".to_owned(), |one| format!("without {one}"));
        (press.tell)(&format!("  {name}: {:.1} s", done.wall_seconds));
        table.push(vec![
            name,
            number(done.seeds as f64),
            number(done.failures.len() as f64),
            number(done.events as f64),
            number(done.wall_seconds),
            failed(&done),
        ]);
    }
    paper.section(title, TEXT);
    paper.table(&table);
    paper.commands(&commands);
    Ok(())
}

/// Which checks failed, and in how many runs.
fn failed(done: &Campaign) -> String {
    let mut by_name: BTreeMap<&str, u32> = BTreeMap::new();
    for check in done.failures.iter().flat_map(|one| &one.checks) {
        *by_name.entry(&check.name).or_default() += 1;
    }
    let each: Vec<String> = by_name
        .iter()
        .map(|(name, runs)| format!("{name} ({runs})"))
        .collect();
    match each.is_empty() {
        true => "–".to_owned(),
        false => each.join(", "),
    }
}
