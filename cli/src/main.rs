//! The command line of qk.

mod args;
mod commands;
mod documents;
mod failure;
mod output;
mod session;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, LogFormat, NodeCli, StatusArgs, VerifyArgs};
use crate::failure::{Failure, Kind, Outcome};
use crate::output::Output;
use crate::session::Session;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let output = Output {
        json: cli.json,
        quiet: cli.quiet,
    };
    start_log(&cli.command);
    match run(cli.command, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !failure.printed {
                output.failure(&failure);
            }
            ExitCode::from(failure.exit_code)
        }
    }
}

/// What cannot be parsed, in clap's words: as JSON where it was asked for. `--help` and `--version`
/// come here too, and are no failures.
fn not_understood(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os()
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json");
    if error.use_stderr() && json {
        let output = Output {
            json: true,
            quiet: false,
        };
        let text = error.to_string();
        let text = text.trim().strip_prefix("error: ").unwrap_or(text.trim());
        output.failure(&Failure::new(Kind::Usage, text));
    } else {
        // That nobody reads it any more is no reason to fail.
        let _ = error.print();
    }
    match error.use_stderr() {
        true => ExitCode::from(Kind::Usage.exit_code()),
        false => ExitCode::SUCCESS,
    }
}

fn run(command: Command, output: Output) -> Outcome {
    match command {
        Command::Run(args) => {
            let program = match commands::run::at_hand(&args) {
                Some(program) => program?,
                None => in_runtime(false, async {
                    commands::run::run(&Session::new(output)?, &args).await
                })?,
            };
            Err(commands::run::turn_into(&program, &args))
        }
        command => {
            // They end in order, by themselves.
            let ends_itself = matches!(
                command,
                Command::Node(NodeCli { command: None, .. })
                    | Command::Status(StatusArgs { watch: true })
                    | Command::Verify(VerifyArgs { watch: true, .. })
            );
            in_runtime(ends_itself, dispatch(command, output))
        }
    }
}

/// Does it, until somebody asks this process to stop.
fn in_runtime<T>(ends_itself: bool, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(session::failed)?;
    let done = runtime.block_on(async {
        let stopped = session::stopped();
        tokio::select! {
            done = work => done,
            // What runs is dropped: children die, temporary files go, downloads stay for the next time.
            () = stopped, if !ends_itself => Err(Failure::new(Kind::Other, "interrupted").without_hint()),
        }
    });
    // A blocking task that is still at work must not hold the terminal.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    done
}

async fn dispatch(command: Command, output: Output) -> Outcome {
    match &command {
        Command::Completions { shell } => return commands::shell::completions(*shell, output),
        Command::Man { directory } => return commands::shell::man(directory, output),
        _ => {}
    }
    let session = Session::new(output)?;
    match command {
        Command::Fetch(args) => commands::fetch::run(&session, &args).await,
        Command::List(args) => commands::installed::list(&session, &args),
        Command::Upgrade(args) => commands::installed::upgrade(&session, &args).await,
        Command::Uninstall(args) => commands::installed::uninstall(&session, &args).await,
        Command::Update(args) => commands::project::update(&session, &args).await,
        Command::Build(args) => commands::build::run(&session, &args).await,
        Command::Repro(args) => commands::repro::run(&session, &args).await,
        Command::Verify(args) => commands::verify::run(&session, &args).await,
        Command::Proofs(args) => commands::proofs::run(&session, &args).await,
        Command::Diff(args) => commands::diff::run(&session, &args).await,
        Command::Log(args) => commands::log::run(&session, &args).await,
        Command::Search(args) => commands::search::run(&session, &args).await,
        Command::Node(args) => commands::node::run(&session, &args).await,
        Command::Status(args) => commands::node::status::run(&session, &args).await,
        Command::Peers => commands::node::status::peers(&session).await,
        Command::Network(command) => commands::network::run(&session, command).await,
        Command::Join(args) => commands::network::join(&session, &args).await,
        Command::Store(command) => commands::store::run(&session, command).await,
        Command::Setup => commands::doctor::setup(&session).await,
        Command::Sbom(args) => commands::supply::bill(&session, &args).await,
        Command::Audit(args) => commands::supply::audit(&session, &args).await,
        Command::Doctor { offline } => commands::doctor::doctor(&session, offline).await,
        Command::Demo(args) => commands::demo::run(args, output).await,
        Command::Run(_) | Command::Completions { .. } | Command::Man { .. } => Ok(()),
    }
}

/// `QK_LOG` sets what is logged, to standard error; a node logs what its owner may want to know.
fn start_log(command: &Command) {
    // kad warns of every start at which nobody else is there yet.
    let (default, format) = match command {
        Command::Node(NodeCli {
            command: None,
            args,
        }) => (
            "info,libp2p=warn,libp2p_kad=error,sled=warn",
            args.log_format,
        ),
        _ => ("error", LogFormat::Text),
    };
    let filter = std::env::var("QK_LOG").unwrap_or_else(|_| default.to_owned());
    let log = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log
            .with_target(false)
            // No colour codes in a file or a service's journal.
            .with_ansi(std::io::stderr().is_terminal())
            .init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}
