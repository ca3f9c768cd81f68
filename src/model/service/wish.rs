//! What an operator may ask of a service, and the text of a published port.
//!
//! ```text
//! short   [BIND:][PUBLISHED:]TARGET[/tcp|/udp][,mode=ingress|host][,proxy-protocol]
//! long    target=80,published=8080,protocol=udp,mode=host,bind=192.0.2.1,proxy-protocol
//! ```
//! The rules beyond the form are in [`super::plan`].

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Balance, EndpointMode, Probe, Protocol, PublishMode, PublishedPort};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::suggest;

/// A new service. Body of `POST /v1/services`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CreateService {
    /// Its name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How its name leads to its backends.
    pub mode: EndpointMode,
    /// Which backend a new connection goes to.
    pub balance: Balance,
    /// Names or ids of its networks, at least one.
    pub networks: Vec<String>,
    /// Its published ports.
    pub ports: Vec<PortWish>,
    /// What backends have to answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthWish>,
}

/// What is to change of a service; what is not said stays. Body of `POST /v1/services/{service}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateService {
    /// Labels that come, or get another value.
    pub labels_add: BTreeMap<String, String>,
    /// Names of labels that go.
    pub labels_remove: Vec<String>,
    /// Networks that come.
    pub networks_add: Vec<String>,
    /// Networks that go.
    pub networks_remove: Vec<String>,
    /// Published ports that come, after those that go.
    pub ports_add: Vec<PortWish>,
    /// Published ports that go: all with this target and protocol, and with this bind and published port where given.
    pub ports_remove: Vec<PortWish>,
    /// How its name leads to its backends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<EndpointMode>,
    /// Which backend a new connection goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<Balance>,
    /// What backends have to answer; what is left out of it stays as it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthWish>,
    /// Backends have to answer nothing any more.
    pub no_health: bool,
}

/// A health check as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthWish {
    /// What is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// The backends' port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time from one check to the next, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Time a check may take, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// So many failures in a row make a backend unhealthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

/// A published port as it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PortWish {
    /// The address on nodes; every one of them when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind: Option<IpAddr>,
    /// The port on nodes; a free one from 30000 to 32767 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<u16>,
    /// The port of the backends.
    pub target: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// On which nodes it answers.
    pub mode: PublishMode,
    /// Begin each connection with a PROXY protocol header.
    pub proxy_protocol: bool,
}

impl PortWish {
    /// Whether a published port is meant by this, when it is to go.
    pub fn means(&self, port: &PublishedPort) -> bool {
        self.target == port.target
            && self.protocol == port.protocol
            && self.published.is_none_or(|number| number == port.published)
            && self.bind.is_none_or(|bind| Some(bind) == port.bind)
    }

    fn set(&mut self, key: &str, value: Option<&str>, text: &str) -> Result<(), ApiError> {
        if key == "proxy-protocol" {
            self.proxy_protocol = match value {
                None | Some("true" | "1") => true,
                Some("false" | "0") => false,
                Some(_) => return Err(malformed(text, "proxy-protocol is true or false")),
            };
            return Ok(());
        }
        let value = value.ok_or_else(|| unknown_key(key, text))?;
        match key {
            "mode" => self.mode = parse_mode(value, text)?,
            "protocol" => self.protocol = parse_protocol(value, text)?,
            "target" | "target_port" => self.target = parse_port(value, text)?,
            "published" | "published_port" => self.published = Some(parse_port(value, text)?),
            "bind" | "host_ip" => self.bind = Some(parse_bind(value, text)?),
            _ => return Err(unknown_key(key, text)),
        }
        Ok(())
    }
}

impl FromStr for PortWish {
    type Err = ApiError;

    fn from_str(text: &str) -> Result<PortWish, ApiError> {
        let mut wish = PortWish::default();
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let long = first.contains('=');
        if !long {
            parse_short(first, text, &mut wish)?;
        }
        for part in long.then_some(first).into_iter().chain(parts) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            let of_long = !matches!(key, "mode" | "proxy-protocol");
            if !long && of_long {
                return Err(unknown_key(key, text));
            }
            wish.set(key, value, text)?;
        }
        if wish.target == 0 {
            return Err(malformed(text, "it does not say the backends' port"));
        }
        Ok(wish)
    }
}

/// `[BIND:][PUBLISHED:]TARGET[/PROTOCOL]`; an IPv6 bind stands in brackets.
fn parse_short(short: &str, text: &str, wish: &mut PortWish) -> Result<(), ApiError> {
    let (ports, protocol) = match short.split_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol, text)?),
        None => (short, Protocol::Tcp),
    };
    wish.protocol = protocol;
    let (bind, ports) = match ports.strip_prefix('[') {
        Some(rest) => {
            let (bind, ports) = rest
                .split_once("]:")
                .ok_or_else(|| malformed(text, "the bracket of the address is not closed"))?;
            (Some(bind), ports)
        }
        None => match ports.matches(':').count() {
            0 | 1 => (None, ports),
            2 => {
                let (bind, ports) = ports.split_once(':').unwrap_or(("", ports));
                (Some(bind), ports)
            }
            _ => return Err(malformed(text, "an IPv6 address stands in brackets")),
        },
    };
    let (published, target) = match ports.split_once(':') {
        Some((published, target)) => (Some(published), target),
        None if bind.is_some() => {
            return Err(malformed(text, "behind an address two ports are needed"));
        }
        None => (None, ports),
    };
    wish.bind = bind.map(|bind| parse_bind(bind, text)).transpose()?;
    wish.target = parse_port(target, text)?;
    // As in Docker, `127.0.0.1::80` leaves the published port open.
    let published = published.filter(|p| !(p.is_empty() && bind.is_some()));
    wish.published = published.map(|p| parse_port(p, text)).transpose()?;
    Ok(())
}

