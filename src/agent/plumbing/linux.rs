//! Plumbing on Linux: the host layer's verbs, the one table writer and the dataplane, kept in step.
//!
//! A network comes up as: kernel objects, table segments, uplinks; it goes down in the opposite order. What
//! this process holds of a network is in [`Held`]; what the kernel holds is asked anew each time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::edge::Edge;
use super::edge::linux::LinuxEdge;
use super::{
    EndpointPlan, EndpointUp, Keep, NetworkPlan, NetworkUp, Outcome, Plumbing, Present,
    SegmentPlan, Swept, Underlay, Workload,
};
use crate::agent::api::{Counters, DataplaneStatus, HealthItem, Rate};
use crate::agent::config::{Settings, Uplink};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::ident;
use crate::agent::network::{MTU_INNER_MIN, MTU_INNER_MIN_IPV6, overhead};
use crate::dataplane::runtime::{Dataplane, DataplaneConfig, DataplaneError, UplinkSource};
use crate::dataplane::verdict::DropReason;
use crate::host::{
    BridgeRef, EndpointSpec, GsoSizes, HostError, JumboSupport, NetworkSandbox, NetworkSpec,
    RateLimit, SegmentLinks, SegmentSpec, UplinkKind, WorkloadRef,
};
use crate::services::dns::server::Sockets;
use crate::sys::clock::now_ns;
use crate::sys::netns::Netns;
use crate::sys::packet::{PacketOptions, PacketSocket};
use crate::sys::tap::Tap;
use crate::tables::record::EndpointRecord;
use crate::tables::{SegmentConfig, SegmentIndex, TableError, TableWriter};
use crate::wire::Vni;

/// Index of `lo` in every network namespace (the kernel makes it first).
const LOOPBACK_INDEX: u32 = 1;
/// How long a learned station is believed, in seconds; the kernel's own default for bridges and VXLAN.
const AGEING_S: u32 = 300;

/// The real thing.
#[derive(Debug)]
pub struct LinuxPlumbing {
    shared: Arc<Shared>,
    edge: LinuxEdge,
}

struct Shared {
    node: String,
    vtep: IpAddr,
    run_dir: PathBuf,
    uplink: UplinkKind,
    big: bool,
    /// TCP over IPv6 fills super-frames beyond 64 KiB, too.
    big_ipv6: bool,
    tables: Mutex<TableWriter>,
    dataplane: RwLock<Option<Dataplane>>,
    held: Mutex<HashMap<String, Held>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.node)
            .field("vtep", &self.vtep)
            .finish_non_exhaustive()
    }
}

/// What this process holds of a network that is up.
#[derive(Clone, Debug, Default)]
struct Held {
    mtu: u32,
    /// Segments in the tables.
    vnis: Vec<Vni>,
    /// Those of them that have an uplink.
    segments: Vec<HeldSegment>,
}

#[derive(Clone, Copy, Debug)]
struct HeldSegment {
    vni: Vni,
    index: SegmentIndex,
    /// Namespace inode and interface index the uplink was opened with; another pair means another device.
    uplink: (u64, u32),
}

