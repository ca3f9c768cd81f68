//! Request and reply types about services, their backends and published ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use crate::model::service::{
    Balance, CreateService, EndpointMode, HealthCheck, HealthWish, PortWish, Probe, Protocol,
    PublishMode, PublishedPort, UpdateService,
};
pub use crate::services::counts::{Path, Traffic};
use crate::tables::record::{Backing, Standing};

/// How many of a service's backends get new connections, as far as the node that answers is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendCount {
    /// Those that do.
    pub ready: usize,
    /// All of them.
    pub all: usize,
    /// There may be more, on networks that the node takes no part in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

impl std::fmt::Display for BackendCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.partial, self.all) {
            (true, 0) => f.write_str("?"),
            (true, _) => write!(f, "{}/{}+", self.ready, self.all),
            (false, _) => write!(f, "{}/{}", self.ready, self.all),
        }
    }
}

/// A service's part in a network, as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceNetworkView {
    /// Id of the network.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The virtual addresses there, IPv4 first.
    pub vips: Vec<IpAddr>,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// 25 base-36 characters.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339.
    pub updated: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// How its name leads to its backends.
    pub mode: EndpointMode,
    /// Which backend a new connection goes to.
    pub balance: Balance,
    /// Its networks.
    pub networks: Vec<ServiceNetworkView>,
    /// Its published ports.
    pub ports: Vec<PublishedPort>,
    /// What backends have to answer.
    pub health: Option<HealthCheck>,
    /// How many backends it has, on all nodes.
    pub backends: BackendCount,
    /// What has come to it by way of the node that answers, since its agent started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<ServiceTraffic>,
}

/// What has come to a service one way, by way of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceTraffic {
    /// How it came.
    pub path: Path,
    /// How much.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Reply to `GET /v1/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceList {
    /// `weft/services/1`.
    pub schema: String,
    /// By name.
    pub services: Vec<ServiceView>,
}

/// One backend of a service on one of its networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Id of the endpoint.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Name of its node.
    pub node: String,
    /// Whether that is the node that answers.
    pub local: bool,
    /// Name of the network.
    pub network: String,
    /// Its addresses there.
    pub ips: Vec<IpNetwork>,
    /// Its share of new connections, and whether it gets any.
    #[serde(flatten)]
    pub backing: Backing,
}

/// Reply to `GET /v1/services/{service}/backends`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendList {
    /// `weft/backends/1`.
    pub schema: String,
    /// By network, endpoint name and node.
    pub backends: Vec<BackendView>,
    /// Networks of the service that this node takes no part in while others do: nobody tells it what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<UnseenNetwork>,
}

/// A network of a service that the node takes no part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnseenNetwork {
    /// Name of the network.
    pub network: String,
    /// Names of the nodes that take part: each can tell.
    pub nodes: Vec<String>,
}

/// Body of `POST /v1/services/{service}/backends/{endpoint}`: what is to change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BackendChange {
    /// `draining` or `ready`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub standing: Option<Standing>,
    /// Its share of new connections.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u16>,
}

/// One published port of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressPort {
    /// Name of the service.
    pub service: String,
    /// Id of the service.
    pub service_id: String,
    /// The port.
    #[serde(flatten)]
    pub port: PublishedPort,
    /// How many backends the service has.
    pub backends: BackendCount,
}

/// Reply to `GET /v1/ingress`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngressList {
    /// `weft/ingress/1`.
    pub schema: String,
    /// By published port, protocol and bind.
    pub ports: Vec<IngressPort>,
}
