//! Results of ADD, ours and those of plugins before us, in the format of the version asked for.
//!
//! What a plugin before us says beyond the keys known here is passed on as it is.

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::VERSIONS;

/// A result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Version of its format.
    #[serde(rename = "cniVersion", default)]
    pub version: String,
    /// Interfaces that the attachment made.
    #[serde(default, deserialize_with = "or_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(default, deserialize_with = "or_default")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(default, deserialize_with = "or_default")]
    pub routes: Vec<Route>,
    /// Who answers for names.
    #[serde(default, deserialize_with = "or_default")]
    pub dns: Dns,
    /// Everything else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU, from 1.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The namespace it is in; empty for the node's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Everything else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// An address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// `4` or `6`, before 1.0.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Index of its interface in the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<i64>,
    /// With prefix length.
    pub address: IpNetwork,
    /// The subnet's gateway.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gateway: String,
    /// Everything else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// A route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNetwork,
    /// By whom; empty for the address's gateway.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub gw: String,
    /// Everything else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Who answers for names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// Servers.
    #[serde(
        default,
        deserialize_with = "or_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub nameservers: Vec<String>,
    /// Everything else.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Dns {
    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.nameservers.is_empty() && self.more.is_empty()
    }
}

impl Attachment {
    /// Puts another's interfaces, addresses, routes and servers behind those here.
    pub fn append(&mut self, other: Attachment) {
        let offset = i64::try_from(self.interfaces.len()).unwrap_or(i64::MAX);
        self.interfaces.extend(other.interfaces);
        self.ips.extend(other.ips.into_iter().map(|mut ip| {
            ip.interface = ip.interface.map(|index| index.saturating_add(offset));
            ip
        }));
        for route in other.routes {
            let there = |one: &&Route| one.dst == route.dst && one.gw == route.gw;
            if self.routes.iter().find(there).is_none() {
                self.routes.push(route);
            }
        }
        for server in other.dns.nameservers {
            if !self.dns.nameservers.contains(&server) {
                self.dns.nameservers.push(server);
            }
        }
    }

    /// In the format of a version.
    pub fn to_json(mut self, version: &str) -> String {
        version.clone_into(&mut self.version);
        for ip in &mut self.ips {
            let family = if ip.address.is_ipv4() { "4" } else { "6" };
            ip.version = before(version, "1.0.0").then(|| family.to_owned());
        }
        if before(version, "1.1.0") {
            for interface in &mut self.interfaces {
                interface.mtu = None;
            }
        }
        // Every key is a word and every value plain data.
        let text = serde_json::to_string_pretty(&self).unwrap_or_default();
        format!("{text}\n")
    }
}

/// Whether one version of the protocol is older than another; both must be known.
pub fn before(version: &str, other: &str) -> bool {
    let place = |wanted: &str| VERSIONS.iter().position(|known| *known == wanted);
    place(version) < place(other)
}

/// Go writes an empty list as null.
pub(super) fn or_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Attachment {
        Attachment {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "02:42:0a:00:01:01".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/a".into(),
                ..Interface::default()
            }],
            ips: vec![Ip {
                version: None,
                interface: Some(0),
                address: "10.0.1.1/24".parse().unwrap(),
                gateway: "10.0.1.254".into(),
                more: Map::new(),
            }],
            dns: Dns {
                nameservers: vec!["10.0.1.254".into()],
                ..Dns::default()
            },
            ..Attachment::default()
        }
    }

    #[test]
    fn each_version_gets_its_format() {
        let read = |version: &str| -> Value {
            serde_json::from_str(&ours().to_json(version)).expect("JSON")
        };
        for version in VERSIONS {
            let value = read(version);
            assert_eq!(value["cniVersion"], *version);
            let family = &value["ips"][0]["version"];
            assert_eq!(*family == "4", before(version, "1.0.0"), "{version}");
            assert_eq!(family.is_null(), !before(version, "1.0.0"), "{version}");
            let mtu = &value["interfaces"][0]["mtu"];
            assert_eq!(mtu.is_null(), before(version, "1.1.0"), "{version}");
            assert_eq!(value["ips"][0]["interface"], 0);
        }
    }

    #[test]
    fn what_came_before_is_kept_and_indexes_move() {
        let text = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"br0","speed":7}],
            "ips":null,"routes":[{"dst":"0.0.0.0/0","gw":"10.9.9.9"}],"dns":{"domain":"a"},"own":true}"#;
        let mut all: Attachment = serde_json::from_str(text).unwrap();
        all.append(ours());
        let value: Value = serde_json::from_str(&all.to_json("1.0.0")).unwrap();
        assert_eq!(value["interfaces"][0]["speed"], 7);
        assert_eq!(value["interfaces"][1]["name"], "eth0");
        assert_eq!(value["ips"][0]["interface"], 1);
        assert_eq!(value["dns"]["domain"], "a");
        assert_eq!(value["dns"]["nameservers"][0], "10.0.1.254");
        assert_eq!(value["own"], true);
    }
}
