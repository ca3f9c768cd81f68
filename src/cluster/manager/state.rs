//! The state machine of the managers: one pure function from state and envelope to state and outcome.
//!
//! Every manager applies the same envelopes in the same order and comes to the same state. Time is part of
//! the envelope, chance was drawn by the proposer, and maps are ordered.
//!
//! The state is kept as JSON: a field that comes later, as that of services did, gets `#[serde(default)]`, and
//! snapshots of before stay readable.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::audit::{Audit, Entry};
use super::command::{Authority, COMMAND_VERSION, Command, Envelope, InitCluster, Settings, Stamp};
use super::ids::{NodeId, Role};
use super::leases::Leases;
use super::networks::NetworkChange;
use super::nodes::{Node, Revoked};
use super::reply::{Outcome, Refusal, Reply};
use super::retry::Retries;
use super::secrets::{KeyRing, Token};
use super::watch::{Change, Delta, Identity};
use crate::model::network::{Catalog, Fresh};
use crate::model::service::Service;

/// Version of the snapshot's form.
pub const STATE_VERSION: u32 = 1;

/// Everything managers agree on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Place in the log up to which all is in here.
    revision: u64,
    /// The latest time any envelope told.
    clock: Stamp,
    /// The cluster, once it has been made.
    cluster: Option<Cluster>,
    retries: Retries,
    audit: Audit,
}

/// The cluster itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// 25 base-36 characters.
    pub id: String,
    /// Chosen when it was made.
    pub settings: Settings,
    /// The CA certificates come from.
    pub authority: Authority,
    /// The CA that is to follow.
    #[serde(default)]
    pub next_authority: Option<Authority>,
    /// The gossip ring.
    pub keys: KeyRing,
    /// Join tokens.
    pub tokens: Vec<Token>,
    /// Nodes by id.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Certificates of nodes that were removed.
    pub revoked: Vec<Revoked>,
    /// Networks.
    pub catalog: Catalog,
    /// Services by id.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    /// Who holds which addresses.
    pub(super) leases: Leases,
    last_fence: u64,
    last_raft_id: u64,
    last_number: u64,
}

/// Where and when a command takes effect, and what it changes for watchers.
pub(super) struct Scene<'a> {
    pub(super) stamp: Stamp,
    pub(super) revision: u64,
    pub(super) changes: &'a mut Vec<Change>,
}

/// Result of [`State::apply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// What the proposer is told.
    pub outcome: Outcome,
    /// What watchers are told; empty for a repeated or refused command.
    pub changes: Vec<Change>,
}

/// A snapshot or log entry that this version cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Written by a newer weft.
    #[error(
        "{what} is of version {given}, this weft reads up to {max}: start the newer weft again"
    )]
    Newer {
        /// A snapshot or a command.
        what: &'static str,
        /// Its version.
        given: u32,
        /// The newest this code reads.
        max: u32,
    },
    /// No snapshot at all.
    #[error("the snapshot cannot be read: {0}")]
    Damaged(String),
}

impl Default for State {
    fn default() -> State {
        State {
            version: STATE_VERSION,
            revision: 0,
            clock: Stamp::default(),
            cluster: None,
            retries: Retries::default(),
            audit: Audit::default(),
        }
    }
}

impl State {
    /// The cluster.
    ///
    /// # Errors
    /// `NoCluster` before it was made.
    pub fn cluster(&self) -> Result<&Cluster, Refusal> {
        self.cluster.as_ref().ok_or(Refusal::NoCluster)
    }

    /// Place in the log up to which all is in here.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The latest time any envelope told: a new leader's clock starts here.
    pub fn clock(&self) -> Stamp {
        self.clock
    }

    /// The audit log, from old to new.
    pub fn audit(&self) -> impl DoubleEndedIterator<Item = &Entry> {
        self.audit.entries()
    }

