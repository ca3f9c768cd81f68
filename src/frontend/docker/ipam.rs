//! `IpamDriver`: bodies in, answers out. A pool's id is its subnet, so that nothing has to be remembered for it.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use super::driver::{address, network};
use crate::agent::api::{Agent, ApiError, ErrorCode, OPTION_NETWORK};

/// The only address space there is: that of the cluster.
pub(super) const ADDRESS_SPACE: &str = "weft";
/// Before the subnet in a pool's id.
const POOL_PREFIX: &str = "weft/";
/// Among the options of a request for an address, and its value for the gateway's.
const ADDRESS_TYPE: &str = "RequestAddressType";
const GATEWAY: &str = "com.docker.network.gateway";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolCall {
    /// Empty for a free one. Engines always send it.
    pool: String,
    #[serde(default)]
    sub_pool: String,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
    #[serde(default)]
    v6: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct PoolGone {
    #[serde(rename = "PoolID")]
    pool_id: String,
}

/// Of `RequestAddress` and `ReleaseAddress`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct AddressCall {
    #[serde(rename = "PoolID")]
    pool_id: String,
    #[serde(default)]
    address: String,
    #[serde(default)]
    options: Option<BTreeMap<String, String>>,
}

pub(super) async fn request_pool(agent: &Agent, call: PoolCall) -> Result<Value, ApiError> {
    if !call.sub_pool.is_empty() {
        return Err(ApiError::new(
            ErrorCode::Unsupported,
            "weft's IPAM driver takes no --ip-range: nodes share the whole subnet without it",
            "leave --ip-range out; weft network create has one for the whole network",
        ));
    }
    let options = call.options.unwrap_or_default();
    if let Some(key) = options
        .keys()
        .find(|key| *key != OPTION_NETWORK && !key.starts_with("com.docker."))
    {
        return Err(ApiError::new(
            ErrorCode::InvalidOption,
            format!("IPAM option \"{key}\" is unknown"),
            format!("the only one is {OPTION_NETWORK}=NAME"),
        ));
    }
    let subnet = match call.pool.as_str() {
        "" => None,
        text => Some(network(text)?),
    };
    let name = options.get(OPTION_NETWORK).cloned();
    let got = agent.engine_pool(subnet, name, call.v6).await?;
    let mut data = serde_json::Map::new();
    if let Some(gateway) = got.gateway {
        let gateway = format!("{gateway}/{}", got.subnet.prefix());
        data.insert(GATEWAY.into(), gateway.into());
    }
    Ok(json!({
        "PoolID": format!("{POOL_PREFIX}{}", got.subnet),
        "Pool": got.subnet.to_string(),
        "Data": data,
    }))
}

pub(super) async fn release_pool(agent: &Agent, call: &PoolGone) -> Result<Value, ApiError> {
    agent.engine_pool_gone(subnet_of(&call.pool_id)?).await?;
    Ok(json!({}))
}

pub(super) async fn request_address(agent: &Agent, call: &AddressCall) -> Result<Value, ApiError> {
    let subnet = subnet_of(&call.pool_id)?;
    let wanted = match call.address.as_str() {
        "" => None,
        text => Some(address(text)?),
    };
    let options = call.options.as_ref();
    let kind = options.and_then(|options| options.get(ADDRESS_TYPE));
    let gateway = kind.is_some_and(|kind| kind == GATEWAY);
    let got = agent.engine_address(subnet, wanted, gateway).await?;
    Ok(json!({"Address": got.to_string(), "Data": {}}))
}

pub(super) fn release_address(agent: &Agent, call: &AddressCall) -> Result<Value, ApiError> {
    let subnet = subnet_of(&call.pool_id)?;
    agent.engine_address_gone(subnet, address(&call.address)?);
    Ok(json!({}))
}

fn subnet_of(pool_id: &str) -> Result<IpNetwork, ApiError> {
    let subnet = pool_id.strip_prefix(POOL_PREFIX);
    let subnet = subnet.ok_or_else(|| {
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!(
                "{:?} is no pool of weft's",
                pool_id.chars().take(80).collect::<String>()
            ),
            "pools are asked for with RequestPool",
        )
    })?;
    network(subnet)
}
