//! Make, join and leave a cluster; its nodes, tokens and addresses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rustls::time_provider::DefaultTimeProvider;

use crate::agent::api::{Availability, PeerList};
use crate::agent::api::{
    ClusterStatus, GossipPeer, InitReply, InitRequest, IpamList, JoinClusterRequest, JoinReply,
    LeaveReply, LeaveRequest, NodeAction, NodeId, NodeList, NodeStatus, NodeView, Role,
    TokenCreated, TokenList, TokenRequest, TokenView,
};
use crate::agent::cluster::files::{ClusterFiles, Enrolment, Joining};
use crate::agent::cluster::{Cluster, ECHO_LIMIT, odd_answer};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::events::Event;
use crate::agent::handle::Agent;
use crate::agent::records::RemoteTable;
use crate::agent::state::NodeState;
use crate::agent::{ident, suggest};
use crate::cluster::gossip::SigningKey;
use crate::cluster::ipam::{Ipam, usage};
use crate::cluster::manager::command::{
    Command, InitCluster, NodeWish, Settings as ClusterSettings, TokenWish,
};
use crate::cluster::manager::ids::{Digest, Key, RequestId, VerifyKey};
use crate::cluster::manager::nodes::Node;
use crate::cluster::manager::rpc::{Answer, JoinRequest, LinkError};
use crate::cluster::manager::transport;
use crate::cluster::member::Liveness;
use crate::cluster::node;
use crate::cluster::pki::token::JoinToken;
use crate::cluster::pki::{self, NodeName, PkiError};
use crate::cluster::runtime::Report;

/// How long a manager may take to let a node in.
const JOIN_LIMIT: Duration = Duration::from_secs(8);
/// How long a node that has joined waits to hear what the cluster is.
const FIRST_NEWS_LIMIT: Duration = Duration::from_secs(10);
/// How many digits of a digest are shown.
const DIGEST_SHOWN: usize = 12;

impl Agent {
    /// Makes a cluster with this node as its first manager.
    ///
    /// # Errors
    /// `cluster_exists`, `network_in_use` where the node has networks of its own, `invalid_request` for
    /// settings that cannot work, `port_in_use`, `state_not_saved`. Nothing half-made is left.
    pub async fn init_cluster(&self, wish: InitRequest) -> Result<InitReply, ApiError> {
        let agent = self.clone();
        let work = async move {
            let _enrolling = agent.inner.enrolling.lock().await;
            agent.refuse_what_is_here()?;
            let made = agent.init_now(wish).await;
            if made.is_err() {
                agent.abandon().await;
            }
            made
        };
        self.inner.tasks.operation(work).await
    }

    async fn init_now(&self, wish: InitRequest) -> Result<InitReply, ApiError> {
        let settings = self.settings();
        let cluster_id = ident::random_id();
        let node = NodeId::from_bits(rand::random());
        let now_s = ident::unix_nanos() / 1_000_000_000;
        let authority = pki::make_authority(&cluster_id, now_s).map_err(|e| no_key(&e))?;
        let made = pki::make_node_key().map_err(|e| no_key(&e))?;
        let name = NodeName {
            cluster: cluster_id.clone(),
            node,
            role: Role::Manager,
        };
        let issued = pki::certify(&authority, &made.csr, &name, now_s).map_err(|e| no_key(&e))?;
        let (seed, verify_key) = signing_key();
        let token = |_: Role| JoinToken::new(authority.digest, rand::random());
        let (worker, manager_token) = (token(Role::Worker), token(Role::Manager));
        let wish_of = |role, token: &JoinToken| TokenWish {
            role,
            hash: token.hash(),
            life_ms: None,
        };
        let enrolment = Enrolment {
            cluster: cluster_id.clone(),
            node,
            number: FIRST,
            raft_id: Some(FIRST),
            key: made.key,
            certificate: issued.certificate,
            authorities: vec![authority.certificate.clone()],
            signing_seed: seed,
            managers: Vec::new(),
        };
        let epoch = self.live().node.epoch;
        ClusterFiles::of(&settings.state_dir).save_enrolment(&enrolment)?;
        let (cluster, news) = Cluster::open(settings, enrolment, epoch).await?;
        let init = InitCluster {
            cluster: cluster_id.clone(),
            seed: rand::random(),
            settings: settings_of(&wish),
            authority,
            key: Key::from_bytes(rand::random()),
            tokens: vec![
                wish_of(Role::Worker, &worker),
                wish_of(Role::Manager, &manager_token),
            ],
            node: NodeWish {
                id: node,
                name: settings.node.clone(),
                vtep: settings.vtep,
                control: Some(cluster.control),
                epoch,
                certificate: issued.digest,
                verify_key,
            },
        };
        let founded = self.found(&cluster, init).await;
        if let Err(error) = founded {
            cluster.stop(false).await;
            return Err(error);
        }
        let control = cluster.control;
        self.take_part((Arc::clone(&cluster), news)).await;
        self.greet(&cluster, Role::Manager).await;
        Ok(InitReply {
            cluster: cluster_id,
            node,
            name: settings.node.clone(),
            control,
            worker_token: worker.to_string(),
            manager_token: manager_token.to_string(),
        })
    }

