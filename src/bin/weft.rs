//! The one binary: everything happens in the library.

use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use weft::bench::cli::BenchArgs;
use weft::frontend::cli::{self, Extra};
use weft::lab::cli::LabArgs;

/// Commands of layers beside the front end.
const EXTRAS: &[Extra] = &[
    Extra {
        name: "lab",
        command: lab,
        run: |matches| run(matches, weft::lab::cli::run),
    },
    Extra {
        name: "bench",
        command: bench,
        run: |matches| run(matches, weft::bench::cli::run),
    },
];

fn main() -> ExitCode {
    cli::main(std::env::args_os(), EXTRAS)
}

fn lab() -> Command {
    let about = "Build and run test networks of namespaces on this machine";
    LabArgs::augment_args(Command::new("lab").about(about))
        .subcommand_required(true)
        .arg_required_else_help(true)
}

fn bench() -> Command {
    BenchArgs::augment_args(
        Command::new("bench").about("Measure weft beside the kernel's VXLAN and others"),
    )
}

fn run<T: FromArgMatches>(
    matches: &ArgMatches,
    work: fn(T) -> anyhow::Result<ExitCode>,
) -> ExitCode {
    let parsed = T::from_arg_matches(matches).map_err(anyhow::Error::from);
    parsed.and_then(work).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
