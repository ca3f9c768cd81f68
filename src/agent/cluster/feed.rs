//! What gossip says, brought into the tables: records of live nodes, and nothing of the others.
//!
//! At every comparison of state and kernel, the tables are compared with gossip's as well, and what drifted is repaired.
//! After a restart the tables begin with what the state file knew, so that traffic goes on at once. What gossip
//! does not confirm is taken out once others have agreed with this node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at};

use super::Cluster;
use crate::agent::events::Event as Fact;
use crate::agent::handle::{Agent, Live};
use crate::agent::task::ended;
use crate::cluster::gossip::{Address, Conflict, Event};
use crate::cluster::member::MemberEvent;
use crate::cluster::node::NodeNumber;
use crate::cluster::runtime::News;
use crate::tables::record::EndpointRecord;
use crate::wire::Vni;

/// How often it is looked whether what the state file knew may go.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After so long without anybody to agree with, the state file's knowledge goes as well.
const ALONE_LIMIT: Duration = Duration::from_secs(60);

type Record = Arc<EndpointRecord>;

/// What gossip shows, by owner, network and endpoint.
#[derive(Debug, Default)]
struct Shown {
    records: BTreeMap<NodeNumber, BTreeMap<(String, String), Record>>,
    suspended: BTreeSet<NodeNumber>,
}

/// What the tables are to be told, in order.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    /// This is there, perhaps in place of another record of the same endpoint.
    Show(Record, Option<Record>),
    /// This is not there any more.
    Hide(Record),
}

impl Shown {
    fn put(&mut self, owner: NodeNumber, record: &Record) {
        let key = (record.network.clone(), record.endpoint.clone());
        self.records
            .entry(owner)
            .or_default()
            .insert(key, Arc::clone(record));
    }

    fn take(&mut self, event: Event, orders: &mut Vec<Order>) {
        match event {
            Event::Upsert {
                owner,
                record,
                replaced,
                suspended,
            } => {
                self.put(owner, &record);
                if !suspended {
                    orders.push(Order::Show(record, replaced));
                }
            }
            Event::Remove { owner, record } => {
                let key = (record.network.clone(), record.endpoint.clone());
                if let Some(own) = self.records.get_mut(&owner) {
                    own.remove(&key);
                }
                orders.push(Order::Hide(record));
            }
            Event::Suspend(node) => {
                self.suspended.insert(node);
                let own = self.records.get(&node).into_iter().flatten();
                orders.extend(own.map(|(_, record)| Order::Hide(Arc::clone(record))));
            }
            Event::Resume(node) => {
                self.suspended.remove(&node);
                let own = self.records.get(&node).into_iter().flatten();
                orders.extend(own.map(|(_, record)| Order::Show(Arc::clone(record), None)));
            }
            Event::Conflict(_)
            | Event::ConflictOver(..)
            | Event::Unauthorised { .. }
            | Event::EpochUsed(_) => {}
        }
    }

    fn live(&self) -> impl Iterator<Item = &Record> {
        let live = self.records.iter();
        let live = live.filter(|(owner, _)| !self.suspended.contains(*owner));
        live.flat_map(|(_, records)| records.values())
    }
}

/// Feeds the tables until the end.
pub(super) async fn run(agent: Agent, cluster: Arc<Cluster>, mut news: mpsc::Receiver<News>) {
    let mut quit = cluster.quitting();
    let mut shown = Shown::default();
    let mut confirmed = false;
    let begun = Instant::now();
    let mut look = interval_at(begun + LOOK_EVERY, LOOK_EVERY);
    let compare_every = agent.settings().reconcile_interval;
    let mut compare = interval_at(begun + compare_every, compare_every);
    loop {
        tokio::select! {
            () = ended(&mut quit) => return,
            some = news.recv() => match some {
                Some(some) => take(&agent, &cluster, &mut shown, some),
                None => return,
            },
            // News that wait to be taken in are no drift.
            _ = compare.tick(), if news.is_empty() => repair(&agent, &shown, confirmed),
            _ = look.tick(), if !confirmed => {
                confirmed = others_agree(&cluster, begun).await;
                if confirmed {
                    forget_unconfirmed(&agent, &shown);
                }
            }
        }
    }
}

async fn others_agree(cluster: &Cluster, begun: Instant) -> bool {
    let Some(report) = cluster.runtime.report().await else {
        return false;
    };
    let alone = report.members.is_empty();
    match alone {
        true => begun.elapsed() > ALONE_LIMIT,
        false => report.settled,
    }
}

