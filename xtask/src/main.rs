//! `cargo xtask`: arguments only, the work is in the library.

use std::hash::{BuildHasher, RandomState};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xtask::{bench, campaign, cargo, deny, release, setup, survey, test};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what building, testing and the demo need, or say what is missing
    Setup,
    /// Run all tests: unit, whole-system and documentation tests
    #[command(after_help = "Example: cargo xtask test --quick -- canonical")]
    Test(TestArgs),
    /// A whole network on this machine, with real processes
    #[command(after_help = "Example: cargo xtask demo --crate hexyl@0.17.0 --json")]
    Demo(DemoArgs),
    /// Throw mutated input at every decoder
    #[command(after_help = "Example: cargo xtask fuzz --seconds 3600 --target reply")]
    Fuzz(FuzzArgs),
    /// Kill a process that works on a store, at random points, and check what is left
    #[command(after_help = "Example: cargo xtask kill --rounds 300")]
    Kill(StoreArgs<300>),
    /// Cut the power under a process that works on a store, at random points, and check what is left
    #[command(after_help = "Example: cargo xtask power --rounds 200")]
    Power(StoreArgs<200>),
    /// Let what a store writes fail, with a full and with a broken disk, and check what is left
    #[command(after_help = "Example: cargo xtask faults --rounds 2000")]
    Faults(StoreArgs<500>),
    /// Flip bits in every file of a store, so many in each, and check what is left
    #[command(after_help = "Example: cargo xtask flips --rounds 20")]
    Flips(StoreArgs<10>),
    /// Let many real nodes rebuild tiny crates, some of which lie, and every honest client fetch them
    #[command(after_help = "Example: cargo xtask crowd --nodes 20 --keys 10 --liars 3")]
    Crowd(CrowdArgs),
    /// Let builds do their worst to this machine in the sandbox, and check that nothing is left
    #[command(after_help = "Example: cargo xtask bombs --rounds 1000")]
    Bombs(StoreArgs<1000>),
    /// Build crates twice, on two distributions, and tell which are reproducible; goes on where it was
    #[command(
        after_help = "Example: cargo xtask survey contrib/survey/tools.txt\n\n\
        The report and the table are written beside the list, as .jsonl and .md."
    )]
    Survey(SurveyArgs),
    /// Build qk with qk in the network that you joined, and write archive, checksums and proof
    #[command(
        after_help = "Example: cargo xtask release --output target/release-files -- --no-gate"
    )]
    Release(ReleaseArgs),
    /// Measure
    #[command(subcommand)]
    Bench(Bench),
    /// Check bans, licences and sources of all dependencies
    Deny,
    /// Ask the advisory database about all dependencies (needs the network)
    Advisories,
}

#[derive(Args)]
struct TestArgs {
    /// Unit and documentation tests only: no set-up, no processes, no network
    #[arg(long)]
    quick: bool,
    /// Passed to the test runner; a plain word selects the tests whose name contains it
    #[arg(last = true)]
    args: Vec<String>,
}

#[derive(Args)]
struct DemoArgs {
    /// One JSON object instead of the timeline
    #[arg(long)]
    json: bool,
    /// The crate to build, publish, prove and fetch
    #[arg(long = "crate", value_name = "NAME[@VER]")]
    package: Option<String>,
}

#[derive(Args)]
struct FuzzArgs {
    /// How long altogether, shared equally by the decoders
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Where randomness begins; by default another one each time, which is printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only this decoder
    #[arg(long)]
    target: Option<String>,
}

#[derive(Args)]
struct StoreArgs<const ROUNDS: u64> {
    /// How often
    #[arg(long, default_value_t = ROUNDS)]
    rounds: u64,
    /// Where randomness begins; by default another one each time, which is printed
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Args)]
struct CrowdArgs {
    /// Nodes that rebuild, liars included; at least 5
    #[arg(long, default_value_t = 20)]
    nodes: u64,
    /// Crates
    #[arg(long, default_value_t = 10)]
    keys: u64,
    /// Nodes that state a trojan whenever it is their turn
    #[arg(long, default_value_t = 3)]
    liars: u64,
    /// Who lies and who is drawn; by default others each time, which is printed
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Args)]
struct SurveyArgs {
    /// A crate a line, NAME@VER, and after a blank what to say about it
    list: std::path::PathBuf,
    /// Root directory of another distribution; a minimal Debian 13 is made by debootstrap otherwise
    #[arg(long, value_name = "DIR")]
    other: Option<std::path::PathBuf>,
    /// Parallel jobs of each first build; all processors otherwise
    #[arg(long)]
    jobs: Option<u32>,
    /// This executable in place of one that is built first
    #[arg(long, value_name = "FILE")]
    qk: Option<std::path::PathBuf>,
}

