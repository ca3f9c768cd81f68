//! The rules of every namespace: put where they differ, watched, and put again when somebody flushes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::StreamExt;
use tokio::task::AbortHandle;

use super::plan::{mesh_rules, ways_back, workloads};
use super::ports::led_by_node;
use super::{Look, egress};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::handle::Agent;
use crate::agent::plumbing::edge::{Place, WorkloadPlace};
use crate::host::EGRESS_MARK;
use crate::services::balance::Target;
use crate::services::counts::Counted;
use crate::services::rules::{self, Gateway};

/// What stands in the kernel.
#[derive(Debug, Default)]
pub struct Applied {
    places: BTreeMap<Place, Standing>,
    /// Workloads without rules that were gone through: an earlier agent may have left some.
    cleared: BTreeSet<Place>,
    /// Where rounds of backends begin next: elsewhere each time.
    turn: u32,
}

#[derive(Debug)]
struct Standing {
    wanted: Wanted,
    /// The rules in the kernel's words, as read right after they were put.
    told: Option<String>,
    watch: Option<AbortHandle>,
    /// Somebody has changed rules there since.
    touched: bool,
}

impl Drop for Standing {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.abort();
        }
    }
}

/// What is to stand in one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// The rules, with rounds that begin at zero: to be compared.
    body: String,
    /// How to write them with rounds beginning elsewhere.
    make: Option<Recipe>,
    /// Backends, and whether they get connections from here.
    backends: BTreeMap<IpAddr, bool>,
    /// The interface that answers go back by, and the ways by mark.
    back: Option<(String, Vec<(u32, IpAddr)>)>,
}

/// What the rules of a namespace are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Recipe {
    Node(Gateway, Vec<rules::NodePort>),
    Mesh(String, String, Vec<rules::MeshPort>),
    Workload(
        Vec<rules::VirtualAddress>,
        Option<rules::BackendLeg>,
        Option<rules::NodeWay>,
    ),
}

impl Recipe {
    fn body(&self, turn: u32) -> String {
        match self {
            Recipe::Node(gateway, ports) => rules::node(gateway, ports),
            Recipe::Mesh(outer, inner, ports) => rules::ingress(outer, inner, ports, turn),
            Recipe::Workload(vips, leg, way) => {
                let way = way.as_ref().map(rules::node_way);
                rules::workload(vips, leg.as_ref(), turn) + &way.unwrap_or_default()
            }
        }
    }

    /// The names of all counters.
    fn counters(&self) -> BTreeSet<String> {
        let counted: Vec<Option<&Counted>> = match self {
            Recipe::Node(_, ports) => ports.iter().map(|port| port.counted.as_ref()).collect(),
            Recipe::Mesh(_, _, ports) => ports.iter().map(|port| port.counted.as_ref()).collect(),
            Recipe::Workload(vips, ..) => vips.iter().map(|vip| vip.counted.as_ref()).collect(),
        };
        let names = counted.into_iter().flatten().flat_map(Counted::counters);
        names.collect()
    }

    /// Every backend, and whether it gets connections.
    fn backends(&self) -> BTreeMap<IpAddr, bool> {
        let with_use = |target: &Target| (target.ip, target.share > 0);
        match self {
            Recipe::Node(..) => BTreeMap::new(),
            Recipe::Mesh(_, _, ports) => {
                let targets = ports.iter().flat_map(|port| &port.targets);
                targets.map(with_use).collect()
            }
            Recipe::Workload(vips, ..) => {
                let targets = vips.iter().flat_map(|vip| &vip.targets);
                targets.map(with_use).collect()
            }
        }
    }
}

/// Puts the rules of every namespace that needs other ones than it has.
pub(super) async fn settle(agent: &Agent, look: Look) {
    // In this order, or what somebody else has put meanwhile would be replaced by what was wanted before.
    let mut applied = agent.inner.edge.applied.lock().await;
    let wanted = wanted(agent).await;
    let gone: Vec<Place> = applied
        .places
        .keys()
        .filter(|place| !wanted.contains_key(place))
        .cloned()
        .collect();
    for place in gone {
        applied.places.remove(&place);
        agent.inner.edge.counts.end(&place);
        let removed = agent.plumbing().edge().put_rules(&place, "").await;
        report(agent, &place, removed);
    }
    let bare: Vec<Place> = {
        let live = agent.live();
        let places = workloads(&live.node).into_values();
        let places = places.map(|workload| Place::Workload(workload.place));
        places.filter(|place| !wanted.contains_key(place)).collect()
    };
    applied.cleared.retain(|place| bare.contains(place));
    for place in bare {
        if applied.cleared.insert(place.clone()) {
            let removed = agent.plumbing().edge().put_rules(&place, "").await;
            report(agent, &place, removed);
        }
    }
    for (place, wanted) in wanted {
        let done = put(agent, &mut applied, &place, wanted, look).await;
        report(agent, &place, done);
    }
    let known: BTreeSet<String> = agent.live().node.services.keys().cloned().collect();
    let counts = &agent.inner.edge.counts;
    counts.retain(|service| known.contains(service));
}

