//! `NetworkDriver`: bodies in, answers out.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::api::{
    Agent, ApiError, EngineEndpointWish, EngineNetworkWish, EnginePool, ErrorCode, Mac,
    OPTION_VXLANID_LIST,
};

/// Where the user's own options are among those of the engine.
const GENERIC: &str = "com.docker.network.generic";
const INTERNAL: &str = "com.docker.network.internal";
/// What the engine calls interfaces in containers, before the number.
const IFNAME_PREFIX: &str = "eth";
/// Of `StaticRoutes`: through a gateway, not on the link.
const ROUTE_NEXT_HOP: u8 = 0;
/// Engines' ids: 64 hexadecimal characters, or 25 of base 36.
const ID_LEN_MAX: usize = 64;

/// Of `AllocateNetwork` and `CreateNetwork`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkCall {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(default)]
    options: Option<BTreeMap<String, Value>>,
    #[serde(rename = "IPv4Data", default)]
    ipv4_data: Option<Vec<PoolData>>,
    #[serde(rename = "IPv6Data", default)]
    ipv6_data: Option<Vec<PoolData>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PoolData {
    #[serde(default)]
    pool: String,
    #[serde(default)]
    gateway: String,
}

/// Of `DeleteNetwork` and `FreeNetwork`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NetworkGone {
    #[serde(rename = "NetworkID")]
    network_id: String,
}

/// Of `CreateEndpoint`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct NewEndpoint {
    #[serde(rename = "NetworkID")]
    network_id: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(default)]
    interface: Option<Interface>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Interface {
    #[serde(default)]
    address: String,
    #[serde(rename = "AddressIPv6", default)]
    address_ipv6: String,
    #[serde(default)]
    mac_address: String,
}

/// Of `DeleteEndpoint`, `EndpointOperInfo` and `Leave`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct EndpointCall {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
}

/// Of `Join`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Join {
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    sandbox_key: String,
}

/// A swarm's manager asks for what all nodes are to know of a network: its VNIs.
pub(super) async fn allocate_network(agent: &Agent, call: NetworkCall) -> Result<Value, ApiError> {
    let id = checked(&call.network_id)?.to_owned();
    let wish = network_wish(call)?;
    let (_, vnis) = agent.engine_network(id, wish).await?;
    Ok(json!({"Options": {OPTION_VXLANID_LIST: vnis}}))
}

pub(super) async fn create_network(agent: &Agent, call: NetworkCall) -> Result<Value, ApiError> {
    let id = checked(&call.network_id)?.to_owned();
    let wish = network_wish(call)?;
    agent.engine_network(id, wish).await?;
    Ok(json!({}))
}

fn network_wish(call: NetworkCall) -> Result<EngineNetworkWish, ApiError> {
    let mut options = BTreeMap::new();
    let mut internal = false;
    for (key, value) in call.options.unwrap_or_default() {
        match (key.as_str(), value) {
            (GENERIC, Value::Object(generic)) => {
                for (key, value) in generic {
                    options.insert(key, text(value));
                }
            }
            (INTERNAL, value) => internal = value == Value::Bool(true) || value == "true",
            (key, _) if key.starts_with("com.docker.network.enable_ipv") => {}
            // A manager passes the user's options as they are.
            (_, value) => drop(options.insert(key, text(value))),
        }
    }
    let v4 = call.ipv4_data.unwrap_or_default();
    let v6 = call.ipv6_data.unwrap_or_default();
    let pools: Vec<EnginePool> = v4
        .iter()
        .chain(&v6)
        .filter(|data| !data.pool.is_empty())
        .map(pool)
        .collect::<Result<_, _>>()?;
    if !pools
        .iter()
        .any(|pool| pool.subnet.is_ipv4() && pool.subnet.prefix() > 0)
    {
        return Err(ApiError::new(
            ErrorCode::InvalidSubnet,
            "the network has no IPv4 subnet",
            "use the engine's own IPAM driver or weft's (--ipam-driver weft), and leave IPv4 on",
        ));
    }
    Ok(EngineNetworkWish {
        pools,
        options,
        internal,
    })
}

fn pool(data: &PoolData) -> Result<EnginePool, ApiError> {
    let gateway = match data.gateway.as_str() {
        "" => None,
        text => Some(network(text)?.ip()),
    };
    Ok(EnginePool {
        subnet: network(&data.pool)?,
        gateway,
    })
}

