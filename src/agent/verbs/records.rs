//! Members and records: what this node is told of others.

use std::net::IpAddr;

use crate::agent::api::{RecordBatch, RecordRequest, RecordsApplied, VtepChange, VtepList};
use crate::agent::config::is_unicast;
use crate::agent::endpoint::{check_mac, check_remote_address};
use crate::agent::error::{ApiError, ErrorCode};
use crate::agent::events::Event;
use crate::agent::handle::{Agent, Live};
use crate::agent::network::Network;
use crate::agent::records::{RemoteTable, Removal, in_words};
use crate::tables::record::{Backing, EndpointRecord, Version};
use crate::wire::Mac;

/// How many records one request may hold.
const BATCH_MAX: usize = 10_000;

impl Agent {
    /// Lists the VTEPs of a network.
    ///
    /// # Errors
    /// `network_not_found`, `builtin_network`.
    pub fn vteps(&self, network: &str) -> Result<VtepList, ApiError> {
        let live = self.live();
        let network = live
            .node
            .catalog
            .find_overlay(network, "list the VTEPs of")?;
        Ok(VtepList {
            network: network.id.clone(),
            vteps: live.node.remote.vteps(&network.id),
        })
    }

    /// Adds members to a network: they get its broadcasts and may send into it.
    ///
    /// # Errors
    /// `invalid_vtep`, those of [`Agent::vteps`], `state_not_saved`, `dataplane_failed`.
    pub async fn add_vteps(
        &self,
        network: String,
        change: VtepChange,
    ) -> Result<VtepList, ApiError> {
        self.change_vteps(network, change, true).await
    }

    /// Removes members. A VTEP that records name stays until they are gone.
    ///
    /// # Errors
    /// As [`Agent::add_vteps`].
    pub async fn remove_vteps(
        &self,
        network: String,
        change: VtepChange,
    ) -> Result<VtepList, ApiError> {
        self.change_vteps(network, change, false).await
    }

    async fn change_vteps(
        &self,
        network: String,
        change: VtepChange,
        add: bool,
    ) -> Result<VtepList, ApiError> {
        let agent = self.clone();
        let work = async move {
            let own = agent.settings().vtep;
            change
                .vteps
                .iter()
                .try_for_each(|vtep| check_vtep(*vtep, own))?;
            agent
                .change_remote(&network, "change the VTEPs of", |_, network, remote| {
                    if add {
                        remote.add_members(&network.id, &change.vteps);
                    } else {
                        remote.remove_members(&network.id, &change.vteps);
                    }
                    Ok(())
                })
                .await?;
            let list = agent.vteps(&network)?;
            agent.emit(Event::VtepsChanged {
                network: list.network.clone(),
                count: list.vteps.len(),
            });
            Ok(list)
        };
        self.inner.tasks.operation(work).await
    }

    /// Lists what is known of other nodes' endpoints on a network.
    ///
    /// # Errors
    /// `network_not_found`, `builtin_network`.
    pub fn records(&self, network: &str) -> Result<Vec<EndpointRecord>, ApiError> {
        let live = self.live();
        let network = live
            .node
            .catalog
            .find_overlay(network, "list the records of")?;
        Ok(live.node.remote.of_network(&network.id).cloned().collect())
    }

    /// Takes records in: all of them are checked before any is applied. One that is older than what is
    /// known is left out, with a note.
    ///
    /// # Errors
    /// `invalid_mac`, `invalid_address`, `invalid_vtep`, `address_in_use`, `mac_in_use`, `id_taken`,
    /// `state_not_saved`, `dataplane_failed`, those of [`Agent::records`].
    pub async fn put_records(
        &self,
        network: String,
        batch: RecordBatch,
    ) -> Result<RecordsApplied, ApiError> {
        self.refuse_in_cluster()?;
        let agent = self.clone();
        let work = async move {
            let requests = batch.into_vec();
            if requests.len() > BATCH_MAX {
                return Err(ApiError::new(
                    ErrorCode::InvalidRequest,
                    format!(
                        "{} records in one request are more than {BATCH_MAX}",
                        requests.len()
                    ),
                    "send them in several requests",
                ));
            }
            let own = agent.settings().vtep;
            let (id, applied) = agent
                .change_remote(
                    &network,
                    "change the records of",
                    |live, network, remote| apply_all(live, network, remote, &requests, own),
                )
                .await?;
            let changed = applied
                .records
                .iter()
                .filter(|outcome| outcome.applied)
                .count();
            let ignored = applied.records.len() - changed;
            agent.emit(Event::RecordsChanged {
                network: id,
                applied: changed,
                ignored,
            });
            Ok(applied)
        };
        self.inner.tasks.operation(work).await
    }

