//! Create, remove and prune networks.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::agent::api::{CreateNetwork, NetworkCreated, NetworksPruned};
use crate::agent::cluster::{Cluster, ECHO_LIMIT, odd_answer};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::events::Event;
use crate::agent::handle::{Agent, Live};
use crate::agent::ident;
use crate::agent::network::{Fresh, Network};
use crate::cluster::manager::command::Command;
use crate::cluster::manager::reply::Reply;
use crate::cluster::manager::watch::Replica;

/// How long a removal waits for nodes that are just giving their addresses back.
const RELEASE_LIMIT: Duration = Duration::from_millis(1_500);
const RELEASE_PAUSE: Duration = Duration::from_millis(100);

fn has_network(replica: &Replica, id: &str) -> bool {
    let catalog = replica.catalog.as_ref();
    catalog.is_some_and(|catalog| catalog.networks.contains_key(id))
}

impl Agent {
    /// Creates a network. Nothing is made in the kernel before its first local endpoint. The same wish
    /// with the same fixed id is answered with what exists.
    ///
    /// # Errors
    /// The codes of creation; `state_not_saved`.
    pub async fn create_network(&self, wish: CreateNetwork) -> Result<NetworkCreated, ApiError> {
        let agent = self.clone();
        self.inner
            .tasks
            .operation(async move { agent.create(wish).await })
            .await
    }

    async fn create(&self, wish: CreateNetwork) -> Result<NetworkCreated, ApiError> {
        match self.cluster() {
            Some(cluster) => self.create_in(&cluster, wish).await,
            None => self.create_here(wish).await,
        }
    }

    /// The managers plan it by the same rules.
    async fn create_in(
        &self,
        cluster: &Cluster,
        wish: CreateNetwork,
    ) -> Result<NetworkCreated, ApiError> {
        let command = Command::NetworkCreate {
            wish: Box::new(wish),
            id: ident::random_id(),
            created: ident::unix_nanos(),
            vtep: self.settings().vtep,
        };
        let reply = cluster.order(command).await?;
        let Reply::Network {
            network,
            mut warnings,
        } = reply
        else {
            return Err(odd_answer());
        };
        let known = |replica: &Replica| has_network(replica, &network.id);
        if !cluster.wait_until(ECHO_LIMIT, known).await {
            warnings.push("this node will hear of it a little later".into());
        }
        warnings.extend(mtu_warning(&network, self.live().underlay_mtu));
        Ok(NetworkCreated {
            id: network.id,
            warning: warnings.join("; "),
        })
    }

    async fn create_here(&self, wish: CreateNetwork) -> Result<NetworkCreated, ApiError> {
        let fresh = Fresh {
            id: ident::random_id(),
            now: ident::unix_nanos(),
            vtep: self.settings().vtep,
        };
        let id = wish.id.clone().unwrap_or_else(|| fresh.id.clone());
        let _turn = self.lock_network(&id).await;
        let pools = self.pools();
        let (network, warnings) = {
            let mut live = self.live();
            let plan = live.node.catalog.plan(&wish, &pools, &fresh)?;
            let (network, mut warnings) = (plan.network.clone(), plan.warnings.clone());
            warnings.extend(mtu_warning(&network, live.underlay_mtu));
            if plan.exists {
                return Ok(NetworkCreated {
                    id: network.id,
                    warning: String::new(),
                });
            }
            live.node.catalog.insert(plan);
            (network, warnings)
        };
        if let Err(error) = self.save().await {
            self.live().node.catalog.remove(&network.id);
            return Err(error);
        }
        self.emit(Event::NetworkCreated {
            network: network.id.clone(),
            name: network.name,
        });
        Ok(NetworkCreated {
            id: network.id,
            warning: warnings.join("; "),
        })
    }

    /// Removes a network without local endpoints; records and VTEPs of it are forgotten. Tells its id.
    ///
    /// # Errors
    /// `network_not_found`, `builtin_network`, `network_in_use`, `state_not_saved`, `kernel_refused`: the
    /// network then stays.
    pub async fn remove_network(&self, reference: String) -> Result<String, ApiError> {
        self.remove_if(reference, |_, _| Ok(())).await
    }

    /// Removes a network that `check` has nothing against.
    async fn remove_if(
        &self,
        reference: String,
        check: fn(&Live, &Network) -> Result<(), ApiError>,
    ) -> Result<String, ApiError> {
        let agent = self.clone();
        self.inner
            .tasks
            .operation(async move { agent.remove(&reference, check).await })
            .await
    }

