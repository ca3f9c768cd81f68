//! What a lab tells its agents, through their own API.
//!
//! With managers, the agents form a cluster and tell each other who is where: the lab makes the cluster, the network and
//! the attachments, and waits until the tables are complete. Without, the lab stands in for a control plane and
//! tells every agent everything. It is worked out from the plan either way, so telling it again changes
//! nothing; an agent that was killed and started anew is told the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;

use super::error::LabError;
use super::links::block_on;
use super::plan::{NodeKind, NodePlan, Plan, WorkloadPlan};
use super::process::{ProcessId, log_tail};
use crate::agent::api::{
    ApiError, AttachRequest, CreateNetwork, DRIVER_OVERLAY, ErrorCode, InitRequest,
    IpamConfigRequest, IpamRequest, JoinClusterRequest, OPTION_VXLANID_LIST, RecordRequest,
    VtepChange,
};
use crate::frontend::client::Client;

/// An agent that is to be told.
#[derive(Clone, Debug)]
pub struct AgentAt {
    /// Name of its node.
    pub node: String,
    /// Its process.
    pub process: ProcessId,
    /// Its API socket.
    pub socket: PathBuf,
    /// Its log.
    pub log: PathBuf,
}

/// Waits until every agent answers.
///
/// # Errors
/// [`LabError::Ended`] with the end of its log when one is gone; [`LabError::Timeout`].
pub fn wait_for_agents(agents: &[AgentAt], limit: Duration) -> Result<(), LabError> {
    block_on(async {
        try_join_all(agents.iter().map(|agent| wait_for(agent, limit))).await?;
        Ok(())
    })
}

/// Tells the agents of the network, its members, their own workloads and everybody else's.
///
/// # Errors
/// [`LabError::Agent`] with the agent's words.
pub fn tell(plan: &Plan, agents: &[AgentAt]) -> Result<(), LabError> {
    if plan.options.managers > 0 {
        return block_on(form(plan, agents));
    }
    let tell = |agent: &AgentAt| {
        let client = Client::new(agent.socket.as_path());
        let node = agent.node.clone();
        async move {
            tell_one(plan, &node, &client)
                .await
                .map_err(|error| LabError::Agent {
                    node,
                    message: format!("{}; {}", error.message, error.next),
                })
        }
    };
    block_on(async {
        try_join_all(agents.iter().map(tell)).await?;
        Ok(())
    })
}

fn said(agent: &AgentAt, error: &ApiError) -> LabError {
    LabError::Agent {
        node: agent.node.clone(),
        message: format!("{}; {}", error.message, error.next),
    }
}

/// Makes the cluster of those that are in none, the network and the attachments, and waits for the tables.
async fn form(plan: &Plan, agents: &[AgentAt]) -> Result<(), LabError> {
    let Some(first) = agents.first() else {
        return Ok(());
    };
    let client = |agent: &AgentAt| Client::new(agent.socket.as_path());
    if in_no_cluster(&client(first)).await {
        let made = client(first).init_cluster(&InitRequest::default()).await;
        let made = made.map_err(|error| said(first, &error))?;
        for (index, agent) in agents.iter().enumerate().skip(1) {
            let token = match index < plan.options.managers {
                true => &made.manager_token,
                false => &made.worker_token,
            };
            let wish = JoinClusterRequest {
                token: token.clone(),
                manager: made.control.to_string(),
            };
            let joined = client(agent).join_cluster(&wish).await;
            joined.map_err(|error| said(agent, &error))?;
        }
    }
    let id = plan.network_id.as_str();
    if client(first).network(id).await.is_err() {
        let created = client(first).create_network(&network(plan)).await;
        created.map_err(|error| said(first, &error))?;
    }
    try_join_all(agents.iter().map(|agent| settle(plan, agent))).await?;
    Ok(())
}

async fn in_no_cluster(client: &Client) -> bool {
    client
        .status()
        .await
        .is_ok_and(|status| status.cluster.is_none())
}

/// Attaches a node's workloads once it knows the network, and waits for its tables.
async fn settle(plan: &Plan, agent: &AgentAt) -> Result<(), LabError> {
    let client = Client::new(agent.socket.as_path());
    let end = Instant::now() + CONVERGE_LIMIT;
    while client.network(&plan.network_id).await.is_err() && Instant::now() < end {
        tokio::time::sleep(POLL).await;
    }
    attach_all(plan, &agent.node, &client)
        .await
        .map_err(|error| said(agent, &error))?;
    loop {
        let status = client.status().await.map_err(|error| said(agent, &error))?;
        let waiting = match status.cluster {
            Some(cluster) if cluster.converged => return Ok(()),
            Some(cluster) => cluster.waiting_for.join("; "),
            None => "it is in no cluster".into(),
        };
        if Instant::now() >= end {
            return Err(LabError::Timeout {
                what: format!("the tables of {}", agent.node),
                seconds: CONVERGE_LIMIT.as_secs(),
                detail: format!(": {waiting}"),
            });
        }
        tokio::time::sleep(SLOW_POLL).await;
    }
}

/// Arguments of a node's agent.
pub fn agent_args(plan: &Plan, node: &NodePlan, dir: &Path) -> Vec<String> {
    let path = |what: &str| dir.join(what).display().to_string();
    let mut args: Vec<String> = [
        "agent",
        "--node",
        &node.name,
        "--vtep",
        &node.vtep().to_string(),
        "--run-dir",
        &path("run"),
        "--state-dir",
        &path("state"),
        "--vxlan-port",
        &plan.options.vxlan_port.to_string(),
        "--uplink",
        &plan.options.uplink,
    ]
    .map(str::to_owned)
    .into();
    args.extend(plan.options.agent_args.iter().cloned());
    args
}

