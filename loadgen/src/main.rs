//! The command line of loadgen.

mod boots;
mod check;
mod churn;
mod control_args;
mod guests;
mod linux_args;
mod ramp;
mod run;
mod signals;
mod stdout;

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
    Check(check::Args),
    Ramp(ramp::Args),
}

fn main() -> ExitCode {
    common::session::main(run)
}

fn run(args: Args) -> Result<ExitCode> {
    match args.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Ramp(args) => ramp::run(&args),
    }
}
