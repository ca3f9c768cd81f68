//! Ports of the nodes that weft itself needs: no service publishes them. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::agent::config::Settings;
use crate::agent::error::{ApiError, ErrorCode};
use crate::model::service::{PortWish, Protocol};

/// One of weft's own ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnPort {
    protocol: Protocol,
    number: u16,
    /// Where it is on this node alone; each node has it on an address of its own when absent.
    address: Option<IpAddr>,
    /// What it is for.
    pub what: &'static str,
    /// What would move it away.
    pub remedy: &'static str,
}

/// Finds the port of weft itself that is in the way of publishing this one.
pub fn in_the_way(
    settings: &Settings,
    bind: Option<IpAddr>,
    published: u16,
    protocol: Protocol,
) -> Option<OwnPort> {
    let same = |own: &OwnPort| own.number == published && own.protocol == protocol;
    ports(settings).find(|own| same(own) && own.meets(bind))
}

/// Refuses ports that the nodes need themselves.
///
/// # Errors
/// `port_taken`.
pub fn refuse(settings: &Settings, wishes: &[PortWish]) -> Result<(), ApiError> {
    for wish in wishes {
        let Some(published) = wish.published else {
            continue;
        };
        let bind = wish.bind.map(|bind| bind.to_canonical());
        let Some(own) = in_the_way(settings, bind, published, wish.protocol) else {
            continue;
        };
        let place = match bind {
            Some(bind) => SocketAddr::new(bind, published).to_string(),
            None => published.to_string(),
        };
        return Err(ApiError::new(
            ErrorCode::PortTaken,
            format!(
                "port {place}/{} belongs to weft itself: {}",
                wish.protocol, own.what
            ),
            format!("publish another port, or {}", own.remedy),
        ));
    }
    Ok(())
}

fn ports(settings: &Settings) -> impl Iterator<Item = OwnPort> {
    let of_cluster = |protocol, number, what, remedy| OwnPort {
        protocol,
        number,
        address: None,
        what,
        remedy,
    };
    let gossip = |protocol| {
        let remedy = "set gossip_port to another one on every node";
        of_cluster(protocol, settings.gossip_port, "the nodes' gossip", remedy)
    };
    let metrics = settings.metrics_listen.map(|listen| OwnPort {
        protocol: Protocol::Tcp,
        number: listen.port(),
        address: Some(listen.ip().to_canonical()),
        what: "the metrics of this node",
        remedy: "set metrics_listen to another one on this node",
    });
    let tunnel = of_cluster(
        Protocol::Udp,
        settings.vxlan_port,
        "the tunnel between the nodes",
        "set vxlan_port to another one on every node",
    );
    let managers = of_cluster(
        Protocol::Tcp,
        settings.control_port,
        "where managers answer",
        "set control_port to another one on every node",
    );
    let all = [
        tunnel,
        managers,
        gossip(Protocol::Tcp),
        gossip(Protocol::Udp),
    ];
    all.into_iter().chain(metrics)
}

impl OwnPort {
    /// Whether it cannot be beside a published one with this bind address. Nodes' own addresses are not loopback.
    fn meets(&self, bind: Option<IpAddr>) -> bool {
        match (bind, self.address) {
            (None, _) => true,
            (Some(bind), None) => !bind.is_loopback(),
            (Some(bind), Some(own)) => own.is_unspecified() || own == bind,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::agent::config::{Sources, merge, settings};

    fn some_settings(more: &[(&'static str, &str)]) -> Settings {
        let mut flags = BTreeMap::from([("vtep", "192.0.2.1".to_owned())]);
        flags.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        let sources = Sources {
            flags,
            ..Sources::default()
        };
        settings(&merge(&sources).unwrap(), "host").unwrap()
    }

    #[test]
    fn what_weft_needs_itself_is_refused_by_name() {
        let usual = some_settings(&[("metrics_listen", "127.0.0.1:9472")]);
        let refused = |text: &str| {
            let error = refuse(&usual, &[text.parse().unwrap()]).unwrap_err();
            assert_eq!(error.code, ErrorCode::PortTaken);
            error.to_string()
        };
        for (text, what) in [
            (
                "4789:80/udp",
                "port 4789/udp belongs to weft itself: the tunnel",
            ),
            (
                "7377:80",
                "port 7377/tcp belongs to weft itself: where managers",
            ),
            (
                "7378:80",
                "port 7378/tcp belongs to weft itself: the nodes' gossip",
            ),
            ("7378:80/udp,mode=host", "the nodes' gossip"),
            ("192.0.2.9:7378:80", "port 192.0.2.9:7378/tcp belongs"),
            ("9472:80", "the metrics of this node"),
            ("127.0.0.1:9472:80", "the metrics of this node"),
        ] {
            assert!(refused(text).contains(what), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn what_is_beside_weft_s_own_ports_is_not() {
        let usual = some_settings(&[("metrics_listen", "127.0.0.1:9472")]);
        for text in [
            "4789:80",
            "7377:80/udp",
            "127.0.0.1:7378:80",
            "[::1]:7378:80",
            "192.0.2.1:9472:80",
            "9472:80/udp",
            "4789",
            "8080:7378",
        ] {
            refuse(&usual, &[text.parse().unwrap()]).unwrap_or_else(|e| panic!("{text}: {e}"));
        }
        let moved = some_settings(&[("gossip_port", "9000")]);
        refuse(&moved, &["7378:80".parse().unwrap()]).unwrap();
        refuse(&moved, &["9000:80".parse().unwrap()]).unwrap_err();
    }
}