fn parse_port(port: &str, text: &str) -> Result<u16, ApiError> {
    if port.contains('-') {
        return Err(malformed(
            text,
            "ranges are not taken, give --publish once for each port",
        ));
    }
    let number = port.parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| malformed(text, &format!("\"{port}\" is not a port from 1 to 65535")))
}

fn parse_bind(bind: &str, text: &str) -> Result<IpAddr, ApiError> {
    let bare = bind.strip_prefix('[').and_then(|b| b.strip_suffix(']'));
    let address = bare.unwrap_or(bind).parse::<IpAddr>();
    address.map_err(|_| malformed(text, &format!("\"{bind}\" is not an IP address")))
}

fn parse_protocol(protocol: &str, text: &str) -> Result<Protocol, ApiError> {
    match protocol {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(malformed(
            text,
            &format!("protocol \"{protocol}\" is neither tcp nor udp"),
        )),
    }
}

fn parse_mode(mode: &str, text: &str) -> Result<PublishMode, ApiError> {
    match mode {
        "ingress" => Ok(PublishMode::Ingress),
        "host" => Ok(PublishMode::Host),
        _ => Err(malformed(
            text,
            &format!("mode \"{mode}\" is neither ingress nor host"),
        )),
    }
}

fn unknown_key(key: &str, text: &str) -> ApiError {
    let hint = suggest::hint(key, KEYS);
    malformed(text, &format!("\"{key}\" is no part of it{hint}"))
}

fn malformed(text: &str, why: &str) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidPort,
        format!("\"{text}\" is not a published port: {why}"),
        "write [BIND:]PUBLISHED:TARGET[/udp][,mode=host], such as 8080:80, or target=80,published=8080,mode=host",
    )
}

const KEYS: [&str; 6] = [
    "target",
    "published",
    "protocol",
    "mode",
    "bind",
    "proxy-protocol",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> PortWish {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn wish(bind: Option<&str>, published: Option<u16>, target: u16) -> PortWish {
        PortWish {
            bind: bind.map(|b| b.parse().unwrap()),
            published,
            target,
            ..PortWish::default()
        }
    }

    #[test]
    fn the_short_form_is_read() {
        assert_eq!(parse("80"), wish(None, None, 80));
        assert_eq!(parse("8080:80"), wish(None, Some(8080), 80));
        assert_eq!(
            parse("192.0.2.1:8080:80"),
            wish(Some("192.0.2.1"), Some(8080), 80)
        );
        assert_eq!(parse("127.0.0.1::80"), wish(Some("127.0.0.1"), None, 80));
        assert_eq!(parse("[::1]:8080:80"), wish(Some("::1"), Some(8080), 80));
        let udp = PortWish {
            protocol: Protocol::Udp,
            mode: PublishMode::Host,
            ..wish(None, Some(53), 5353)
        };
        assert_eq!(parse("53:5353/udp,mode=host"), udp);
        let proxied = PortWish {
            proxy_protocol: true,
            ..wish(None, Some(443), 8443)
        };
        assert_eq!(parse("443:8443/tcp,mode=ingress,proxy-protocol"), proxied);
    }

    #[test]
    fn dockers_long_form_is_read() {
        let expected = PortWish {
            protocol: Protocol::Udp,
            mode: PublishMode::Host,
            ..wish(None, Some(8080), 80)
        };
        assert_eq!(
            parse("published=8080,target=80,protocol=udp,mode=host"),
            expected
        );
        assert_eq!(parse("target=80"), wish(None, None, 80));
        let bound = PortWish {
            proxy_protocol: true,
            ..wish(Some("::1"), Some(8080), 80)
        };
        assert_eq!(
            parse("bind=[::1],target=80,published=8080,proxy-protocol=true"),
            bound
        );
        assert_eq!(
            parse("host_ip=::1,target_port=80,published_port=8080,proxy-protocol"),
            bound
        );
    }

    #[test]
    fn what_is_no_port_says_why() {
        for (text, words) in [
            ("", "\"\" is not a port"),
            ("x", "\"x\" is not a port from 1 to 65535"),
            ("0", "\"0\" is not a port"),
            ("65536", "is not a port"),
            ("8080:", "\"\" is not a port"),
            (":80", "\"\" is not a port"),
            ("8080-8090:80", "ranges are not taken"),
            ("8080:80/sctp", "neither tcp nor udp"),
            ("8080:80,mode=swarm", "neither ingress nor host"),
            ("8080:80,target=80", "\"target\" is no part of it"),
            ("::1:8080:80", "stands in brackets"),
            ("[::1]8080:80", "bracket"),
            ("[::1]:80", "two ports are needed"),
            ("web:8080:80", "\"web\" is not an IP address"),
            ("published=80", "does not say the backends' port"),
            ("target=80,publish=81", "did you mean \"published\"?"),
            ("target", "is not a port"),
            ("target=80,proxy-protocol=v1", "true or false"),
        ] {
            let error = text.parse::<PortWish>().unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidPort);
            assert!(error.message.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn a_port_to_go_is_named_by_its_target_or_in_full() {
        let port = PublishedPort {
            bind: None,
            published: 8080,
            target: 80,
            protocol: Protocol::Tcp,
            mode: PublishMode::Ingress,
            proxy_protocol: false,
        };
        for (text, means) in [
            ("80", true),
            ("80/tcp", true),
            ("8080:80", true),
            ("81", false),
            ("80/udp", false),
            ("8081:80", false),
            ("127.0.0.1:8080:80", false),
        ] {
            assert_eq!(parse(text).means(&port), means, "{text}");
        }
    }
}
