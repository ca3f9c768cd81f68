//! Taking everything down: `weft reset`, and `cleanup_on_exit`.

use crate::agent::api::ResetReport;
use crate::agent::edge;
use crate::agent::endpoint::Endpoint;
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::events::Event;
use crate::agent::handle::Agent;
use crate::agent::plumbing::Keep;
use crate::agent::records::RemoteTable;

impl Agent {
    /// Detaches every endpoint, removes every network and forgets every record. No other verb runs
    /// meanwhile. What the kernel refused to remove is in the answer.
    ///
    /// # Errors
    /// `state_not_saved`, `path_unusable`.
    pub async fn reset(&self) -> Result<ResetReport, ApiError> {
        let agent = self.clone();
        let work = async move {
            if agent.cluster().is_some() {
                return Err(ApiError::new(
                    ErrorCode::ClusterExists,
                    "this node is part of a cluster, and its networks are the cluster's",
                    "leave it first: weft leave",
                ));
            }
            let _alone = agent.lock_everything().await;
            agent.live().health.clear();
            let mut report = agent.take_down_alone().await;
            let networks = {
                let mut live = agent.live();
                live.node.remote = RemoteTable::default();
                let bare = live.node.catalog.without_own();
                let mut networks = std::mem::replace(&mut live.node.catalog, bare).networks;
                networks.retain(|_, network| !network.ingress);
                networks
            };
            agent.forget_state().await?;
            agent.save().await?;
            for network in networks.into_values() {
                agent.emit(Event::NetworkRemoved {
                    network: network.id,
                    name: network.name.clone(),
                });
                report.networks.push(network.name);
            }
            report.networks.sort();
            Ok(report)
        };
        self.inner.tasks.operation(work).await
    }

    /// Removes everything from the kernel; the networks stay known. Goes on after failures, which end up
    /// in the answer.
    pub(in crate::agent) async fn take_everything_down(&self) -> ResetReport {
        let _alone = self.lock_everything().await;
        self.take_down_alone().await
    }

    /// The caller holds the gate.
    pub(in crate::agent) async fn take_down_alone(&self) -> ResetReport {
        let networks: Vec<_> = {
            let live = self.live();
            live.node.catalog.networks.values().cloned().collect()
        };
        let mut report = ResetReport::default();
        for network in networks {
            let endpoints: Vec<Endpoint> = self.live().endpoints_of(&network.id).cloned().collect();
            for endpoint in endpoints {
                self.live().node.endpoints.remove(&endpoint.id);
                report.endpoints += 1;
                if let Err(error) = self.unplug(&network, &endpoint).await {
                    report.failures.push(format!(
                        "endpoint \"{}\" of network \"{}\": {error}",
                        endpoint.name, network.name
                    ));
                }
            }
        }
        edge::take_down(self).await;
        // One that could not be brought down is taken away now, and may have a server yet.
        self.stop_all_names().await;
        match self.plumbing().sweep(Keep::new()).await {
            Ok(swept) => {
                report.swept = swept.removed;
                report.failures.extend(swept.failures);
            }
            Err(error) => report.failures.push(error.message),
        }
        // The sweep lets every network go, also one that could not be brought down.
        self.live().up.clear();
        if let Err(error) = self.save().await {
            report.failures.push(error.message);
        }
        report
    }
}
