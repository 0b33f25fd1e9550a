//! What is made from the command line's own description: completions and manual pages.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use serde::Serialize;

use crate::args::Cli;
use crate::failure::{Failure, Kind, Outcome};
use crate::output::{Output, count};

#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(crate) struct Pages {
    pages: Vec<PathBuf>,
}

pub(crate) fn completions(shell: clap_complete::Shell, output: Output) -> Outcome {
    // Not straight to the output: it panics when nobody reads it any more.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "qk", &mut script);
    output.bytes(&script);
    Ok(())
}

/// Writes a page for each command and subcommand; a directory that is missing is made.
pub(crate) fn man(directory: &Path, output: Output) -> Outcome {
    let failed = |error: io::Error| {
        let message = format!("manual pages in {}: {error}", directory.display());
        Failure::new(Kind::Other, message).hint("name a directory that you may write to")
    };
    fs::create_dir_all(directory).map_err(failed)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    write(&command, directory, &mut pages).map_err(failed)?;
    output.result(&Pages { pages }, |pages| {
        let pages = count(pages.pages.len(), "manual page");
        format!("{pages} in {}", directory.display())
    });
    Ok(())
}

fn write(command: &clap::Command, directory: &Path, pages: &mut Vec<PathBuf>) -> io::Result<()> {
    pages.push(clap_mangen::Man::new(command.clone()).generate_to(directory)?);
    command
        .get_subcommands()
        .filter(|one| !one.is_hide_set())
        .try_for_each(|one| write(one, directory, pages))
}
