//! Fuzzes every decoder for as long as asked: `cargo xtask campaign fuzz`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use qk_tests::fuzz::{Budget, Finding, Target, targets};

/// Throw mutated input at every decoder
#[derive(Parser)]
#[command(after_help = "Example: cargo xtask campaign fuzz --seconds 3600 --target reply")]
struct Args {
    /// How long altogether, shared equally by the targets
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// First seed; the default differs from run to run and is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only this target
    #[arg(long)]
    target: Option<String>,
}

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    let mut targets = targets();
    if let Some(name) = &args.target {
        targets.retain(|target| target.name == name);
    }
    let count = u32::try_from(targets.len()).context("fewer targets")?;
    let share = Duration::from_secs(args.seconds)
        .checked_div(count)
        .context("there is no target of this name")?;
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}");
    let mut code = ExitCode::SUCCESS;
    for target in &targets {
        match target.fuzz(seed, Budget::Time(share)) {
            Ok(summary) => println!(
                "{}: {} inputs, {} accepted, no finding",
                target.name, summary.inputs, summary.accepted
            ),
            Err(finding) => {
                report(target, &finding)?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Stores the input where every later run tries it first.
fn report(target: &Target, finding: &Finding) -> Result<()> {
    let name = blake3::hash(&finding.input).to_hex();
    let path = target.directory().join(&name[..16]);
    std::fs::create_dir_all(target.directory())
        .and_then(|()| std::fs::write(&path, &finding.input))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!(
        "{}: FINDING after {} inputs, stored in {}",
        target.name,
        finding.after,
        path.display()
    );
    Ok(())
}