fn text(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

pub(super) async fn delete_network(agent: &Agent, call: NetworkGone) -> Result<Value, ApiError> {
    let id = checked(&call.network_id)?.to_owned();
    agent.engine_network_gone(id).await?;
    Ok(json!({}))
}

pub(super) async fn free_network(agent: &Agent, call: NetworkGone) -> Result<Value, ApiError> {
    let id = checked(&call.network_id)?.to_owned();
    agent.engine_network_freed(id).await?;
    Ok(json!({}))
}

/// Only what came empty may be filled in: anything else is an error to the engine.
pub(super) async fn create_endpoint(agent: &Agent, call: NewEndpoint) -> Result<Value, ApiError> {
    let interface = call.interface.unwrap_or_default();
    let mut ips = Vec::new();
    for text in [&interface.address, &interface.address_ipv6] {
        if !text.is_empty() {
            ips.push(network(text)?.ip());
        }
    }
    let mac = match interface.mac_address.as_str() {
        "" => None,
        text => Some(text.parse::<Mac>().map_err(|error| {
            ApiError::new(
                ErrorCode::InvalidMac,
                format!("{text:?}: {error}"),
                "give a MAC such as 02:42:0a:00:01:02",
            )
        })?),
    };
    let wish = EngineEndpointWish {
        network: checked(&call.network_id)?.to_owned(),
        endpoint: checked(&call.endpoint_id)?.to_owned(),
        ips: ips.clone(),
        mac,
    };
    let made = agent.engine_endpoint(wish).await?;
    let mut answer = serde_json::Map::new();
    if mac.is_none() {
        answer.insert("MacAddress".into(), made.mac.to_string().into());
    }
    if ips.is_empty() {
        for ip in &made.ips {
            let key = match ip.is_ipv4() {
                true => "Address",
                false => "AddressIPv6",
            };
            answer.insert(key.into(), ip.to_string().into());
        }
    }
    Ok(json!({"Interface": answer}))
}

pub(super) fn endpoint_info(agent: &Agent, call: &EndpointCall) -> Result<Value, ApiError> {
    let id = checked(&call.endpoint_id)?;
    let value = agent.engine_endpoint_info(id).map(|endpoint| {
        json!({
            "weft.network": endpoint.network,
            "weft.vni": endpoint.vni.to_string(),
            "com.docker.network.endpoint.ifname": endpoint.ifname,
        })
    });
    Ok(json!({"Value": value.unwrap_or_else(|| json!({}))}))
}

/// Nothing goes yet: the engine takes the interface back first, and then deletes the endpoint.
pub(super) fn leave(call: &EndpointCall) -> Result<Value, ApiError> {
    checked(&call.endpoint_id)?;
    Ok(json!({}))
}

pub(super) async fn delete_endpoint(agent: &Agent, call: EndpointCall) -> Result<Value, ApiError> {
    let id = checked(&call.endpoint_id)?.to_owned();
    agent.engine_endpoint_gone(id).await?;
    Ok(json!({}))
}

/// Without a gateway in the answer the engine gives the container its own way out, where it publishes ports.
pub(super) async fn join(agent: &Agent, call: Join) -> Result<Value, ApiError> {
    let id = checked(&call.endpoint_id)?.to_owned();
    if !call.sandbox_key.starts_with('/') {
        return Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("the sandbox key {:?} is no path", call.sandbox_key),
            "this socket is for container engines",
        ));
    }
    let joined = agent.engine_join(id, call.sandbox_key).await?;
    let routes: Vec<Value> = joined
        .routes
        .iter()
        .map(|(subnet, gateway)| {
            json!({
                "Destination": subnet.to_string(),
                "RouteType": ROUTE_NEXT_HOP,
                "NextHop": gateway.to_string(),
            })
        })
        .collect();
    Ok(json!({
        "InterfaceName": {"SrcName": joined.ifname, "DstPrefix": IFNAME_PREFIX},
        "StaticRoutes": routes,
    }))
}

/// Ids end up in names and messages: letters and digits, no longer than engines make them.
fn checked(id: &str) -> Result<&str, ApiError> {
    let fine =
        (1..=ID_LEN_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric());
    match fine {
        true => Ok(id),
        false => Err(ApiError::new(
            ErrorCode::InvalidId,
            format!(
                "{:?} is not an engine's id",
                id.chars().take(80).collect::<String>()
            ),
            "an id has 1 to 64 letters and digits",
        )),
    }
}

/// An address with its prefix length, or a subnet.
pub(super) fn network(text: &str) -> Result<IpNetwork, ApiError> {
    text.parse().map_err(|error| {
        ApiError::new(
            ErrorCode::InvalidSubnet,
            format!("{text:?}: {error}"),
            "write it as 10.0.1.0/24",
        )
    })
}

/// An address.
pub(super) fn address(text: &str) -> Result<IpAddr, ApiError> {
    text.parse().map_err(|error| {
        ApiError::new(
            ErrorCode::InvalidAddress,
            format!("{text:?}: {error}"),
            "write it as 10.0.1.2",
        )
    })
}