    async fn remove(
        &self,
        reference: &str,
        check: fn(&Live, &Network) -> Result<(), ApiError>,
    ) -> Result<String, ApiError> {
        let id = self
            .live()
            .node
            .catalog
            .find_overlay(reference, "remove")?
            .id
            .clone();
        let _turn = self.lock_network(&id).await;
        let network = {
            let live = self.live();
            let network = live.network(&id)?.clone();
            let names: Vec<String> = live.endpoints_of(&id).map(|e| e.name.clone()).collect();
            if !names.is_empty() {
                return Err(in_use(&network, &names));
            }
            check(&live, &network)?;
            network
        };
        if let Some(cluster) = self.cluster() {
            return self.remove_from(&cluster, &network).await;
        }
        // The kernel first: what it refuses to remove must not be forgotten.
        self.bring_down(&network).await?;
        let remote = {
            let mut live = self.live();
            let remote = live.node.remote.clone();
            let vnis: Vec<_> = network.segments.iter().map(|s| s.vni).collect();
            live.node.catalog.remove(&id);
            live.node.remote.forget(&id, &vnis);
            remote
        };
        if let Err(error) = self.save().await {
            let mut live = self.live();
            live.node.catalog.networks.insert(id.clone(), network);
            live.node.remote.restore(&id, &remote);
            return Err(error);
        }
        self.well_again(&format!("network {}", network.name));
        self.emit(Event::NetworkRemoved {
            network: id.clone(),
            name: network.name,
        });
        Ok(id)
    }

    /// Has the managers remove a network. Addresses that are just being given back are waited for.
    async fn remove_from(&self, cluster: &Cluster, network: &Network) -> Result<String, ApiError> {
        let end = Instant::now() + RELEASE_LIMIT;
        loop {
            let command = Command::NetworkRemove {
                network: network.id.clone(),
                force: false,
            };
            match cluster.order(command).await {
                Ok(_) => break,
                Err(error) if error.code == ErrorCode::NetworkInUse && Instant::now() < end => {
                    cluster.nudge();
                    sleep(RELEASE_PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
        let gone = |replica: &Replica| !has_network(replica, &network.id);
        cluster.wait_until(ECHO_LIMIT, gone).await;
        Ok(network.id.clone())
    }

    /// Removes every network without local endpoints and without members or records elsewhere.
    ///
    /// # Errors
    /// Those of removal, for the first that fails.
    pub async fn prune_networks(&self) -> Result<NetworksPruned, ApiError> {
        let unused: Vec<(String, String)> = {
            let live = self.live();
            let unused = live.node.catalog.own().filter(|network| {
                live.endpoints_of(&network.id).next().is_none()
                    && no_members(&live, network).is_ok()
            });
            unused
                .map(|network| (network.name.clone(), network.id.clone()))
                .collect()
        };
        let mut pruned = NetworksPruned::default();
        for (name, id) in unused {
            match self.remove_if(id, no_members).await {
                Ok(_) => pruned.networks_deleted.push(name),
                // Somebody was faster, in either direction.
                Err(e)
                    if matches!(e.code, ErrorCode::NetworkInUse | ErrorCode::NetworkNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        pruned.networks_deleted.sort();
        Ok(pruned)
    }
}

/// Other nodes take part in a network that has members or records.
fn no_members(live: &Live, network: &Network) -> Result<(), ApiError> {
    // In a cluster the managers know who takes part, and refuse.
    let vteps = live.node.remote.vteps(&network.id);
    if vteps.is_empty() {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::NetworkInUse,
        format!(
            "network \"{}\" has {} other members",
            network.name,
            vteps.len()
        ),
        format!("remove it by name: weft network rm {}", network.name),
    ))
}

fn in_use(network: &Network, names: &[String]) -> ApiError {
    let shown: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
    let more = if names.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    ApiError::new(
        ErrorCode::NetworkInUse,
        format!(
            "network \"{}\" has {} local endpoints: {}{more}",
            network.name,
            names.len(),
            shown.join(", ")
        ),
        format!(
            "detach them first: weft detach {} {}",
            network.name, names[0]
        ),
    )
}

/// A network cannot carry more than the device below it.
fn mtu_warning(network: &Network, underlay_mtu: u32) -> Option<String> {
    let asked = network
        .mtu_underlay
        .filter(|asked| underlay_mtu > 0 && *asked > underlay_mtu)?;
    Some(format!(
        "the network counts on an underlay MTU of {asked}, but this node's device has {underlay_mtu}: \
         large packets will be dropped"
    ))
}
