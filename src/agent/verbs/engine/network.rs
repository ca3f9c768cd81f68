//! An engine's networks: which one is meant, and what it must be like.

use std::time::Duration;

use tokio::time::sleep;

use super::{name_key, network_with, other_gateway, provisional_name, subnet_of};
use crate::agent::api::{
    CreateNetwork, EngineNetworkWish, EnginePool, IpamConfigRequest, OPTION_NETWORK,
    OPTION_VXLANID_LIST,
};
use crate::agent::engine::EngineNetwork;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::{Agent, Live};
use crate::agent::ident;
use crate::agent::network::{Network, overlap};
use crate::model::ident::is_id;

/// How often a network is looked for again that another node was making at the same moment.
const MAKE_TRIES: u32 = 10;
const MAKE_PAUSE: Duration = Duration::from_millis(100);

impl Agent {
    /// An engine makes a network: the one that its options name, the one with its subnet, or a new one. Tells the
    /// network's id and VNIs.
    ///
    /// # Errors
    /// The codes of creation; `subnet_overlap` where its subnet, gateway or options are not those of the network meant.
    pub async fn engine_network(
        &self,
        id: String,
        wish: EngineNetworkWish,
    ) -> Result<(String, String), ApiError> {
        let agent = self.clone();
        let work = async move {
            agent.forget_old_reservations().await;
            let network = agent.bind_network(&id, wish).await?;
            let options = network.options();
            let vnis = options.get(OPTION_VXLANID_LIST).cloned();
            Ok((network.id, vnis.unwrap_or_default()))
        };
        self.inner.tasks.operation(work).await
    }

    async fn bind_network(&self, id: &str, wish: EngineNetworkWish) -> Result<Network, ApiError> {
        let known = self.live().node.engine.networks.get(id).cloned();
        match known {
            Some(known) => {
                let network = self.network_of_engine(id).await?;
                // A swarm's manager tells its VNIs the second time, which it was told the first.
                if check_fits(&network, &wish).is_ok() {
                    if known.wish != wish {
                        self.remember_network(id, &network, wish, known.made)
                            .await?;
                    }
                    return Ok(network);
                }
                Err(ApiError::new(
                    ErrorCode::IdTaken,
                    format!(
                        "the engine's network {} is \"{}\" already, with other subnets or options",
                        ident::short(id),
                        known.name
                    ),
                    "remove the engine's network, and create it again",
                ))
            }
            None => {
                let (network, made) = self.find_or_make(id, &wish, None).await?;
                self.remember_network(id, &network, wish, made).await?;
                Ok(network)
            }
        }
    }

    async fn remember_network(
        &self,
        id: &str,
        network: &Network,
        wish: EngineNetworkWish,
        made: bool,
    ) -> Result<(), ApiError> {
        let entry = EngineNetwork {
            network: network.id.clone(),
            name: network.name.clone(),
            wish,
            made,
            created: ident::unix_nanos(),
        };
        let before = self
            .live()
            .node
            .engine
            .networks
            .insert(id.to_owned(), entry);
        let saved = self.save().await;
        if saved.is_err() {
            let mut live = self.live();
            match before {
                Some(before) => live.node.engine.networks.insert(id.to_owned(), before),
                None => live.node.engine.networks.remove(id),
            };
        }
        saved
    }

    /// The network that an engine's is. One that was removed meanwhile is made again.
    pub(super) async fn network_of_engine(&self, id: &str) -> Result<Network, ApiError> {
        let known = {
            let live = self.live();
            let known = live.node.engine.networks.get(id).cloned();
            let known = known.ok_or_else(|| unknown_network(id))?;
            if let Some(network) = live.node.catalog.networks.get(&known.network) {
                return Ok(network.clone());
            }
            known
        };
        let (network, made) = self
            .find_or_make(id, &known.wish, Some(&known.name))
            .await?;
        self.remember_network(id, &network, known.wish, known.made || made)
            .await?;
        Ok(network)
    }