#[derive(Args)]
struct ReleaseArgs {
    /// The directory that gets the files; made if it is missing
    #[arg(
        long,
        short,
        value_name = "DIR",
        default_value = "target/release-files"
    )]
    output: std::path::PathBuf,
    /// Passed to `qk build`
    #[arg(last = true)]
    build: Vec<String>,
}

#[derive(Subcommand)]
enum Bench {
    /// One crate from a network of three nodes, and twenty locked ones from a cache on this machine, beside
    /// `cargo install`, `curl | tar` and cargo-binstall
    #[command(
        after_help = "Example: cargo xtask bench fetch --only tools --json\n\n\
        The first time builds what the list names, which takes an hour or so; it is kept below target/bench."
    )]
    Fetch(FetchArgs),
    /// A large artifact from node to node, beside curl from nginx and iroh-blobs
    #[command(after_help = "Example: cargo xtask bench transfer --mib 64 --only curl --json")]
    Transfer(TransferArgs),
    /// Memory, processor time and traffic of a node that has nothing to do
    #[command(after_help = "Example: cargo xtask bench idle --minutes 1 --json")]
    Idle(IdleArgs),
    /// Many clients that ask one cache at once: how evenly they are served, and what upstream sends
    #[command(after_help = "Example: cargo xtask bench cache --clients 50 --json")]
    Cache(CacheArgs),
}

#[derive(Args)]
struct CacheArgs {
    /// The crate to measure with
    #[arg(
        long = "crate",
        value_name = "NAME@VER",
        default_value = "hexyl@0.17.0"
    )]
    package: String,
    /// How many clients
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// This executable in place of an optimised one that is built first
    #[arg(long, value_name = "FILE")]
    qk: Option<std::path::PathBuf>,
    /// A JSON array instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct FetchArgs {
    /// The crate to measure with
    #[arg(
        long = "crate",
        value_name = "NAME@VER",
        default_value = "hexyl@0.17.0"
    )]
    package: String,
    /// Runs of which the median is taken; what compiles runs once
    #[arg(long, default_value_t = 9)]
    runs: usize,
    /// Leave out `cargo install`, which compiles the crate twice
    #[arg(long)]
    no_cargo_install: bool,
    /// Only this part
    #[arg(long)]
    only: Option<FetchPart>,
    /// The tools that are locked: a crate a line, NAME@VER
    #[arg(long, value_name = "FILE", default_value = "contrib/bench/tools.txt")]
    tools: std::path::PathBuf,
    /// Where what was built for the second part is kept
    #[arg(long, value_name = "DIR", default_value = "target/bench/tools")]
    home: std::path::PathBuf,
    /// A cargo-binstall to measure beside, through the same gateway, which then speaks TLS
    #[arg(long, value_name = "FILE")]
    binstall: Option<std::path::PathBuf>,
    /// This executable in place of one that is built as it is released
    #[arg(long, value_name = "FILE")]
    qk: Option<std::path::PathBuf>,
    /// A JSON array instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FetchPart {
    /// One crate from a network
    Crate,
    /// Many locked ones from a cache
    Tools,
}

#[derive(Args)]
struct TransferArgs {
    /// Size of what is transferred
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Runs of which the median is taken
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only these parts; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<bench::transfer::Part>,
    /// The tool that is fetched
    #[arg(long = "crate", value_name = "NAME@VER", default_value = "xh@0.26.3")]
    package: String,
    /// A JSON array instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct IdleArgs {
    /// How long it is watched
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// A JSON array instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run().map(|_qk| ()),
        Task::Test(TestArgs { quick, args }) => test::run(quick, &args),
        Task::Demo(args) => demo(&args),
        Task::Fuzz(args) => campaign::fuzz(args.seconds, seed(args.seed), args.target),
        Task::Bombs(args) => campaign::bombs(args.rounds, seed(args.seed)),
        Task::Kill(args) => campaign::kill(args.rounds, seed(args.seed)),
        Task::Power(args) => campaign::power(args.rounds, seed(args.seed)),
        Task::Faults(args) => campaign::faults(args.rounds, seed(args.seed)),
        Task::Flips(args) => campaign::flips(args.rounds, seed(args.seed)),
        Task::Crowd(args) => crowd(&args),
        Task::Survey(args) => survey(args),
        Task::Release(args) => release(args),
        Task::Bench(Bench::Fetch(args)) => bench_fetch(args),
        Task::Bench(Bench::Transfer(args)) => bench_transfer(args),
        Task::Bench(Bench::Idle(args)) => bench_idle(args),
        Task::Bench(Bench::Cache(args)) => bench_cache(args),
        Task::Deny => deny::check(&["bans", "licenses", "sources"]),
        Task::Advisories => deny::check(&["advisories"]),
    }
}