    /// Notes that the log has reached `revision` without a command.
    pub fn skip_to(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Applies the envelope at `revision` of the log.
    ///
    /// # Errors
    /// `Newer` if the command is of a version this code does not know. Nothing has changed then, and this
    /// manager must not go on.
    pub fn apply(&mut self, revision: u64, envelope: &Envelope) -> Result<Applied, Unreadable> {
        if envelope.version > COMMAND_VERSION {
            return Err(Unreadable::Newer {
                what: "a command in the log",
                given: envelope.version.into(),
                max: COMMAND_VERSION.into(),
            });
        }
        self.revision = self.revision.max(revision);
        if let Some(outcome) = self.retries.find(envelope.request) {
            return Ok(Applied {
                outcome: outcome.clone(),
                changes: Vec::new(),
            });
        }
        self.clock.cluster_ms = self.clock.cluster_ms.max(envelope.stamp.cluster_ms);
        self.clock.wall_ms = envelope.stamp.wall_ms;
        let mut changes = Vec::new();
        let action = self.describe(&envelope.command);
        let outcome = self.run(&envelope.command, &mut changes);
        if outcome.is_err() {
            changes.retain(|change| matches!(change, Change::Scarce { .. }));
        }
        let now_ms = self.clock.cluster_ms;
        self.retries.remember(envelope.request, now_ms, &outcome);
        if !envelope.command.is_routine() {
            self.audit.record(revision, envelope, action, &outcome);
        }
        Ok(Applied { outcome, changes })
    }

    fn run(&mut self, command: &Command, changes: &mut Vec<Change>) -> Outcome {
        let mut scene = Scene {
            stamp: self.clock,
            revision: self.revision,
            changes,
        };
        if let Command::Init(wish) = command {
            if let Some(cluster) = &self.cluster {
                return Err(Refusal::ClusterExists {
                    cluster: cluster.id.clone(),
                });
            }
            let (cluster, reply) = Cluster::init(&mut scene, wish)?;
            self.cluster = Some(cluster);
            return Ok(reply);
        }
        let cluster = self.cluster.as_mut().ok_or(Refusal::NoCluster)?;
        let before = cluster.parts_to_lose(command);
        let outcome = cluster.run(&mut scene, command);
        cluster.dismiss(&mut scene, before);
        outcome
    }

    /// The cluster time at which [`Command::Tick`] has something to do; `None` if nothing waits for time.
    pub fn next_due(&self) -> Option<u64> {
        let cluster = self.cluster.as_ref()?;
        let down = cluster.nodes.values().filter(|n| cluster.holds_any(n.id));
        let reclaim = down.filter_map(|node| cluster.reclaim_at(node)).min();
        reclaim.into_iter().chain(cluster.next_rest_end()).min()
    }

    /// Whether [`Command::Tick`] would do something at this time.
    pub fn is_due(&self, now: Stamp) -> bool {
        self.next_due().is_some_and(|at| at <= now.cluster_ms)
    }

    /// Everything, as a watcher gets it first.
    pub fn view(&self) -> Delta {
        let mut changes = Vec::new();
        if let Some(cluster) = &self.cluster {
            cluster.view(&mut changes);
        }
        Delta {
            revision: self.revision,
            changes,
        }
    }

    /// All of it as bytes.
    pub fn to_snapshot(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("maps have text keys and nothing else can fail")
    }

    /// From the bytes of [`State::to_snapshot`].
    ///
    /// # Errors
    /// When they are of a newer version, or no snapshot.
    pub fn from_snapshot(bytes: &[u8]) -> Result<State, Unreadable> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |e: serde_json::Error| Unreadable::Damaged(e.to_string());
        let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
        if head.version > STATE_VERSION {
            return Err(Unreadable::Newer {
                what: "the snapshot",
                given: head.version,
                max: STATE_VERSION,
            });
        }
        serde_json::from_slice(bytes).map_err(damaged)
    }

