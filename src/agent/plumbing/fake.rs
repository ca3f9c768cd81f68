//! Plumbing in memory: remembers what exists, can be told to fail, and checks that verbs come in an order
//! the kernel would accept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};

use super::edge::Edge;
use super::edge::fake::{EdgeWorld, FakeEdge};
use super::{
    EndpointPlan, EndpointUp, Keep, NetworkPlan, NetworkUp, Outcome, Plumbing, Present, Swept,
    Underlay, Workload,
};
use crate::agent::api::{DataplaneStatus, HealthItem};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::network::overhead;
use crate::services::dns::server::Sockets;
use crate::tables::record::EndpointRecord;
use crate::wire::{Mac, Vni};

/// What exists in the pretended kernel and tables.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Networks that are up.
    pub networks: BTreeMap<String, NetworkPlan>,
    /// Endpoints that are up, by id.
    pub endpoints: BTreeMap<String, EndpointPlan>,
    /// Table rows: local ones, then remote ones.
    pub local: BTreeMap<(Vni, Mac), EndpointRecord>,
    /// Remote table rows.
    pub remote: BTreeMap<(Vni, Mac), EndpointRecord>,
    /// VTEPs by segment.
    pub vteps: BTreeMap<Vni, Vec<IpAddr>>,
    /// Workload namespaces that have gone away.
    pub gone: BTreeSet<String>,
    /// Workload namespaces that were deleted and made again, with their new inode.
    pub reborn: BTreeMap<String, u64>,
    /// Networks that tables and workers have.
    pub forwarding: BTreeSet<String>,
    /// Workloads' MTU by network.
    pub mtus: BTreeMap<String, u32>,
    /// Networks with a bridge or gateway that somebody deleted.
    pub faulty: BTreeSet<String>,
    /// Endpoints whose port somebody took down.
    pub damaged: BTreeSet<String>,
    /// The verb that fails from now on; `take_in` is the part of `network_up` that follows the kernel's.
    pub failing: Option<&'static str>,
    /// MTU of the underlay device; `None`: the VTEP is on no device.
    pub underlay_mtu: Option<u32>,
    /// What [`Plumbing::dataplane`] answers.
    pub dataplane: DataplaneStatus,
    /// What [`Plumbing::trouble`] answers.
    pub trouble: Vec<HealthItem>,
    /// The resolv.conf of named namespaces.
    pub resolv: BTreeMap<String, String>,
    /// Whether forwarding runs.
    pub running: bool,
}

impl World {
    /// Takes a network out of tables and workers.
    fn let_go(&mut self, id: &str, vnis: &[Vni]) {
        self.forwarding.remove(id);
        self.local.retain(|(vni, _), _| !vnis.contains(vni));
        self.remote.retain(|(vni, _), _| !vnis.contains(vni));
        self.vteps.retain(|vni, _| !vnis.contains(vni));
    }
}

/// Plumbing in memory.
#[derive(Debug)]
pub struct FakePlumbing {
    world: Mutex<World>,
    vtep: IpAddr,
    edge: FakeEdge,
}

impl FakePlumbing {
    /// A host with an underlay MTU of 1500 bytes.
    pub fn new(vtep: IpAddr) -> FakePlumbing {
        let mut dataplane = DataplaneStatus {
            workers: 1,
            uplink: "none".into(),
            ..Default::default()
        };
        dataplane.counters.drops.insert("unknown_vni".into(), 0);
        let world = World {
            underlay_mtu: Some(1500),
            dataplane,
            running: true,
            ..World::default()
        };
        FakePlumbing {
            world: Mutex::new(world),
            vtep,
            edge: FakeEdge::default(),
        }
    }

    /// A look at, or a change of, the pretended world.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of the world after the agent is gone: kernel objects, but no tables.
    pub fn survivor(&self) -> FakePlumbing {
        let mut world = self.world().clone();
        world.local.clear();
        world.remote.clear();
        world.vteps.clear();
        world.forwarding.clear();
        world.failing = None;
        world.running = true;
        FakePlumbing {
            world: Mutex::new(world),
            vtep: self.vtep,
            edge: self.edge.survivor(),
        }
    }