impl LinuxPlumbing {
    /// Chooses the uplink and starts the dataplane in the caller's network namespace.
    ///
    /// # Errors
    /// `port_in_use`, `vtep_not_local`, `tun_missing`, `capability_missing`, `dataplane_failed`.
    pub async fn start(settings: &Settings) -> Outcome<LinuxPlumbing> {
        let uplink = choose_uplink(settings.uplink)?;
        let off = |name: &str| settings.disable_offloads.iter().any(|word| word == name);
        let mut config = DataplaneConfig {
            port: settings.vxlan_port,
            segmentation: !off("udp_gso"),
            receive_coalescing: !off("udp_gro"),
            ..DataplaneConfig::new(settings.vtep)
        };
        if let Some(workers) = settings.workers {
            config.workers = workers;
        }
        config.worker.bulk_pause = settings.bulk_pause;
        let big = uplink == UplinkKind::Packet && !off("big");
        if !big {
            config.worker.merge.max_len = config.worker.merge.max_len.min(65_535);
        }
        let jumbo = if big {
            jumbo_support().await
        } else {
            JumboSupport::default()
        };
        config.worker.merge.jumbo = jumbo.taken;
        if off("coalesce") {
            config.worker.merge.max_segments = 1;
            config.worker.merge.udp_segments_max = 1;
        }
        let (writer, tables) = TableWriter::new(settings.vxlan_port, rand::random());
        let dataplane = Dataplane::start(config, tables).map_err(dataplane_error)?;
        let learned = dataplane.learned().clone();
        let shared = Arc::new(Shared {
            node: settings.node.clone(),
            vtep: settings.vtep,
            run_dir: settings.run_dir.clone(),
            uplink,
            big,
            big_ipv6: jumbo.made,
            tables: Mutex::new(writer),
            dataplane: RwLock::new(Some(dataplane)),
            held: Mutex::default(),
        });
        let learner = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("weft-learn".into());
        let started = thread.spawn(move || {
            let mut last_ageing = 0;
            loop {
                let event = learned.recv_timeout(Duration::from_secs(1));
                let Some(shared) = learner.upgrade() else {
                    return;
                };
                let now_s = (now_ns() / 1_000_000_000) as u32;
                match event {
                    Ok(seen) => drop(shared.tables().learn(
                        seen.segment,
                        seen.mac,
                        seen.vtep,
                        seen.now_s,
                    )),
                    Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return,
                    Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                }
                if now_s.saturating_sub(last_ageing) >= 10 {
                    last_ageing = now_s;
                    shared.tables().age(now_s, AGEING_S);
                }
            }
        });
        started.map_err(|e| ApiError::internal(format!("no thread for learning: {e}")))?;
        let edge = LinuxEdge {
            node: settings.node.clone(),
        };
        Ok(LinuxPlumbing { shared, edge })
    }
}

/// Removes every network and endpoint under a run directory.
///
/// # Errors
/// `kernel_refused`.
pub async fn sweep_all(run_dir: &Path) -> Outcome<Swept> {
    let mut swept = sweep_but(run_dir, &HashSet::new()).await?;
    let edge = LinuxEdge {
        node: String::new(),
    };
    for done in edge.sweep(&run_dir.join("netns")).await {
        match done {
            Ok(removed) => swept.removed.extend(removed),
            Err(error) => swept.failures.push(error.message),
        }
    }
    match crate::host::sweep_resolv(run_dir, false, &BTreeSet::new()) {
        Ok(removed) => {
            let removed = removed.iter().map(|path| path.display().to_string());
            swept.removed.extend(removed);
        }
        Err(error) => swept.failures.push(error.to_string()),
    }
    Ok(swept)
}

async fn sweep_but(run_dir: &Path, keep: &HashSet<String>) -> Outcome<Swept> {
    let report = crate::host::sweep(run_dir, keep)
        .await
        .map_err(host_error)?;
    let networks = report
        .networks_removed
        .iter()
        .map(|id| format!("network {id}"));
    let endpoints = report
        .endpoints_removed
        .iter()
        .map(|id| format!("endpoint {id}"));
    let half_made = report
        .half_made_removed
        .iter()
        .map(|path| format!("half-made {}", path.display()));
    Ok(Swept {
        removed: networks.chain(endpoints).chain(half_made).collect(),
        failures: report.errors.iter().map(HostError::to_string).collect(),
    })
}

fn choose_uplink(wish: Uplink) -> Outcome<UplinkKind> {
    match wish {
        Uplink::Packet => Ok(UplinkKind::Packet),
        Uplink::Tap => Ok(UplinkKind::Tap),
        Uplink::Auto => match PacketSocket::open(LOOPBACK_INDEX, &PacketOptions::default()) {
            Ok(_) => Ok(UplinkKind::Packet),
            Err(error) if Path::new("/dev/net/tun").exists() => {
                tracing::warn!(%error, "no packet sockets here: using TAP devices");
                Ok(UplinkKind::Tap)
            }
            Err(error) => Err(ApiError::new(
                ErrorCode::TunMissing,
                format!("neither packet sockets ({error}) nor /dev/net/tun can be used"),
                "give the agent CAP_NET_RAW, or load the tun module: modprobe tun",
            )),
        },
    }
}

