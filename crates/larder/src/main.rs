//! The program: reads the command line and the configuration, runs one command, and ends with 0, with 1 and a sentence
//! that says what to do, or with 2 for wrong usage. What the commands do is in the crates below.

mod cli;
mod commands;
mod config;
mod formats;
mod house;
mod housekeeping;
mod log;
mod output;
mod serve;

use std::{io, process::ExitCode, time::Duration};

use clap::Parser as _;

use crate::cli::Cli;

/// How long computations that nobody waits for have to end.
const LAST_MOMENT: Duration = Duration::from_secs(1);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let verbose = cli.global.verbose || environment("LARDER_LOG").is_some_and(|filter| filter.contains("debug"));
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(format!("larder: {}", explain(&error, verbose)));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(commands::run(cli));
    // Whatever still computes is for nobody any more.
    runtime.shutdown_timeout(LAST_MOMENT);
    ended
}

/// What happened and what to do. The causes of an error of the house are for whoever asked to see them.
fn explain(error: &anyhow::Error, verbose: bool) -> String {
    let mut texts = Vec::new();
    for cause in error.chain() {
        texts.push(cause.to_string());
        if !verbose && cause.is::<larder_core::Error>() {
            break;
        }
    }
    texts.join(": ")
}

/// Whether nobody reads on: `larder audit list | head` has got what it wanted.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A variable of the environment, if it is text.
#[expect(clippy::disallowed_methods, reason = "this is the one place: the configuration is handed this function")]
fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
