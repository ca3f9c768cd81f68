//! Attach and detach workloads.

use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::agent::api::{AttachRequest, EndpointView};
use crate::agent::endpoint::{Choice, Endpoint, Taken, check_ifname, choose};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::events::Event;
use crate::agent::handle::{Agent, Live, Turn};
use crate::agent::network::{Network, check_name};
use crate::agent::plumbing::{EndpointPlan, Workload};
use crate::agent::state::NodeState;
use crate::agent::{ident, reconcile, suggest};
use crate::cluster::gossip::ALIASES_MAX;
use crate::tables::record::{Backing, Standing};
use crate::wire::Mac;

/// The lowest limit in bits per second: about a full packet a second.
const RATE_MIN: u64 = 12_000;
/// How long an attachment waits to hear what other nodes have on the network.
const TABLE_LIMIT: Duration = Duration::from_millis(500);

impl Agent {
    /// Gives a workload an interface on a network. A repeated request is answered with what exists.
    ///
    /// # Errors
    /// The codes of names, addresses and targets; `kernel_refused`, `dataplane_failed`,
    /// `state_not_saved`. Nothing half-made is left.
    pub async fn attach(
        &self,
        network: String,
        wish: AttachRequest,
    ) -> Result<EndpointView, ApiError> {
        let agent = self.clone();
        self.inner
            .tasks
            .operation(async move { agent.attach_now(&network, &wish).await })
            .await
    }

    async fn attach_now(
        &self,
        reference: &str,
        wish: &AttachRequest,
    ) -> Result<EndpointView, ApiError> {
        let id = self
            .live()
            .node
            .catalog
            .find_overlay(reference, "attach to")?
            .id
            .clone();
        let attached = match self.attach_on(&id, wish, Role::Workload).await {
            // The workload's way out took the first free name, and can have another one.
            Err(error) if error.code == ErrorCode::IfnameInUse => {
                let workload = self.plumbing().workload(&wish.target)?;
                let ifname = wish.ifname.as_deref().unwrap_or_default();
                let again = self.attach_on(&id, wish, Role::Workload);
                let again = self.without_leg_named(workload.netns_inode, ifname, again);
                let again = again.await.unwrap_or(Err(error));
                if again.is_err() {
                    self.settle_workload(workload.netns_inode).await;
                }
                again?
            }
            attached => attached?,
        };
        let workload = self.plumbing().workload(&wish.target)?;
        self.settle_workload(workload.netns_inode).await;
        Ok(attached)
    }

    /// Attaches to the network with this id, whoever may.
    pub(in crate::agent) async fn attach_on(
        &self,
        id: &str,
        wish: &AttachRequest,
        role: Role,
    ) -> Result<EndpointView, ApiError> {
        if let Some(ifname) = &wish.ifname {
            check_ifname(ifname)?;
        }
        check_names(wish)?;
        check_limits(wish)?;
        let workload = self.plumbing().workload(&wish.target)?;
        let name = endpoint_name(wish)?;
        let _turn = self.lock_network(id).await;
        // What is chosen is not taken before all is done.
        let _choice = self.lock_choice(id).await;
        let network = self.live().network(id)?.clone();
        let found = match self
            .find_or_plan(&network, (&name, role), wish, &workload)
            .await
        {
            // Who is in the way may be gone, and only not be missed yet.
            Err(_) if self.forget_gone(&network).await? => {
                self.find_or_plan(&network, (&name, role), wish, &workload)
                    .await?
            }
            found => found?,
        };
        let mut endpoint = match found {
            Attachment::Exists(endpoint) => return self.plug_again(&network, endpoint).await,
            Attachment::New(endpoint) => endpoint,
        };
        if role == Role::IngressLeg
            && let Some(IpNetwork::V4(v4)) = endpoint.ips.first()
        {
            endpoint.mac = Mac::ingress_leg(v4.ip());
        }
        if role == Role::Backend {
            // Ready only with rules that bring answers back.
            endpoint.backing.standing = Standing::Unhealthy;
        }
        self.bring_in(&network, endpoint).await
    }