    /// Takes one record out, unless `version` is older than it.
    ///
    /// # Errors
    /// `record_not_found`, those of [`Agent::put_records`].
    pub async fn remove_record(
        &self,
        network: String,
        mac: Mac,
        version: Option<Version>,
    ) -> Result<RecordsApplied, ApiError> {
        self.refuse_in_cluster()?;
        let agent = self.clone();
        let work = async move {
            let (id, applied) = agent
                .change_remote(&network, "change the records of", |_, network, remote| {
                    remove_one(network, remote, mac, version)
                })
                .await?;
            agent.emit(Event::RecordsChanged {
                network: id,
                applied: 1,
                ignored: 0,
            });
            Ok(applied)
        };
        self.inner.tasks.operation(work).await
    }

    /// In a cluster nodes tell each other of their endpoints, and nobody else does.
    fn refuse_in_cluster(&self) -> Result<(), ApiError> {
        match self.cluster() {
            None => Ok(()),
            Some(_) => Err(ApiError::new(
                ErrorCode::Unsupported,
                "the nodes of a cluster tell each other of their endpoints: no record is put in by hand",
                "attach endpoints on their own nodes; for tables by hand, run an agent that is in no cluster",
            )),
        }
    }

    /// Changes what is known of other nodes: on a copy, saved, then told to the tables if the network is up;
    /// what they refuse is taken back.
    /// Answers with the network's id and the change's own answer.
    async fn change_remote<T>(
        &self,
        reference: &str,
        verb: &str,
        change: impl FnOnce(&Live, &Network, &mut RemoteTable) -> Result<T, ApiError>,
    ) -> Result<(String, T), ApiError> {
        let id = self
            .live()
            .node
            .catalog
            .find_overlay(reference, verb)?
            .id
            .clone();
        let _turn = self.lock_network(&id).await;
        let (network, before, answer) = {
            let mut live = self.live();
            let network = live.network(&id)?.clone();
            let before = live.node.remote.clone();
            let mut after = before.clone();
            let answer = change(&live, &network, &mut after)?;
            live.node.remote = after;
            (network, before, answer)
        };
        if let Err(error) = self.save().await {
            self.restore_remote(&id, &before);
            return Err(error);
        }
        self.names_changed();
        if let Err(error) = self.tell_changes(&network, &before) {
            self.take_changes_back(&network, &before).await?;
            return Err(error);
        }
        Ok((id, answer))
    }

    /// The tables refused a part of a change: none of it is kept.
    async fn take_changes_back(
        &self,
        network: &Network,
        before: &RemoteTable,
    ) -> Result<(), ApiError> {
        let refused = self.live().node.remote.clone();
        self.restore_remote(&network.id, before);
        if let Err(error) = self.tell_changes(network, &refused) {
            // Tables that do not take what they had are filled anew.
            tracing::warn!(network = network.name, %error, "tables are behind");
            self.live().up.remove(&network.id);
        }
        self.save().await
    }

    /// Puts one network's share of an older table back; other networks may have changed since.
    fn restore_remote(&self, id: &str, before: &RemoteTable) {
        self.live().node.remote.restore(id, before);
        self.names_changed();
    }

    /// Tells the tables how a network's remote part differs from before.
    fn tell_changes(&self, network: &Network, before: &RemoteTable) -> Result<(), ApiError> {
        if !self.plumbing().forwards(&network.id) {
            return Ok(());
        }
        let after = self.live().node.remote.clone();
        for old in before.of_network(&network.id) {
            let kept = after
                .record(old.vni, old.mac)
                .is_some_and(|new| new.endpoint == old.endpoint);
            if !kept {
                self.plumbing().remove_record(old.vni, &old.endpoint);
            }
        }
        for new in after.of_network(&network.id) {
            if before.record(new.vni, new.mac) != Some(new) {
                self.plumbing().put_remote(new)?;
            }
        }
        self.tell_vteps(network, &after)
    }
}

pub(in crate::agent) fn check_vtep(vtep: IpAddr, own: IpAddr) -> Result<(), ApiError> {
    let why = if vtep == own {
        "is this node's own"
    } else if !is_unicast(vtep) {
        "is not a unicast address"
    } else if vtep.is_ipv4() != own.is_ipv4() {
        "is of another address family than this node's own"
    } else {
        return Ok(());
    };
    Err(ApiError::new(
        ErrorCode::InvalidVtep,
        format!("VTEP {vtep} {why}"),
        "give another node's underlay address, the one its agent was started with as --vtep",
    ))
}

pub(in crate::agent) fn apply_all(
    live: &Live,
    network: &Network,
    remote: &mut RemoteTable,
    requests: &[RecordRequest],
    own: IpAddr,
) -> Result<RecordsApplied, ApiError> {
    let mut applied = RecordsApplied::default();
    for request in requests {
        let record = to_record(network, remote, request, own)?;
        check_conflicts(live, network, remote, &record)?;
        applied.records.push(remote.upsert(record));
    }
    Ok(applied)
}