fn take(agent: &Agent, cluster: &Cluster, shown: &mut Shown, news: News) {
    let mut orders = Vec::new();
    match news {
        News::Table(table) => {
            // What was shown before and is not now goes; what the state file knew may stay for a while.
            let before = std::mem::take(shown);
            for one in table {
                if one.owner != cluster.number {
                    shown.put(one.owner, &one.record);
                    if one.suspended {
                        shown.suspended.insert(one.owner);
                    }
                }
            }
            let now: BTreeSet<_> = shown.live().map(Arc::as_ptr).collect();
            let gone = before.live().filter(|r| !now.contains(&Arc::as_ptr(r)));
            orders.extend(gone.cloned().map(Order::Hide));
            orders.extend(
                shown
                    .live()
                    .cloned()
                    .map(|record| Order::Show(record, None)),
            );
        }
        News::Changes(events) => {
            for event in events {
                note(agent, cluster, &event);
                if owner_of(&event) != Some(cluster.number) {
                    shown.take(event, &mut orders);
                }
            }
        }
        News::Member(event) => note_member(agent, cluster, &event),
    }
    agent.feed(&orders);
}

fn owner_of(event: &Event) -> Option<NodeNumber> {
    match event {
        Event::Upsert { owner, .. }
        | Event::Remove { owner, .. }
        | Event::Unauthorised { owner, .. } => Some(*owner),
        _ => None,
    }
}

/// Takes out of the tables what only the state file knew.
fn forget_unconfirmed(agent: &Agent, shown: &Shown) {
    let known: BTreeSet<(&str, &str)> = shown
        .live()
        .map(|record| (record.network.as_str(), record.endpoint.as_str()))
        .collect();
    let stale: Vec<Order> = {
        let live = agent.live();
        let records = live.node.remote.records();
        let stale = records.filter(|r| !known.contains(&(r.network.as_str(), r.endpoint.as_str())));
        stale
            .cloned()
            .map(|record| Order::Hide(Arc::new(record)))
            .collect()
    };
    if !stale.is_empty() {
        tracing::info!(
            count = stale.len(),
            "records of before the restart are gone"
        );
        agent.feed(&stale);
    }
}

/// Compares what gossip shows with what the node remembers, and that with the tables.
fn repair(agent: &Agent, shown: &Shown, confirmed: bool) {
    let shows: BTreeSet<(&str, &str)> = shown
        .live()
        .map(|record| (record.network.as_str(), record.endpoint.as_str()))
        .collect();
    let missing: Vec<Order> = {
        let live = agent.live();
        let remote = &live.node.remote;
        // Of several endpoints with one MAC one is remembered, and the tables have all of them.
        let known = |r: &&Record| {
            remote.record(r.vni, r.mac).is_some_and(|known| {
                let twin = known.endpoint != r.endpoint
                    && shows.contains(&(known.network.as_str(), known.endpoint.as_str()));
                twin || *known == ***r
            })
        };
        let missing = shown.live().filter(|record| !known(record));
        missing.cloned().map(|r| Order::Show(r, None)).collect()
    };
    if !missing.is_empty() {
        tracing::warn!(
            count = missing.len(),
            "records of live nodes were not remembered"
        );
        agent.feed(&missing);
    }
    // Before, what the state file knew is not to be touched.
    if confirmed {
        forget_unconfirmed(agent, shown);
    }
    agent.repair_tables(&shows);
}

/// Tells people what they should know.
fn note(agent: &Agent, cluster: &Cluster, event: &Event) {
    let directory = cluster.directory();
    let name = |node: &NodeNumber| directory.name_of(*node);
    match event {
        Event::Conflict(conflict) => agent.emit(Fact::AddressConflict {
            network: conflict.network.to_string(),
            address: in_words(&conflict.address),
            winner: name(&conflict.winner.0),
            losers: conflict.losers.iter().map(|(node, _)| name(node)).collect(),
        }),
        Event::ConflictOver(network, address) => agent.emit(Fact::AddressConflictOver {
            network: network.to_string(),
            address: in_words(address),
        }),
        Event::Unauthorised {
            owner,
            record,
            reason,
        } => {
            tracing::debug!(node = name(owner), endpoint = record.endpoint, %reason, "not shown");
        }
        Event::EpochUsed(version) => agent.epoch_used(version.epoch),
        _ => {}
    }
}

/// What an address is, in words.
pub(in crate::agent) fn in_words(address: &Address) -> String {
    match address {
        Address::Ip(_, ip) => ip.to_string(),
        Address::Mac(_, mac) => mac.to_string(),
    }
}