    /// Plugs a planned endpoint, remembers it and tells of it. The caller holds the network's lock. After a failure
    /// nothing of it is left, its addresses included.
    pub(in crate::agent) async fn bring_in(
        &self,
        network: &Network,
        endpoint: Endpoint,
    ) -> Result<EndpointView, ApiError> {
        let (endpoint, mtu) = match self.plug(network, endpoint.clone()).await {
            Ok(plugged) => plugged,
            Err(error) => {
                self.tell_gone(network, &endpoint);
                self.give_back(network, &endpoint);
                return Err(error);
            }
        };
        {
            let mut live = self.live();
            live.mtus.insert(endpoint.id.clone(), mtu);
            live.node
                .endpoints
                .insert(endpoint.id.clone(), endpoint.clone());
        }
        if let Err(error) = self.save().await {
            self.live().node.endpoints.remove(&endpoint.id);
            self.unplug(network, &endpoint).await?;
            return Err(error);
        }
        self.names_changed();
        self.tell_workload(&endpoint.target);
        self.publish(network, &endpoint).await;
        self.names_settled().await;
        self.emit(Event::EndpointAttached {
            network: network.id.clone(),
            endpoint: endpoint.id.clone(),
            name: endpoint.name.clone(),
        });
        Ok(self.endpoint_view(network, &endpoint, Some(mtu)))
    }

    /// Alters what other nodes are told of an endpoint of this node: its names, and its part in its service.
    ///
    /// # Errors
    /// `endpoint_not_found`, `state_not_saved`: nothing has changed then.
    pub(in crate::agent) async fn alter_endpoint(
        &self,
        id: &str,
        alter: impl FnOnce(&mut Endpoint),
    ) -> Result<(), ApiError> {
        let (_turn, network, before) = self.turn_of_endpoint(id).await?;
        let mut after = before.clone();
        alter(&mut after);
        self.tell_and_save(&network, before, after).await
    }

    /// As [`Agent::alter_endpoint`], for what follows from other state, and would again after a restart: it waits for
    /// no disk. `alter` tells how the endpoint should be, if otherwise than it is.
    ///
    /// # Errors
    /// `endpoint_not_found`.
    pub(in crate::agent) async fn lead_endpoint(
        &self,
        id: &str,
        alter: impl FnOnce(&NodeState, &Endpoint) -> Option<Endpoint>,
    ) -> Result<(), ApiError> {
        let (_turn, network, before) = self.turn_of_endpoint(id).await?;
        let after = alter(&self.live().node, &before);
        let Some(after) = after else {
            return Ok(());
        };
        self.put_and_tell(&network, after).await?;
        let agent = self.clone();
        tokio::spawn(async move {
            if let Err(error) = agent.save().await {
                tracing::warn!(%error, "how a backend stands was not saved");
            }
        });
        Ok(())
    }

    /// The turn of an endpoint's network, or one that is detached meanwhile would be told of again.
    async fn turn_of_endpoint(&self, id: &str) -> Result<(Turn, Network, Endpoint), ApiError> {
        let gone = || {
            ApiError::new(
                ErrorCode::EndpointNotFound,
                format!("endpoint {id} is gone"),
                "list the endpoints: weft ps",
            )
        };
        let network = {
            let live = self.live();
            let found = live.node.endpoints.get(id);
            found
                .map(|endpoint| endpoint.network.clone())
                .ok_or_else(gone)?
        };
        let turn = self.lock_network(&network).await;
        let live = self.live();
        let endpoint = live.node.endpoints.get(id).cloned().ok_or_else(gone)?;
        let network = live.network(&endpoint.network)?.clone();
        Ok((turn, network, endpoint))
    }