/// The nodes that have an agent.
pub fn agent_nodes(plan: &Plan) -> impl Iterator<Item = &NodePlan> {
    plan.nodes
        .iter()
        .filter(|node| node.kind == NodeKind::Agent)
}

async fn wait_for(agent: &AgentAt, limit: Duration) -> Result<(), LabError> {
    let client = Client::new(agent.socket.as_path()).with_timeout(Duration::from_secs(1));
    let end = Instant::now() + limit;
    loop {
        let answer = client.version().await;
        let Err(error) = answer else { return Ok(()) };
        agent.process.ended_within(Duration::ZERO);
        if !agent.process.alive() {
            return Err(LabError::Ended {
                what: format!("the agent of {}", agent.node),
                log: log_tail(&agent.log),
            });
        }
        if Instant::now() >= end {
            return Err(LabError::Timeout {
                what: format!("an answer of the agent of {}", agent.node),
                seconds: limit.as_secs(),
                detail: format!(": {}", error.message),
            });
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn tell_one(plan: &Plan, node: &str, client: &Client) -> Result<(), ApiError> {
    let id = plan.network_id.as_str();
    if let Err(error) = client.network(id).await {
        if error.code != ErrorCode::NetworkNotFound {
            return Err(error);
        }
        client.create_network(&network(plan)).await?;
    }
    let vteps = plan.other_vteps(node);
    if !vteps.is_empty() {
        client.add_vteps(id, &VtepChange { vteps }).await?;
    }
    let records: Vec<RecordRequest> = plan
        .remote_workloads(node)
        .map(|(w, home)| record(plan, w, home))
        .collect();
    if !records.is_empty() {
        client.put_records(id, &records).await?;
    }
    attach_all(plan, node, client).await
}

async fn attach_all(plan: &Plan, node: &str, client: &Client) -> Result<(), ApiError> {
    let id = plan.network_id.as_str();
    let there = client.endpoints().await?.endpoints;
    for workload in plan.workloads_of(node) {
        if !there
            .iter()
            .any(|endpoint| endpoint.local && endpoint.name == workload.name)
        {
            client.attach(id, &attachment(plan, workload)).await?;
        }
    }
    Ok(())
}

fn network(plan: &Plan) -> CreateNetwork {
    let options = &plan.options;
    CreateNetwork {
        name: options.network.clone(),
        id: Some(plan.network_id.clone()),
        driver: Some(DRIVER_OVERLAY.into()),
        attachable: true,
        ipam: IpamRequest {
            config: vec![IpamConfigRequest {
                subnet: options.subnet.to_string(),
                gateway: options.gateway.to_string(),
                ..IpamConfigRequest::default()
            }],
            ..IpamRequest::default()
        },
        options: [(OPTION_VXLANID_LIST.to_owned(), options.vni.to_string())].into(),
        ..CreateNetwork::default()
    }
}

fn record(plan: &Plan, workload: &WorkloadPlan, home: &NodePlan) -> RecordRequest {
    RecordRequest {
        mac: workload.mac,
        ips: vec![workload.ip.into()],
        vtep: home.vtep(),
        endpoint: None,
        node: home.name.clone(),
        name: workload.name.clone(),
        aliases: Vec::new(),
        service: plan.options.service.clone(),
        version: None,
    }
}

fn attachment(plan: &Plan, workload: &WorkloadPlan) -> AttachRequest {
    AttachRequest {
        target: workload.netns.clone(),
        name: Some(workload.name.clone()),
        ips: vec![workload.ip.into()],
        mac: Some(workload.mac),
        service: Some(plan.options.service.clone()),
        ..AttachRequest::default()
    }
}

const POLL: Duration = Duration::from_millis(5);
const SLOW_POLL: Duration = Duration::from_millis(50);
const CONVERGE_LIMIT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::LabOptions;

    #[test]
    fn an_agent_gets_its_own_name_address_and_directories() {
        let plan = Plan::new(LabOptions {
            agent_args: vec!["--workers=1".into()],
            ..LabOptions::default()
        });
        let plan = plan.unwrap();
        let args = agent_args(&plan, &plan.nodes[1], Path::new("/run/weft-lab/lab/n2")).join(" ");
        assert!(
            args.starts_with(
                "agent --node n2 --vtep 10.99.0.2 --run-dir /run/weft-lab/lab/n2/run "
            )
        );
        assert!(args.ends_with("--uplink auto --workers=1"), "{args}");
    }

    #[test]
    fn the_network_is_the_same_on_every_node() {
        let plan = Plan::new(LabOptions::default()).unwrap();
        let wish = network(&plan);
        assert_eq!(wish.id.as_deref(), Some(plan.network_id.as_str()));
        assert_eq!(wish.options[OPTION_VXLANID_LIST], "4097");
        assert_eq!(wish.ipam.config[0].subnet, "10.0.1.0/24");
        assert_eq!(wish.ipam.config[0].gateway, "10.0.1.254");
    }

    #[test]
    fn remote_workloads_are_told_with_their_vtep() {
        let plan = Plan::new(LabOptions::default()).unwrap();
        let (workload, home) = plan.remote_workloads("n1").next().unwrap();
        let record = record(&plan, workload, home);
        assert_eq!(record.vtep.to_string(), "10.99.0.2");
        assert_eq!(
            (record.node.as_str(), record.service.as_str()),
            ("n2", "my-web")
        );
    }
}