    /// A look at, or a change of, the pretended edge.
    pub fn edge_world(&self) -> MutexGuard<'_, EdgeWorld> {
        self.edge.world()
    }

    fn verb(&self, name: &'static str) -> Outcome<MutexGuard<'_, World>> {
        let world = self.world();
        if world.failing == Some(name) {
            return Err(told_to_fail(name));
        }
        Ok(world)
    }

    fn up(&self, plan: NetworkPlan) -> Outcome<NetworkUp> {
        let mut world = self.verb("network_up")?;
        let mtu = self.wanted_mtu(&world, &plan);
        let (id, vnis) = (plan.id.clone(), vnis(&plan));
        let netns = PathBuf::from("/run/weft/netns").join(crate::agent::ident::short(&id));
        world.networks.insert(id.clone(), plan);
        if world.failing == Some("take_in") {
            world.let_go(&id, &vnis);
            return Err(told_to_fail("take_in"));
        }
        world.forwarding.insert(id.clone());
        world.faulty.remove(&id);
        world.mtus.insert(id, mtu);
        Ok(NetworkUp { netns, mtu })
    }

    fn wanted_mtu(&self, world: &World, plan: &NetworkPlan) -> u32 {
        plan.mtu_underlay.or(world.underlay_mtu).unwrap_or(1500) - overhead(self.vtep)
    }

    fn down(&self, id: &str) -> Outcome<()> {
        // Tables and workers let go first, whatever the kernel then says.
        {
            let mut world = self.world();
            if let Some(vnis) = world.networks.get(id).map(vnis) {
                world.let_go(id, &vnis);
            }
        }
        let mut world = self.verb("network_down")?;
        let busy = world
            .endpoints
            .values()
            .any(|endpoint| endpoint.network == id);
        assert!(!busy, "network {id} goes down with endpoints in it");
        world.networks.remove(id);
        Ok(())
    }

    fn look(&self, plan: &NetworkPlan) -> Outcome<Option<Present>> {
        let world = self.verb("present")?;
        if !world.networks.contains_key(&plan.id) {
            return Ok(None);
        }
        let here = world.endpoints.values().filter(|e| e.network == plan.id);
        let endpoints: BTreeSet<String> = here
            .filter(|e| !world.gone.contains(&e.target))
            .map(|e| e.id.clone())
            .collect();
        let mut faults = Vec::new();
        if world.forwarding.contains(&plan.id) {
            let mtu = self.wanted_mtu(&world, plan);
            if world.mtus.get(&plan.id) != Some(&mtu) {
                faults.push("br0 has another MTU".into());
            }
            if world.faulty.contains(&plan.id) {
                faults.push("br0 is missing".into());
            }
        }
        Ok(Some(Present {
            damaged: endpoints.intersection(&world.damaged).cloned().collect(),
            endpoints,
            faults,
        }))
    }

    fn attach(&self, plan: EndpointPlan) -> Outcome<EndpointUp> {
        let mut world = self.verb("endpoint_up")?;
        assert!(
            world.networks.contains_key(&plan.network),
            "endpoint on a network that is down"
        );
        let inode = world.reborn.get(&plan.target).copied();
        assert_eq!(
            plan.netns_inode,
            inode.unwrap_or(inode_of(&plan.target)),
            "another workload than was looked at"
        );
        let on_target = world
            .endpoints
            .values()
            .filter(|e| e.target == plan.target && e.id != plan.id)
            .count();
        let ifname = plan
            .ifname
            .clone()
            .unwrap_or_else(|| format!("eth{on_target}"));
        let plan = EndpointPlan {
            ifname: Some(ifname.clone()),
            ..plan
        };
        let mtu = world.mtus[&plan.network];
        world.damaged.remove(&plan.id);
        world.endpoints.insert(plan.id.clone(), plan);
        Ok(EndpointUp { ifname, mtu })
    }
}

fn told_to_fail(name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::KernelRefused,
        format!("{name}: told to fail"),
        "tell it to work again",
    )
}

fn vnis(plan: &NetworkPlan) -> Vec<Vni> {
    plan.segments.iter().map(|segment| segment.vni).collect()
}

fn inode_of(target: &str) -> u64 {
    target.bytes().fold(4_026_531_840, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    })
}

impl Plumbing for FakePlumbing {
    fn edge(&self) -> &dyn Edge {
        &self.edge
    }

    fn workload(&self, target: &str) -> Outcome<Workload> {
        let world = self.verb("workload")?;
        if world.gone.contains(target) || target.starts_with("missing") {
            return Err(ApiError::new(
                ErrorCode::TargetNotFound,
                format!("there is no network namespace \"{target}\""),
                "list them with `ip netns`",
            ));
        }
        Ok(Workload {
            path: PathBuf::from("/run/netns").join(target),
            netns_inode: world
                .reborn
                .get(target)
                .copied()
                .unwrap_or(inode_of(target)),
        })
    }