/// Becomes `qk demo`, so that its output, signals and exit code reach the caller untouched.
fn demo(args: &DemoArgs) -> Result<()> {
    let qk = setup::run()?;
    let mut demo = std::process::Command::new(&qk);
    demo.arg("demo");
    if args.json {
        demo.arg("--json");
    }
    if let Some(package) = &args.package {
        demo.args(["--crate", package]);
    }
    cargo::forget_caller(&mut demo);
    Err(demo.exec()).with_context(|| format!("cannot start {}", qk.display()))
}

fn crowd(args: &CrowdArgs) -> Result<()> {
    let size = campaign::Crowd {
        nodes: args.nodes,
        keys: args.keys,
        liars: args.liars,
    };
    campaign::crowd(size, seed(args.seed))
}

fn survey(args: SurveyArgs) -> Result<()> {
    let qk = match args.qk {
        Some(qk) => std::path::absolute(qk)?,
        None => setup::run()?,
    };
    let options = survey::Options {
        list: args.list,
        other: args.other,
        jobs: args.jobs,
    };
    survey::run(&qk, &options)
}

fn release(args: ReleaseArgs) -> Result<()> {
    let options = release::Options {
        output: args.output,
        build: args.build,
    };
    release::run(&setup::run()?, &options)
}

/// The seed asked for, or one that differs from run to run.
fn seed(asked: Option<u64>) -> u64 {
    asked.unwrap_or_else(|| RandomState::new().hash_one("seed"))
}

/// Measures `qk` as it is released.
fn bench_fetch(args: FetchArgs) -> Result<()> {
    setup::prepare()?;
    let qk = match args.qk {
        Some(qk) => std::path::absolute(qk)?,
        None => cargo::build_released()?,
    };
    setup::toolchain(&qk)?;
    let mut rows = Vec::new();
    if args.only != Some(FetchPart::Tools) {
        let options = bench::fetch::Options {
            package: args.package,
            runs: args.runs,
            cargo_install: !args.no_cargo_install,
        };
        rows.extend(bench::fetch::rows(&qk, &options)?);
    }
    if args.only != Some(FetchPart::Crate) {
        let options = bench::tools::Options {
            tools: survey::crates(&args.tools)?,
            runs: args.runs,
            home: args.home,
            binstall: args.binstall,
        };
        rows.extend(bench::tools::rows(&qk, &options)?);
    }
    bench::write(&rows, args.json, &mut std::io::stdout().lock())?;
    Ok(())
}

fn bench_transfer(args: TransferArgs) -> Result<()> {
    setup::rivals()?;
    let options = bench::transfer::Options {
        mib: args.mib,
        runs: args.runs,
        only: args.only,
        tool: args.package,
        svg: cargo::workspace().join("target/bench/transfer.svg"),
    };
    let qk = match options.wants_tool() {
        true => {
            setup::prepare()?;
            let qk = cargo::build_released()?;
            setup::toolchain(&qk)?;
            qk
        }
        false => std::path::PathBuf::new(),
    };
    let rows = bench::transfer::rows(&qk, &options)?;
    bench::write(&rows, args.json, &mut std::io::stdout().lock())?;
    Ok(())
}

fn bench_idle(args: IdleArgs) -> Result<()> {
    let options = bench::idle::Options {
        qk: cargo::build_released()?,
        program: cargo::build_beside("qk-bench-transfer")?,
        time: std::time::Duration::from_secs(args.minutes * 60),
    };
    let rows = bench::idle::rows(&options)?;
    bench::write(&rows, args.json, &mut std::io::stdout().lock())?;
    Ok(())
}

fn bench_cache(args: CacheArgs) -> Result<()> {
    setup::prepare()?;
    let qk = match args.qk {
        Some(qk) => std::path::absolute(qk)?,
        None => cargo::build_released()?,
    };
    setup::toolchain(&qk)?;
    let options = bench::cache::Options {
        package: args.package,
        clients: args.clients,
    };
    let rows = bench::cache::rows(&qk, &options)?;
    bench::write(&rows, args.json, &mut std::io::stdout().lock())?;
    Ok(())
}
