//! The networks of the cluster. Every manager plans a network from the same wish and the same catalog, so all
//! come to the same subnets and VNIs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::reply::{Outcome, Refusal, Reply};
use super::state::{Cluster, Scene};
use super::watch::Change;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::{Fresh, Network, Plan, Pools};
use crate::model::request::CreateNetwork;

/// What of a network is to change.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetworkChange<'a> {
    /// In place of all labels.
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
    /// Whether workloads outside of services may join.
    pub(super) attachable: Option<bool>,
    /// Another name.
    pub(super) name: Option<&'a str>,
}

impl Cluster {
    pub(super) fn network(&self, id: &str) -> Result<&Network, Refusal> {
        let found = self.catalog.networks.get(id);
        found.ok_or_else(|| Refusal::UnknownNetwork(id.to_owned()))
    }

    pub(super) fn network_create(
        &mut self,
        scene: &mut Scene<'_>,
        wish: &CreateNetwork,
        fresh: &Fresh,
    ) -> Outcome {
        let plan = self.plan(wish, fresh).map_err(Refusal::Network)?;
        let reply = Reply::Network {
            network: Box::new(plan.network.clone()),
            warnings: plan.warnings.clone(),
        };
        if !plan.exists {
            let network = plan.network.clone();
            scene.changes.push(Change::Network(Box::new(network)));
            self.catalog.insert(plan);
        }
        Ok(reply)
    }

    /// Tries the pools in order; only one without room makes way for the next.
    fn plan(&self, wish: &CreateNetwork, fresh: &Fresh) -> Result<Plan, ApiError> {
        let vteps: Vec<IpAddr> = self.nodes.values().map(|n| n.vtep).collect();
        let mut refusal = None;
        for pool in &self.settings.pools {
            let pools = Pools {
                pool: *pool,
                prefix_len: self.settings.prefix_len,
                avoid: vteps.clone(),
            };
            match self.catalog.plan(wish, &pools, fresh) {
                Err(error) if error.code == ErrorCode::SubnetsExhausted => {
                    refusal = refusal.or(Some(error));
                }
                other => return other,
            }
        }
        Err(refusal.unwrap_or_else(|| ApiError::internal("the cluster has no address pool")))
    }

    pub(super) fn network_update(
        &mut self,
        scene: &mut Scene<'_>,
        id: &str,
        change: &NetworkChange<'_>,
    ) -> Outcome {
        let NetworkChange {
            labels,
            attachable,
            name,
        } = *change;
        if let Some(name) = name {
            let free = self.catalog.check_new_name(id, name);
            free.map_err(Refusal::Network)?;
        }
        let network = self.catalog.networks.get_mut(id);
        let network = network.filter(|network| !network.ingress);
        let network = network.ok_or_else(|| Refusal::UnknownNetwork(id.to_owned()))?;
        if labels.is_some_and(|l| l.keys().any(|key| key.trim().is_empty())) {
            return Err(Refusal::Network(ApiError::new(
                ErrorCode::InvalidRequest,
                "a label has no name",
                "give labels as NAME=VALUE",
            )));
        }
        if let Some(labels) = labels {
            network.labels = labels.clone();
        }
        network.attachable = attachable.unwrap_or(network.attachable);
        network.name = name.unwrap_or(&network.name).to_owned();
        let reply = Reply::Network {
            network: Box::new(network.clone()),
            warnings: Vec::new(),
        };
        scene
            .changes
            .push(Change::Network(Box::new(network.clone())));
        Ok(reply)
    }

    pub(super) fn network_remove(
        &mut self,
        scene: &mut Scene<'_>,
        reference: &str,
        force: bool,
    ) -> Outcome {
        let network = self.catalog.find_overlay(reference, "remove");
        let network = network.map_err(Refusal::Network)?.clone();
        let services = self.services_on(&network.id);
        if !services.is_empty() {
            return Err(Refusal::NetworkServed {
                name: network.name,
                services,
            });
        }
        let users = self.users_of(&network.id);
        if !users.is_empty() && !force {
            return Err(Refusal::NetworkInUse {
                name: network.name,
                users,
            });
        }
        self.catalog.remove(&network.id);
        // What rests in it need not: the next network on these subnets has another id and VNI.
        self.leases.remove(&network.id);
        scene.changes.push(Change::NetworkGone(network.id.clone()));
        Ok(Reply::Removed {
            network: network.id,
            name: network.name,
        })
    }
}