    async fn found(&self, cluster: &Cluster, init: InitCluster) -> Result<(), ApiError> {
        let manager = cluster.open_manager(FIRST).await?;
        let request = RequestId::from_bits(rand::random());
        let founded = manager.found(request, init).await;
        let outcome = match founded {
            Ok(outcome) => outcome.map_err(|refusal| ApiError::from(&refusal)),
            Err(error) => Err(ApiError::from(&error)),
        };
        let served = match outcome {
            Ok(_) => cluster.serve(Arc::clone(&manager)).await,
            Err(error) => Err(error),
        };
        if served.is_err() {
            manager.stop().await;
        }
        served
    }

    /// Joins the cluster of a manager.
    ///
    /// # Errors
    /// `cluster_exists`, `network_in_use` where the node has networks of its own, `token_refused`,
    /// `name_taken`, `node_address_taken`, `no_quorum`, `port_in_use`, `state_not_saved`.
    pub async fn join_cluster(&self, wish: JoinClusterRequest) -> Result<JoinReply, ApiError> {
        let agent = self.clone();
        let work = async move {
            let _enrolling = agent.inner.enrolling.lock().await;
            agent.refuse_what_is_here()?;
            agent.join_now(wish).await
        };
        self.inner.tasks.operation(work).await
    }

    async fn join_now(&self, wish: JoinClusterRequest) -> Result<JoinReply, ApiError> {
        let settings = self.settings();
        let token: JoinToken = wish.token.trim().parse().map_err(|e| {
            ApiError::new(
                ErrorCode::TokenRefused,
                format!("{e}"),
                "get a good one on a manager: weft token create worker",
            )
        })?;
        let to = with_port(&wish.manager, settings.control_port)?;
        let files = ClusterFiles::of(&settings.state_dir);
        let joining = match files.joining().filter(|j| j.token == token.hash()) {
            Some(joining) => joining,
            None => new_joining(token.hash())?,
        };
        // Before anybody hears of it: an answer that gets lost is asked for again with the same.
        files.save_joining(&joining)?;
        let epoch = self.live().node.epoch;
        let control = std::net::SocketAddr::new(settings.vtep, settings.control_port);
        let request = JoinRequest {
            request: joining.request,
            node: NodeWish {
                id: joining.node,
                name: settings.node.clone(),
                vtep: settings.vtep,
                control: Some(control),
                epoch,
                certificate: Digest::from_bytes([0; 32]),
                verify_key: verify_key(&joining.signing_seed),
            },
            token: wish.token.trim().to_owned(),
            csr: joining.csr.clone(),
        };
        let clock = Arc::new(DefaultTimeProvider);
        let answer = transport::join(&to, token.authority, request, clock, JOIN_LIMIT).await;
        let welcome = match answer.map_err(|e| not_reached(&e))? {
            Answer::Welcome(welcome) => welcome,
            Answer::Refused(error) => {
                // What was refused is over; the next attempt begins anew.
                files.remove()?;
                return Err(error);
            }
            _ => return Err(odd_answer()),
        };
        let der = pki::der_of(&welcome.certificate).map_err(|e| no_key(&e))?;
        let name = pki::name_of(&der).map_err(|e| no_key(&e))?;
        let mut managers = welcome.managers;
        if !managers.contains(&to) {
            managers.push(to);
        }
        let enrolment = Enrolment {
            cluster: name.cluster.clone(),
            node: joining.node,
            number: welcome.number,
            raft_id: welcome.raft_id,
            key: joining.key,
            certificate: welcome.certificate,
            authorities: welcome.authorities,
            signing_seed: joining.signing_seed,
            managers,
        };
        files.save_enrolment(&enrolment)?;
        let opened = Cluster::open(settings, enrolment, epoch).await?;
        let cluster = Arc::clone(&opened.0);
        self.take_part(opened).await;
        self.greet(&cluster, name.role).await;
        Ok(JoinReply {
            cluster: name.cluster,
            node: cluster.me,
            name: settings.node.clone(),
            role: name.role,
        })
    }

