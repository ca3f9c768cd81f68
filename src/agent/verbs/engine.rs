//! What a container engine's network plugin asks for: networks, subnets, addresses, endpoints. Every verb may be asked
//! again, by an engine that has died in between or lost the answer, and comes to the same.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::agent::endpoint::Endpoint;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Live;
use crate::agent::ident;
use crate::agent::network::{Network, Subnet};

mod address;
mod endpoint;
mod names;
mod network;

fn engine_id(endpoint: &Endpoint) -> Option<&str> {
    endpoint
        .engine
        .as_ref()
        .map(|engine| engine.endpoint.as_str())
}

fn name_key(id: &str) -> String {
    format!("engine network {}", ident::short(id))
}

/// What a network is called until the engine's name for it is known.
fn provisional_name(id: &str) -> String {
    format!("docker-{}", ident::short(id))
}

fn with_prefix(ip: IpAddr, subnet: IpNetwork) -> Result<IpNetwork, ApiError> {
    IpNetwork::new(ip, subnet.prefix()).map_err(|error| ApiError::internal(error.to_string()))
}

fn subnet_of(network: &Network, subnet: IpNetwork) -> Option<&Subnet> {
    network.subnets().find(|own| own.prefix == subnet)
}

/// A user's network with exactly this subnet.
fn network_with(live: &Live, subnet: IpNetwork) -> Option<&Network> {
    let mut networks = live.node.catalog.own();
    networks.find(|network| subnet_of(network, subnet).is_some())
}

fn other_gateway(network: &Network, own: &Subnet, gateway: IpAddr) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidGateway,
        format!(
            "network \"{}\" has the gateway {} in {}, not {gateway}",
            network.name, own.gateway, own.prefix
        ),
        format!("create it with --gateway {}", own.gateway),
    )
}

fn outside(network: &Network, ip: IpAddr) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidAddress,
        format!(
            "address {ip} is in no subnet of network \"{}\"",
            network.name
        ),
        "choose an address of one of its subnets",
    )
}
