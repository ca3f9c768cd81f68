//! Requests and replies about names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// One name of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsName {
    /// Name of the network.
    pub network: String,
    /// The name as it is asked for, without suffix; of a PTR record the address.
    pub name: String,
    /// `A`, `AAAA` or `PTR`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Addresses, or names of a PTR record.
    pub values: Vec<String>,
    /// For how many seconds clients may keep it.
    pub ttl: u32,
}

/// Reply to `GET /v1/dns`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsList {
    /// `weft/dns/1`.
    pub schema: String,
    /// The search domain: every name is also known as `<name>.<network>.<domain>`.
    pub domain: String,
    /// By network, name and type.
    pub names: Vec<DnsName>,
}

/// One record of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsRecord {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// For how many seconds it may be kept.
    pub ttl: u32,
    /// What it says.
    pub value: String,
}

/// What one network's server says of a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsAnswer {
    /// Name of the network.
    pub network: String,
    /// What became of the question: `answered`, `empty`, `absent`, `forwarded`, `cached`, `failed` or `refused`.
    pub outcome: String,
    /// The response code, such as `NOERROR`.
    pub code: String,
    /// The answer.
    pub records: Vec<DnsRecord>,
}

/// Reply to `GET /v1/dns/lookup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsLookup {
    /// `weft/dns-lookup/1`.
    pub schema: String,
    /// What was asked for.
    pub name: String,
    /// The type asked for.
    #[serde(rename = "type")]
    pub kind: String,
    /// One per network that knows the name; of a network that was named, whatever it says.
    pub answers: Vec<DnsAnswer>,
}

/// How long answers took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsTimes {
    /// Upper ends of the classes in microseconds; what took longer is in one more class.
    pub bounds_us: Vec<u64>,
    /// How many answers fell into each class.
    pub counts: Vec<u64>,
    /// All of them together, in microseconds.
    pub sum_us: u64,
}

impl DnsTimes {
    /// The end of the class below which so many percent of the answers lie, in microseconds; none before the
    /// first, or in the class without an end.
    pub fn percentile_us(&self, percent: u64) -> Option<u64> {
        let all: u64 = self.counts.iter().sum();
        let wanted = (all * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let class = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        self.bounds_us.get(class).copied()
    }
}

/// Names in the status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsStatus {
    /// Networks whose names are served.
    pub networks: usize,
    /// Names of all of them together.
    pub names: usize,
    /// Queries by what became of them.
    pub queries: BTreeMap<String, u64>,
    /// What was dropped without an answer, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Questions to upstreams by what came of them.
    pub upstreams: BTreeMap<String, u64>,
    /// How long answers took that needed nobody else.
    pub local: DnsTimes,
    /// How long answers took that waited for an upstream.
    pub forwarded: DnsTimes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_end_of_its_class() {
        let times = |counts: &[u64]| DnsTimes {
            bounds_us: vec![50, 100],
            counts: counts.to_vec(),
            sum_us: 0,
        };
        assert_eq!(times(&[99, 1, 0]).percentile_us(99), Some(50));
        assert_eq!(times(&[98, 2, 0]).percentile_us(99), Some(100));
        assert_eq!(times(&[0, 0, 1]).percentile_us(99), None);
        assert_eq!(times(&[0, 0, 0]).percentile_us(99), None);
    }
}
