//! The one binary: everything happens in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    weft::frontend::cli::main(std::env::args_os())
}