/// Without an answer TCP over IPv6 stays below 64 KiB.
async fn jumbo_support() -> JumboSupport {
    crate::host::jumbo_support().await.unwrap_or_else(|error| {
        tracing::info!(%error, "super-frames of TCP over IPv6 stay below 64 KiB");
        JumboSupport::default()
    })
}

impl Shared {
    fn tables(&self) -> MutexGuard<'_, TableWriter> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn netns_path(&self, id: &str) -> PathBuf {
        self.run_dir.join("netns").join(ident::short(id))
    }

    fn netns(&self, network: &str) -> Outcome<Netns> {
        Netns::open(self.netns_path(network)).map_err(|e| refused(e.to_string()))
    }

    fn with_dataplane<T>(
        &self,
        work: impl FnOnce(&Dataplane) -> Result<T, DataplaneError>,
    ) -> Outcome<T> {
        let guard = self
            .dataplane
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let dataplane = guard
            .as_ref()
            .ok_or(DataplaneError::Stopped)
            .map_err(dataplane_error)?;
        work(dataplane).map_err(dataplane_error)
    }

    fn spec(&self, plan: &NetworkPlan, mtu: u32) -> NetworkSpec {
        let segments = plan
            .segments
            .iter()
            .enumerate()
            .map(|(index, segment)| SegmentSpec {
                index,
                vni: segment.vni.value(),
                gateways: segment.gateways.clone(),
                mtu,
                uplink: self.uplink,
                big_ipv6: self.big_ipv6,
            });
        NetworkSpec {
            id: plan.id.clone(),
            netns_path: self.netns_path(&plan.id),
            segments: segments.collect(),
            owner: self.node.clone(),
        }
    }

    async fn inner_mtu(&self, plan: &NetworkPlan) -> Outcome<u32> {
        let outer = match plan.mtu_underlay {
            Some(mtu) => mtu,
            None => {
                crate::host::underlay_device(self.vtep)
                    .await
                    .map_err(host_error)?
                    .mtu
            }
        };
        // A datagram of 65507 bytes is the most an inner frame has to fit.
        let inner = outer.saturating_sub(overhead(self.vtep)).min(65_485);
        check_inner_mtu(plan, outer, inner, overhead(self.vtep)).map(|()| inner)
    }

    async fn up(&self, plan: NetworkPlan) -> Outcome<NetworkUp> {
        let mtu = self.inner_mtu(&plan).await?;
        let spec = self.spec(&plan, mtu);
        let existed = crate::host::list_endpoints(&spec.netns_path).await.is_ok();
        let sandbox = crate::host::ensure_network(&spec)
            .await
            .map_err(host_error)?;
        match self.take_in(&plan, &spec, &sandbox, mtu).await {
            Ok(()) => Ok(NetworkUp {
                netns: spec.netns_path,
                mtu,
            }),
            Err(error) => {
                self.let_go(&plan.id);
                // Workloads of an earlier agent keep their interfaces: the next try may succeed.
                if !existed
                    && let Err(left) = crate::host::remove_network(&spec.netns_path, &plan.id).await
                {
                    tracing::warn!(%left, "undoing a failed network left something");
                }
                Err(error)
            }
        }
    }

    /// Tables and uplinks of a network whose kernel objects are there.
    async fn take_in(
        &self,
        plan: &NetworkPlan,
        spec: &NetworkSpec,
        sandbox: &NetworkSandbox,
        mtu: u32,
    ) -> Outcome<()> {
        let netns_id = sandbox
            .netns
            .id()
            .map_err(|e| refused(format!("cannot look at the namespace: {e}")))?
            .1;
        for (segment, links) in plan.segments.iter().zip(&sandbox.segments) {
            let index = self.put_segment(plan, segment, mtu)?;
            self.note_segment(&plan.id, segment.vni, mtu);
            let device = links.held_ifindex.map(|ifindex| (netns_id, ifindex));
            let known = self.held_segment(&plan.id, segment.vni);
            if known.is_some_and(|known| Some(known.uplink) == device) {
                continue;
            }
            if known.is_some() {
                self.with_dataplane(|dataplane| dataplane.remove_uplink(index))?;
            }
            let uplink = self
                .open_uplink(spec, sandbox, links, index, netns_id)
                .await?;
            if let Some(held) = self.held().get_mut(&plan.id) {
                held.segments.retain(|held| held.vni != segment.vni);
                held.segments.push(HeldSegment {
                    vni: segment.vni,
                    index,
                    uplink,
                });
            }
        }
        Ok(())
    }

    fn note_segment(&self, network: &str, vni: Vni, mtu: u32) {
        let mut all = self.held();
        let held = all.entry(network.to_owned()).or_default();
        held.mtu = mtu;
        if !held.vnis.contains(&vni) {
            held.vnis.push(vni);
        }
    }

    fn held_segment(&self, network: &str, vni: Vni) -> Option<HeldSegment> {
        self.held()
            .get(network)?
            .segments
            .iter()
            .find(|segment| segment.vni == vni)
            .copied()
    }

    fn put_segment(
        &self,
        plan: &NetworkPlan,
        segment: &SegmentPlan,
        mtu: u32,
    ) -> Outcome<SegmentIndex> {
        let policy = plan.policy;
        let mut tables = self.tables();
        if let Some(index) = tables.segment_index(segment.vni) {
            tables
                .update_segment(segment.vni, mtu, policy)
                .map_err(table_error)?;
            return Ok(index);
        }
        let config = SegmentConfig {
            vni: segment.vni,
            network: plan.id.clone(),
            mtu,
            subnets: segment.subnets.clone(),
            gateways: segment
                .gateways
                .iter()
                .map(|gateway| gateway.ip())
                .collect(),
            gateway_mac: segment.gateway_mac,
            policy,
        };
        tables.add_segment(config).map_err(table_error)
    }

    /// Opens what leads to the bridge and hands it to the workers.
    async fn open_uplink(
        &self,
        spec: &NetworkSpec,
        sandbox: &NetworkSandbox,
        links: &SegmentLinks,
        index: SegmentIndex,
        netns_id: u64,
    ) -> Outcome<(u64, u32)> {
        if self.uplink == UplinkKind::Packet {
            let ifindex = links
                .held_ifindex
                .ok_or_else(|| refused(format!("{} has no index", links.held)))?;
            let source = UplinkSource::Packet {
                netns: &sandbox.netns,
                ifindex,
            };
            self.with_dataplane(|dataplane| dataplane.add_uplink(index, source))?;
            return Ok((netns_id, ifindex));
        }
        let queues = self.with_dataplane(|dataplane| Ok(dataplane.worker_count()))?;
        let opened = sandbox.netns.run_in(|| Tap::open(&links.held, queues));
        let taps = opened
            .and_then(|taps| taps)
            .map_err(|e| refused(e.to_string()))?;
        let ifindex = crate::host::finish_tap(spec, links.index)
            .await
            .map_err(host_error)?;
        self.with_dataplane(|dataplane| dataplane.add_uplink(index, UplinkSource::Tap(taps)))?;
        Ok((netns_id, ifindex))
    }

    async fn look(&self, plan: NetworkPlan) -> Outcome<Option<Present>> {
        let found = match crate::host::list_endpoints(&self.netns_path(&plan.id)).await {
            Ok(found) => found,
            Err(HostError::NoNetwork(_)) => return Ok(None),
            Err(error) => return Err(host_error(error)),
        };
        let damaged = found.iter().filter(|e| !e.up || e.segment_index.is_none());
        let mut present = Present {
            damaged: damaged.map(|endpoint| endpoint.id.clone()).collect(),
            endpoints: found.iter().map(|endpoint| endpoint.id.clone()).collect(),
            faults: Vec::new(),
        };
        let held = self.held().get(&plan.id).cloned();
        if let Some(held) = held {
            present.faults = self.faults(&plan, &held).await?;
        }
        Ok(Some(present))
    }

    /// What of a network that is up is not as [`Shared::up`] would make it now.
    async fn faults(&self, plan: &NetworkPlan, held: &Held) -> Outcome<Vec<String>> {
        let mut faults = Vec::new();
        let mtu = match self.inner_mtu(plan).await {
            Ok(mtu) => mtu,
            Err(error) => {
                // That no device has the VTEP is trouble of the node, not of each network.
                if error.code != ErrorCode::VtepNotLocal {
                    faults.push(error.message);
                }
                held.mtu
            }
        };
        let found = crate::host::inspect_network(&self.spec(plan, mtu))
            .await
            .map_err(host_error)?;
        faults.extend(found.faults);
        for (segment, device) in plan.segments.iter().zip(found.held) {
            let uplink = held.segments.iter().find(|s| s.vni == segment.vni);
            if device.is_some() && uplink.map(|held| held.uplink) != device {
                faults.push(format!(
                    "the workers have another uplink of VNI {}",
                    segment.vni
                ));
            }
        }
        Ok(faults)
    }

    /// Takes a network out of dataplane and tables.
    fn let_go(&self, id: &str) {
        let Some(held) = self.held().remove(id) else {
            return;
        };
        for segment in &held.segments {
            if let Err(error) =
                self.with_dataplane(|dataplane| dataplane.remove_uplink(segment.index))
            {
                tracing::warn!(%error, "an uplink stays with the workers");
            }
        }
        let mut tables = self.tables();
        for vni in held.vnis {
            tables.remove_segment(vni);
        }
    }

    async fn attach(&self, plan: EndpointPlan) -> Outcome<EndpointUp> {
        let mtu = self.held().get(&plan.network).map(|held| held.mtu);
        let mtu = mtu.ok_or_else(|| ApiError::internal("an endpoint on a network that is down"))?;
        let sizes = if self.big {
            self.uplink
        } else {
            UplinkKind::Tap
        };
        let mut gso = GsoSizes::fit(mtu, sizes);
        if self.big_ipv6 {
            gso = gso.with_big_ipv6(mtu);
        }
        let spec = EndpointSpec {
            network_netns: self.netns_path(&plan.network),
            id: plan.id,
            bridge: BridgeRef::Segment(plan.segment),
            workload: workload_ref(&plan.target),
            netns_id: Some(plan.netns_inode).filter(|inode| *inode != 0),
            ifname: plan.ifname,
            mac: plan.mac,
            addresses: plan.ips,
            mtu,
            gso,
            routes: plan.routes,
            owner: self.node.clone(),
            isolate_spoofing: !plan.interop,
            handed_over: plan.handed_over,
            outgoing: plan.limits.outgoing.map(rate_limit),
            incoming: plan.limits.incoming.map(rate_limit),
        };
        let attached = crate::host::attach(&spec).await.map_err(host_error)?;
        Ok(EndpointUp {
            ifname: attached.ifname,
            mtu,
        })
    }
}

