//! Numbers for Prometheus, made anew from the agent's state at each scrape.

use std::collections::BTreeMap;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::api::{
    ClusterStatus, DnsStatus, DnsTimes, ServiceStatus, ServiceTraffic, Status, Verdict,
};

type Label = Vec<(&'static str, String)>;

/// The text for `GET /metrics` (OpenMetrics).
pub fn text(status: &Status) -> String {
    let mut registry = Registry::with_prefix("weft");
    node(&mut registry, status);
    traffic(&mut registry, status);
    drops(&mut registry, status);
    networks(&mut registry, status);
    services(&mut registry, &status.services);
    if let Some(part) = &status.dns {
        dns(&mut registry, part);
    }
    if let Some(part) = &status.cluster {
        cluster(&mut registry, part);
    }
    let mut text = String::new();
    // Writing to a String cannot fail; a half text would be worse than none.
    if encode(&mut text, &registry).is_err() {
        text.clear();
    }
    text
}

fn node(registry: &mut Registry, status: &Status) {
    let info = vec![
        ("version", status.version.clone()),
        ("node", status.node.clone()),
    ];
    registry.register(
        "build",
        "Version of the agent and name of its node",
        Info::new(info),
    );
    let degraded = status.verdict == Verdict::Degraded;
    gauge(
        registry,
        "degraded",
        "1 while something is listed under health",
        u64::from(degraded),
    );
    gauge(
        registry,
        "health_items",
        "Things that are not as they should be",
        status.health.len() as u64,
    );
    gauge(
        registry,
        "workers",
        "Dataplane threads",
        status.dataplane.workers as u64,
    );
    gauge(
        registry,
        "state_epoch",
        "Starts of an agent with this state directory",
        status.epoch,
    );
    let uptime: Gauge = Gauge::default();
    uptime.set(to_i64(status.uptime_seconds));
    registry.register_with_unit(
        "uptime",
        "Time since the agent started",
        Unit::Seconds,
        uptime,
    );
    let mtu: Gauge = Gauge::default();
    mtu.set(i64::from(status.underlay_mtu));
    registry.register_with_unit(
        "underlay_mtu",
        "MTU of the device that carries the VTEP",
        Unit::Bytes,
        mtu,
    );
}

fn cluster(registry: &mut Registry, cluster: &ClusterStatus) {
    gauge(
        registry,
        "converged",
        "1 while this node's tables are complete as far as it can tell",
        u64::from(cluster.converged),
    );
    gauge(
        registry,
        "cluster_revision",
        "How far in the managers' log this node knows their state",
        cluster.revision,
    );
    gauge(
        registry,
        "gossip_table_entries",
        "Entries that gossip holds",
        cluster.table_entries as u64,
    );
    let bytes: Gauge = Gauge::default();
    bytes.set(to_i64(cluster.table_bytes as u64));
    registry.register_with_unit("gossip_table", "Their size", Unit::Bytes, bytes);
    let heard: Gauge = Gauge::default();
    heard.set(cluster.heard_s.map_or(-1, to_i64));
    registry.register_with_unit(
        "manager_heard",
        "Time since a manager last answered; -1 before the first answer",
        Unit::Seconds,
        heard,
    );
    let members = Family::<Label, Gauge>::default();
    for (liveness, count) in &cluster.members {
        members
            .get_or_create(&vec![("liveness", liveness.clone())])
            .set(to_i64(*count as u64));
    }
    registry.register("members", "Other nodes, as seen from this one", members);
    let counters = Family::<Label, Counter>::default();
    for (name, value) in &cluster.counters {
        counters
            .get_or_create(&vec![("counter", name.clone())])
            .inc_by(*value);
    }
    registry.register("gossip", "Every counter of gossip by its name", counters);
}

fn traffic(registry: &mut Registry, status: &Status) {
    let counters = &status.dataplane.counters;
    let by_direction = |encap, decap| {
        let family = Family::<Label, Counter>::default();
        for (direction, value) in [("encap", encap), ("decap", decap)] {
            family
                .get_or_create(&vec![("direction", direction.to_owned())])
                .inc_by(value);
        }
        family
    };
    let frames = by_direction(counters.encap_frames, counters.decap_frames);
    registry.register(
        "frames",
        "Inner frames into (encap) and out of (decap) the tunnel",
        frames,
    );
    let bytes = by_direction(counters.encap_bytes, counters.decap_bytes);
    registry.register("bytes", "Bytes of those frames", bytes);
    let other = Family::<Label, Counter>::default();
    for (name, value) in &counters.other {
        other
            .get_or_create(&vec![("counter", name.clone())])
            .inc_by(*value);
    }
    registry.register(
        "dataplane",
        "Every counter of the dataplane by its name",
        other,
    );
}

fn drops(registry: &mut Registry, status: &Status) {
    let family = Family::<Label, Counter>::default();
    for (reason, value) in &status.dataplane.counters.drops {
        family
            .get_or_create(&vec![("reason", reason.clone())])
            .inc_by(*value);
    }
    registry.register("drops", "Dropped frames by reason", family);
}

fn networks(registry: &mut Registry, status: &Status) {
    let sum = |pick: fn(&super::api::NetworkStatus) -> usize| {
        status.networks.iter().map(pick).sum::<usize>() as u64
    };
    gauge(
        registry,
        "networks",
        "Overlay networks known",
        status.networks.len() as u64,
    );
    gauge(
        registry,
        "networks_up",
        "Overlay networks that exist in the kernel",
        sum(|n| usize::from(n.up)),
    );
    let endpoints = Family::<Label, Gauge>::default();
    for (place, count) in [
        ("local", sum(|n| n.local_endpoints)),
        ("remote", sum(|n| n.remote_endpoints)),
    ] {
        endpoints
            .get_or_create(&vec![("place", place.to_owned())])
            .set(to_i64(count));
    }
    registry.register("endpoints", "Endpoints here and on other nodes", endpoints);
}

fn services(registry: &mut Registry, services: &[ServiceStatus]) {
    let (backends, ports) = (
        Family::<Label, Gauge>::default(),
        Family::<Label, Gauge>::default(),
    );
    let (connections, bytes) = (
        Family::<Label, Counter>::default(),
        Family::<Label, Counter>::default(),
    );
    for service in services {
        let name = || ("service", service.name.clone());
        let standings = [
            ("ready", service.ready),
            ("draining", service.draining),
            ("unhealthy", service.unhealthy),
        ];
        for (standing, count) in standings {
            let label = vec![name(), ("standing", standing.to_owned())];
            backends.get_or_create(&label).set(to_i64(count as u64));
        }
        ports
            .get_or_create(&vec![name()])
            .set(to_i64(service.ports as u64));
        for ServiceTraffic { path, traffic } in &service.traffic {
            let mut label = vec![name(), ("path", path.name().to_owned())];
            connections
                .get_or_create(&label)
                .inc_by(traffic.connections);
            for (direction, count) in [
                ("to_backend", traffic.bytes_to_backend),
                ("to_client", traffic.bytes_to_client),
            ] {
                label.truncate(2);
                label.push(("direction", direction.to_owned()));
                bytes.get_or_create(&label).inc_by(count);
            }
        }
    }
    registry.register(
        "service_connections",
        "Connections (of UDP: flows) that this node led to backends of services",
        connections,
    );
    registry.register("service_bytes", "Bytes of their packets", bytes);
    registry.register(
        "service_backends",
        "Backends of services this node knows of, by how they stand",
        backends,
    );
    registry.register("service_ports", "Published ports of services", ports);
}

fn dns(registry: &mut Registry, dns: &DnsStatus) {
    gauge(
        registry,
        "dns_networks",
        "Networks whose names are served",
        dns.networks as u64,
    );
    gauge(registry, "dns_names", "Their names", dns.names as u64);
    let labelled = |label, counts: &BTreeMap<String, u64>| {
        let family = Family::<Label, Counter>::default();
        for (name, value) in counts {
            let counter = family.get_or_create(&vec![(label, name.clone())]).clone();
            counter.inc_by(*value);
        }
        family
    };
    registry.register(
        "dns_queries",
        "Queries by what became of them",
        labelled("outcome", &dns.queries),
    );
    registry.register(
        "dns_drops",
        "What came for names and got no answer, by reason",
        labelled("reason", &dns.drops),
    );
    registry.register(
        "dns_upstream_queries",
        "Questions to upstream resolvers by what came of them",
        labelled("outcome", &dns.upstreams),
    );
    let times = [
        (
            "dns_local_answer",
            "Time to answers that needed nobody else",
            &dns.local,
        ),
        (
            "dns_forwarded_answer",
            "Time to answers that waited for an upstream",
            &dns.forwarded,
        ),
    ];
    for (name, help, times) in times {
        registry.register_with_unit(name, help, Unit::Seconds, Classes(times.clone()));
    }
}

/// Counts that were made elsewhere, as a histogram.
#[derive(Debug)]
struct Classes(DnsTimes);

impl EncodeMetric for Classes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        let times = &self.0;
        let ends = times.bounds_us.iter().map(|us| *us as f64 / 1e6);
        let ends = ends.chain(std::iter::once(f64::INFINITY));
        let buckets: Vec<(f64, u64)> = ends.zip(times.counts.iter().copied()).collect();
        let (sum, count) = (times.sum_us as f64 / 1e6, times.counts.iter().sum());
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge: Gauge = Gauge::default();
    gauge.set(to_i64(value));
    registry.register(name, help, gauge);
}

fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