/// As [`settle`], for the node and one workload.
pub(super) async fn settle_one(agent: &Agent, netns_inode: u64) {
    settle_some(agent, |place, _| match place {
        Place::Node => true,
        Place::Workload(workload) => workload.netns_inode == netns_inode,
    })
    .await;
}

/// As [`settle`], for the node alone.
pub(super) async fn settle_node(agent: &Agent) {
    settle_some(agent, |place, _| *place == Place::Node).await;
}

/// As [`settle`], for backends that came, went or changed where rules stand already.
pub(super) async fn follow(agent: &Agent) {
    settle_some(agent, |place, applied| {
        *place != Place::Node && applied.places.contains_key(place)
    })
    .await;
}

async fn settle_some(agent: &Agent, meant: impl Fn(&Place, &Applied) -> bool) {
    // In this order, or what somebody else has put meanwhile would be replaced by what was wanted before.
    let mut applied = agent.inner.edge.applied.lock().await;
    let wanted = wanted(agent).await;
    for (place, wanted) in wanted {
        if meant(&place, &applied) {
            let done = put(agent, &mut applied, &place, wanted, Look::Changes).await;
            report(agent, &place, done);
        }
    }
}

/// Removes the rules of every namespace that is still there.
pub(super) async fn take_down(agent: &Agent) {
    let mut applied = agent.inner.edge.applied.lock().await;
    for (place, _) in std::mem::take(&mut applied.places) {
        agent.inner.edge.counts.end(&place);
        let removed = agent.plumbing().edge().put_rules(&place, "").await;
        report(agent, &place, removed);
    }
}

fn report(agent: &Agent, place: &Place, done: Result<(), ApiError>) {
    let key = match place {
        Place::Node => "rules of the node".to_owned(),
        Place::Workload(workload) => format!("rules of workload {}", workload.target),
    };
    match done {
        Ok(()) => agent.well_again(&key),
        // It is gone, and its rules with it.
        Err(error) if error.code == ErrorCode::TargetNotFound => agent.well_again(&key),
        Err(error) => agent.trouble(&key, error.code.as_str(), &error),
    }
}

/// What is to stand where.
async fn wanted(agent: &Agent) -> BTreeMap<Place, Wanted> {
    let led = led_by_node(agent).await;
    let legs: BTreeMap<u64, Vec<IpAddr>> = {
        let inodes: Vec<u64> = workloads(&agent.live().node).keys().copied().collect();
        inodes
            .into_iter()
            .map(|inode| (inode, egress::leg_addresses(agent, inode)))
            .collect()
    };
    let live = agent.live();
    let node = &live.node;
    let mut all: BTreeMap<Place, Wanted> = BTreeMap::new();
    let mut add = |place: Place, recipe: Recipe, back| {
        let wanted = Wanted {
            body: recipe.body(0),
            backends: recipe.backends(),
            make: Some(recipe),
            back,
        };
        if !wanted.body.is_empty() {
            all.insert(place, wanted);
        }
    };
    if let Some(gateway) = &node.edge.gateway {
        let gateway = Gateway {
            bridge: gateway.bridge.clone(),
            subnets: gateway.addresses.clone(),
            mark: EGRESS_MARK,
        };
        add(Place::Node, Recipe::Node(gateway, led.ports), None);
    }
    for (inode, workload) in workloads(node) {
        let place = Place::Workload(workload.place.clone());
        if workload.is_mesh() {
            let leg = node.edge.leg_of(inode).map(|(_, leg)| leg.ifname.clone());
            let inner = workload.ingress.map(|endpoint| endpoint.ifname.clone());
            if let (Some(outer), Some(inner)) = (leg, inner)
                && !outer.is_empty()
            {
                let ports = mesh_rules(node, &led.handed);
                add(place, Recipe::Mesh(outer, inner, ports), None);
            }
            continue;
        }
        let reply_from = legs.get(&inode).cloned().unwrap_or_default();
        let way = workload.node_way(node, reply_from.clone());
        let leg = workload.backend_leg(node, reply_from);
        let back = leg
            .as_ref()
            .map(|leg| (leg.ifname.clone(), ways_back(node)));
        add(place, Recipe::Workload(workload.vips(node), leg, way), back);
    }
    all
}

