//! Subnets and addresses for an engine, before anything uses them.

use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{network_with, other_gateway, subnet_of, with_prefix};
use crate::agent::api::{AttachRequest, CreateNetwork, EngineSubnet};
use crate::agent::cluster::Cluster;
use crate::agent::endpoint::{check_fixed, free_address};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::{Agent, Live};
use crate::agent::ident;
use crate::agent::network::{Network, Subnet, first_address};
use crate::agent::verbs::endpoint::taken;

impl Agent {
    /// A subnet for an engine: the one asked for, that of the network `name`, or a free one, which is held until the
    /// engine makes a network of it or gives it back.
    ///
    /// # Errors
    /// `invalid_subnet`, `network_not_found`, `subnets_exhausted`, `no_quorum`.
    pub async fn engine_pool(
        &self,
        subnet: Option<IpNetwork>,
        name: Option<String>,
        v6: bool,
    ) -> Result<EngineSubnet, ApiError> {
        let agent = self.clone();
        let work = async move { agent.pool(subnet, name.as_deref(), v6).await };
        self.inner.tasks.operation(work).await
    }

    async fn pool(
        &self,
        subnet: Option<IpNetwork>,
        name: Option<&str>,
        v6: bool,
    ) -> Result<EngineSubnet, ApiError> {
        self.forget_old_reservations().await;
        if let Some(subnet) = subnet {
            if subnet.ip() != subnet.network() || subnet.is_ipv6() != v6 {
                return Err(ApiError::new(
                    ErrorCode::InvalidSubnet,
                    format!("{subnet} is not the beginning of a subnet of that family"),
                    "give the subnet's own address, such as 10.0.1.0/24",
                ));
            }
            // Its gateway is asked for next, as an address.
            let gateway = None;
            return Ok(EngineSubnet { subnet, gateway });
        }
        if let Some(name) = name {
            let live = self.live();
            match live.node.catalog.find_overlay(name, "use") {
                Ok(network) => {
                    let mut subnets = network.subnets().filter(|s| s.prefix.is_ipv6() == v6);
                    let subnet = subnets.next().ok_or_else(|| {
                        ApiError::new(
                            ErrorCode::InvalidRequest,
                            format!("network \"{name}\" has no IPv6 subnet"),
                            "leave --ipv6 out",
                        )
                    })?;
                    return Ok(EngineSubnet {
                        subnet: subnet.prefix,
                        gateway: Some(subnet.gateway),
                    });
                }
                Err(error) if error.code == ErrorCode::NetworkNotFound => {}
                Err(error) => return Err(error),
            }
        }
        if v6 {
            let subnet = self.free_ula()?;
            return Ok(EngineSubnet {
                subnet,
                gateway: None,
            });
        }
        // A network is what holds a subnet for the whole cluster.
        let wish = CreateNetwork {
            name: format!("docker-pool-{}", ident::short(&ident::random_id())),
            ..CreateNetwork::default()
        };
        let created = self.create_network(wish).await?;
        let mut live = self.live();
        let subnet = live.network(&created.id)?.segments[0].v4.prefix;
        live.reserved.put_pool(subnet, created.id);
        Ok(EngineSubnet {
            subnet,
            gateway: None,
        })
    }

    /// A unique local prefix that nobody has (RFC 4193 §3.2).
    fn free_ula(&self) -> Result<IpNetwork, ApiError> {
        let bits = 0xfd_u128 << 120 | (rand::random::<u128>() >> 8 & !u128::from(u64::MAX));
        let subnet = IpNetwork::new(Ipv6Addr::from(bits).into(), ULA_PREFIX_LEN);
        subnet.map_err(|error| ApiError::internal(error.to_string()))
    }

    /// An engine gives a subnet back that it made no network of.
    ///
    /// # Errors
    /// Those of removing the network that held it.
    pub async fn engine_pool_gone(&self, subnet: IpNetwork) -> Result<(), ApiError> {
        let held = self.live().reserved.take_pool(subnet);
        match held {
            Some(held) => self.remove_network(held).await.map(drop),
            None => Ok(()),
        }
    }

    /// An address of a subnet for an engine: the gateway's, the one asked for, or a free one. It waits for an endpoint.
    /// One that an endpoint of this node has already is told again.
    ///
    /// # Errors
    /// `invalid_address`, `address_in_use`, `addresses_exhausted`, `network_not_found`, `no_quorum`.
    pub async fn engine_address(
        &self,
        subnet: IpNetwork,
        wanted: Option<IpAddr>,
        gateway: bool,
    ) -> Result<IpNetwork, ApiError> {
        let agent = self.clone();
        let work = async move {
            let ip = agent.address(subnet, wanted, gateway).await?;
            with_prefix(ip, subnet)
        };
        self.inner.tasks.operation(work).await
    }

