//! What lies at the node's edge: workloads' way out, virtual addresses, published ports.
//!
//! | file | owns |
//! |---|---|
//! | [`state`] | what is remembered: the gateway bridge and the legs on it |
//! | [`plan`] | what should be, from networks, services and records. Pure |
//! | [`egress`] | the gateway bridge and workloads' legs |
//! | [`mesh`] | the ingress namespace, and backends' endpoints on the ingress network |
//! | [`rules`] | rules of every namespace, watched; flows to backends that are gone |
//! | [`counts`] | connections and bytes of services, as the rules count them |
//! | [`news`] | what has changed of services and backends, told as events |
//! | [`ports`] | published ports kept from other programs, and served to callers on the node |
//! | [`own`] | ports that weft itself needs, and nobody publishes. Pure |
//! | [`proxy`] | bytes from one side to the other |
//! | [`health`] | checks of backends |
//!
//! Level-triggered as reconciliation: a task compares again whenever something has changed, and every few seconds.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::handle::Agent;
use super::task::ended;

pub mod counts;
pub mod egress;
pub mod health;
pub mod mesh;
pub mod news;
pub mod own;
pub mod plan;
pub mod ports;
pub mod proxy;
pub mod rules;
pub mod state;

/// What the edge's task keeps in mind.
#[derive(Debug, Default)]
pub struct Edge {
    /// What stands in the kernel. Never held while a network's lock is asked for; `ports` may be.
    pub(super) applied: Mutex<rules::Applied>,
    /// Listeners on published ports.
    pub(super) ports: Mutex<ports::Ports>,
    /// Checks of backends.
    pub(super) health: Mutex<health::Checks>,
    /// What the rules count.
    pub(super) counts: counts::Counts,
    /// Services and backends as last seen.
    pub(super) seen: Mutex<news::Seen>,
    /// Backends' endpoints that wait to be detached.
    pub(super) idle: Mutex<mesh::Idle>,
    /// Legs that stand in the kernel.
    pub(super) legs: Mutex<egress::Given>,
}

/// Starts the tasks that keep the edge as it should be.
pub fn spawn(agent: &Agent) {
    let watched = agent.clone();
    let mut changed = agent.watch_services();
    agent.inner.tasks.spawn("edge", |mut stop| async move {
        let mut look = Look::Everything;
        // Not from the last change on: changes that never cease must not put it off.
        let mut next_look = Instant::now();
        loop {
            settle(&watched, look).await;
            if look == Look::Everything {
                next_look = Instant::now() + COMPARE_EVERY;
            }
            let wait = tokio::time::timeout_at(next_look, changed.changed());
            look = tokio::select! {
                () = ended(&mut stop) => break,
                _ = wait => match Instant::now() < next_look {
                    true => Look::Changes,
                    false => Look::Everything,
                },
            };
            // Changes come in bursts; a few milliseconds gather them.
            tokio::time::sleep(GATHER).await;
            changed.mark_unchanged();
        }
        watched.inner.edge.ports.lock().await.close();
        watched.inner.edge.health.lock().await.stop();
    });
    spawn_backends(agent);
}

/// Starts the task that follows backends that change, in the rules that stand and on the ingress network. It waits
/// neither for interfaces nor for a disk: meanwhile connections would be led to backends that are gone.
fn spawn_backends(agent: &Agent) {
    let watched = agent.clone();
    let mut changed = agent.watch_services();
    agent.inner.tasks.spawn("backends", |mut stop| async move {
        loop {
            tokio::select! {
                () = ended(&mut stop) => return,
                result = changed.changed() => if result.is_err() { return },
            }
            tokio::time::sleep(GATHER).await;
            changed.mark_unchanged();
            mesh::follow(&watched).await;
            rules::follow(&watched).await;
        }
    });
}

/// How closely the kernel is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// What has been made is taken to stand.
    Changes,
    /// What has been made is gone through again.
    Everything,
}

/// Brings everything at the edge to what it should be.
async fn settle(agent: &Agent, look: Look) {
    if agent.inner.tasks.stopping() {
        return;
    }
    news::settle(agent).await;
    let_go(agent).await;
    // Others are told before anything is taken away that they lead to.
    mesh::leave(agent).await;
    egress::settle(agent, look).await;
    mesh::settle(agent, look).await;
    health::settle(agent).await;
    ports::settle(agent).await;
    rules::settle(agent, look).await;
    ports::lead(agent).await;
}

/// Takes ports that are published no more out of the node's rules: before what they lead to goes.
async fn let_go(agent: &Agent) {
    if ports::release(agent).await {
        rules::settle_node(agent).await;
    }
}

/// Takes everything at the edge away, with nobody else at work.
pub(super) async fn take_down(agent: &Agent) {
    agent.inner.edge.ports.lock().await.close();
    agent.inner.edge.health.lock().await.stop();
    rules::take_down(agent).await;
    egress::take_down(agent).await;
    mesh::take_down(agent).await;
}

impl Agent {
    /// Gives a workload its way out and its rules, as part of attaching it. What fails is reported in the status and tried
    /// again: the workload is on its network all the same.
    pub(super) async fn settle_workload(&self, netns_inode: u64) {
        if netns_inode == 0 {
            return;
        }
        egress::settle_one(self, netns_inode).await;
        rules::settle_one(self, netns_inode).await;
    }

    /// Does `work` with the workload's way out taken away, if its interface has this name; it is to get another one
    /// afterwards. `None` if it has not.
    pub(super) async fn without_leg_named<T>(
        &self,
        netns_inode: u64,
        ifname: &str,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        if !egress::keep_out(self, netns_inode, ifname).await {
            return None;
        }
        let done = work.await;
        egress::let_in(self, netns_inode).await;
        Some(done)
    }
}

/// What nobody tells of is found after so long.
const COMPARE_EVERY: Duration = Duration::from_secs(5);
const GATHER: Duration = Duration::from_millis(5);