    /// The command in a few words, for the audit log.
    fn describe(&self, command: &Command) -> String {
        let name = |id: &NodeId| match &self.cluster {
            Some(cluster) => cluster.node_name(*id),
            None => id.to_string(),
        };
        let object = match command {
            Command::Init(wish) => wish.node.name.clone(),
            Command::Join { node, .. } => node.name.clone(),
            Command::NodePromote(node)
            | Command::NodeDemote(node)
            | Command::NodeStart { node, .. }
            | Command::NodeStatus { node, .. }
            | Command::NodeAvailability { node, .. }
            | Command::NodeCertificate { node, .. }
            | Command::NodeLeave { node, .. }
            | Command::NodeRemove { node, .. } => name(node),
            Command::NetworkCreate { wish, .. } => wish.name.clone(),
            Command::NetworkUpdate { network, .. } | Command::NetworkRemove { network, .. } => {
                network.clone()
            }
            Command::ServiceCreate { wish, .. } => wish.name.clone(),
            Command::ServiceUpdate { service, .. } | Command::ServiceRemove { service } => {
                let named = self.cluster.as_ref().map(|c| c.service_name(service));
                named.unwrap_or_else(|| service.clone())
            }
            Command::TokenAdd(token) | Command::TokenRotate(token) => token.role.to_string(),
            _ => String::new(),
        };
        let text = format!("{} {object}", command.verb());
        text.trim_end().chars().take(ACTION_LEN_MAX).collect()
    }
}

/// Longest text of an action in the audit log, in characters.
const ACTION_LEN_MAX: usize = 120;

impl Cluster {
    fn init(scene: &mut Scene<'_>, wish: &InitCluster) -> Result<(Cluster, Reply), Refusal> {
        check_settings(&wish.settings)?;
        let mut cluster = Cluster {
            id: wish.cluster.clone(),
            settings: wish.settings.clone(),
            authority: wish.authority.clone(),
            next_authority: None,
            keys: KeyRing::new(wish.key.clone()),
            tokens: Vec::new(),
            nodes: BTreeMap::new(),
            revoked: Vec::new(),
            catalog: Catalog::new(scene.stamp.wall_ms.saturating_mul(1_000_000), wish.seed),
            services: BTreeMap::new(),
            leases: Leases::new(),
            last_fence: 0,
            last_raft_id: 0,
            last_number: 0,
        };
        for token in &wish.tokens {
            cluster.token_add(scene, token)?;
        }
        let reply = cluster.admit(scene, &wish.node, Role::Manager)?;
        scene.changes.clear();
        cluster.view(scene.changes);
        Ok((cluster, reply))
    }

    fn run(&mut self, scene: &mut Scene<'_>, command: &Command) -> Outcome {
        match command {
            Command::Init(_) => Ok(Reply::Done),
            Command::Join { node, token } => self.join(scene, node, *token),
            Command::NodeStart {
                node,
                epoch,
                vtep,
                control,
                kept_state,
            } => self.node_start(scene, *node, *epoch, (*vtep, *control), *kept_state),
            Command::NodeStatus {
                node,
                epoch,
                status,
            } => self.node_status(scene, *node, *epoch, *status),
            Command::NodePromote(node) => self.node_promote(scene, *node),
            Command::NodeDemote(node) => self.node_demote(scene, *node),
            Command::NodeAvailability { node, availability } => {
                self.node_availability(scene, *node, *availability)
            }
            Command::NodeCertificate { node, certificate } => {
                self.node_certificate(scene, *node, *certificate)
            }
            Command::NodeLeave { node, epoch } => {
                self.check_epoch(*node, *epoch)?;
                self.node_leave(scene, *node)
            }
            Command::NodeRemove { node, force } => self.node_remove(scene, *node, *force),
            Command::NetworkCreate {
                wish,
                id,
                created,
                vtep,
            } => {
                let fresh = Fresh {
                    id: id.clone(),
                    now: *created,
                    vtep: *vtep,
                };
                self.network_create(scene, wish, &fresh)
            }
            Command::NetworkUpdate {
                network,
                labels,
                attachable,
                name,
            } => {
                let change = NetworkChange {
                    labels: labels.as_ref(),
                    attachable: *attachable,
                    name: name.as_deref(),
                };
                self.network_update(scene, network, &change)
            }
            Command::NetworkRemove { network, force } => {
                self.network_remove(scene, network, *force)
            }
            Command::ServiceCreate { wish, id, created } => {
                self.service_create(scene, wish, id, *created)
            }
            Command::ServiceUpdate {
                service,
                wish,
                updated,
            } => self.service_update(scene, service, wish, *updated),
            Command::ServiceRemove { service } => self.service_remove(scene, service),
            Command::TokenAdd(wish) => self.token_add(scene, wish),
            Command::TokenRotate(wish) => self.token_rotate(scene, wish),
            Command::KeyRotate { key } => self.key_rotate(scene, key),
            Command::KeyReplace { key } => self.key_replace(scene, key),
            Command::AuthorityRotate(next) => self.authority_rotate(scene, next),
            Command::Tick => {
                self.reclaim(scene);
                self.end_rests(scene.stamp.cluster_ms);
                self.drop_dead_tokens(scene.stamp.wall_ms);
                Ok(Reply::Done)
            }
            _ => self.run_lease(scene, command),
        }
    }

