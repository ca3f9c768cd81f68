//! Addresses of a cluster's endpoints: from leased blocks, or claimed at the managers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::{Instant, sleep};

use super::{Cluster, ECHO_LIMIT, tend};
use crate::agent::api::AttachRequest;
use crate::agent::endpoint::{Choice, Fixed, check_fixed, choose_mac, made_from};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::network::{Network, Segment, Subnet};
use crate::agent::verbs::endpoint::taken;
use crate::cluster::ipam::{self, Short};
use crate::cluster::manager::command::Command;
use crate::cluster::manager::reply::{Outcome, Refusal, Reply};

/// How long a fixed address is waited for that another node's block holds.
const YIELD_LIMIT: Duration = Duration::from_millis(1_800);
/// How long a request waits for the managers to hear of the agent's start; they are tried twice a second.
const START_LIMIT: Duration = Duration::from_secs(2);
const START_PAUSE: Duration = Duration::from_millis(20);
const YIELD_PAUSE: Duration = Duration::from_millis(50);
/// Addresses that are passed over because a MAC made from them is somebody's.
const UNFIT_MAX: usize = 16;
/// Rounds of asking for blocks: another endpoint may take what came for this one.
const ROUNDS: usize = 4;

impl Agent {
    /// Chooses segment, addresses and MAC of a new endpoint from what is leased, and leases more if need be. What
    /// it holds after a failure is given back.
    ///
    /// # Errors
    /// `invalid_address`, `address_in_use`, `addresses_exhausted`, `invalid_mac`, `mac_in_use`, `no_quorum`,
    /// `lease_lost`.
    pub(in crate::agent) async fn choose_leased(
        &self,
        cluster: &Cluster,
        network: &Network,
        wish: &AttachRequest,
        endpoint: &str,
    ) -> Result<Choice, ApiError> {
        let known = taken(&self.live(), network);
        let fixed = check_fixed(network, &wish.ips, &known)?;
        let candidates: Vec<usize> = match fixed.segment {
            Some(index) => vec![index],
            None => (0..network.segments.len()).collect(),
        };
        let mut refusal = None;
        for index in candidates {
            let segment = &network.segments[index];
            let got = self
                .lease_segment(cluster, network, segment, &fixed, wish, endpoint)
                .await;
            match got {
                Ok(ips) => match choose_mac(network, wish.mac, &ips, &known) {
                    Ok(mac) => {
                        return Ok(Choice {
                            segment: index,
                            ips,
                            mac,
                        });
                    }
                    Err(error) => {
                        self.release_addresses(cluster, &network.id, &ips);
                        return Err(error);
                    }
                },
                // Another subnet of the network may have room.
                Err(error) if error.code == ErrorCode::AddressesExhausted => {
                    refusal = refusal.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        Err(refusal.unwrap_or_else(|| ApiError::internal("a network without a segment")))
    }

    /// One address of each family that the segment has.
    async fn lease_segment(
        &self,
        cluster: &Cluster,
        network: &Network,
        segment: &Segment,
        fixed: &Fixed,
        wish: &AttachRequest,
        endpoint: &str,
    ) -> Result<Vec<IpNetwork>, ApiError> {
        let mut ips: Vec<IpNetwork> = Vec::new();
        for subnet in segment.subnets() {
            let wanted = match subnet.prefix.is_ipv4() {
                true => fixed.v4,
                false => fixed.v6,
            };
            let got = match wanted {
                Some(ip) => self
                    .lease_fixed(cluster, network, subnet, ip, endpoint)
                    .await
                    .map(|()| ip),
                None => {
                    self.lease_fit(cluster, network, subnet, wish, endpoint)
                        .await
                }
            };
            let with_prefix = got.and_then(|ip| {
                let with_prefix = IpNetwork::new(ip, subnet.prefix.prefix());
                with_prefix.map_err(|e| ApiError::internal(e.to_string()))
            });
            match with_prefix {
                Ok(ip) => ips.push(ip),
                Err(error) => {
                    self.release_addresses(cluster, &network.id, &ips);
                    return Err(error);
                }
            }
        }
        Ok(ips)
    }

    /// An address whose MAC is nobody's, if the MAC is made from it.
    pub(in crate::agent) async fn lease_fit(
        &self,
        cluster: &Cluster,
        network: &Network,
        subnet: &Subnet,
        wish: &AttachRequest,
        endpoint: &str,
    ) -> Result<IpAddr, ApiError> {
        let unfit: BTreeSet<IpAddr> = match wish.mac {
            Some(_) => BTreeSet::new(),
            None => {
                let known = taken(&self.live(), network);
                known.macs.iter().filter_map(made_from).collect()
            }
        };
        let mut passed = Vec::new();
        let got = loop {
            // What was passed over stays taken, under another name, until a fitting one is found.
            let ip = match self.lease_any(cluster, network, subnet, endpoint).await {
                Ok(ip) => ip,
                Err(error) => break Err(error),
            };
            if !unfit.contains(&ip) || passed.len() == UNFIT_MAX {
                break Ok(ip);
            }
            if let Some(ipam) = self.live().node.ipam.as_mut() {
                ipam.rename(&network.id, ip, "");
            }
            passed.push(ip);
        };
        if let Some(ipam) = self.live().node.ipam.as_mut() {
            for ip in passed {
                ipam.release(&network.id, ip, cluster.now_ms());
            }
        }
        got
    }

    /// The lowest free address of the node's blocks; asks for blocks when there is none.
    async fn lease_any(
        &self,
        cluster: &Cluster,
        network: &Network,
        subnet: &Subnet,
        endpoint: &str,
    ) -> Result<IpAddr, ApiError> {
        for _ in 0..ROUNDS {
            let short = {
                let mut live = self.live();
                let ipam = live.node.ipam.as_mut().ok_or_else(no_leases)?;
                let now_ms = cluster.now_ms();
                match ipam.allocate(&network.id, subnet.prefix, endpoint, now_ms) {
                    Ok(got) => return Ok(got.address),
                    Err(short) => short,
                }
            };
            let count = match short {
                Short::NeedBlocks { count } => count,
                Short::Unconfirmed { .. } | Short::NeverConfirmed => {
                    self.confirm_leases(cluster).await?;
                    continue;
                }
            };
            match self.lease_blocks(cluster, network, subnet, count).await? {
                Ok(()) => {}
                Err(refusal @ Refusal::Exhausted(_)) => {
                    let mut live = self.live();
                    let ipam = live.node.ipam.as_mut().ok_or_else(no_leases)?;
                    let now_ms = cluster.now_ms();
                    let rested =
                        ipam.allocate_resting(&network.id, subnet.prefix, endpoint, now_ms);
                    return match rested {
                        Ok(got) => Ok(got.address),
                        Err(_) => Err(ApiError::from(&refusal)),
                    };
                }
                Err(refusal) => return Err(ApiError::from(&refusal)),
            }
        }
        Err(ApiError::new(
            ErrorCode::AddressesExhausted,
            format!(
                "others took every address of {} that was leased",
                subnet.prefix
            ),
            "try again",
        ))
    }

    /// Leases blocks and takes them in.
    async fn lease_blocks(
        &self,
        cluster: &Cluster,
        network: &Network,
        subnet: &Subnet,
        count: u32,
    ) -> Result<Result<(), Refusal>, ApiError> {
        let command = Command::LeaseBlocks {
            node: cluster.me,
            epoch: cluster.epoch,
            network: network.id.clone(),
            subnet: Some(subnet.prefix),
            count,
        };
        if let Some(ipam) = self.live().node.ipam.as_mut() {
            ipam.await_addresses(&network.id);
        }
        let outcome = self.propose_started(cluster, command).await;
        if let Some(ipam) = self.live().node.ipam.as_mut() {
            if let Ok(Ok(Reply::Blocks(granted))) = &outcome {
                for one in granted {
                    ipam.add_block(one, subnet);
                }
            }
            ipam.await_no_more(&network.id);
        }
        Ok(outcome?.map(drop))
    }

    /// One address and no other.
    pub(in crate::agent) async fn lease_fixed(
        &self,
        cluster: &Cluster,
        network: &Network,
        subnet: &Subnet,
        address: IpAddr,
        endpoint: &str,
    ) -> Result<(), ApiError> {
        let end = Instant::now() + YIELD_LIMIT;
        loop {
            let took = {
                let mut live = self.live();
                let ipam = live.node.ipam.as_mut().ok_or_else(no_leases)?;
                ipam.take(&network.id, address, endpoint, cluster.now_ms())
            };
            match took {
                Ok(ipam::Fixed::Taken(_)) => return Ok(()),
                Ok(ipam::Fixed::InUse { .. }) => {
                    return Err(in_use(address, "an endpoint of this node"));
                }
                Ok(ipam::Fixed::Claim) => {}
                Err(_) => {
                    self.confirm_leases(cluster).await?;
                    continue;
                }
            }
            let command = Command::ClaimAddress {
                node: cluster.me,
                epoch: cluster.epoch,
                network: network.id.clone(),
                address,
            };
            if let Some(ipam) = self.live().node.ipam.as_mut() {
                ipam.await_addresses(&network.id);
            }
            let outcome = self.propose_started(cluster, command).await;
            let mut late = false;
            let reply = {
                let mut live = self.live();
                let ipam = live.node.ipam.as_mut().ok_or_else(no_leases)?;
                match &outcome {
                    Ok(Ok(Reply::Claimed {
                        address,
                        fence,
                        revision,
                    })) => {
                        late =
                            !ipam.add_claim(&network.id, *address, (*fence, *revision), endpoint);
                    }
                    // It lies in a block of this node that was not known here.
                    Ok(Ok(Reply::Blocks(granted))) => {
                        granted.iter().for_each(|one| ipam.add_block(one, subnet));
                    }
                    _ => {}
                }
                ipam.await_no_more(&network.id);
                outcome?
            };
            match reply.map_err(|refusal| ApiError::from(&refusal))? {
                Reply::Claimed { .. } if !late => return Ok(()),
                Reply::Wanted { holder } => {
                    if Instant::now() >= end {
                        let replica = cluster.replica();
                        let name = replica.nodes.get(&holder).map(|node| node.name.clone());
                        let owner = name.unwrap_or_else(|| holder.to_string());
                        return Err(in_use(address, &format!("node \"{owner}\"")));
                    }
                    sleep(YIELD_PAUSE).await;
                }
                _ => {}
            }
        }
    }

    /// Has the managers say that this node's leases still hold.
    async fn confirm_leases(&self, cluster: &Cluster) -> Result<(), ApiError> {
        let command = Command::ReportUse {
            node: cluster.me,
            epoch: cluster.epoch,
            blocks: Vec::new(),
        };
        let outcome = self.propose_started(cluster, command).await?;
        outcome
            .map(drop)
            .map_err(|refusal| ApiError::from(&refusal))
    }

    /// As [`Agent::propose`], once the managers know of this start of the agent: before, they take what it asks for as
    /// the wish of one that has died. Where they did not answer for long and do now, they are told first.
    async fn propose_started(
        &self,
        cluster: &Cluster,
        command: Command,
    ) -> Result<Outcome, ApiError> {
        let end = Instant::now() + START_LIMIT;
        while !cluster.is_started() && Instant::now() < end {
            sleep(START_PAUSE).await;
        }
        let outcome = self.propose(cluster, command.clone()).await?;
        match outcome {
            Err(Refusal::StaleEpoch { given, current, .. }) if given > current => {
                tend::start(self, cluster).await?;
                self.propose(cluster, command).await
            }
            outcome => Ok(outcome),
        }
    }

    /// Asks the managers for a change as this node, and notes that they have answered.
    pub(in crate::agent) async fn propose(
        &self,
        cluster: &Cluster,
        command: Command,
    ) -> Result<Outcome, ApiError> {
        let asked_ms = cluster.now_ms();
        let outcome = cluster.propose(command).await?;
        if outcome.is_ok()
            && let Some(ipam) = self.live().node.ipam.as_mut()
        {
            ipam.confirm(asked_ms);
        }
        Ok(outcome)
    }

    /// Gives addresses of an endpoint back.
    pub(in crate::agent) fn release_addresses(
        &self,
        cluster: &Cluster,
        network: &str,
        ips: &[IpNetwork],
    ) {
        if let Some(ipam) = self.live().node.ipam.as_mut() {
            for ip in ips {
                ipam.release(network, ip.ip(), cluster.now_ms());
            }
        }
        cluster.nudge();
    }

    /// Waits until the managers' word that this node takes part in a network has come back, with its keys: only
    /// then do others believe what it tells of it.
    pub(in crate::agent) async fn await_part(&self, cluster: &Cluster, network: &str) {
        let known = |replica: &crate::cluster::manager::watch::Replica| {
            replica.network_keys.contains_key(network) && replica.takes_part(cluster.me, network)
        };
        if !cluster.wait_until(ECHO_LIMIT, known).await {
            tracing::warn!(network, "the managers' word on this network is late");
        }
    }
}

fn no_leases() -> ApiError {
    ApiError::new(
        ErrorCode::NoCluster,
        "this node has just left its cluster",
        "join it again: weft join",
    )
}

fn in_use(address: IpAddr, owner: &str) -> ApiError {
    ApiError::new(
        ErrorCode::AddressInUse,
        format!("address {address} belongs to {owner}"),
        "choose another address, or leave --ip out to get a free one",
    )
}