impl Plumbing for LinuxPlumbing {
    fn edge(&self) -> &dyn Edge {
        &self.edge
    }

    fn workload(&self, target: &str) -> Outcome<Workload> {
        let reference = workload_ref(target);
        let netns = reference.open().map_err(host_error)?;
        let (_, netns_inode) = netns
            .id()
            .map_err(|e| refused(format!("cannot look at {target}: {e}")))?;
        Ok(Workload {
            path: reference.path(),
            netns_inode,
        })
    }

    fn underlay(&self) -> BoxFuture<'_, Outcome<Underlay>> {
        async {
            let device = crate::host::underlay_device(self.shared.vtep)
                .await
                .map_err(host_error)?;
            Ok(Underlay {
                ifname: device.name,
                mtu: device.mtu,
            })
        }
        .boxed()
    }

    fn network_up(&self, plan: NetworkPlan) -> BoxFuture<'_, Outcome<NetworkUp>> {
        self.shared.up(plan).boxed()
    }

    fn network_down<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Outcome<()>> {
        async move {
            self.shared.let_go(id);
            crate::host::remove_network(&self.shared.netns_path(id), id)
                .await
                .map_err(host_error)
        }
        .boxed()
    }

    fn endpoint_up(&self, plan: EndpointPlan) -> BoxFuture<'_, Outcome<EndpointUp>> {
        self.shared.attach(plan).boxed()
    }

    fn endpoint_down<'a>(
        &'a self,
        network: &'a str,
        endpoint: &'a str,
    ) -> BoxFuture<'a, Outcome<()>> {
        async move {
            crate::host::detach(&self.shared.netns_path(network), endpoint)
                .await
                .map_err(host_error)
        }
        .boxed()
    }

    fn present(&self, plan: NetworkPlan) -> BoxFuture<'_, Outcome<Option<Present>>> {
        self.shared.look(plan).boxed()
    }

    fn forwards(&self, network: &str) -> bool {
        self.shared.held().contains_key(network)
    }

    fn networks(&self) -> BoxFuture<'_, Outcome<Vec<String>>> {
        async {
            crate::host::list_networks(&self.shared.run_dir)
                .await
                .map_err(host_error)
        }
        .boxed()
    }

    fn sweep(&self, keep: Keep) -> BoxFuture<'_, Outcome<Swept>> {
        async move {
            let gone: Vec<String> = {
                let held = self.shared.held();
                held.keys()
                    .filter(|id| !keep.contains_key(*id))
                    .cloned()
                    .collect()
            };
            gone.iter().for_each(|id| self.shared.let_go(id));
            let keep = keep
                .into_iter()
                .flat_map(|(id, endpoints)| endpoints.into_iter().chain([id]))
                .collect();
            sweep_but(&self.shared.run_dir, &keep).await
        }
        .boxed()
    }

    fn put_local(&self, record: &EndpointRecord) -> Outcome<()> {
        self.shared
            .tables()
            .upsert_local(record)
            .map(drop)
            .map_err(table_error)
    }

    fn put_remote(&self, record: &EndpointRecord) -> Outcome<()> {
        self.shared
            .tables()
            .upsert_remote(record)
            .map(drop)
            .map_err(table_error)
    }

    fn remove_record(&self, vni: Vni, endpoint: &str) {
        self.shared.tables().remove(vni, endpoint);
    }

    fn table(&self, vni: Vni) -> Vec<(String, bool)> {
        self.shared.tables().endpoints(vni)
    }

    fn set_vteps(&self, vni: Vni, vteps: &[IpAddr]) -> Outcome<()> {
        self.shared
            .tables()
            .set_vteps(vni, vteps)
            .map_err(table_error)
    }

    fn names_place(&self, network: &str) -> Outcome<Option<u64>> {
        let netns = self.shared.netns(network)?;
        let id = netns.id().map_err(|e| refused(e.to_string()))?;
        Ok(Some(id.1))
    }

    fn open_names(&self, network: &str, addresses: &[IpAddr]) -> Outcome<Sockets> {
        let netns = self.shared.netns(network)?;
        Sockets::open(&netns, addresses).map_err(|e| refused(e.to_string()))
    }

    fn set_resolv(&self, name: &str, text: Option<&str>) -> Outcome<bool> {
        let done = match text {
            Some(text) => crate::host::write_resolv(name, text),
            None => crate::host::remove_resolv(name, &self.shared.run_dir).map(|()| true),
        };
        done.map_err(host_error)
    }

    fn sweep_resolv(&self, keep: &BTreeSet<String>) -> Outcome<()> {
        let swept = crate::host::sweep_resolv(&self.shared.run_dir, false, keep);
        swept.map(drop).map_err(host_error)
    }

    fn dataplane(&self) -> DataplaneStatus {
        let Ok((snapshot, offloads, workers)) = self
            .shared
            .with_dataplane(|d| Ok((d.counters(), d.offloads(), d.worker_count())))
        else {
            return DataplaneStatus {
                uplink: "stopped".into(),
                ..DataplaneStatus::default()
            };
        };
        let mut counters = Counters {
            encap_frames: snapshot.encap_frames,
            encap_bytes: snapshot.encap_bytes,
            decap_frames: snapshot.decap_datagrams,
            decap_bytes: snapshot.decap_bytes,
            ..Counters::default()
        };
        counters.other.extend(
            snapshot
                .fields()
                .into_iter()
                .map(|(name, _, value)| (name.to_owned(), value)),
        );
        let mut status = DataplaneStatus {
            workers,
            ..DataplaneStatus::default()
        };
        for reason in DropReason::ALL {
            let count = snapshot.dropped(*reason);
            counters.drops.insert(reason.name().into(), count);
            if count > 0 {
                status
                    .drop_help
                    .insert(reason.name().into(), reason.help().into());
            }
        }
        status.counters = counters;
        status.uplink = if self.shared.uplink == UplinkKind::Packet {
            "packet"
        } else {
            "tap"
        }
        .into();
        let word = |on: bool| if on { "on" } else { "off" }.to_owned();
        status
            .offloads
            .insert("udp_gso".into(), word(offloads.segmentation));
        status
            .offloads
            .insert("udp_gro".into(), word(offloads.receive_coalescing));
        status.offloads.insert("big".into(), word(self.shared.big));
        status
            .offloads
            .insert("big_ipv6".into(), word(self.shared.big_ipv6));
        status
    }

    fn trouble(&self) -> Vec<HealthItem> {
        let alive = self
            .shared
            .with_dataplane(|d| Ok((d.alive(), d.worker_count())));
        let (alive, workers) = alive.unwrap_or((0, 0));
        if alive == workers && workers > 0 {
            return Vec::new();
        }
        vec![HealthItem {
            code: "worker_stopped".into(),
            message: format!(
                "{} of {workers} dataplane workers have stopped; some flows are not forwarded",
                workers - alive
            ),
            next: "save the log (journalctl -u weft), then: systemctl restart weft".into(),
        }]
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async {
            let taken = self
                .shared
                .dataplane
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            if let Some(dataplane) = taken {
                let joined = tokio::task::spawn_blocking(move || dataplane.shutdown()).await;
                if let Err(error) = joined {
                    tracing::warn!(%error, "the dataplane did not stop cleanly");
                }
            }
        }
        .boxed()
    }
}