    /// Puts an endpoint in place of one as it was. Others hear of it before it is on disk, which may take seconds:
    /// nobody is to be led to a backend meanwhile that gets no connections. After a crash in between everything is told
    /// anew, under the next start's number. The caller holds the network's lock.
    ///
    /// # Errors
    /// `state_not_saved`: everything is as before then, for others, too.
    pub(super) async fn tell_and_save(
        &self,
        network: &Network,
        before: Endpoint,
        after: Endpoint,
    ) -> Result<(), ApiError> {
        let told = self.put_and_tell(network, after).await;
        let Err(error) = self.save().await else {
            return told;
        };
        let _first_error_counts = self.put_and_tell(network, before).await;
        Err(error)
    }

    async fn put_and_tell(
        &self,
        network: &Network,
        mut endpoint: Endpoint,
    ) -> Result<(), ApiError> {
        {
            let mut live = self.live();
            endpoint.version = live.next_version();
            let id = endpoint.id.clone();
            live.node.endpoints.insert(id, endpoint.clone());
        }
        self.services_changed();
        self.tell_again(network, &endpoint).await
    }

    /// Tells other nodes of an endpoint.
    async fn publish(&self, network: &Network, endpoint: &Endpoint) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        let settings = self.settings();
        if let Some(record) = endpoint.record(network, settings.vtep, &settings.node) {
            self.await_part(&cluster, &network.id).await;
            cluster.publish(record).await;
            // The workload is to find what is there already with its first packet.
            let complete = cluster.runtime.await_table(&network.id, TABLE_LIMIT).await;
            if !complete {
                tracing::info!(network = network.name, "the table is not complete yet");
            }
        }
        cluster.nudge();
    }

    /// Tells other nodes that an endpoint is gone.
    fn tell_gone(&self, network: &Network, endpoint: &Endpoint) {
        if let Some(cluster) = self.cluster() {
            cluster.runtime.withdraw(&network.id, &endpoint.id);
        }
    }

    /// Gives the addresses of an endpoint back that is gone, on disk, too. With the last one of a network the node takes
    /// no part in it any more.
    fn give_back(&self, network: &Network, endpoint: &Endpoint) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        self.release_addresses(&cluster, &network.id, &endpoint.ips);
        let last = self.live().endpoints_of(&network.id).next().is_none();
        if last {
            cluster.runtime.leave(&network.id);
        }
    }

    /// The endpoint a repeated request stands for, or the one to be made.
    async fn find_or_plan(
        &self,
        network: &Network,
        (name, role): (&str, Role),
        wish: &AttachRequest,
        workload: &Workload,
    ) -> Result<Attachment, ApiError> {
        if let Some(existing) = self.existing(network, name, wish, workload)? {
            return Ok(Attachment::Exists(existing));
        }
        let (id, choice) = match self.cluster() {
            Some(cluster) => {
                // A node that takes no workloads leads published ports on all the same.
                if role == Role::Workload {
                    cluster.takes_workloads()?;
                }
                self.begin_leases(&cluster).await?;
                let id = cluster.new_endpoint_id();
                let choice = self.choose_leased(&cluster, network, wish, &id).await?;
                (id, choice)
            }
            None => {
                let choice = choose(network, wish, &taken(&self.live(), network))?;
                (ident::random_id(), choice)
            }
        };
        let planned = self.plan_endpoint(network, (id, name.to_owned()), choice, wish, workload);
        Ok(Attachment::New(planned))
    }

    /// Forgets the network's endpoints whose workload is gone. Tells whether there were any.
    async fn forget_gone(&self, network: &Network) -> Result<bool, ApiError> {
        let endpoints: Vec<Endpoint> = self.live().endpoints_of(&network.id).cloned().collect();
        let mut any = false;
        for endpoint in &endpoints {
            // One that cannot be looked at is in the way, and the refusal says so.
            if let Ok(false) = reconcile::is_alive(self, endpoint) {
                reconcile::forget(self, network, endpoint).await?;
                any = true;
            }
        }
        Ok(any)
    }

    /// Repairs what there is of an endpoint: its namespace may be another one that got the same inode.
    async fn plug_again(
        &self,
        network: &Network,
        endpoint: Endpoint,
    ) -> Result<EndpointView, ApiError> {
        self.ensure_up(network).await?;
        reconcile::plug(self, network, &endpoint).await?;
        let mtu = self.live().mtus.get(&endpoint.id).copied();
        Ok(self.endpoint_view(network, &endpoint, mtu))
    }

    /// Makes the network where tables and workers do not have it, as before its first endpoint or after a
    /// removal that failed half-way. Tells whether they had it.
    async fn ensure_up(&self, network: &Network) -> Result<bool, ApiError> {
        let was_up = self.plumbing().forwards(&network.id);
        if !was_up {
            self.bring_up(network).await?;
        }
        Ok(was_up)
    }

    fn existing(
        &self,
        network: &Network,
        name: &str,
        wish: &AttachRequest,
        workload: &Workload,
    ) -> Result<Option<Endpoint>, ApiError> {
        let live = self.live();
        if let Some(endpoint) = live.endpoints_of(&network.id).find(|e| e.name == name) {
            if endpoint.answers(wish, workload.netns_inode) {
                return Ok(Some(endpoint.clone()));
            }
            return Err(ApiError::new(
                ErrorCode::NameTaken,
                format!(
                    "network \"{}\" has an endpoint \"{name}\" already",
                    network.name
                ),
                format!(
                    "choose another with --name, or first: weft detach {} {name}",
                    network.name
                ),
            ));
        }
        let twin = live
            .endpoints_of(&network.id)
            .find(|e| e.netns_inode == workload.netns_inode);
        twin.map_or(Ok(None), |endpoint| {
            Err(ApiError::new(
                ErrorCode::AlreadyAttached,
                format!(
                    "workload \"{}\" is on network \"{}\" already, as \"{}\"",
                    wish.target, network.name, endpoint.name
                ),
                format!("first: weft detach {} {}", network.name, endpoint.name),
            ))
        })
    }

    fn plan_endpoint(
        &self,
        network: &Network,
        (id, name): (String, String),
        choice: Choice,
        wish: &AttachRequest,
        workload: &Workload,
    ) -> Endpoint {
        Endpoint {
            id,
            name,
            network: network.id.clone(),
            segment: choice.segment,
            ips: choice.ips,
            mac: choice.mac,
            target: wish.target.clone(),
            netns: workload.path.clone(),
            netns_inode: workload.netns_inode,
            ifname: wish.ifname.clone().unwrap_or_default(),
            aliases: wish.aliases.clone(),
            service: wish.service.clone().unwrap_or_default(),
            backing: self.first_backing(network, wish),
            engine: None,
            node_access: wish.node_access,
            limits: wish.limits.unwrap_or_default(),
            created: ident::unix_nanos(),
            version: self.live().next_version(),
        }
    }

    /// A backend that is to be checked gets no connections before it has answered once.
    fn first_backing(&self, network: &Network, wish: &AttachRequest) -> Backing {
        let own = wish.service.as_deref().unwrap_or_default();
        let checked = is_checked(&self.live(), &network.id, own, &wish.aliases);
        Backing {
            weight: wish.weight.unwrap_or(1),
            standing: match checked {
                true => Standing::Unhealthy,
                false => Standing::Ready,
            },
        }
    }

    /// Makes the network if this is its first endpoint, then the tables' row, then the interface. The row
    /// comes first: the workload's very first frame must find it. The caller holds the network's lock.
    pub(in crate::agent) async fn plug(
        &self,
        network: &Network,
        mut endpoint: Endpoint,
    ) -> Result<(Endpoint, u32), ApiError> {
        let was_up = self.ensure_up(network).await?;
        let settings = self.settings();
        let record = endpoint.record(network, settings.vtep, &settings.node);
        let record =
            record.ok_or_else(|| ApiError::internal("an endpoint outside of its network"))?;
        let plugged = match self.plumbing().put_local(&record) {
            Ok(()) => {
                self.expect_client(&network.id, &record);
                self.plumbing()
                    .endpoint_up(EndpointPlan::of(network, &endpoint))
                    .await
            }
            Err(error) => Err(error),
        };
        match plugged {
            Ok(up) => {
                endpoint.ifname = up.ifname;
                Ok((endpoint, up.mtu))
            }
            Err(error) => {
                self.plumbing().remove_record(record.vni, &endpoint.id);
                let alone = self.live().endpoints_of(&network.id).next().is_none();
                if !was_up && alone {
                    // The network's own removal failing is found by the next comparison with the kernel.
                    let _first_error_counts = self.bring_down(network).await;
                }
                Err(error)
            }
        }
    }

    /// Takes a workload off a network. Tells the endpoint's id.
    ///
    /// # Errors
    /// `network_not_found`, `endpoint_not_found`, `ambiguous_reference`, `state_not_saved`,
    /// `kernel_refused`: the endpoint is then gone from the state and its remains are swept later.
    pub async fn detach(&self, network: String, endpoint: String) -> Result<String, ApiError> {
        let agent = self.clone();
        self.inner
            .tasks
            .operation(async move { agent.detach_now(&network, &endpoint).await })
            .await
    }

    async fn detach_now(&self, network: &str, reference: &str) -> Result<String, ApiError> {
        let id = self
            .live()
            .node
            .catalog
            .find_overlay(network, "detach from")?
            .id
            .clone();
        let inode = {
            let live = self.live();
            let network = live.network(&id)?;
            find_endpoint(&live, network, reference)?.netns_inode
        };
        let detached = self.detach_on(&id, reference).await;
        self.settle_workload(inode).await;
        detached
    }

    /// Detaches from the network with this id, whoever may.
    pub(in crate::agent) async fn detach_on(
        &self,
        id: &str,
        reference: &str,
    ) -> Result<String, ApiError> {
        let (endpoint, removal) = self.forget_on(id, reference).await?;
        let Err(error) = removal.done(self).await else {
            return Ok(endpoint);
        };
        Err(ApiError {
            next: "the endpoint is forgotten; what is left of its interface is removed at the next comparison with \
                   the kernel, or at the next start"
                .into(),
            ..error
        })
    }

    /// Forgets an endpoint, here and on other nodes. What is left to do takes the kernel's time and nobody's turn.
    pub(in crate::agent) async fn forget_on(
        &self,
        id: &str,
        reference: &str,
    ) -> Result<(String, Removal), ApiError> {
        let _turn = self.lock_network(id).await;
        let (network, endpoint) = {
            let mut live = self.live();
            let network = live.network(id)?.clone();
            let endpoint = find_endpoint(&live, &network, reference)?.clone();
            live.node.endpoints.remove(&endpoint.id);
            (network, endpoint)
        };
        // Others are to lead nobody there while the disk is written. Its addresses are free only when it is not in the
        // state that a restart would begin with.
        self.tell_gone(&network, &endpoint);
        self.services_changed();
        if let Err(error) = self.save().await {
            let _first_error_counts = self.put_and_tell(&network, endpoint).await;
            return Err(error);
        }
        let removal = match self.take_out(&network, &endpoint) {
            // The network goes with the last one, and nobody may come in between.
            true => Removal::Done(self.take_down_last(&network, &endpoint).await),
            false => Removal::Due {
                network: network.id.clone(),
                endpoint: endpoint.id.clone(),
            },
        };
        self.emit(Event::EndpointDetached {
            network: id.to_owned(),
            endpoint: endpoint.id.clone(),
            name: endpoint.name,
        });
        Ok((endpoint.id, removal))
    }

    /// The inverse of `plug`, for an endpoint that is out of the state already.
    pub(in crate::agent) async fn unplug(
        &self,
        network: &Network,
        endpoint: &Endpoint,
    ) -> Result<(), ApiError> {
        self.tell_gone(network, endpoint);
        match self.take_out(network, endpoint) {
            true => self.take_down_last(network, endpoint).await,
            false => self.remove_interface(&network.id, &endpoint.id).await,
        }
    }

    async fn take_down_last(&self, network: &Network, endpoint: &Endpoint) -> Result<(), ApiError> {
        self.remove_interface(&network.id, &endpoint.id).await?;
        self.bring_down(network).await
    }

    async fn remove_interface(&self, network: &str, endpoint: &str) -> Result<(), ApiError> {
        self.plumbing().endpoint_down(network, endpoint).await
    }

    /// Takes an endpoint out of tables and names. Tells whether it was the network's last one here.
    fn take_out(&self, network: &Network, endpoint: &Endpoint) -> bool {
        if let Some(segment) = network.segments.get(endpoint.segment) {
            self.plumbing().remove_record(segment.vni, &endpoint.id);
        }
        self.give_back(network, endpoint);
        let last = {
            let mut live = self.live();
            live.mtus.remove(&endpoint.id);
            live.health
                .remove(&reconcile::endpoint_key(network, endpoint));
            live.endpoints_of(&network.id).next().is_none()
        };
        self.names_changed();
        self.tell_workload(&endpoint.target);
        last
    }
}

