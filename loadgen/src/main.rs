//! The command line of loadgen.

mod control_args;
mod run;
mod signals;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Creates KVM guests whose behaviour is known: a load to check tools against
#[derive(Parser)]
#[command(name = "loadgen", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Args),
}

fn main() -> ExitCode {
    common::session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Run(args) => run::run(&args),
    }
}