    /// The commands about addresses. What a node asks for with success shows that it is there.
    fn run_lease(&mut self, scene: &mut Scene<'_>, command: &Command) -> Outcome {
        let reply = self.lease(scene, command)?;
        if let Some(node) = command.own_node() {
            self.heard_from(scene, node);
        }
        Ok(reply)
    }

    /// Each is of a node's present epoch, or refused.
    fn lease(&mut self, scene: &mut Scene<'_>, command: &Command) -> Outcome {
        match command {
            Command::LeaseBlocks {
                node,
                epoch,
                network,
                subnet,
                count,
            } => {
                self.check_epoch(*node, *epoch)?;
                let reply = self.lease_blocks(scene, *node, network, *subnet, *count)?;
                self.admit_to(scene, *node, network);
                Ok(reply)
            }
            Command::ReleaseBlocks {
                node,
                epoch,
                blocks,
                rested,
                fence,
            } => {
                self.check_epoch(*node, *epoch)?;
                self.release_blocks(scene, *node, blocks, *rested, *fence)
            }
            Command::ReportUse {
                node,
                epoch,
                blocks,
            } => {
                self.check_epoch(*node, *epoch)?;
                self.report_use(scene, *node, blocks)
            }
            Command::ClaimAddress {
                node,
                epoch,
                network,
                address,
            } => {
                self.check_epoch(*node, *epoch)?;
                let reply = self.claim_address(scene, *node, network, *address)?;
                if matches!(reply, Reply::Claimed { .. }) {
                    self.admit_to(scene, *node, network);
                }
                Ok(reply)
            }
            Command::ReleaseAddresses {
                node,
                epoch,
                network,
                addresses,
                fence,
            } => {
                self.check_epoch(*node, *epoch)?;
                self.release_addresses(scene, *node, network, addresses, *fence)
            }
            Command::YieldAddress {
                node,
                epoch,
                network,
                address,
                fence,
            } => {
                self.check_epoch(*node, *epoch)?;
                self.yield_address(scene, *node, network, *address, *fence)
            }
            _ => Ok(Reply::Done),
        }
    }

    /// A node that holds addresses of a network takes part in it, and gets its keys.
    fn admit_to(&self, scene: &mut Scene<'_>, node: NodeId, network: &str) {
        let id = self.network(network).map(|network| network.id.clone());
        if let Ok(id) = id {
            scene.changes.push(self.network_keys(node, &id));
        }
    }