/// What is left to do in the kernel for an endpoint that is forgotten.
#[derive(Debug)]
#[must_use]
pub(in crate::agent) enum Removal {
    /// It was the last one of its network, which had to be removed with it.
    Done(Result<(), ApiError>),
    /// Its interface is there, and in nobody's way.
    Due {
        /// Id of the network.
        network: String,
        /// Id of the endpoint.
        endpoint: String,
    },
}

impl Removal {
    /// Does it.
    ///
    /// # Errors
    /// `kernel_refused`.
    pub(in crate::agent) async fn done(self, agent: &Agent) -> Result<(), ApiError> {
        match self {
            Removal::Done(done) => done,
            Removal::Due { network, endpoint } => agent.remove_interface(&network, &endpoint).await,
        }
    }
}

/// What an endpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::agent) enum Role {
    /// A workload that a user attaches.
    Workload,
    /// A backend's own endpoint on the ingress network.
    Backend,
    /// The node's leg on the ingress network, which brings clients' addresses along.
    IngressLeg,
}

/// What an attach request comes to.
enum Attachment {
    /// It is there already.
    Exists(Endpoint),
    /// It is to be made.
    New(Endpoint),
}

/// The name asked for, or one made from the target.
pub(in crate::agent) fn endpoint_name(wish: &AttachRequest) -> Result<String, ApiError> {
    if let Some(name) = &wish.name {
        check_name(name)?;
        return Ok(name.clone());
    }
    let target = wish.target.as_str();
    let name = match target.parse::<u32>() {
        Ok(pid) => format!("pid-{pid}"),
        Err(_) => match target
            .strip_prefix("/proc/")
            .and_then(|rest| rest.split_once('/'))
        {
            Some((pid, _)) => format!("pid-{pid}"),
            None => target.rsplit('/').next().unwrap_or_default().to_owned(),
        },
    };
    check_name(&name).map_err(|_| {
        ApiError::new(
            ErrorCode::InvalidName,
            format!("no endpoint name can be made from \"{target}\""),
            "give one with --name",
        )
    })?;
    Ok(name)
}