    /// Waits for the first news of the cluster, so that the next command finds it.
    async fn greet(&self, cluster: &Cluster, role: Role) {
        let me = cluster.me;
        cluster.nudge();
        let known = cluster.wait_until(FIRST_NEWS_LIMIT, |replica| {
            replica.identity.is_some() && replica.nodes.contains_key(&me)
        });
        if !known.await {
            tracing::warn!("no manager has told yet what the cluster is");
        }
        if let Err(error) = self.begin_leases(cluster).await {
            tracing::warn!(%error, "leases wait");
        }
        self.emit(Event::ClusterJoined {
            cluster: cluster.enrolment().cluster,
            role: role.to_string(),
        });
    }

    /// A node that has networks of its own would lose them.
    fn refuse_what_is_here(&self) -> Result<(), ApiError> {
        if let Some(cluster) = self.cluster() {
            return Err(ApiError::new(
                ErrorCode::ClusterExists,
                format!(
                    "this node is part of cluster {} already",
                    cluster.enrolment().cluster
                ),
                "to begin anew, first: weft leave",
            ));
        }
        let live = self.live();
        let networks = live.node.catalog.own();
        let names: Vec<&str> = networks.map(|network| network.name.as_str()).collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::NetworkInUse,
            format!(
                "this node has {} networks of its own ({}), which are not the cluster's",
                names.len(),
                names.iter().take(3).copied().collect::<Vec<_>>().join(", ")
            ),
            "detach their endpoints and remove them (weft reset does both), then try again",
        ))
    }

    /// Takes the traces of a cluster away that did not come to be.
    async fn abandon(&self) {
        let files = ClusterFiles::of(&self.settings().state_dir);
        if let Err(error) = files.remove() {
            tracing::warn!(%error, "what was begun of a cluster is left");
        }
    }

    /// Has something to hold leases in. The cluster's settings say for how long they are good.
    ///
    /// # Errors
    /// `no_quorum` if no manager has told the settings yet.
    pub(in crate::agent) async fn begin_leases(&self, cluster: &Cluster) -> Result<(), ApiError> {
        if self.live().node.ipam.is_some() {
            return Ok(());
        }
        let known = cluster.wait_until(ECHO_LIMIT, |replica| replica.identity.is_some());
        if !known.await {
            return Err(ApiError::new(
                ErrorCode::NoQuorum,
                "no manager has told this node yet what its cluster is",
                "bring managers back, then ask again",
            ));
        }
        let replica = cluster.replica();
        let mut live = self.live();
        if let (None, Some(identity)) = (&live.node.ipam, &replica.identity) {
            let ClusterSettings {
                quarantine_ms,
                reclaim_after_ms,
                ..
            } = identity.settings;
            live.node.ipam = Some(Ipam::new(quarantine_ms, reclaim_after_ms));
        }
        Ok(())
    }

    /// Leaves the cluster. The managers are told, others forget this node's endpoints, and the node stands alone.
    ///
    /// # Errors
    /// `no_cluster`; without force also `network_in_use` while endpoints are attached, `node_role_conflict` of a
    /// manager, and what keeps the managers from being told.
    pub async fn leave_cluster(&self, wish: LeaveRequest) -> Result<LeaveReply, ApiError> {
        let agent = self.clone();
        let work = async move {
            let _enrolling = agent.inner.enrolling.lock().await;
            agent.leave_now(wish.force).await
        };
        self.inner.tasks.operation(work).await
    }

    async fn leave_now(&self, force: bool) -> Result<LeaveReply, ApiError> {
        let cluster = self.in_cluster()?;
        let endpoints = {
            let live = self.live();
            let all = live.node.endpoints.values();
            // The node's own leg on the ingress network is nobody's to detach.
            all.filter(|endpoint| !endpoint.mac.is_ingress_leg())
                .count()
        };
        if endpoints > 0 && !force {
            return Err(ApiError::new(
                ErrorCode::NetworkInUse,
                format!("{endpoints} endpoints of this node are on networks of the cluster"),
                "detach them first (weft ps), or detach them all: weft leave --force",
            ));
        }
        let told = self.tell_leaving(&cluster).await;
        let warning = match told {
            Ok(()) => String::new(),
            Err(error) if force => format!(
                "the managers still know this node ({}): remove it there with weft node rm {}",
                error.message,
                self.settings().node
            ),
            Err(error) => return Err(error),
        };
        let _alone = self.lock_everything().await;
        let report = self.take_down_alone().await;
        if !report.failures.is_empty() {
            tracing::warn!(left = ?report.failures, "not everything was removed from the kernel");
        }
        // Last words go out while there is somebody to say them.
        self.inner.cluster.store(None);
        cluster.stop(true).await;
        {
            let mut live = self.live();
            let fresh = NodeState::new(ident::unix_nanos());
            live.node.catalog = fresh.catalog;
            live.node.services.clear();
            live.node.remote = RemoteTable::default();
            live.node.endpoints.clear();
            live.node.ipam = None;
            live.health.clear();
        }
        cluster.files().remove()?;
        self.save().await?;
        let id = cluster.enrolment().cluster;
        self.emit(Event::ClusterLeft {
            cluster: id.clone(),
        });
        Ok(LeaveReply {
            cluster: id,
            endpoints,
            warning,
        })
    }

    async fn tell_leaving(&self, cluster: &Cluster) -> Result<(), ApiError> {
        let command = Command::NodeLeave {
            node: cluster.me,
            epoch: cluster.epoch,
        };
        let outcome = cluster.propose(command).await?;
        outcome
            .map(drop)
            .map_err(|refusal| ApiError::from(&refusal))
    }

    fn in_cluster(&self) -> Result<Arc<Cluster>, ApiError> {
        self.cluster().ok_or_else(|| {
            ApiError::new(
                ErrorCode::NoCluster,
                "this node is part of no cluster",
                "make one with weft init, or join one: weft join --token TOKEN HOST",
            )
        })
    }

    // Nodes.

    /// Every node of the cluster, by name.
    ///
    /// # Errors
    /// `no_cluster`.
    pub fn nodes(&self) -> Result<NodeList, ApiError> {
        let cluster = self.in_cluster()?;
        let replica = cluster.replica();
        let mut nodes: Vec<NodeView> = replica
            .nodes
            .values()
            .map(|node| view(&cluster, node))
            .collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(NodeList {
            schema: "weft/nodes/1".into(),
            nodes,
        })
    }

    /// One node by id, name or beginning of the id; `self` is this one.
    ///
    /// # Errors
    /// `no_cluster`, `node_not_found`, `ambiguous_reference`.
    pub fn node(&self, reference: &str) -> Result<NodeView, ApiError> {
        let cluster = self.in_cluster()?;
        let node = find_node(&cluster, reference)?;
        Ok(view(&cluster, &node))
    }

    /// Changes a node's role or availability.
    ///
    /// # Errors
    /// Those of [`Agent::node`]; `node_role_conflict`, `permission_denied` on a worker, `no_quorum`.
    pub async fn change_node(
        &self,
        reference: String,
        action: NodeAction,
    ) -> Result<NodeView, ApiError> {
        let agent = self.clone();
        let work = async move {
            let cluster = agent.in_cluster()?;
            let node = find_node(&cluster, &reference)?;
            let id = node.id;
            let command = match action {
                NodeAction::Promote => Command::NodePromote(id),
                NodeAction::Demote => Command::NodeDemote(id),
                NodeAction::Drain => Command::NodeAvailability {
                    node: id,
                    availability: Availability::Drain,
                },
                NodeAction::Activate => Command::NodeAvailability {
                    node: id,
                    availability: Availability::Active,
                },
            };
            cluster.order(command).await?;
            let done = cluster.wait_until(ECHO_LIMIT, |replica| {
                let node = replica.nodes.get(&id);
                node.is_some_and(|node| match action {
                    NodeAction::Promote => node.role == Role::Manager,
                    NodeAction::Demote => node.role == Role::Worker,
                    NodeAction::Drain => node.availability == Availability::Drain,
                    NodeAction::Activate => node.availability == Availability::Active,
                })
            });
            done.await;
            agent.node(&id.to_string())
        };
        self.inner.tasks.operation(work).await
    }

    /// Forgets a node; its certificate is refused from now on. Tells its id.
    ///
    /// # Errors
    /// Those of [`Agent::change_node`].
    pub async fn remove_node(&self, reference: String, force: bool) -> Result<String, ApiError> {
        let agent = self.clone();
        let work = async move {
            let cluster = agent.in_cluster()?;
            let id = find_node(&cluster, &reference)?.id;
            cluster
                .order(Command::NodeRemove { node: id, force })
                .await?;
            let gone = cluster.wait_until(ECHO_LIMIT, |r| !r.nodes.contains_key(&id));
            gone.await;
            Ok(id.to_string())
        };
        self.inner.tasks.operation(work).await
    }

    // Tokens.

    /// The join tokens, without their secrets.
    ///
    /// # Errors
    /// `no_cluster`, `permission_denied` on a worker.
    pub fn tokens(&self) -> Result<TokenList, ApiError> {
        let cluster = self.in_cluster()?;
        let manager = cluster.manager().ok_or_else(not_a_manager)?;
        let now_ms = ident::unix_nanos() / 1_000_000;
        let tokens = manager.look(|state| {
            let cluster = state.cluster().map_err(|e| ApiError::from(&e))?;
            let views = cluster.tokens.iter().map(|token| TokenView {
                role: token.role,
                digest: token.hash.to_string().chars().take(DIGEST_SHOWN).collect(),
                created: rfc3339_ms(token.created_ms),
                expires: token.expires_ms.map(rfc3339_ms),
                expired: token.expires_ms.is_some_and(|end| end <= now_ms),
            });
            Ok::<_, ApiError>(views.collect())
        })?;
        Ok(TokenList {
            schema: "weft/tokens/1".into(),
            tokens,
        })
    }

    /// Makes a join token.
    ///
    /// # Errors
    /// `no_cluster`, `permission_denied` on a worker, `invalid_request`, `no_quorum`.
    pub async fn create_token(&self, wish: TokenRequest) -> Result<TokenCreated, ApiError> {
        let agent = self.clone();
        let work = async move {
            let cluster = agent.in_cluster()?;
            if wish.life_s == Some(0) {
                return Err(ApiError::new(
                    ErrorCode::InvalidRequest,
                    "a token that is good for no time lets nobody in",
                    "give a time such as 24h, or none",
                ));
            }
            let identity = cluster.replica().identity.clone();
            let identity = identity.ok_or_else(not_a_manager)?;
            let token = JoinToken::new(identity.digest, rand::random());
            let token_wish = TokenWish {
                role: wish.role,
                hash: token.hash(),
                life_ms: wish.life_s.map(|s| s.saturating_mul(1000)),
            };
            let command = match wish.rotate {
                true => Command::TokenRotate(token_wish),
                false => Command::TokenAdd(token_wish),
            };
            cluster.order(command).await?;
            Ok(TokenCreated {
                role: wish.role,
                token: token.to_string(),
                control: cluster.control,
            })
        };
        self.inner.tasks.operation(work).await
    }

    /// Brings a new key into the gossip ring. `replace` forgets all others at once.
    ///
    /// # Errors
    /// `no_cluster`, `permission_denied` on a worker, `no_quorum`.
    pub async fn rotate_key(&self, replace: bool) -> Result<(), ApiError> {
        let agent = self.clone();
        let work = async move {
            let cluster = agent.in_cluster()?;
            let key = Key::from_bytes(rand::random());
            let command = match replace {
                true => Command::KeyReplace { key },
                false => Command::KeyRotate { key },
            };
            cluster.order(command).await.map(drop)
        };
        self.inner.tasks.operation(work).await
    }

    // Addresses, peers, status.

    /// How many addresses of which subnet are in use, and by whom.
    ///
    /// # Errors
    /// `no_cluster`.
    pub fn ipam(&self) -> Result<IpamList, ApiError> {
        let cluster = self.in_cluster()?;
        Ok(IpamList {
            schema: "weft/ipam/1".into(),
            subnets: usage::table(&cluster.replica()),
        })
    }

    /// How the other nodes look from here.
    ///
    /// # Errors
    /// `no_cluster`.
    pub async fn peers(&self) -> Result<PeerList, ApiError> {
        let cluster = self.in_cluster()?;
        let report = cluster.runtime.report().await.unwrap_or_default();
        let replica = cluster.replica();
        let live = self.live();
        let mut counts: BTreeMap<std::net::IpAddr, usize> = BTreeMap::new();
        for record in live.node.remote.records() {
            *counts.entry(record.vtep).or_default() += 1;
        }
        let name_of = |id: &String| live.node.catalog.networks.get(id).map(|n| n.name.clone());
        let others = replica.nodes.values();
        let others = others.filter(|n| n.id != cluster.me && n.status != NodeStatus::Left);
        let mut peers: Vec<GossipPeer> = others
            .map(|node| {
                let number = node::NodeNumber(node.number);
                let member = report.members.get(&number);
                let networks = report.networks.iter();
                let networks = networks.filter(|(_, n)| n.takers.contains(&number));
                let mut networks: Vec<String> =
                    networks.filter_map(|(id, _)| name_of(id)).collect();
                networks.sort();
                GossipPeer {
                    name: node.name.clone(),
                    id: node.id,
                    vtep: node.vtep,
                    liveness: liveness(member.map(|m| m.liveness)).into(),
                    epoch: member.map_or(node.epoch, |m| m.identity.epoch),
                    endpoints: counts.get(&node.vtep).copied().unwrap_or(0),
                    networks,
                }
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(PeerList {
            schema: "weft/peers/1".into(),
            peers,
        })
    }

    /// The cluster's part of the status.
    pub(in crate::agent) async fn cluster_status(&self) -> Option<ClusterStatus> {
        let cluster = self.cluster()?;
        let report = cluster.runtime.report().await.unwrap_or_default();
        Some(self.status_of(&cluster, &report))
    }

    fn status_of(&self, cluster: &Cluster, report: &Report) -> ClusterStatus {
        let replica = cluster.replica();
        let me = replica.nodes.get(&cluster.me);
        let role = me.map_or(Role::Worker, |node| node.role);
        let present = || {
            let nodes = replica.nodes.values();
            nodes.filter(|node| node.status != NodeStatus::Left)
        };
        let count = |fits: &dyn Fn(&&Node) -> bool| {
            let all: Vec<&Node> = present().filter(|node| fits(node)).collect();
            let ready = all.iter().filter(|node| node.is_ready()).count();
            (ready, all.len())
        };
        let mut members: BTreeMap<String, usize> = BTreeMap::new();
        let mut waiting_for = Vec::new();
        for node in present().filter(|node| node.id != cluster.me) {
            let member = report.members.get(&node::NodeNumber(node.number));
            let seen = liveness(member.map(|m| m.liveness));
            *members.entry(seen.into()).or_default() += 1;
            if node.is_ready() && seen != "alive" {
                waiting_for.push(format!("node \"{}\" is {seen}", node.name));
            }
        }
        if !cluster.is_started() {
            waiting_for.push("no manager knows of this start of the agent yet".into());
        }
        waiting_for.extend(missing_voters(cluster));
        if !report.settled {
            waiting_for
                .push("no other node has confirmed the tables since they last changed".into());
        }
        if report.unauthorised > 0 {
            waiting_for.push(format!(
                "{} records whose leases are not known here",
                report.unauthorised
            ));
        }
        let live = self.live();
        let tables = report.networks.iter().map(|(id, network)| {
            let name = live.node.catalog.networks.get(id).map(|n| n.name.clone());
            (
                name.unwrap_or_else(|| id.clone()),
                format!("{:016x}", network.hash),
            )
        });
        let counters = report.runtime.list().into_iter();
        let counters = counters.chain(report.gossip.list());
        ClusterStatus {
            id: cluster.enrolment().cluster,
            node: cluster.me,
            role,
            availability: me.map_or(Availability::Active, |node| node.availability),
            leader: leader_of(cluster).map(|node| node.name),
            managers: count(&|node| node.role == Role::Manager),
            nodes: count(&|_| true),
            revision: replica.revision,
            heard_s: cluster.heard_ago().map(|ago| ago.as_secs()),
            members,
            converged: waiting_for.is_empty(),
            waiting_for,
            tables: tables.collect(),
            table_bytes: report.size.0,
            table_entries: report.size.1,
            counters: counters
                .map(|(name, value, _)| (name.to_owned(), value))
                .collect(),
        }
    }
}

/// Number of the first node, and of the first manager in the log.
const FIRST: u64 = 1;

fn liveness(liveness: Option<Liveness>) -> &'static str {
    match liveness {
        Some(Liveness::Alive) => "alive",
        Some(Liveness::Suspect) => "suspect",
        Some(Liveness::Failed) => "failed",
        None => "unheard",
    }
}