    /// Who takes part in what before a command that may end some of it.
    fn parts_to_lose(&self, command: &Command) -> BTreeSet<(String, NodeId)> {
        let releases = matches!(
            command,
            Command::NodeStart { .. }
                | Command::NodeLeave { .. }
                | Command::NodeRemove { .. }
                | Command::ReleaseBlocks { .. }
                | Command::ReleaseAddresses { .. }
                | Command::Tick
        );
        match releases {
            true => self.parts(),
            false => BTreeSet::new(),
        }
    }

    /// A node that holds no address of a network any more does not need its keys.
    fn dismiss(&self, scene: &mut Scene<'_>, before: BTreeSet<(String, NodeId)>) {
        if before.is_empty() {
            return;
        }
        let now = self.parts();
        let gone = before.into_iter().filter(|part| !now.contains(part));
        scene
            .changes
            .extend(gone.map(|(network, node)| Change::NetworkKeys {
                node,
                network,
                keys: Vec::new(),
            }));
    }

    /// Who the cluster is, for watchers.
    pub(super) fn identity(&self) -> Change {
        let authorities = std::iter::once(&self.authority).chain(&self.next_authority);
        Change::Identity(Box::new(Identity {
            cluster: self.id.clone(),
            settings: self.settings.clone(),
            authorities: authorities.map(|a| a.certificate.clone()).collect(),
            digest: self.authority.digest,
        }))
    }

    fn view(&self, changes: &mut Vec<Change>) {
        changes.push(self.identity());
        // The last VNI given out is the managers' business.
        let catalog = self.catalog.without_own();
        changes.push(Change::Catalog(Box::new(catalog)));
        let nodes = self.nodes.values().cloned();
        changes.extend(nodes.map(|node| Change::Node(Box::new(node))));
        changes.extend(self.revoked.iter().cloned().map(Change::Revoked));
        let networks = self.catalog.own().cloned();
        changes.extend(networks.map(|network| Change::Network(Box::new(network))));
        let services = self.services.values().cloned();
        changes.extend(services.map(|service| Change::Service(Box::new(service))));
        changes.extend(self.lease_views());
        changes.push(Change::Keys(self.keys.clone()));
        changes.extend(self.network_key_views());
    }

    pub(super) fn next_fence(&mut self) -> u64 {
        self.last_fence += 1;
        self.last_fence
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    pub(super) fn next_raft_id(&mut self) -> u64 {
        self.last_raft_id += 1;
        self.last_raft_id
    }
}

fn check_settings(settings: &Settings) -> Result<(), Refusal> {
    let bad = |text: String| Err(Refusal::BadSetting(text));
    if settings.pools.is_empty() || settings.pools.len() > POOLS_MAX {
        return bad(format!(
            "{} address pools: 1 to {POOLS_MAX} are taken",
            settings.pools.len()
        ));
    }
    for pool in &settings.pools {
        if pool.ip() != pool.network() {
            return bad(format!(
                "address pool {pool} has bits set beyond its length"
            ));
        }
        if crate::model::network::special((*pool).into()) {
            return bad(format!(
                "address pool {pool} holds addresses that are never a host's"
            ));
        }
        if !(pool.prefix()..=30).contains(&settings.prefix_len) {
            return bad(format!(
                "subnets of /{} cannot be cut from address pool {pool}",
                settings.prefix_len
            ));
        }
    }
    for (n, a) in settings.pools.iter().enumerate() {
        if let Some(b) = settings.pools[..n].iter().find(|b| a.overlaps(**b)) {
            return bad(format!("address pools {b} and {a} overlap"));
        }
    }
    if settings.reclaim_after_ms < RECLAIM_AFTER_MIN_MS {
        return bad(format!(
            "addresses of dead nodes cannot be taken back sooner than after {} s",
            RECLAIM_AFTER_MIN_MS / 1000
        ));
    }
    Ok(())
}

/// Address pools of a cluster.
const POOLS_MAX: usize = 32;
/// A node that restarts must not lose its addresses by it.
const RECLAIM_AFTER_MIN_MS: u64 = 60_000;

#[cfg(test)]
mod tests;