/// A conflict as the status tells it.
pub(in crate::agent) fn describe(
    conflict: &Conflict,
    name: impl Fn(NodeNumber) -> String,
) -> String {
    let losers: Vec<String> = conflict
        .losers
        .iter()
        .map(|(node, _)| name(*node))
        .collect();
    format!(
        "{} is in use on {} and {}; {} counts everywhere",
        in_words(&conflict.address),
        name(conflict.winner.0),
        losers.join(", "),
        name(conflict.winner.0),
    )
}

fn note_member(agent: &Agent, cluster: &Cluster, event: &MemberEvent) {
    let directory = cluster.directory();
    let name = |number| directory.name_of(number);
    match event {
        MemberEvent::Up(identity) => agent.emit(Fact::NodeUp {
            node: name(identity.node),
        }),
        MemberEvent::Failed(identity) => agent.emit(Fact::NodeFailed {
            node: name(identity.node),
        }),
        MemberEvent::Impostor(addr) => agent.emit(Fact::NodeNumberUsedTwice {
            address: addr.to_string(),
        }),
        MemberEvent::Rejoined(_) => tracing::info!("others had taken this node for dead"),
        MemberEvent::Renewed(_) | MemberEvent::SeedIsSelf(_) => {}
    }
    cluster.nudge();
}

impl Agent {
    /// Tells the tables of other nodes' endpoints. What is not up here is only remembered.
    fn feed(&self, orders: &[Order]) {
        if orders.is_empty() {
            return;
        }
        // A network that comes up fills its tables from what is remembered: not between these two steps.
        let _tables = self.tables();
        let (up, routed) = {
            let mut live = self.live();
            for order in orders {
                match order {
                    Order::Show(record, replaced) => {
                        live.node
                            .remote
                            .show(Arc::clone(record), replaced.as_deref());
                    }
                    Order::Hide(record) => live.node.remote.hide(record),
                }
            }
            let touched = orders.iter().map(|order| match order {
                Order::Show(record, _) | Order::Hide(record) => record.network.as_str(),
            });
            let routed = self.routed_vteps(&live, touched.collect());
            let up: BTreeSet<String> = live.up.keys().cloned().collect();
            (up, routed)
        };
        for order in orders {
            match order {
                Order::Show(record, replaced) if up.contains(&record.network) => {
                    self.put_shown(record, replaced.as_deref());
                }
                Order::Hide(record) if up.contains(&record.network) => {
                    self.plumbing().remove_record(record.vni, &record.endpoint);
                }
                _ => {}
            }
        }
        self.tell_routed(&routed);
        self.services_changed();
        self.names_changed();
    }

    /// The VTEPs of each segment of those networks that are up and have several: a node with endpoints in one routes into
    /// the others.
    fn routed_vteps(&self, live: &Live, networks: BTreeSet<&str>) -> Vec<(Vni, Vec<IpAddr>)> {
        let up = networks.into_iter().filter(|id| live.up.contains_key(*id));
        let known = up.filter_map(|id| live.node.catalog.networks.get(id));
        let routed = known.filter(|network| network.segments.len() > 1);
        routed
            .flat_map(|network| {
                let vteps = self.vteps_of(network, &live.node.remote);
                let segments = network.segments.iter();
                segments.map(move |segment| (segment.vni, vteps.clone()))
            })
            .collect()
    }

    fn tell_routed(&self, routed: &[(Vni, Vec<IpAddr>)]) {
        for (vni, vteps) in routed {
            let key = format!("VTEPs of VNI {vni}");
            match self.plumbing().set_vteps(*vni, vteps) {
                Ok(()) => self.well_again(&key),
                Err(error) => self.trouble(&key, error.code.as_str(), &error),
            }
        }
    }

