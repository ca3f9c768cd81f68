//! The edge on Linux: the host layer's verbs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use ipnetwork::IpNetwork;

use super::super::linux::{host_error, workload_ref};
use super::{
    Edge, GatewayBridge, GatewayPlan, LegPlan, Outcome, Place, ReadCounters, WorkloadPlace,
};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::plumbing::edge::{BRIDGES, SANDBOX};
use crate::host::{self, GatewaySpec, LegSpec, RuleCounters, RuleWatch};
use crate::services::counts::{Count, Reading};
use crate::services::rules::RETURN_MARK;
use crate::sys::netns::Netns;

/// The real thing.
#[derive(Debug)]
pub struct LinuxEdge {
    /// Name of the node, for ownership marks.
    pub node: String,
}

/// Opens the namespace; a workload's must be the one that was looked at.
fn open(place: &Place) -> Outcome<Netns> {
    let workload = match place {
        Place::Node => {
            let own = Netns::open("/proc/self/ns/net");
            return own.map_err(|e| host_error(e.into()));
        }
        Place::Workload(workload) => workload,
    };
    let netns = workload_ref(&workload.target).open().map_err(host_error)?;
    let found = netns.id().map_or(0, |(_, inode)| inode);
    if found == workload.netns_inode {
        return Ok(netns);
    }
    Err(ApiError::new(
        ErrorCode::TargetNotFound,
        format!(
            "workload \"{}\" is in another namespace by now",
            workload.target
        ),
        "attach it again",
    ))
}

impl LinuxEdge {
    /// Removes everything of ours at the edge, with no state to tell what there is. Namespaces are in the directory
    /// `netns`. Each result names what was removed.
    pub(crate) async fn sweep(&self, netns: &Path) -> Vec<Outcome<Option<String>>> {
        let mut done = Vec::new();
        for bridge in BRIDGES {
            let found = self.gateway(bridge).await;
            if matches!(found, Ok(GatewayBridge::Ours(_))) {
                let removed = self.gateway_down(bridge).await;
                done.push(removed.map(|()| Some(format!("bridge {bridge}"))));
                done.push(self.put_rules(&Place::Node, "").await.map(|()| None));
            }
        }
        let sandbox = netns.join(SANDBOX);
        if sandbox.exists() {
            let removed = self.sandbox_down(&sandbox).await;
            done.push(removed.map(|()| Some(format!("namespace {SANDBOX}"))));
        }
        done
    }
}

impl ReadCounters for RuleCounters {
    fn read(&self) -> Outcome<Reading> {
        let found = RuleCounters::read(self).map_err(host_error)?;
        let counts = found.into_iter().map(|(name, found)| {
            let count = Count {
                packets: found.packets,
                bytes: found.bytes,
            };
            (name, count)
        });
        Ok(counts.collect())
    }
}

impl Edge for LinuxEdge {
    fn gateway<'a>(&'a self, bridge: &'a str) -> BoxFuture<'a, Outcome<GatewayBridge>> {
        host::find_gateway(bridge)
            .map(|found| found.map_err(host_error))
            .boxed()
    }