    /// Tells, too, whether it was made now.
    async fn find_or_make(
        &self,
        id: &str,
        wish: &EngineNetworkWish,
        name: Option<&str>,
    ) -> Result<(Network, bool), ApiError> {
        let name = wish
            .options
            .get(OPTION_NETWORK)
            .map(String::as_str)
            .or(name);
        let mut new = false;
        for pool in &wish.pools {
            let held = self.live().reserved.take_pool(pool.subnet);
            if let Some(held) = held {
                self.remove_network(held).await?;
                new = true;
            }
        }
        let mut refusal = None;
        for _ in 0..MAKE_TRIES {
            let found = match new {
                true => None,
                false => find_for(&self.live(), wish, name)?,
            };
            if let Some(network) = found {
                check_fits(&network, wish)?;
                return Ok((network, false));
            }
            match self.create_network(creation(id, wish, name)).await {
                Ok(created) => {
                    let network = self.live().network(&created.id)?.clone();
                    return Ok((network, true));
                }
                // Another node may have made it at this moment, and this one not have heard of it.
                Err(error)
                    if matches!(
                        error.code,
                        ErrorCode::NameTaken | ErrorCode::SubnetOverlap | ErrorCode::IdTaken
                    ) && self.cluster().is_some() =>
                {
                    let overlap = overlapping(&self.live(), wish).is_some();
                    refusal = Some(error);
                    if overlap || new {
                        break;
                    }
                    sleep(MAKE_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or_else(|| ApiError::internal("a network that is never made")))
    }

    /// An engine removes its network. The network goes along if the engine made it and nobody is on it.
    ///
    /// # Errors
    /// `state_not_saved`.
    pub async fn engine_network_gone(&self, id: String) -> Result<(), ApiError> {
        self.let_network_go(id, false).await
    }

    /// A swarm frees a network, maybe before its last containers have gone: it is then removed when the engine deletes
    /// it, or is found not to know it any more.
    ///
    /// # Errors
    /// As [`Agent::engine_network_gone`].
    pub async fn engine_network_freed(&self, id: String) -> Result<(), ApiError> {
        self.let_network_go(id, true).await
    }

    async fn let_network_go(&self, id: String, again: bool) -> Result<(), ApiError> {
        let agent = self.clone();
        let work = async move {
            let Some(known) = agent.live().node.engine.networks.remove(&id) else {
                return Ok(());
            };
            if let Err(error) = agent.save().await {
                agent.live().node.engine.networks.insert(id, known);
                return Err(error);
            }
            agent.well_again(&name_key(&id));
            let shared = {
                let live = agent.live();
                let mut others = live.node.engine.networks.values();
                others.any(|other| other.network == known.network)
            };
            if known.made && !shared {
                match agent.remove_network(known.network.clone()).await {
                    Ok(_) => {}
                    Err(error) if again && error.code == ErrorCode::NetworkInUse => {
                        agent.live().node.engine.networks.insert(id, known);
                        return agent.save().await;
                    }
                    Err(error)
                        if matches!(
                            error.code,
                            ErrorCode::NetworkInUse | ErrorCode::NetworkNotFound
                        ) => {}
                    Err(error) => {
                        tracing::warn!(network = known.name, %error, "an engine's network stays");
                    }
                }
            }
            Ok(())
        };
        self.inner.tasks.operation(work).await
    }
}

fn unknown_network(id: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NetworkNotFound,
        format!(
            "the agent knows no network {} of a container engine",
            ident::short(id)
        ),
        "its state was lost or reset: remove the engine's network, and create it again",
    )
}

fn overlapping<'a>(live: &'a Live, wish: &EngineNetworkWish) -> Option<&'a Network> {
    let overlaps = |network: &&Network| {
        let mut own = network.subnets();
        own.any(|own| {
            let mut pools = wish.pools.iter();
            pools.any(|pool| overlap(own.prefix, pool.subnet))
        })
    };
    live.node.catalog.networks.values().find(overlaps)
}

/// The network that an engine means, if it is there.
fn find_for(
    live: &Live,
    wish: &EngineNetworkWish,
    name: Option<&str>,
) -> Result<Option<Network>, ApiError> {
    let of_subnet = wish
        .pools
        .iter()
        .find_map(|pool| network_with(live, pool.subnet));
    let Some(name) = name else {
        return Ok(of_subnet.cloned());
    };
    match live.node.catalog.find_overlay(name, "use") {
        Ok(network) => Ok(Some(network.clone())),
        Err(error) if error.code == ErrorCode::NetworkNotFound => match of_subnet {
            Some(other) => Err(ApiError::new(
                ErrorCode::SubnetOverlap,
                format!(
                    "that subnet is network \"{}\"'s, not \"{name}\"'s",
                    other.name
                ),
                format!(
                    "name that one ({OPTION_NETWORK}={}), or choose another subnet",
                    other.name
                ),
            )),
            None => Ok(None),
        },
        Err(error) => Err(error),
    }
}

/// An engine may join a network only as what it is.
fn check_fits(network: &Network, wish: &EngineNetworkWish) -> Result<(), ApiError> {
    let differs = |what: String, next: String| {
        Err(ApiError::new(
            ErrorCode::SubnetOverlap,
            format!("network \"{}\" exists, with {what}", network.name),
            next,
        ))
    };
    for EnginePool { subnet, gateway } in &wish.pools {
        let Some(own) = subnet_of(network, *subnet) else {
            let subnets: Vec<String> = network.subnets().map(|s| s.prefix.to_string()).collect();
            let subnets = subnets.join(", ");
            return differs(
                format!("{subnets} instead of {subnet}"),
                format!("create it with --subnet {subnets}"),
            );
        };
        if let Some(gateway) = gateway.filter(|gateway| *gateway != own.gateway) {
            return Err(other_gateway(network, own, gateway));
        }
    }
    if network.internal != wish.internal {
        let (is, next) = match network.internal {
            true => ("no way out", "create it with --internal"),
            false => ("a way out", "create it without --internal"),
        };
        return differs(is.into(), next.into());
    }
    let own = network.options();
    for (key, value) in wish
        .options
        .iter()
        .filter(|(key, _)| *key != OPTION_NETWORK)
    {
        let same = own.get(key) == Some(value);
        if !same {
            let is = own.get(key).map_or("no", String::as_str);
            return differs(
                format!("{is} option {key} instead of {value}"),
                format!("leave -o {key} out"),
            );
        }
    }
    Ok(())
}

/// The network that an engine's is to be.
fn creation(id: &str, wish: &EngineNetworkWish, name: Option<&str>) -> CreateNetwork {
    let mut network = CreateNetwork {
        name: name.map_or_else(|| provisional_name(id), str::to_owned),
        id: is_id(id).then(|| id.to_owned()),
        enable_ipv6: wish.pools.iter().any(|pool| pool.subnet.is_ipv6()),
        internal: wish.internal,
        attachable: true,
        options: wish.options.clone(),
        ..CreateNetwork::default()
    };
    network.options.remove(OPTION_NETWORK);
    let pools = wish.pools.iter();
    network.ipam.config = pools
        .map(|pool| IpamConfigRequest {
            subnet: pool.subnet.to_string(),
            gateway: pool.gateway.map(|g| g.to_string()).unwrap_or_default(),
            ..IpamConfigRequest::default()
        })
        .collect();
    network
}
