//! The one binary: everything happens in the library.

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match args.get(1).and_then(|word| word.to_str()) {
        Some("bench") => weft::bench::cli::main(args),
        _ => weft::frontend::cli::main(args),
    }
}
