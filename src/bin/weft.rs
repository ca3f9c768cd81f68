//! The one binary: everything happens in the library. Puts the parts' command lines together.

use std::process::ExitCode;

use clap::Subcommand;
use weft::{bench, frontend, lab};

#[derive(Subcommand)]
enum Instruments {
    Lab(Box<lab::cli::LabArgs>),
    Bench(Box<bench::cli::BenchArgs>),
}

fn main() -> ExitCode {
    if cfg!(feature = "unchecked-bench") {
        eprintln!("error: built with the feature `unchecked-bench`, which is for benches only");
        return ExitCode::FAILURE;
    }
    if frontend::cni::is_called(std::env::args_os().next().as_ref()) {
        return ExitCode::from(frontend::cni::main());
    }
    frontend::cli::main(std::env::args_os(), |instrument| {
        let done = match instrument {
            Instruments::Lab(args) => lab::cli::run(*args),
            Instruments::Bench(args) => bench::cli::run(*args),
        };
        done.unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        })
    })
}