    fn underlay(&self) -> BoxFuture<'_, Outcome<Underlay>> {
        let found = self.world().underlay_mtu.map(|mtu| Underlay {
            ifname: "eth0".into(),
            mtu,
        });
        ready(found.ok_or_else(|| {
            ApiError::new(
                ErrorCode::VtepNotLocal,
                format!("no interface has the address {}", self.vtep),
                "give the address of an interface: ip -brief address",
            )
        }))
        .boxed()
    }

    fn network_up(&self, plan: NetworkPlan) -> BoxFuture<'_, Outcome<NetworkUp>> {
        ready(self.up(plan)).boxed()
    }

    fn network_down<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        ready(self.down(id)).boxed()
    }

    fn endpoint_up(&self, plan: EndpointPlan) -> BoxFuture<'_, Outcome<EndpointUp>> {
        ready(self.attach(plan)).boxed()
    }

    fn endpoint_down<'a>(&'a self, _: &'a str, endpoint: &'a str) -> BoxFuture<'a, Outcome<()>> {
        let done = self.verb("endpoint_down").map(|mut world| {
            world.endpoints.remove(endpoint);
        });
        ready(done).boxed()
    }

    fn present(&self, plan: NetworkPlan) -> BoxFuture<'_, Outcome<Option<Present>>> {
        ready(self.look(&plan)).boxed()
    }

    fn names_place(&self, _: &str) -> Outcome<Option<u64>> {
        self.verb("names_place").map(|_| None)
    }

    fn open_names(&self, _: &str, _: &[IpAddr]) -> Outcome<Sockets> {
        self.verb("open_names").map(|_| Sockets::default())
    }

    fn set_resolv(&self, name: &str, text: Option<&str>) -> Outcome<bool> {
        let mut world = self.verb("set_resolv")?;
        match text {
            Some(text) => drop(world.resolv.insert(name.into(), text.into())),
            None => drop(world.resolv.remove(name)),
        }
        Ok(true)
    }

    fn sweep_resolv(&self, keep: &BTreeSet<String>) -> Outcome<()> {
        let mut world = self.verb("sweep_resolv")?;
        world.resolv.retain(|name, _| keep.contains(name));
        Ok(())
    }

    fn forwards(&self, network: &str) -> bool {
        self.world().forwarding.contains(network)
    }

    fn networks(&self) -> BoxFuture<'_, Outcome<Vec<String>>> {
        let found = self.world().networks.keys().cloned().collect();
        ready(Ok(found)).boxed()
    }

    fn sweep(&self, keep: Keep) -> BoxFuture<'_, Outcome<Swept>> {
        let swept = self.verb("sweep").map(|mut world| {
            let mut swept = Vec::new();
            if world.failing == Some("sweep_one") {
                return Swept {
                    failures: vec!["delete netns x: EBUSY".into()],
                    ..Swept::default()
                };
            }
            world.endpoints.retain(|id, endpoint| {
                let kept = keep
                    .get(&endpoint.network)
                    .is_some_and(|ids| ids.contains(id));
                if !kept {
                    swept.push(format!("endpoint {id}"));
                }
                kept
            });
            world.forwarding.retain(|id| keep.contains_key(id));
            world.networks.retain(|id, _| {
                if !keep.contains_key(id) {
                    swept.push(format!("network {id}"));
                }
                keep.contains_key(id)
            });
            Swept {
                removed: swept,
                ..Swept::default()
            }
        });
        ready(swept).boxed()
    }

    fn put_local(&self, record: &EndpointRecord) -> Outcome<()> {
        let mut world = self.verb("put_local")?;
        world.local.insert((record.vni, record.mac), record.clone());
        Ok(())
    }

    fn put_remote(&self, record: &EndpointRecord) -> Outcome<()> {
        let mut world = self.verb("put_remote")?;
        world
            .remote
            .insert((record.vni, record.mac), record.clone());
        Ok(())
    }

    fn remove_record(&self, vni: Vni, endpoint: &str) {
        let mut world = self.world();
        let other = |record: &EndpointRecord| record.vni != vni || record.endpoint != endpoint;
        world.local.retain(|_, record| other(record));
        world.remote.retain(|_, record| other(record));
    }

    fn table(&self, vni: Vni) -> Vec<(String, bool)> {
        let world = self.world();
        let of = |map: &BTreeMap<(Vni, Mac), EndpointRecord>, local| {
            let records = map.values().filter(|record| record.vni == vni);
            let ids = records.map(|record| (record.endpoint.clone(), local));
            ids.collect::<Vec<_>>()
        };
        [of(&world.local, true), of(&world.remote, false)].concat()
    }

    fn set_vteps(&self, vni: Vni, vteps: &[IpAddr]) -> Outcome<()> {
        self.verb("set_vteps")?.vteps.insert(vni, vteps.to_vec());
        Ok(())
    }

    fn dataplane(&self) -> DataplaneStatus {
        self.world().dataplane.clone()
    }

    fn trouble(&self) -> Vec<HealthItem> {
        self.world().trouble.clone()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.world().running = false;
        ready(()).boxed()
    }
}
