//! The command line of loadgen.

mod boots;
mod check;
mod churn;
mod control_args;
#[cfg(test)]
#[path = "../../tests/util/docs.rs"]
mod docs;
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
#[command(name = "loadgen", version, disable_help_subcommand = true, max_term_width = 100,
          after_long_help = EXAMPLES)]
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

const EXAMPLES: &str = "\
Examples:
  loadgen run --vms 24 --duration 10
                            an overload of 24 spinning guests, for ten seconds
  loadgen run --vms 1000 --workload idle=100 --truth ticks.jsonl
                            1,000 guests that tick 100 times a second
  loadgen run --vms 2 --workload exits=cpuid:1009,pio:503
                            exits, so many and no more, for a tool to count
  loadgen run --vms 8 --workload memory=16M,duplicate=50 --truth truth.jsonl
                            guests that have half of their pages in common
  loadgen check --json | jq -r '.guests | .guests, .limit'
                            how many guests has this host room for?";

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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn page_and_completions_are_of_these_options() {
        docs::check(Args::command(), "loadgen", "kvm-loadgen");
    }
}