    /// Makes the tables of networks that are up agree with what is remembered.
    fn repair_tables(&self, shows: &BTreeSet<(&str, &str)>) {
        let _tables = self.tables();
        let (mut missing, mut strays) = (Vec::new(), Vec::new());
        {
            let live = self.live();
            for id in live.up.keys() {
                let Some(network) = live.node.catalog.networks.get(id) else {
                    continue;
                };
                for segment in &network.segments {
                    let in_tables = self.plumbing().table(segment.vni);
                    let remote = live.node.remote.of_network(id);
                    let remote = remote.filter(|record| record.vni == segment.vni);
                    let expected: BTreeMap<&str, &EndpointRecord> = remote
                        .map(|record| (record.endpoint.as_str(), record))
                        .collect();
                    let found: BTreeSet<&str> =
                        in_tables.iter().map(|(id, _)| id.as_str()).collect();
                    let absent = expected.iter().filter(|(id, _)| !found.contains(*id));
                    missing.extend(absent.map(|(_, record)| (*record).clone()));
                    let foreign = in_tables.iter().filter(|(id, local)| {
                        let shown = shows.contains(&(network.id.as_str(), id.as_str()));
                        !local && !shown && !expected.contains_key(id.as_str())
                    });
                    strays.extend(foreign.map(|(id, _)| (segment.vni, id.clone())));
                }
            }
        }
        let routed = {
            let live = self.live();
            let all = live.up.keys().map(String::as_str).collect();
            self.routed_vteps(&live, all)
        };
        self.tell_routed(&routed);
        for (vni, endpoint) in &strays {
            self.plumbing().remove_record(*vni, endpoint);
        }
        for record in &missing {
            self.put_shown(record, None);
        }
        if !missing.is_empty() || !strays.is_empty() {
            self.emit(Fact::TablesRepaired {
                added: missing.len(),
                removed: strays.len(),
            });
        }
    }

    fn put_shown(&self, record: &EndpointRecord, replaced: Option<&EndpointRecord>) {
        // Within a segment the tables replace it without a gap.
        if let Some(old) = replaced.filter(|old| old.vni != record.vni) {
            self.plumbing().remove_record(old.vni, &old.endpoint);
        }
        let key = format!("record {} of {}", record.endpoint, record.network);
        match self.plumbing().put_remote(record) {
            Ok(()) => self.well_again(&key),
            Err(error) => self.trouble(&key, error.code.as_str(), &error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::record::{Backing, Version};
    use crate::wire::Mac;

    fn record(endpoint: &str, mac: u8) -> Record {
        Arc::new(EndpointRecord {
            network: "net".into(),
            vni: Vni::FIRST_USER,
            endpoint: endpoint.into(),
            mac: Mac([2, 0x42, 0, 0, 0, mac]),
            ips: vec![[10, 0, 1, mac].into()],
            vtep: [192, 0, 2, 1].into(),
            node: "n".into(),
            name: endpoint.into(),
            aliases: Vec::new(),
            service: String::new(),
            backing: Backing::default(),
            version: Version::default(),
        })
    }

    fn upsert(owner: u64, record: &Record, replaced: Option<&Record>, suspended: bool) -> Event {
        Event::Upsert {
            owner: NodeNumber(owner),
            record: Arc::clone(record),
            replaced: replaced.cloned(),
            suspended,
        }
    }

    fn run(shown: &mut Shown, events: Vec<Event>) -> Vec<Order> {
        let mut orders = Vec::new();
        for event in events {
            shown.take(event, &mut orders);
        }
        orders
    }

    fn show(record: &Record) -> Order {
        Order::Show(Arc::clone(record), None)
    }

    fn hide(record: &Record) -> Order {
        Order::Hide(Arc::clone(record))
    }

    #[test]
    fn a_failed_nodes_records_go_and_come_back_with_it() {
        let mut shown = Shown::default();
        let (a, b) = (record("a", 1), record("b", 2));
        let came = vec![upsert(1, &a, None, false), upsert(2, &b, None, false)];
        assert_eq!(run(&mut shown, came), [show(&a), show(&b)]);
        let failed = vec![Event::Suspend(NodeNumber(1))];
        assert_eq!(run(&mut shown, failed), [hide(&a)]);
        assert_eq!(shown.live().collect::<Vec<_>>(), [&b]);
        // What changes meanwhile is noted and not shown.
        let c = record("c", 3);
        assert_eq!(run(&mut shown, vec![upsert(1, &c, None, true)]), []);
        let back = vec![Event::Resume(NodeNumber(1))];
        assert_eq!(run(&mut shown, back), [show(&a), show(&c)]);
    }

    #[test]
    fn orders_keep_the_order_of_events() {
        let mut shown = Shown::default();
        let (old, new) = (record("a", 1), record("a", 2));
        let removed = |record: &Record| Event::Remove {
            owner: NodeNumber(1),
            record: Arc::clone(record),
        };
        let events = vec![
            upsert(1, &old, None, false),
            upsert(1, &new, Some(&old), false),
            removed(&new),
            upsert(1, &old, None, false),
            removed(&old),
        ];
        let expected = [
            show(&old),
            Order::Show(Arc::clone(&new), Some(Arc::clone(&old))),
            hide(&new),
            show(&old),
            hide(&old),
        ];
        assert_eq!(run(&mut shown, events), expected);
        assert_eq!(shown.live().count(), 0);
    }
}
