//! Taking everything down: `weft reset`, and `cleanup_on_exit`.

use crate::agent::api::ResetReport;
use crate::agent::error::ApiError;
use crate::agent::events::Event;
use crate::agent::handle::Agent;
use crate::agent::plumbing::Keep;
use crate::agent::records::RemoteTable;

impl Agent {
    /// Detaches every endpoint, removes every network and forgets every record.
    ///
    /// # Errors
    /// `state_not_saved`; what the kernel refused to remove is in the status.
    pub async fn reset(&self) -> Result<ResetReport, ApiError> {
        let agent = self.clone();
        let work = async move {
            let mut report = agent.take_everything_down().await;
            let networks = {
                let mut live = agent.live();
                live.node.remote = RemoteTable::default();
                live.health.clear();
                std::mem::take(&mut live.node.catalog.networks)
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
    /// in the log and the status.
    pub(in crate::agent) async fn take_everything_down(&self) -> ResetReport {
        let networks: Vec<_> = self
            .live()
            .node
            .catalog
            .networks
            .values()
            .cloned()
            .collect();
        let mut report = ResetReport::default();
        for network in networks {
            let _turn = self.lock_network(&network.id).await;
            let endpoints: Vec<_> = self.live().endpoints_of(&network.id).cloned().collect();
            for endpoint in endpoints {
                self.live().node.endpoints.remove(&endpoint.id);
                report.endpoints += 1;
                if let Err(error) = self.unplug(&network, &endpoint).await {
                    self.trouble(
                        &format!("network {}", network.name),
                        "kernel_refused",
                        &error,
                    );
                }
            }
        }
        match self.plumbing().sweep(Keep::new()).await {
            Ok(swept) => report.swept = swept,
            Err(error) => self.trouble("sweep", "kernel_refused", &error),
        }
        if let Err(error) = self.save().await {
            self.trouble("state", "state_not_saved", &error);
        }
        report
    }
}
