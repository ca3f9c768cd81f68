//! The CNI plugin `weft-cni`: the protocol of CNI 1.1.0, and nothing more. What there is, the agent knows.
//!
//! | file | owns |
//! |---|---|
//! | [`call`] | what a runtime hands in: `CNI_*` variables and the configuration on standard input |
//! | [`verbs`] | ADD, DEL, CHECK, GC, STATUS, VERSION |
//! | [`identity`] | how an endpoint is found again by container id and interface name |
//! | [`attachment`] | results, in the format of the version asked for |
//! | [`kernel`] | what there is in the workload's namespace |
//! | [`failure`] | errors with the protocol's codes |
//!
//! Standard output carries one JSON document or nothing; the exit code is 0 or 1.

pub mod attachment;
pub mod call;
pub mod failure;
pub mod identity;
pub mod kernel;
pub mod verbs;

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;

use self::call::{Environment, STDIN_MAX};
use self::failure::{Code, Failure};
use super::client::block_on;

/// The name the program is the plugin by.
pub const PROGRAM: &str = "weft-cni";

/// Versions of the protocol, oldest first.
pub const VERSIONS: &[&str] = &["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Whether a program called by this name is to be the plugin.
pub fn is_called(program: Option<&OsString>) -> bool {
    program
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == PROGRAM)
}

/// Does what the environment and standard input ask for, and tells the exit code.
pub fn main() -> u8 {
    let environment = Environment::new(|name| std::env::var_os(name));
    let (text, code) = answer(&environment, std::io::stdin().lock());
    let mut stdout = std::io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and(stdout.flush());
    if let Err(error) = written {
        // A runtime that does not know the answer must not take it for success.
        eprintln!("error: cannot write the answer: {error}");
        return 1;
    }
    code
}

/// What is to be printed, and the exit code.
pub fn answer(environment: &Environment, input: impl Read) -> (String, u8) {
    let mut version = call::NEWEST.to_owned();
    let done = read(input).and_then(|bytes| {
        let call = environment.call(&bytes, &mut version)?;
        let done = block_on(async { Ok(verbs::run(&call).await) });
        done.unwrap_or_else(|error| Err(Failure::of(&error)))
    });
    match done {
        Ok(text) => (text, 0),
        Err(failure) => (failure.to_json(&version), 1),
    }
}

fn read(input: impl Read) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = input.take(STDIN_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::new(Code::Io, format!("cannot read the configuration: {e}")))?;
    if bytes.len() as u64 > STDIN_MAX {
        return Err(Failure::new(
            Code::Decoding,
            format!("the configuration is larger than {STDIN_MAX} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
