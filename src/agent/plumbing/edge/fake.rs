//! The edge in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::{self, BoxStream};
use ipnetwork::IpNetwork;

use super::{
    Edge, GatewayBridge, GatewayPlan, LegPlan, Outcome, Place, ReadCounters, WorkloadPlace,
};
use crate::services::counts::Reading;

/// What exists at the pretended edge.
#[derive(Clone, Debug, Default)]
pub struct EdgeWorld {
    /// The gateway bridge.
    pub gateway: Option<GatewayPlan>,
    /// Names that belong to somebody else.
    pub foreign: BTreeSet<String>,
    /// Prefixes the node uses otherwise.
    pub in_use: Vec<IpNetwork>,
    /// Legs by id.
    pub legs: BTreeMap<String, LegPlan>,
    /// The node's own routes to workloads.
    pub node_routes: BTreeMap<IpAddr, IpAddr>,
    /// Workloads with a default route of their own.
    pub routed: BTreeSet<String>,
    /// Rules by place.
    pub rules: BTreeMap<Place, String>,
    /// What the rules have counted, by place.
    pub counters: BTreeMap<Place, Reading>,
    /// Backends whose flows were forgotten, in order.
    pub forgotten: Vec<(Place, IpAddr)>,
    /// Ways back by place.
    pub ways: BTreeMap<WorkloadPlace, Vec<(u32, IpAddr)>>,
    /// Namespaces that forward.
    pub sandboxes: BTreeSet<PathBuf>,
}

/// The edge in memory.
#[derive(Debug, Default)]
pub struct FakeEdge {
    world: Arc<Mutex<EdgeWorld>>,
}

impl FakeEdge {
    /// What is left of the edge after the agent is gone: all of it.
    pub fn survivor(&self) -> FakeEdge {
        FakeEdge {
            world: Arc::new(Mutex::new(self.world().clone())),
        }
    }

    /// A look at, or a change of, the pretended edge.
    pub fn world(&self) -> MutexGuard<'_, EdgeWorld> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counters in memory.
#[derive(Debug)]
struct FakeCounters {
    world: Arc<Mutex<EdgeWorld>>,
    place: Place,
}

impl ReadCounters for FakeCounters {
    fn read(&self) -> Outcome<Reading> {
        let world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(world.counters.get(&self.place).cloned().unwrap_or_default())
    }
}

impl Edge for FakeEdge {
    fn gateway<'a>(&'a self, bridge: &'a str) -> BoxFuture<'a, Outcome<GatewayBridge>> {
        let world = self.world();
        let found = match &world.gateway {
            Some(plan) if plan.bridge == bridge => GatewayBridge::Ours(plan.addresses.clone()),
            _ if world.foreign.contains(bridge) => GatewayBridge::Foreign,
            _ => GatewayBridge::Absent,
        };
        ready(Ok(found)).boxed()
    }

    fn gateway_up(&self, plan: GatewayPlan) -> BoxFuture<'_, Outcome<()>> {
        self.world().gateway = Some(plan);
        ready(Ok(())).boxed()
    }

    fn gateway_down<'a>(&'a self, _bridge: &'a str) -> BoxFuture<'a, Outcome<()>> {
        let mut world = self.world();
        world.gateway = None;
        world.legs.clear();
        ready(Ok(())).boxed()
    }

    fn prefixes_in_use<'a>(&'a self, _but: &'a str) -> BoxFuture<'a, Outcome<Vec<IpNetwork>>> {
        ready(Ok(self.world().in_use.clone())).boxed()
    }

    fn leg_up(&self, plan: LegPlan) -> BoxFuture<'_, Outcome<Option<String>>> {
        let mut world = self.world();
        if world.routed.contains(&plan.place.target) {
            return ready(Ok(None)).boxed();
        }
        assert!(world.gateway.is_some(), "a leg without a gateway bridge");
        world.legs.insert(plan.id.clone(), plan);
        ready(Ok(Some("eth1".into()))).boxed()
    }

    fn leg_down<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        self.world().legs.remove(id);
        ready(Ok(())).boxed()
    }

    fn legs(&self) -> BoxFuture<'_, Outcome<Vec<String>>> {
        ready(Ok(self.world().legs.keys().cloned().collect())).boxed()
    }

    fn node_routes<'a>(
        &'a self,
        _bridge: &'a str,
        ways: &'a BTreeMap<IpAddr, IpAddr>,
    ) -> BoxFuture<'a, Outcome<()>> {
        self.world().node_routes.clone_from(ways);
        ready(Ok(())).boxed()
    }

    fn put_rules<'a>(&'a self, place: &'a Place, body: &'a str) -> BoxFuture<'a, Outcome<()>> {
        let mut world = self.world();
        match body.is_empty() {
            true => drop(world.rules.remove(place)),
            false => drop(world.rules.insert(place.clone(), body.to_owned())),
        }
        ready(Ok(())).boxed()
    }

    fn change_rules<'a>(
        &'a self,
        place: &'a Place,
        _before: &'a str,
        body: &'a str,
    ) -> BoxFuture<'a, Outcome<()>> {
        self.put_rules(place, body)
    }

    fn rule_counters(&self, place: &Place) -> Outcome<Box<dyn ReadCounters>> {
        Ok(Box::new(FakeCounters {
            world: Arc::clone(&self.world),
            place: place.clone(),
        }))
    }

    fn rules<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Outcome<Option<String>>> {
        ready(Ok(self.world().rules.get(place).cloned())).boxed()
    }

    fn watch_rules(&self, _place: &Place) -> Outcome<BoxStream<'static, ()>> {
        Ok(stream::pending().boxed())
    }

    fn forget_flows<'a>(
        &'a self,
        place: &'a Place,
        left: &'a [IpAddr],
        gone: &'a [IpAddr],
    ) -> BoxFuture<'a, Outcome<()>> {
        let _attempts = gone;
        let forgotten = left.iter().map(|backend| (place.clone(), *backend));
        self.world().forgotten.extend(forgotten);
        ready(Ok(())).boxed()
    }

    fn return_routes<'a>(
        &'a self,
        place: &'a WorkloadPlace,
        _ifname: &'a str,
        ways: &'a [(u32, IpAddr)],
    ) -> BoxFuture<'a, Outcome<()>> {
        self.world().ways.insert(place.clone(), ways.to_vec());
        ready(Ok(())).boxed()
    }

    fn sandbox_up<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Outcome<()>> {
        self.world().sandboxes.insert(path.to_owned());
        ready(Ok(())).boxed()
    }

    fn sandbox_down<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Outcome<()>> {
        self.world().sandboxes.remove(path);
        ready(Ok(())).boxed()
    }
}