/// RFC 791 and, for a network with IPv6, RFC 8200 §5 ask for a least MTU.
fn check_inner_mtu(plan: &NetworkPlan, outer: u32, inner: u32, overhead: u32) -> Outcome<()> {
    let mut subnets = plan.segments.iter().flat_map(|segment| &segment.subnets);
    let (least, of) = match subnets.any(|subnet| subnet.is_ipv6()) {
        true => (MTU_INNER_MIN_IPV6, " of a network with IPv6"),
        false => (MTU_INNER_MIN, ""),
    };
    if inner >= least {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidMtu,
        format!(
            "the underlay's MTU of {outer} leaves {inner} bytes for workloads{of}: {least} are needed"
        ),
        format!("raise the device's MTU to at least {}", least + overhead),
    ))
}

pub(super) fn workload_ref(target: &str) -> WorkloadRef {
    let Ok(reference) = WorkloadRef::from_str(target);
    reference
}

fn rate_limit(rate: Rate) -> RateLimit {
    let burst = u32::try_from(rate.burst_bits() / 8).unwrap_or(u32::MAX);
    RateLimit {
        bytes_per_second: (rate.bits_per_second / 8).max(1),
        burst,
    }
}

pub(super) fn host_error(error: HostError) -> ApiError {
    let message = error.to_string();
    match error {
        HostError::NoWorkload { .. } | HostError::OtherWorkload { .. } => ApiError::new(
            ErrorCode::TargetNotFound,
            message,
            "name a namespace of `ip netns`, a path such as /proc/PID/ns/net, or a process id",
        ),
        HostError::Invalid(_) => ApiError::new(
            ErrorCode::InvalidTarget,
            message,
            "name a namespace of `ip netns`, a path such as /proc/PID/ns/net, or a process id",
        ),
        HostError::NameTaken { .. } => ApiError::new(
            ErrorCode::IfnameInUse,
            message,
            "choose another name with --ifname, or leave it out to get the first free eth<N>",
        ),
        HostError::NoUnderlay { .. } => ApiError::new(
            ErrorCode::VtepNotLocal,
            message,
            "give the address back to its interface, or restart the agent with another --vtep: ip -brief address",
        ),
        HostError::Undo { .. } | HostError::Teardown(_) => ApiError::new(
            ErrorCode::KernelRefused,
            message,
            "the message names what is left; the agent removes it at the next comparison with the kernel or at its \
             next start, and its log has the details: journalctl -u weft",
        ),
        HostError::Foreign { .. } => ApiError::new(
            ErrorCode::KernelRefused,
            message,
            "remove or rename that object, then try again",
        ),
        HostError::NoProgram { .. } => ApiError::new(
            ErrorCode::KernelRefused,
            message,
            "install it; the agent tries again by itself",
        ),
        _ => refused(message),
    }
}