/// Managers that do not vote yet, as far as this node can tell: a leader knows of all, another manager of itself.
fn missing_voters(cluster: &Cluster) -> Vec<String> {
    let replica = cluster.replica();
    let manager = cluster.any_manager();
    let is_leader = manager.as_ref().is_some_and(|m| m.leader().1);
    let voters = manager.map(|m| m.voters()).unwrap_or_default();
    let listed = replica.nodes.values();
    let listed = listed.filter(|node| node.role == Role::Manager);
    let concerned = listed.filter(|node| is_leader || node.id == cluster.me);
    let missing = concerned.filter(|node| node.raft_id.is_none_or(|id| !voters.contains(&id)));
    missing
        .map(|node| format!("manager \"{}\" does not vote yet", node.name))
        .collect()
}

fn leader_of(cluster: &Cluster) -> Option<Node> {
    let (address, is_self) = cluster.any_manager()?.leader();
    let replica = cluster.replica();
    if is_self {
        return replica.nodes.get(&cluster.me).cloned();
    }
    let address = address?;
    let mut nodes = replica.nodes.values();
    let at = |node: &&Node| node.control.is_some_and(|c| c.to_string() == address);
    nodes.find(at).cloned()
}

fn view(cluster: &Cluster, node: &Node) -> NodeView {
    let leader = match (node.role, cluster.any_manager()) {
        (Role::Worker, _) => Some(false),
        (Role::Manager, None) => None,
        (Role::Manager, Some(_)) => leader_of(cluster).map(|leader| leader.id == node.id),
    };
    let replica = cluster.replica();
    let blocks = replica.blocks.values().flatten();
    let used = blocks.filter(|(_, block)| block.node == node.id);
    let claims = replica.claims.values().flat_map(|claims| claims.values());
    let claimed = claims.filter(|claim| claim.node == node.id).count() as u64;
    NodeView {
        id: node.id,
        name: node.name.clone(),
        number: node.number,
        role: node.role,
        status: node.status,
        availability: node.availability,
        vtep: node.vtep,
        control: node.control,
        epoch: node.epoch,
        leader,
        is_self: node.id == cluster.me,
        addresses: used.map(|(_, block)| u64::from(block.used)).sum::<u64>() + claimed,
        joined: rfc3339_ms(node.joined_ms),
    }
}

