//! Process limits and memory use.

use std::fs;
use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SysError;
use super::error::Context;

/// Raises the soft limit of open files to the hard one and returns it.
///
/// # Errors
/// The kernel's error, not expected: a process may always do this.
pub fn raise_open_files() -> Result<u64, SysError> {
    let object = || "limit of open files";
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("read", object)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise", object)?;
    }
    Ok(hard)
}

/// Returns the memory this process has resident, in bytes.
///
/// # Errors
/// `/proc` is not mounted, or reads as nothing known.
pub fn resident_bytes() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    parse_resident(&status).ok_or_else(|| io::Error::other("no VmRSS in /proc/self/status"))
}

fn parse_resident(status: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = raise_open_files().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(
            parse_resident("VmSize:\t9 kB\nVmRSS:\t    1234 kB\n"),
            Some(1_263_616)
        );
        assert_eq!(parse_resident("VmRSS:\tmany\n"), None);
        assert!(resident_bytes().unwrap() > 100_000);
    }
}