fn to_record(
    network: &Network,
    remote: &RemoteTable,
    request: &RecordRequest,
    own: IpAddr,
) -> Result<EndpointRecord, ApiError> {
    check_vtep(request.vtep, own)?;
    check_mac(network, request.mac)?;
    let mut segment = None;
    for ip in &request.ips {
        let index = check_remote_address(network, *ip)?;
        if segment.is_some_and(|other| other != index) {
            return Err(bad_addresses(format!(
                "the addresses of {} lie in different segments",
                request.mac
            )));
        }
        segment = Some(index);
    }
    let index = segment
        .ok_or_else(|| bad_addresses(format!("the record of {} has no address", request.mac)))?;
    let vni = network.segments[index].vni;
    let known = remote.record(vni, request.mac);
    let endpoint = request
        .endpoint
        .clone()
        .or_else(|| known.map(|record| record.endpoint.clone()));
    Ok(EndpointRecord {
        network: network.id.clone(),
        vni,
        // The same MAC gets the same id on every node that is told of it.
        endpoint: endpoint.unwrap_or_else(|| {
            crate::agent::ident::id_from_bits(u128::from(request.mac.to_u64()) << 64)
        }),
        mac: request.mac,
        ips: request.ips.clone(),
        vtep: request.vtep,
        node: request.node.clone(),
        name: request.name.clone(),
        aliases: request.aliases.clone(),
        service: request.service.clone(),
        backing: Backing::default(),
        version: request
            .version
            .unwrap_or_else(|| remote.next_version(vni, request.mac)),
    })
}

fn bad_addresses(message: String) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidAddress,
        message,
        "give at least one address, all of one segment: --ip ADDRESS",
    )
}

/// A remote endpoint must not claim what a local one, or another remote one, has.
fn check_conflicts(
    live: &Live,
    network: &Network,
    remote: &RemoteTable,
    record: &EndpointRecord,
) -> Result<(), ApiError> {
    if let Some(local) = live.endpoints_of(&network.id).find(|e| e.mac == record.mac) {
        return Err(ApiError::new(
            ErrorCode::MacInUse,
            format!(
                "MAC {} belongs to local endpoint \"{}\"",
                record.mac, local.name
            ),
            "a record describes an endpoint of another node: check --vtep and the MAC",
        ));
    }
    let local = live.node.endpoints.get(&record.endpoint);
    let other = remote
        .of_network(&network.id)
        .find(|other| other.endpoint == record.endpoint && other.mac != record.mac);
    let owner = local
        .map(|e| format!("local endpoint \"{}\"", e.name))
        .or_else(|| other.map(|o| format!("{} on {}", o.mac, o.vtep)));
    if let Some(owner) = owner {
        return Err(ApiError::new(
            ErrorCode::IdTaken,
            format!("endpoint id {} belongs to {owner}", record.endpoint),
            format!(
                "leave --endpoint out, or remove the old record: weft fdb del {} MAC",
                network.name
            ),
        ));
    }
    for ip in &record.ips {
        let local = live
            .endpoints_of(&network.id)
            .find(|e| e.ips.iter().any(|own| own.ip() == *ip));
        let other = remote
            .of_network(&network.id)
            .find(|other| other.mac != record.mac && other.ips.contains(ip));
        let owner = local
            .map(|e| format!("local endpoint \"{}\"", e.name))
            .or_else(|| other.map(|o| format!("{} on {}", o.mac, o.vtep)));
        if let Some(owner) = owner {
            return Err(ApiError::new(
                ErrorCode::AddressInUse,
                format!("address {ip} belongs to {owner}"),
                format!(
                    "choose another address, or remove the old record: weft fdb del {} MAC",
                    network.name
                ),
            ));
        }
    }
    Ok(())
}

pub(in crate::agent) fn remove_one(
    network: &Network,
    remote: &mut RemoteTable,
    mac: Mac,
    version: Option<Version>,
) -> Result<RecordsApplied, ApiError> {
    let mut outcomes = Vec::new();
    for segment in &network.segments {
        match remote.remove(segment.vni, mac, version) {
            Removal::Done(record) => {
                outcomes.push(outcome(
                    mac,
                    version.unwrap_or(record.version),
                    true,
                    String::new(),
                ));
            }
            Removal::Stale(known) => {
                let note = format!("ignored: {} is known already", in_words(known));
                outcomes.push(outcome(mac, known, false, note));
            }
            Removal::Unknown => {}
        }
    }
    if outcomes.is_empty() && version.is_none() {
        return Err(ApiError::new(
            ErrorCode::RecordNotFound,
            format!("network \"{}\" has no record of {mac}", network.name),
            format!("list the records: weft fdb {}", network.name),
        ));
    }
    Ok(RecordsApplied { records: outcomes })
}

fn outcome(
    mac: Mac,
    version: Version,
    applied: bool,
    note: String,
) -> crate::agent::api::RecordOutcome {
    crate::agent::api::RecordOutcome {
        mac,
        version,
        applied,
        note,
    }
}