fn refused(message: String) -> ApiError {
    ApiError::new(
        ErrorCode::KernelRefused,
        message,
        "what had been begun is undone; the agent's log has the details: journalctl -u weft",
    )
}

fn dataplane_error(error: DataplaneError) -> ApiError {
    let message = error.to_string();
    match error {
        DataplaneError::PortInUse { .. } => ApiError::new(
            ErrorCode::PortInUse,
            message,
            "stop the other program, or give every node another --vxlan-port",
        ),
        DataplaneError::AddressMissing(_) => ApiError::new(
            ErrorCode::VtepNotLocal,
            message,
            "give an address of this host as --vtep: ip -brief address",
        ),
        _ => ApiError::new(
            ErrorCode::DataplaneFailed,
            message,
            "look at the agent's log (journalctl -u weft), then restart it: systemctl restart weft",
        ),
    }
}

fn table_error(error: TableError) -> ApiError {
    ApiError::new(
        ErrorCode::DataplaneFailed,
        format!("the forwarding tables refused a change: {error}"),
        "look at the agent's log: journalctl -u weft",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Mac;

    #[test]
    fn ipv6_asks_for_a_larger_mtu_and_is_named_as_the_reason() {
        let segment = |subnets: &[&str]| SegmentPlan {
            vni: Vni::FIRST_USER,
            subnets: subnets.iter().map(|s| s.parse().unwrap()).collect(),
            gateways: Vec::new(),
            gateway_mac: Mac::ZERO,
        };
        let mut plan = NetworkPlan {
            id: "a".into(),
            name: "a".into(),
            mtu_underlay: None,
            policy: Default::default(),
            segments: vec![segment(&["10.0.1.0/24"])],
        };
        assert!(check_inner_mtu(&plan, 1329, 1279, 50).is_ok());
        assert!(check_inner_mtu(&plan, 625, 575, 50).is_err());
        plan.segments.push(segment(&["10.0.2.0/24", "fd00:1::/64"]));
        let error = check_inner_mtu(&plan, 1329, 1279, 50).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidMtu);
        assert!(error.message.contains("IPv6") && error.next.contains("1330"));
        assert!(check_inner_mtu(&plan, 1330, 1280, 50).is_ok());
    }
}
