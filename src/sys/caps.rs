//! Which capabilities the calling thread has.

use std::fs;
use std::io;

/// The capabilities the agent needs or can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Links, addresses, routes, buffer sizes past the limit.
    NetAdmin,
    /// Packet sockets.
    NetRaw,
    /// Make and enter network namespaces, mount them.
    SysAdmin,
    /// Open namespaces of other users' processes.
    SysPtrace,
    /// Bind ports below 1024.
    NetBindService,
}

impl Capability {
    /// Returns the bit number (`linux/capability.h`).
    fn bit(self) -> u32 {
        match self {
            Self::NetBindService => 10,
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysPtrace => 19,
            Self::SysAdmin => 21,
        }
    }

    /// Returns the usual name, for example `CAP_NET_ADMIN`.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetBindService => "CAP_NET_BIND_SERVICE",
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
        }
    }
}

/// A thread's effective capabilities, within its user namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    effective: u64,
}

impl Capabilities {
    /// Reads those of the calling thread.
    ///
    /// # Errors
    /// `/proc` is not mounted, or reads as nothing known.
    pub fn current() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/thread-self/status")?;
        let effective = parse(&status)
            .ok_or_else(|| io::Error::other("no CapEff in /proc/thread-self/status"))?;
        Ok(Self { effective })
    }

    /// Tells whether the capability is there.
    pub fn has(self, capability: Capability) -> bool {
        self.effective & 1 << capability.bit() != 0
    }

    /// Returns those of `wanted` that are not there.
    pub fn missing(self, wanted: &[Capability]) -> Vec<Capability> {
        wanted
            .iter()
            .copied()
            .filter(|capability| !self.has(*capability))
            .collect()
    }
}

fn parse(status: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read_from_the_status() {
        let caps = Capabilities {
            effective: parse("Name:\tx\nCapEff:\t0000000000003000\n").unwrap(),
        };
        assert!(caps.has(Capability::NetAdmin) && caps.has(Capability::NetRaw));
        let wanted = [Capability::NetAdmin, Capability::SysAdmin];
        assert_eq!(caps.missing(&wanted), [Capability::SysAdmin]);
        assert_eq!(Capability::SysAdmin.name(), "CAP_SYS_ADMIN");
    }

    #[test]
    fn a_status_without_the_line_is_no_set() {
        assert_eq!(parse("CapPrm:\t1\n"), None);
        assert_eq!(parse("CapEff:\tzz\n"), None);
        assert!(Capabilities::current().is_ok());
    }
}
