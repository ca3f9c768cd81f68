//! What is measured: the tests by name, and the quantities they give.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::traffic::round_trip::Protocol;

/// One test of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// `tcp<streams>[-<congestion control>]`: stream throughput.
    Tcp {
        /// Parallel streams.
        streams: usize,
        /// Congestion control of the sender; the system's default when absent.
        congestion: Option<String>,
    },
    /// `udp<bytes>`: datagram flood.
    Udp {
        /// Payload bytes per datagram.
        len: usize,
    },
    /// `rr[<ms>]` over UDP, `tcprr[<ms>]` over TCP: request and response.
    RoundTrip {
        /// Transport.
        protocol: Protocol,
        /// Time between requests in milliseconds, 0 = back to back.
        spacing_ms: u64,
    },
    /// `ping<ms>`: ICMP echo.
    Ping {
        /// Time between requests in milliseconds.
        spacing_ms: u64,
    },
    /// `loaded`: UDP round trips at 10 ms beside four TCP streams.
    Loaded,
    /// `idle`: processor time of the tunnel's processes while nothing is sent.
    Idle,
    /// `integrity`: is what arrives what was sent? Run in the first round of each profile only.
    Integrity,
}

impl Test {
    /// The tests of a full run; those with BBR only where the kernel has it.
    pub fn full(congestion_available: &[String]) -> Vec<Self> {
        let names = [
            "integrity",
            "idle",
            "ping10",
            "ping1",
            "rr",
            "rr1",
            "rr10",
            "tcprr",
            "tcp1-bbr",
            "tcp1-cubic",
            "tcp4-cubic",
            "tcp16-cubic",
            "udp64",
            "udp512",
            "udp1400",
            "loaded",
        ];
        let offered = |test: &Self| match test {
            Self::Tcp {
                congestion: Some(name),
                ..
            } => congestion_available.contains(name),
            _ => true,
        };
        names
            .iter()
            .filter_map(|name| name.parse().ok())
            .filter(offered)
            .collect()
    }

    /// The tests of `--quick`.
    pub fn quick() -> Vec<Self> {
        let names = [
            "integrity",
            "ping10",
            "rr",
            "tcp1-cubic",
            "tcp4-cubic",
            "udp64",
        ];
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Whether its figure is payload per second, which is worth nothing if the payload is wrong.
    pub fn is_throughput(&self) -> bool {
        matches!(self, Self::Tcp { .. } | Self::Udp { .. })
    }
}

impl FromStr for Test {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let unknown = || {
            format!(
                "unknown test `{name}` (tcp<streams>[-<congestion control>], udp<bytes>, rr[<ms>], \
                 tcprr[<ms>], ping<ms>, loaded, idle, integrity)"
            )
        };
        let number = |text: &str| text.parse::<u64>().map_err(|_| unknown());
        let spacing = |text: &str| if text.is_empty() { Ok(0) } else { number(text) };
        let test = if name == "loaded" {
            Self::Loaded
        } else if name == "idle" {
            Self::Idle
        } else if name == "integrity" {
            Self::Integrity
        } else if let Some(rest) = name.strip_prefix("tcprr") {
            Self::RoundTrip {
                protocol: Protocol::Tcp,
                spacing_ms: spacing(rest)?,
            }
        } else if let Some(rest) = name.strip_prefix("rr") {
            Self::RoundTrip {
                protocol: Protocol::Udp,
                spacing_ms: spacing(rest)?,
            }
        } else if let Some(rest) = name.strip_prefix("ping") {
            Self::Ping {
                spacing_ms: number(rest)?,
            }
        } else if let Some(rest) = name.strip_prefix("udp") {
            Self::Udp {
                len: number(rest)? as usize,
            }
        } else if let Some(rest) = name.strip_prefix("tcp") {
            let (streams, congestion) = match rest.split_once('-') {
                Some((streams, name)) => (streams, Some(name.to_owned())),
                None => (rest, None),
            };
            Self::Tcp {
                streams: number(streams)? as usize,
                congestion,
            }
        } else {
            return Err(unknown());
        };
        match test {
            Self::Tcp {
                streams: 0 | 65.., ..
            } => Err(format!("`{name}`: 1 to 64 streams")),
            Self::Udp { len: 0 | 8973.. } => Err(format!("`{name}`: 1 to 8972 bytes")),
            Self::Ping { spacing_ms: 0 } => Err(format!("`{name}`: at least 1 ms")),
            test => Ok(test),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spacing = |ms: u64| {
            if ms == 0 {
                String::new()
            } else {
                ms.to_string()
            }
        };
        match self {
            Self::Tcp {
                streams,
                congestion: Some(name),
            } => write!(f, "tcp{streams}-{name}"),
            Self::Tcp {
                streams,
                congestion: None,
            } => write!(f, "tcp{streams}"),
            Self::Udp { len } => write!(f, "udp{len}"),
            Self::RoundTrip {
                protocol: Protocol::Udp,
                spacing_ms,
            } => {
                write!(f, "rr{}", spacing(*spacing_ms))
            }
            Self::RoundTrip {
                protocol: Protocol::Tcp,
                spacing_ms,
            } => {
                write!(f, "tcprr{}", spacing(*spacing_ms))
            }
            Self::Ping { spacing_ms } => write!(f, "ping{spacing_ms}"),
            Self::Loaded => f.write_str("loaded"),
            Self::Idle => f.write_str("idle"),
            Self::Integrity => f.write_str("integrity"),
        }
    }
}

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Throughput.
    Higher,
    /// Latency, cost, memory.
    Lower,
}

/// One quantity of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantity {
    /// Test name, a slash and the part where a test gives several: `rr10/p99`.
    pub id: String,
    /// Words for a reader.
    pub title: String,
    /// Unit of the samples.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// Plotted, and watched for noise. Tails and costs are not: they vary by nature.
    pub headline: bool,
}

impl Quantity {
    /// A quantity where more is better.
    pub fn throughput(id: String, title: String, unit: &'static str) -> Self {
        Self {
            id,
            title,
            unit,
            better: Better::Higher,
            headline: true,
        }
    }

    /// A quantity where less is better.
    pub fn cost(id: String, title: String, unit: &'static str) -> Self {
        Self {
            id,
            title,
            unit,
            better: Better::Lower,
            headline: false,
        }
    }

    /// The same, but plotted and watched for noise.
    pub fn headline(self) -> Self {
        Self {
            headline: true,
            ..self
        }
    }
}

/// One measured value.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Of what.
    pub quantity: Quantity,
    /// How much, in the quantity's unit.
    pub value: f64,
}

impl Sample {
    /// Pairs the two.
    pub fn new(quantity: Quantity, value: f64) -> Self {
        Self { quantity, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_alike() {
        for name in [
            "tcp1",
            "tcp16-bbr",
            "udp64",
            "rr",
            "rr10",
            "tcprr",
            "tcprr1",
            "ping1",
            "loaded",
            "idle",
            "integrity",
        ] {
            assert_eq!(name.parse::<Test>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_list_of_tests() {
        for name in [
            "", "tcp", "tcpx", "udp0", "tcp0", "ping0", "ping", "speed", "udp99999",
        ] {
            assert!(name.parse::<Test>().is_err(), "{name}");
        }
        assert!("speed".parse::<Test>().unwrap_err().contains("integrity"));
    }

    #[test]
    fn a_full_run_leaves_out_what_the_kernel_lacks() {
        let with = Test::full(&["bbr".to_owned(), "cubic".to_owned()]);
        let without = Test::full(&["cubic".to_owned()]);
        assert_eq!(with.len(), without.len() + 1);
    }
}
