//! The campaign of [`qk_tests::node_load`]: kills a node again and again.

use clap::Parser;

/// Kill a node at random points while statements are put to it; nothing acknowledged may be lost
#[derive(Debug, Parser)]
struct Args {
    /// How often
    #[arg(long, default_value_t = 300)]
    rounds: u64,
    /// Where randomness begins
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let figures = qk_tests::node_load::campaign(args.rounds, args.seed)?;
    println!("{figures:#?}");
    Ok(())
}
