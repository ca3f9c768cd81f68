//! The services of the cluster, and the virtual addresses they hold.
//!
//! **Invariant:** a virtual address is the service's from its creation until its removal, whatever becomes of nodes: it
//! lies in no node's lease, and after the service it rests as an endpoint's would.

use super::leases::vips::Vips;
use super::reply::{Outcome, Refusal, Reply};
use super::state::{Cluster, Scene};
use super::watch::Change;
use crate::model::service::{CreateService, EndpointMode, Known, Service, UpdateService, find};

impl Cluster {
    fn known(&self) -> Known<'_> {
        Known {
            services: &self.services,
            catalog: &self.catalog,
        }
    }

    pub(super) fn service_create(
        &mut self,
        scene: &mut Scene<'_>,
        wish: &CreateService,
        id: &str,
        created: u64,
    ) -> Outcome {
        let planned = self.known().create(wish, id, created);
        let service = planned.map_err(Refusal::Service)?;
        self.settle(scene, service)
    }

    pub(super) fn service_update(
        &mut self,
        scene: &mut Scene<'_>,
        reference: &str,
        wish: &UpdateService,
        updated: u64,
    ) -> Outcome {
        let old = find(&self.services, reference).map_err(Refusal::Service)?;
        let planned = self.known().update(old, wish, updated);
        let service = planned.map_err(Refusal::Service)?;
        self.settle(scene, service)
    }

    pub(super) fn service_remove(&mut self, scene: &mut Scene<'_>, reference: &str) -> Outcome {
        let found = find(&self.services, reference).map_err(Refusal::Service)?;
        let service = found.clone();
        self.services.remove(&service.id);
        self.free_vips(scene, held_by(&service));
        scene.changes.push(Change::ServiceGone(service.id.clone()));
        Ok(Reply::ServiceRemoved {
            service: service.id,
            name: service.name,
        })
    }

    /// Chooses the virtual addresses that are missing, and puts the service in. Nothing has changed if there are none
    /// to be had.
    fn settle(&mut self, scene: &mut Scene<'_>, mut service: Service) -> Outcome {
        let mut fresh = Vec::new();
        if service.mode == EndpointMode::Vip {
            for part in service.networks.iter_mut().filter(|p| p.vips.is_empty()) {
                part.vips = self.choose_vips(scene, &part.network)?;
                let vips = part.vips.iter();
                fresh.extend(vips.map(|vip| (part.network.clone(), *vip)));
            }
        }
        self.hold_vips(&service.id, fresh);
        let old = self.services.insert(service.id.clone(), service.clone());
        if let Some(old) = old {
            let now: Vips = held_by(&service);
            let gone = held_by(&old).into_iter();
            self.free_vips(scene, gone.filter(|vip| !now.contains(vip)).collect());
        }
        scene
            .changes
            .push(Change::Service(Box::new(service.clone())));
        Ok(Reply::Service(Box::new(service)))
    }

    /// Names of the services on a network.
    pub(super) fn services_on(&self, network: &str) -> Vec<String> {
        let on = |s: &&Service| s.networks.iter().any(|part| part.network == network);
        let services = self.services.values().filter(on);
        let mut names: Vec<String> = services.map(|s| s.name.clone()).collect();
        names.sort();
        names
    }

    /// The name of a service, or what is left of it.
    pub(super) fn service_name(&self, id: &str) -> String {
        let service = self.services.get(id);
        service.map_or_else(|| id.to_owned(), |service| service.name.clone())
    }
}

fn held_by(service: &Service) -> Vips {
    let parts = service.networks.iter();
    parts
        .flat_map(|part| part.vips.iter().map(|vip| (part.network.clone(), *vip)))
        .collect()
}