    async fn address(
        &self,
        subnet: IpNetwork,
        wanted: Option<IpAddr>,
        gateway: bool,
    ) -> Result<IpAddr, ApiError> {
        if let Some(ip) = wanted
            && !subnet.contains(ip)
        {
            return Err(ApiError::new(
                ErrorCode::InvalidAddress,
                format!("address {ip} is not in {subnet}"),
                "choose an address of the subnet",
            ));
        }
        let network = network_with(&self.live(), subnet).cloned();
        let Some(network) = network else {
            // Before the engine makes its network: nobody else has addresses there.
            return match (wanted, gateway) {
                (Some(ip), _) => Ok(ip),
                (None, true) => Ok(first_address(subnet)),
                (None, false) => Err(ApiError::new(
                    ErrorCode::NetworkNotFound,
                    format!("no network has the subnet {subnet}"),
                    "create the network first",
                )),
            };
        };
        let own = subnet_of(&network, subnet).cloned();
        let own = own.ok_or_else(|| ApiError::internal("a subnet that has just been there"))?;
        if gateway {
            return match wanted {
                Some(ip) if ip != own.gateway => Err(other_gateway(&network, &own, ip)),
                _ => Ok(own.gateway),
            };
        }
        if let Some(ip) = wanted
            && (own.reserved.values().any(|reserved| *reserved == ip)
                || is_ours(&self.live(), &network.id, ip))
        {
            return Ok(ip);
        }
        let _choice = self.lock_choice(&network.id).await;
        self.take_address(&network, &own, wanted).await
    }

    /// The caller holds the network's choice.
    pub(super) async fn take_address(
        &self,
        network: &Network,
        subnet: &Subnet,
        wanted: Option<IpAddr>,
    ) -> Result<IpAddr, ApiError> {
        let known = taken(&self.live(), network);
        if let Some(ip) = wanted {
            check_fixed(network, &[ip], &known)?;
        }
        let (id, ip) = match self.cluster() {
            Some(cluster) => {
                cluster.takes_workloads()?;
                self.begin_leases(&cluster).await?;
                let id = cluster.new_endpoint_id();
                let ip = self
                    .lease_one(&cluster, network, subnet, wanted, &id)
                    .await?;
                (id, ip)
            }
            None => {
                let ip = match wanted {
                    Some(ip) => ip,
                    None => free_address(subnet, &known)?,
                };
                (ident::random_id(), ip)
            }
        };
        self.live().reserved.put_address(&network.id, ip, id);
        Ok(ip)
    }

    /// An engine gives an address back. One that an endpoint has goes with the endpoint.
    pub fn engine_address_gone(&self, subnet: IpNetwork, ip: IpAddr) {
        let network = network_with(&self.live(), subnet).map(|network| network.id.clone());
        if let Some(network) = network {
            self.let_go(&network, ip);
        }
    }

    fn let_go(&self, network: &str, ip: IpAddr) {
        let waited = self.live().reserved.take_address(network, ip);
        if waited.is_some()
            && let Some(cluster) = self.cluster()
        {
            self.release_addresses(&cluster, network, &[ip.into()]);
        }
    }

    async fn lease_one(
        &self,
        cluster: &Cluster,
        network: &Network,
        subnet: &Subnet,
        wanted: Option<IpAddr>,
        endpoint: &str,
    ) -> Result<IpAddr, ApiError> {
        let wish = AttachRequest::default();
        match wanted {
            Some(ip) => {
                self.lease_fixed(cluster, network, subnet, ip, endpoint)
                    .await?;
                Ok(ip)
            }
            None => {
                self.lease_fit(cluster, network, subnet, &wish, endpoint)
                    .await
            }
        }
    }
}

const ULA_PREFIX_LEN: u8 = 64;

/// Whether an endpoint of this node has the address, or is to have it.
fn is_ours(live: &Live, network: &str, ip: IpAddr) -> bool {
    let mut endpoints = live
        .endpoints_of(network)
        .chain(live.reserved.endpoints_of(network));
    live.reserved.address(network, ip).is_some()
        || endpoints.any(|endpoint| endpoint.ips.iter().any(|own| own.ip() == ip))
}