fn rfc3339_ms(ms: u64) -> String {
    ident::rfc3339(ms.saturating_mul(1_000_000))
}

/// Finds by id, name, then by the beginning of an id.
fn find_node(cluster: &Cluster, reference: &str) -> Result<Node, ApiError> {
    let replica = cluster.replica();
    let all = || replica.nodes.values();
    if reference == "self"
        && let Some(me) = replica.nodes.get(&cluster.me)
    {
        return Ok(me.clone());
    }
    let exact = all()
        .find(|node| node.id.to_string() == reference)
        .or_else(|| all().find(|node| node.name == reference));
    if let Some(node) = exact {
        return Ok(node.clone());
    }
    let begins = |node: &&Node| !reference.is_empty() && node.id.to_string().starts_with(reference);
    let mut by_prefix = all().filter(begins);
    match (by_prefix.next(), by_prefix.next()) {
        (Some(node), None) => Ok(node.clone()),
        (Some(_), Some(_)) => Err(ApiError::new(
            ErrorCode::AmbiguousReference,
            format!("several nodes have an id that begins with \"{reference}\""),
            "give more characters of the id, or the name: weft node ls --no-trunc",
        )),
        (None, _) => {
            let hint = suggest::hint(reference, all().map(|node| node.name.as_str()));
            Err(ApiError::new(
                ErrorCode::NodeNotFound,
                format!("the cluster has no node \"{reference}\"{hint}"),
                "list the nodes: weft node ls",
            ))
        }
    }
}