async fn put(
    agent: &Agent,
    applied: &mut Applied,
    place: &Place,
    wanted: Wanted,
    look: Look,
) -> Result<(), ApiError> {
    let edge = agent.plumbing().edge();
    let before = applied
        .places
        .get(place)
        .map(|standing| standing.wanted.clone());
    let same = before.as_ref() == Some(&wanted);
    let mut stands = before.as_ref().map(|before| before.body.clone());
    let back_due = look == Look::Everything
        || before
            .as_ref()
            .is_none_or(|before| before.back != wanted.back);
    if let (Place::Workload(workload), Some((ifname, ways))) = (place, &wanted.back)
        && back_due
    {
        edge.return_routes(workload, ifname, ways).await?;
    }
    if same && let Some(standing) = applied.places.get_mut(place) {
        if !standing.touched {
            return Ok(());
        }
        let told = edge.rules(place).await?;
        if told.is_some() && standing.told == told {
            standing.touched = false;
            return Ok(());
        }
        tracing::warn!(
            ?place,
            "rules were changed or removed by somebody else, and are put again"
        );
        agent.emit(crate::agent::events::Event::RulesRestored {
            place: match place {
                Place::Node => "the node".into(),
                Place::Workload(workload) => workload.target.clone(),
            },
        });
        stands = None;
    }
    let before = before.map(|before| before.backends).unwrap_or_default();
    let used_before = before.iter().filter(|(_, used)| **used).map(|(ip, _)| *ip);
    let left = used_before.filter(|ip| wanted.backends.get(ip) != Some(&true));
    let left: Vec<IpAddr> = left.collect();
    let gone = before.keys().filter(|ip| !wanted.backends.contains_key(ip));
    let gone: Vec<IpAddr> = gone.copied().collect();
    applied.turn = applied.turn.wrapping_add(1);
    let turn = applied.turn.wrapping_mul(TURN_STEP) ^ turn_of(place);
    let body = wanted
        .make
        .as_ref()
        .map_or_else(String::new, |recipe| recipe.body(turn));
    lay(agent, place, stands.as_deref(), (&wanted, &body)).await?;
    edge.forget_flows(place, &left, &gone).await?;
    let told = edge.rules(place).await?;
    let watch = match applied.places.get_mut(place) {
        Some(standing) => standing.watch.take(),
        None => None,
    };
    let watch = match watch {
        Some(watch) if !watch.is_finished() => Some(watch),
        _ => watch_over(agent, place)?,
    };
    let standing = Standing {
        wanted,
        told,
        watch,
        touched: false,
    };
    applied.places.insert(place.clone(), standing);
    Ok(())
}

/// Puts rules in place of those that stand, if they are known, with everything that is counted.
async fn lay(
    agent: &Agent,
    place: &Place,
    stands: Option<&str>,
    (wanted, body): (&Wanted, &str),
) -> Result<(), ApiError> {
    let edge = agent.plumbing().edge();
    let counts = &agent.inner.edge.counts;
    let counters = wanted.make.as_ref().map(Recipe::counters);
    let counters = counters.unwrap_or_default();
    if let Some(stands) = stands {
        counts.read(place);
        match edge.change_rules(place, stands, body).await {
            Ok(()) => return counts.go_on(edge, place, &counters),
            Err(error) => tracing::debug!(?place, %error, "rules are put anew"),
        }
    }
    let meter = counts.end(place);
    if let Err(error) = edge.put_rules(place, body).await {
        counts.back(place, meter);
        return Err(error);
    }
    counts.begin(edge, place, &counters)
}

/// Marks the place as touched whenever somebody changes rules there, ourselves included.
fn watch_over(agent: &Agent, place: &Place) -> Result<Option<AbortHandle>, ApiError> {
    let mut changes = agent.plumbing().edge().watch_rules(place)?;
    let (agent, place) = (agent.clone(), place.clone());
    let task = tokio::spawn(async move {
        while changes.next().await.is_some() {
            let mut applied = agent.inner.edge.applied.lock().await;
            let Some(standing) = applied.places.get_mut(&place) else {
                return;
            };
            standing.touched = true;
            drop(applied);
            agent.services_changed();
        }
    });
    Ok(Some(task.abort_handle()))
}

/// Clients of one node begin their rounds at different backends.
fn turn_of(place: &Place) -> u32 {
    match place {
        Place::Node => 0,
        Place::Workload(WorkloadPlace { netns_inode, .. }) => *netns_inode as u32,
    }
}

/// Odd, so that rounds go through all beginnings.
const TURN_STEP: u32 = 0x9e37_79b1;
