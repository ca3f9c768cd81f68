//! The format of resolv.conf: whom the host asks, and what a workload is told.
//!
//! Pure: text in, text out.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// The port of DNS.
pub const PORT: u16 = 53;
/// How many servers a resolver looks at (`MAXNS` of resolv.h).
pub const SERVERS_MAX: usize = 3;

/// Reads the servers of a resolv.conf, at most [`SERVERS_MAX`]; `scope` tells the index of an interface by its name.
/// Lines that say something else, or nothing that can be read, are passed over as resolvers do.
pub fn servers(text: &str, scope: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let values = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    let addresses = values.filter_map(|value| server(value, &scope));
    addresses.take(SERVERS_MAX).collect()
}

fn server(value: &str, scope: impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    match value.split_once('%') {
        None => Some(SocketAddr::new(value.parse().ok()?, PORT)),
        Some((address, name)) => {
            let index = name.parse().ok().or_else(|| scope(name))?;
            Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into())
        }
    }
}

/// The text for a workload: its networks' servers, at most [`SERVERS_MAX`]. With `ndots:0` a name without a dot is asked
/// for as it is first, which its network knows.
pub fn text(mark: &str, servers: &[IpAddr], domain: &str) -> String {
    let mut text = format!("{mark}\n");
    for server in servers.iter().take(SERVERS_MAX) {
        text += &format!("nameserver {server}\n");
    }
    text + &format!("search {domain}\noptions ndots:0\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_as_resolvers_do() {
        let text = "# nameserver 192.0.2.9\nsearch a b\nnameserver 192.0.2.1\n\tnameserver\t2001:db8::1 # here\n\
                    nameserver nonsense\nnameserver\nnameserver fe80::1%eth0\nnameserver 192.0.2.4\n";
        let scope = |name: &str| (name == "eth0").then_some(7);
        let found: Vec<String> = servers(text, scope)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]
        );
        assert!(servers("nameserver fe80::1%gone\n", scope).is_empty());
    }

    #[test]
    fn a_workload_is_told_of_three_servers_at_most() {
        let all: Vec<IpAddr> = (1..=4).map(|i| [10, 0, i, 1].into()).collect();
        let text = text("# mine", &all, "weft.internal");
        assert_eq!(
            text,
            "# mine\nnameserver 10.0.1.1\nnameserver 10.0.2.1\nnameserver 10.0.3.1\nsearch weft.internal\n\
             options ndots:0\n"
        );
        assert_eq!(servers(&text, |_| None).len(), SERVERS_MAX);
    }
}