fn not_a_manager() -> ApiError {
    ApiError::new(
        ErrorCode::PermissionDenied,
        "this node is no manager, or has not caught up with the others yet",
        "run the command on a manager: weft node ls shows them",
    )
}

fn settings_of(wish: &InitRequest) -> ClusterSettings {
    let default = ClusterSettings::default();
    let ms =
        |seconds: Option<u64>, default: u64| seconds.map_or(default, |s| s.saturating_mul(1000));
    ClusterSettings {
        pools: match wish.pools.is_empty() {
            true => default.pools,
            false => wish.pools.clone(),
        },
        prefix_len: wish.prefix_len.unwrap_or(default.prefix_len),
        reclaim_after_ms: ms(wish.reclaim_after_s, default.reclaim_after_ms),
        quarantine_ms: ms(wish.quarantine_s, default.quarantine_ms),
    }
}

fn signing_key() -> (Key, VerifyKey) {
    let seed = Key::from_bytes(rand::random());
    let verify = verify_key(&seed);
    (seed, verify)
}

fn verify_key(seed: &Key) -> VerifyKey {
    VerifyKey::from_bytes(SigningKey::from_seed(seed.bytes()).public().0)
}

fn new_joining(token: Digest) -> Result<Joining, ApiError> {
    let made = pki::make_node_key().map_err(|e| no_key(&e))?;
    Ok(Joining {
        request: RequestId::from_bits(rand::random()),
        node: NodeId::from_bits(rand::random()),
        key: made.key,
        csr: made.csr,
        signing_seed: Key::from_bytes(rand::random()),
        token,
    })
}