/// Checks what other nodes are to know the endpoint by.
pub(in crate::agent) fn check_names(wish: &AttachRequest) -> Result<(), ApiError> {
    let invalid =
        |message: String, next: &str| Err(ApiError::new(ErrorCode::InvalidName, message, next));
    if wish.aliases.len() > ALIASES_MAX {
        return invalid(
            format!(
                "{} aliases are given; an endpoint has {ALIASES_MAX} at most",
                wish.aliases.len()
            ),
            "leave some out",
        );
    }
    for alias in &wish.aliases {
        check_name(alias)?;
    }
    match (&wish.service, wish.weight) {
        (Some(service), _) => check_name(service),
        (None, Some(_)) => invalid(
            "a weight is given without a service".into(),
            "name the service the workload backs: --service NAME",
        ),
        (None, None) => Ok(()),
    }
}

/// Nobody is to be limited to nothing.
fn check_limits(wish: &AttachRequest) -> Result<(), ApiError> {
    let limits = wish.limits.unwrap_or_default();
    let mut all = limits.incoming.iter().chain(&limits.outgoing);
    match all.all(|rate| rate.bits_per_second >= RATE_MIN) {
        true => Ok(()),
        false => Err(ApiError::new(
            ErrorCode::InvalidRequest,
            format!("a limit is below {RATE_MIN} bit/s"),
            "give a higher one, or none",
        )),
    }
}

