//! Fetches what a [`FetchSpec`] on its standard input says, as a command without a running node does:
//! for tests whose crates no registry has. Prints the network that gave it, or fails with what went
//! wrong.

use std::process::ExitCode;

use qk_node::access::{Access, Problem, ProblemKind};
use qk_node::home::Home;
use qk_node::node::{FetchSpec, NodeOptions};

#[tokio::main]
async fn main() -> ExitCode {
    match fetch().await {
        Ok(network) => {
            println!("{network}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("{:?}: {problem}", problem.kind);
            ExitCode::FAILURE
        }
    }
}

async fn fetch() -> Result<String, Problem> {
    let other = |error: &dyn std::fmt::Display| Problem::new(ProblemKind::Other, error);
    let spec: FetchSpec =
        serde_json::from_reader(std::io::stdin()).map_err(|error| other(&error))?;
    let home = Home::from_env().map_err(|error| other(&error))?;
    let access = Access::open(home, NodeOptions::default()).await?;
    let fetched = access.fetch(&spec, &|_| {}).await;
    access.shutdown().await;
    Ok(fetched?.network_name)
}