fn no_key(error: &PkiError) -> ApiError {
    ApiError::internal(error.to_string())
}

/// A manager's address with a port: that of this node's own settings when none is given.
fn with_port(manager: &str, port: u16) -> Result<String, ApiError> {
    let manager = manager.trim();
    if manager.is_empty() || manager.contains(char::is_whitespace) || manager.contains('/') {
        return Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("\"{manager}\" is no address of a manager"),
            "give HOST or HOST:PORT, as weft init has printed it",
        ));
    }
    if let Ok(ip) = manager.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        return Ok(std::net::SocketAddr::new(ip, port).to_string());
    }
    match manager.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => Ok(manager.to_owned()),
        Some(_) => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("\"{manager}\" does not end with a port"),
            "give HOST or HOST:PORT, as weft init has printed it",
        )),
        None => Ok(format!("{manager}:{port}")),
    }
}

fn not_reached(error: &LinkError) -> ApiError {
    let (code, next) = match error {
        LinkError::Untrusted { .. } => (
            ErrorCode::TokenRefused,
            "check the address and the token, both as weft token create has printed them on a manager",
        ),
        LinkError::Unreachable { .. } | LinkError::Timeout { .. } => (
            ErrorCode::NoQuorum,
            "is that the address of a manager, and does its agent run? Try another manager, or look at \
             firewalls on the way",
        ),
        LinkError::Garbled { .. } => (
            ErrorCode::BadReply,
            "is that the control port of a weft agent? Run the same version of weft on all nodes",
        ),
    };
    ApiError::new(code, error.to_string(), next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_managers_address_gets_a_port() {
        for (given, expected) in [
            ("192.0.2.1", "192.0.2.1:7377"),
            ("192.0.2.1:99", "192.0.2.1:99"),
            ("host", "host:7377"),
            ("host:99", "host:99"),
            ("2001:db8::1", "[2001:db8::1]:7377"),
            ("[2001:db8::1]", "[2001:db8::1]:7377"),
            ("[2001:db8::1]:99", "[2001:db8::1]:99"),
        ] {
            assert_eq!(with_port(given, 7377).unwrap(), expected, "{given}");
        }
        for given in ["", " ", "a b", "http://a", "host:", "host:x", "host:99999"] {
            assert_eq!(
                with_port(given, 7377).unwrap_err().code,
                ErrorCode::InvalidRequest,
                "{given}"
            );
        }
    }
}