/// Whether a service on the network checks what has this service's name or one of these aliases.
pub(in crate::agent) fn is_checked(
    live: &Live,
    network: &str,
    own: &str,
    aliases: &[String],
) -> bool {
    let mut services = live.node.services.values();
    services.any(|service| {
        let mut parts = service.networks.iter();
        service.health.is_some()
            && parts.any(|part| part.network == network)
            && service.is_backed_by(own, aliases)
    })
}

/// What is in use on a network, here and elsewhere.
pub(in crate::agent) fn taken(live: &Live, network: &Network) -> Taken {
    let mut taken = Taken::default();
    for endpoint in live.endpoints_of(&network.id) {
        let owner = format!("\"{}\"", endpoint.name);
        taken
            .ips
            .extend(endpoint.ips.iter().map(|ip| (ip.ip(), owner.clone())));
        taken.macs.insert(endpoint.mac);
    }
    for ip in live.reserved.addresses_of(&network.id) {
        taken
            .ips
            .insert(ip, "a container that is about to start".into());
    }
    for endpoint in live.reserved.endpoints_of(&network.id) {
        let ips = endpoint.ips.iter().map(|ip| ip.ip());
        taken
            .ips
            .extend(ips.map(|ip| (ip, "a container that is about to start".into())));
        taken.macs.insert(endpoint.mac);
    }
    for record in live.node.remote.of_network(&network.id) {
        let owner = format!("\"{}\" on {}", record.name, record.vtep);
        taken
            .ips
            .extend(record.ips.iter().map(|ip| (*ip, owner.clone())));
        taken.macs.insert(record.mac);
    }
    taken
}

/// Finds by id, name, then by the beginning of an id.
fn find_endpoint<'a>(
    live: &'a Live,
    network: &'a Network,
    reference: &str,
) -> Result<&'a Endpoint, ApiError> {
    let all = || live.endpoints_of(&network.id);
    if let Some(found) = all()
        .find(|e| e.id == reference)
        .or_else(|| all().find(|e| e.name == reference))
    {
        return Ok(found);
    }
    let mut by_prefix = all().filter(|e| !reference.is_empty() && e.id.starts_with(reference));
    match (by_prefix.next(), by_prefix.next()) {
        (Some(found), None) => Ok(found),
        (Some(_), Some(_)) => Err(ApiError::new(
            ErrorCode::AmbiguousReference,
            format!("several endpoints have an id that begins with \"{reference}\""),
            "give more characters of the id, or the name: weft ps --no-trunc",
        )),
        (None, _) => {
            let hint = suggest::hint(reference, all().map(|e| e.name.as_str()));
            Err(ApiError::new(
                ErrorCode::EndpointNotFound,
                format!(
                    "network \"{}\" has no endpoint \"{reference}\" on this node{hint}",
                    network.name
                ),
                "list the endpoints: weft ps",
            ))
        }
    }
}