    fn gateway_up(&self, plan: GatewayPlan) -> BoxFuture<'_, Outcome<()>> {
        async move {
            let spec = GatewaySpec {
                bridge: plan.bridge,
                addresses: plan.addresses,
                mtu: plan.mtu,
                owner: self.node.clone(),
            };
            host::ensure_gateway(&spec).await.map_err(host_error)?;
            host::pass_docker(&spec.bridge).await.map_err(host_error)
        }
        .boxed()
    }

    fn gateway_down<'a>(&'a self, bridge: &'a str) -> BoxFuture<'a, Outcome<()>> {
        async move {
            host::unpass_docker(bridge).await.map_err(host_error)?;
            host::remove_gateway(bridge).await.map_err(host_error)
        }
        .boxed()
    }

    fn prefixes_in_use<'a>(&'a self, but: &'a str) -> BoxFuture<'a, Outcome<Vec<IpNetwork>>> {
        host::prefixes_in_use(but)
            .map(|found| found.map_err(host_error))
            .boxed()
    }

    fn leg_up(&self, plan: LegPlan) -> BoxFuture<'_, Outcome<Option<String>>> {
        async move {
            let spec = LegSpec {
                id: plan.id,
                bridge: plan.bridge,
                workload: workload_ref(&plan.place.target),
                netns_id: plan.place.netns_inode,
                addresses: plan.addresses,
                gateways: plan.gateways,
                mac: plan.mac,
                mtu: plan.mtu,
                isolated: plan.isolated,
                owner: self.node.clone(),
            };
            let leg = host::attach_leg(&spec).await.map_err(host_error)?;
            Ok(leg.map(|leg| leg.ifname))
        }
        .boxed()
    }

    fn leg_down<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        host::detach_leg(id)
            .map(|done| done.map_err(host_error))
            .boxed()
    }

    fn legs(&self) -> BoxFuture<'_, Outcome<Vec<String>>> {
        host::list_legs()
            .map(|found| found.map_err(host_error))
            .boxed()
    }

    fn node_routes<'a>(
        &'a self,
        bridge: &'a str,
        ways: &'a BTreeMap<IpAddr, IpAddr>,
    ) -> BoxFuture<'a, Outcome<()>> {
        host::node_routes(bridge, ways)
            .map(|done| done.map_err(host_error))
            .boxed()
    }

    fn put_rules<'a>(&'a self, place: &'a Place, body: &'a str) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let netns = open(place)?;
            let done = match body.is_empty() {
                true => host::remove_rules(&netns).await,
                false => host::put_rules(&netns, body).await,
            };
            done.map_err(host_error)?;
            match place {
                Place::Workload(_) if !body.is_empty() => {
                    host::ensure_loopback(&netns).await.map_err(host_error)
                }
                _ => Ok(()),
            }
        }
        .boxed()
    }

    fn change_rules<'a>(
        &'a self,
        place: &'a Place,
        before: &'a str,
        body: &'a str,
    ) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let changed = host::change_rules(&open(place)?, before, body).await;
            changed.map_err(host_error)
        }
        .boxed()
    }

    fn rule_counters(&self, place: &Place) -> Outcome<Box<dyn ReadCounters>> {
        let counters = RuleCounters::open(&open(place)?).map_err(host_error)?;
        Ok(Box::new(counters))
    }

    fn rules<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Outcome<Option<String>>> {
        async move { host::rules(&open(place)?).await.map_err(host_error) }.boxed()
    }

    fn watch_rules(&self, place: &Place) -> Outcome<BoxStream<'static, ()>> {
        let watch = RuleWatch::open(&open(place)?).map_err(host_error)?;
        let changes = stream::unfold(watch, |mut watch| async move {
            watch.changed().await.ok().map(|()| ((), watch))
        });
        Ok(changes.boxed())
    }

    fn forget_flows<'a>(
        &'a self,
        place: &'a Place,
        left: &'a [IpAddr],
        gone: &'a [IpAddr],
    ) -> BoxFuture<'a, Outcome<()>> {
        async move {
            let netns = open(place)?;
            host::forget_flows(&netns, left, gone)
                .await
                .map_err(host_error)
        }
        .boxed()
    }

    fn return_routes<'a>(
        &'a self,
        place: &'a WorkloadPlace,
        ifname: &'a str,
        ways: &'a [(u32, IpAddr)],
    ) -> BoxFuture<'a, Outcome<()>> {
        async move {
            // Not another workload that has the name by now.
            drop(open(&Place::Workload(place.clone()))?);
            let workload = workload_ref(&place.target);
            host::return_routes(&workload, ifname, RETURN_MARK, ways)
                .await
                .map_err(host_error)
        }
        .boxed()
    }

    fn sandbox_up<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Outcome<()>> {
        host::ensure_router(path)
            .map(|done| done.map_err(host_error))
            .boxed()
    }

    fn sandbox_down<'a>(&'a self, path: &'a Path) -> BoxFuture<'a, Outcome<()>> {
        host::remove_router(path)
            .map(|done| done.map_err(host_error))
            .boxed()
    }
}
