//! A lab: made, changed and removed. The verbs of `weft lab`, without their printing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::control::{self, AgentAt, agent_nodes};
use super::error::{Context, LabError};
use super::impair::LinkImpairment;
use super::kernel::KernelVxlan;
use super::links::{self, NODE_LINK, block_on};
use super::offloads::{self, WIRE_SIZE};
use super::ping::Pinger;
use super::plan::{
    LABS_DIR, LabOptions, NodeKind, NodePlan, Plan, WorkloadPlan, check_name, lab_dir,
};
use super::process::{self, MARK_VAR, ProcessId, Spawn, end_all};
use super::relay::{self, Report, Request};
use super::space;
use super::state::{self, LabState, RelayState};
use super::steps::Steps;
use crate::sys::netns::Netns;

/// A lab that exists.
#[derive(Clone, Debug)]
pub struct Lab {
    state: LabState,
}

/// What [`Lab::down`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes that ended.
    pub processes: usize,
    /// How many of them had to be killed.
    pub killed: usize,
    /// Network namespaces.
    pub namespaces: usize,
    /// Whether there was a directory of that lab.
    pub directory: bool,
    /// Lines of the agents' logs that speak of errors or panics.
    pub log_faults: Vec<String>,
}

impl Removed {
    /// Whether there was anything.
    pub fn anything(&self) -> bool {
        self.processes + self.namespaces > 0 || self.directory
    }
}

/// Somewhere a program can run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the namespace.
    pub netns: String,
    /// Socket of the agent that is responsible.
    pub socket: Option<PathBuf>,
}

impl Lab {
    /// Makes a lab and waits for the first ping through the tunnel. What was made is removed when it fails.
    ///
    /// # Errors
    /// [`LabError`]; [`LabError::Exists`] when there is one of that name.
    ///
    /// # Panics
    /// Inside an asynchronous runtime.
    pub fn up(options: LabOptions, steps: &Steps) -> Result<Lab, LabError> {
        let start = steps.elapsed();
        let plan = Plan::new(options)?;
        if let Some(note) = space::prepare()? {
            steps.note(&note);
        }
        let name = plan.options.name.clone();
        state::claim(&name)?;
        let made = Lab::build(plan, steps, start);
        if made.is_err() {
            // The first error is the one to tell.
            let _ = Lab::down(&name);
        }
        made
    }

    /// A lab made earlier.
    ///
    /// # Errors
    /// [`LabError::NoLab`].
    pub fn open(name: &str) -> Result<Lab, LabError> {
        Ok(Lab {
            state: LabState::load(name)?,
        })
    }

    /// Removes a lab, whatever state it is in; fine if there is none.
    ///
    /// # Errors
    /// [`LabError::Io`] naming what would not go.
    pub fn down(name: &str) -> Result<Removed, LabError> {
        check_name(name)?;
        let dir = lab_dir(name);
        let _lock = match state::lock(name) {
            // Nothing to wait for, or another one removed it meanwhile.
            Err(LabError::NoLab(_)) => None,
            lock => Some(lock?),
        };
        let processes = process::marked(name).context(|| "list processes".into())?;
        let killed =
            end_all(&processes, GRACE).context(|| format!("end the processes of lab {name}"))?;
        let removed = Removed {
            processes: processes.len(),
            killed: killed.len(),
            namespaces: space::of_lab(name).len(),
            directory: dir.is_dir(),
            log_faults: log_faults(&dir),
        };
        let namespaces = space::remove_all(name);
        // Its agents were killed, and left what they tell workloads of names.
        let resolv = crate::host::sweep_resolv(&dir, true, &BTreeSet::new());
        space::remove_tree(&dir)?;
        resolv?;
        namespaces?;
        // Fails when there are other labs, as it should.
        let _ = fs::remove_dir(LABS_DIR);
        Ok(removed)
    }

    /// Name, plan, processes.
    pub fn state(&self) -> &LabState {
        &self.state
    }

    /// What it consists of.
    pub fn plan(&self) -> &Plan {
        &self.state.plan
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        self.state.name()
    }

    /// API socket of a node's agent.
    pub fn socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("run/weft.sock")
    }

    /// Log of a node's agent.
    pub fn log(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("agent.log")
    }

    /// Whether the agent of a node runs.
    pub fn agent_alive(&self, node: &str) -> bool {
        self.state.agents.get(node).is_some_and(ProcessId::alive)
    }

    /// A node by name.
    ///
    /// # Errors
    /// [`LabError::NoPlace`] listing the nodes.
    pub fn node(&self, name: &str) -> Result<&NodePlan, LabError> {
        self.plan()
            .node(name)
            .ok_or_else(|| self.no_place("node", name, self.node_names()))
    }

    /// A workload by name.
    ///
    /// # Errors
    /// [`LabError::NoPlace`] listing the workloads.
    pub fn workload(&self, name: &str) -> Result<&WorkloadPlan, LabError> {
        let found = self.plan().workload(name);
        found.ok_or_else(|| self.no_place("workload", name, self.workload_names()))
    }

    /// A node, a workload, or `net` for the underlay.
    ///
    /// # Errors
    /// [`LabError::NoPlace`] listing them all.
    pub fn place(&self, name: &str) -> Result<Place, LabError> {
        let socket =
            |node: &NodePlan| (node.kind == NodeKind::Agent).then(|| self.socket(&node.name));
        if name == SWITCH {
            return Ok(Place {
                netns: self.plan().switch.clone(),
                socket: None,
            });
        }
        if let Some(node) = self.plan().node(name) {
            return Ok(Place {
                netns: node.netns.clone(),
                socket: socket(node),
            });
        }
        if let Some(workload) = self.plan().workload(name) {
            let home = self.plan().node(&workload.node).and_then(socket);
            return Ok(Place {
                netns: workload.netns.clone(),
                socket: home,
            });
        }
        let mut have = self.node_names();
        have.extend(self.workload_names());
        have.push(SWITCH.into());
        Err(self.no_place("node or workload", name, have))
    }

    /// Opens the namespace of a place.
    ///
    /// # Errors
    /// As [`Lab::place`]; [`LabError::Io`].
    pub fn netns(&self, place: &str) -> Result<Netns, LabError> {
        space::open(&self.place(place)?.netns)
    }

    /// A command that will run in a place: marked as the lab's, with `WEFT_SOCKET` set. The calling thread
    /// must enter the namespace itself, see [`Lab::exec`], or use [`Netns::enter_on_spawn`].
    ///
    /// # Errors
    /// As [`Lab::place`].
    pub fn command(&self, place: &str, words: &[String]) -> Result<Command, LabError> {
        let place = self.place(place)?;
        let (program, args) = words
            .split_first()
            .ok_or_else(|| LabError::Options("no command given".into()))?;
        let mut command = Command::new(program);
        command.args(args).env(MARK_VAR, self.name());
        command.env("PATH", self.search_path());
        if let Some(socket) = place.socket {
            command.env("WEFT_SOCKET", socket);
        }
        Ok(command)
    }

    /// Becomes a command that runs in a place. Returns only when that fails.
    pub fn exec(&self, place: &str, words: &[String]) -> LabError {
        let mut command = match self.command(place, words) {
            Ok(command) => command,
            Err(error) => return error,
        };
        let entered = self.netns(place).and_then(|netns| {
            netns
                .enter_this_thread()
                .context(|| format!("enter {place}"))
        });
        match entered {
            Ok(()) => LabError::Io {
                what: format!("run {}", words[0]),
                source: command.exec(),
            },
            Err(error) => error,
        }
    }

    /// Sends a signal to a node's agent. With [`Signal::SIGKILL`] it returns once the agent is gone.
    ///
    /// # Errors
    /// [`LabError::NoPlace`]; [`LabError::Condition`] when no agent runs there; [`LabError::Privilege`] when
    /// it is another user's; [`LabError::Timeout`] when it does not go.
    pub fn kill_agent(&self, node: &str, signal: Signal) -> Result<ProcessId, LabError> {
        self.node(node)?;
        let running = self
            .state
            .agents
            .get(node)
            .filter(|process| process.alive());
        let process =
            *running.ok_or_else(|| LabError::Condition(format!("no agent runs on {node}")))?;
        process
            .signal(signal)
            .context(|| format!("send {signal} to the agent of {node}, pid {}", process.pid))?;
        if signal == Signal::SIGKILL && !process.ended_within(GRACE) {
            return Err(LabError::Timeout {
                what: format!("the end of the agent of {node}, pid {}", process.pid),
                seconds: GRACE.as_secs(),
                detail: String::new(),
            });
        }
        Ok(process)
    }

    /// Starts a node's agent anew, waits until it answers and tells it who is where.
    ///
    /// # Errors
    /// [`LabError::Condition`] when it runs already; as [`Lab::up`].
    pub fn start_agent(&mut self, node: &str) -> Result<ProcessId, LabError> {
        let _lock = state::lock(self.name())?;
        let agent = self.boot_agent(node)?;
        // A node of a cluster is told by the others.
        if self.plan().options.managers == 0 {
            control::tell(self.plan(), std::slice::from_ref(&agent))?;
        }
        Ok(agent.process)
    }

    /// The same without telling it anything: what it knows, it knows from its own state file.
    ///
    /// # Errors
    /// As [`Lab::start_agent`].
    pub fn start_agent_untold(&mut self, node: &str) -> Result<ProcessId, LabError> {
        let _lock = state::lock(self.name())?;
        Ok(self.boot_agent(node)?.process)
    }

    /// Puts a relay into the node's link, if there is none, and changes what it does to frames.
    ///
    /// # Errors
    /// [`LabError::Options`] for values that make no sense; as [`relay::ask`].
    pub fn impair(&mut self, node: &str, impairment: &LinkImpairment) -> Result<Report, LabError> {
        for one in [&impairment.out, &impairment.into] {
            one.check().map_err(LabError::Options)?;
        }
        let _lock = state::lock(self.name())?;
        self.state = LabState::load(self.name())?;
        let node = self.node(node)?.clone();
        let running = self
            .state
            .relays
            .get(&node.name)
            .filter(|relay| relay.process.alive());
        if running.is_none() {
            self.insert_relay(&node)?;
        }
        let report = relay::ask(
            &self.relay_socket(&node.name),
            &Request::Change(impairment.clone()),
        )?;
        if let Some(relay) = self.state.relays.get_mut(&node.name) {
            relay.impairment = impairment.clone();
        }
        self.state.save()?;
        Ok(report)
    }

    /// Cuts nodes off from all others; among themselves they stay together. Nodes that were cut off before and are
    /// not named are joined with the rest again.
    ///
    /// # Errors
    /// [`LabError::NoPlace`]; [`LabError::Host`] with the kernel's reason.
    pub fn cut(&mut self, nodes: &[String]) -> Result<(), LabError> {
        for node in nodes {
            self.node(node)?;
        }
        let _lock = state::lock(self.name())?;
        self.state = LabState::load(self.name())?;
        let switch = space::open(&self.plan().switch)?;
        let mtu = self.plan().options.underlay_mtu;
        let all = self.plan().nodes.clone();
        block_on(async {
            links::put_island(&switch, mtu).await?;
            for node in &all {
                let port = match self.state.relays.contains_key(&node.name) {
                    true => port_name(node),
                    false => node.nic(),
                };
                let bridge = match nodes.contains(&node.name) {
                    true => links::ISLAND,
                    false => links::BRIDGE,
                };
                links::move_port(&switch, &port, mtu, bridge).await?;
            }
            Ok(())
        })
    }

    /// What a node's relay did so far; `None` when its link has none.
    ///
    /// # Errors
    /// As [`relay::ask`].
    pub fn impairment(&self, node: &str) -> Result<Option<Report>, LabError> {
        let node = self.node(node)?;
        match self.state.relays.contains_key(&node.name) {
            true => relay::ask(&self.relay_socket(&node.name), &Request::Report).map(Some),
            false => Ok(None),
        }
    }

    /// Takes the relay out of the node's link; fine if there is none.
    ///
    /// # Errors
    /// [`LabError::Host`] with the kernel's reason.
    pub fn clear_impairment(&mut self, node: &str) -> Result<(), LabError> {
        let _lock = state::lock(self.name())?;
        self.state = LabState::load(self.name())?;
        let node = self.node(node)?.clone();
        let Some(relay) = self.state.relays.remove(&node.name) else {
            return Ok(());
        };
        let switch = space::open(&self.plan().switch)?;
        let mtu = self.plan().options.underlay_mtu;
        block_on(async {
            links::remove(&switch, &port_name(&node)).await?;
            links::set_port(&switch, &node.nic(), mtu, true).await
        })?;
        end_all(&[relay.process], GRACE).context(|| "end the relay".into())?;
        self.switch_offloads(&node, &relay.offloads)?;
        self.state.save()
    }

    /// Asks every workload from every other one; `None` where no answer came.
    ///
    /// # Errors
    /// [`LabError::Io`] when a socket fails; [`LabError::Interrupted`].
    pub fn ping_matrix(&self, steps: &Steps) -> Result<Vec<Vec<Option<Duration>>>, LabError> {
        let workloads = &self.plan().workloads;
        let mut rows = Vec::new();
        for from in workloads {
            let mut pinger = Pinger::open(&space::open(&from.netns)?)?;
            let mut row = Vec::new();
            for to in workloads {
                steps.interrupt().check()?;
                row.push(best_of_three(&mut pinger, to.ip)?);
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn build(plan: Plan, steps: &Steps, start: Duration) -> Result<Lab, LabError> {
        let mut lab = Lab {
            state: LabState::new(plan),
        };
        lab.state.save()?;
        let _lock = state::lock(lab.name())?;
        lab.make_namespaces()?;
        block_on(links::build(lab.plan()))?;
        lab.apply_offloads()?;
        steps.done(&format!(
            "{} nodes on an underlay with MTU {}, offloads {}; {} workloads",
            lab.plan().nodes.len(),
            lab.plan().options.underlay_mtu,
            lab.plan().options.offloads.word(),
            lab.plan().workloads.len()
        ))?;
        let agents = lab.start_all_agents()?;
        for node in lab
            .plan()
            .nodes
            .iter()
            .filter(|node| node.kind == NodeKind::Kernel)
        {
            KernelVxlan::of_node(lab.plan(), node).build()?;
        }
        control::wait_for_agents(&agents, AGENT_LIMIT)?;
        steps.done(&format!(
            "{} agents answer, {} kernel peers are set up",
            agents.len(),
            lab.plan().options.kernel_peers
        ))?;
        control::tell(lab.plan(), &agents)?;
        steps.done(&format!(
            "network {} {} gateway {} VNI {}, workloads attached",
            lab.plan().options.network,
            lab.plan().options.subnet,
            lab.plan().options.gateway,
            lab.plan().options.vni
        ))?;
        if let Some(text) = lab.first_ping(steps)? {
            lab.state.first_ping_ms = Some((steps.elapsed() - start).as_millis() as u64);
            steps.done(&text)?;
        }
        lab.state.ready = true;
        lab.state.save()?;
        Ok(lab)
    }

    fn make_namespaces(&self) -> Result<(), LabError> {
        let plan = self.plan();
        let nodes = plan.nodes.iter().map(|node| &node.netns);
        let workloads = plan.workloads.iter().map(|workload| &workload.netns);
        for name in [&plan.switch].into_iter().chain(nodes).chain(workloads) {
            space::create(name)?;
        }
        Ok(())
    }

    fn apply_offloads(&self) -> Result<(), LabError> {
        let wanted = self.plan().options.offloads.switches();
        if wanted.is_empty() {
            return Ok(());
        }
        let switch = space::open(&self.plan().switch)?;
        for node in &self.plan().nodes {
            offloads::switch(&space::open(&node.netns)?, NODE_LINK, wanted)?;
            offloads::switch(&switch, &node.nic(), wanted)?;
        }
        Ok(())
    }

    fn start_all_agents(&mut self) -> Result<Vec<AgentAt>, LabError> {
        let nodes: Vec<NodePlan> = agent_nodes(self.plan()).cloned().collect();
        let mut agents = Vec::new();
        for node in nodes {
            let agent = self.spawn_agent(&node)?;
            self.state.agents.insert(node.name, agent.process);
            agents.push(agent);
        }
        self.state.save()?;
        Ok(agents)
    }

    /// Starts an agent that is down and waits until it answers. The caller holds the lab's lock.
    fn boot_agent(&mut self, node: &str) -> Result<AgentAt, LabError> {
        // Another command may have changed it since it was read.
        self.state = LabState::load(self.name())?;
        let node = self.node(node)?.clone();
        if node.kind != NodeKind::Agent {
            return Err(LabError::Options(format!("{} has no agent", node.name)));
        }
        if self.agent_alive(&node.name) {
            return Err(LabError::Condition(format!(
                "the agent of {} runs already",
                node.name
            )));
        }
        let agent = self.spawn_agent(&node)?;
        self.state.agents.insert(node.name, agent.process);
        self.state.save()?;
        control::wait_for_agents(std::slice::from_ref(&agent), AGENT_LIMIT)?;
        Ok(agent)
    }

    fn spawn_agent(&self, node: &NodePlan) -> Result<AgentAt, LabError> {
        let dir = self.node_dir(&node.name);
        fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
        let log = self.log(&node.name);
        let process = process::spawn(&Spawn {
            lab: self.name(),
            netns: &space::open(&node.netns)?,
            program: &self.binary()?,
            args: &control::agent_args(self.plan(), node, &dir),
            log: &log,
        })?;
        Ok(AgentAt {
            node: node.name.clone(),
            process,
            socket: self.socket(&node.name),
            log,
        })
    }

    /// Pings from the first agent's workload to the first one elsewhere until an answer comes.
    fn first_ping(&self, steps: &Steps) -> Result<Option<String>, LabError> {
        let plan = self.plan();
        let Some(from) = plan.workloads.first() else {
            return Ok(None);
        };
        let Some((to, _)) = plan.remote_workloads(&from.node).next() else {
            return Ok(None);
        };
        let mut pinger = Pinger::open(&space::open(&from.netns)?)?;
        let end = Instant::now() + FIRST_PING_LIMIT;
        while Instant::now() < end {
            steps.interrupt().check()?;
            if let Some(time) = pinger.ping(to.ip, PING_TRY)? {
                let ms = time.as_secs_f64() * 1e3;
                return Ok(Some(format!(
                    "first ping {} -> {}: {ms:.2} ms",
                    from.name, to.name
                )));
            }
        }
        Err(LabError::Timeout {
            what: format!("a ping from {} to {}", from.name, to.name),
            seconds: FIRST_PING_LIMIT.as_secs(),
            detail: format!(
                "; the agent of {} says: {}",
                from.node,
                process::log_tail(&self.log(&from.node))
            ),
        })
    }

    fn insert_relay(&mut self, node: &NodePlan) -> Result<(), LabError> {
        let switch = space::open(&self.plan().switch)?;
        let mtu = self.plan().options.underlay_mtu;
        let (inner, port) = (inner_name(node), port_name(node));
        // Left over if an earlier relay was killed; its links are of no use to anyone.
        let earlier = self.state.relays.remove(&node.name);
        block_on(links::remove(&switch, &port))?;
        block_on(links::add_pair(&switch, &inner, &port, mtu))?;
        let offloads = match earlier {
            Some(relay) => relay.offloads,
            None => self.carry_wire_size(node)?,
        };
        for link in [&inner, &port] {
            offloads::switch(&switch, link, &WIRE_SIZE)?;
        }
        let process = self.spawn_relay(&switch, node)?;
        let impairment = LinkImpairment::default();
        self.state.relays.insert(
            node.name.clone(),
            RelayState {
                process,
                impairment,
                offloads,
            },
        );
        self.state.save()?;
        self.wait_for_relay(&node.name, process)?;
        block_on(async {
            links::set_port(&switch, &node.nic(), mtu, false).await?;
            links::set_port(&switch, &port, mtu, true).await
        })
    }

    /// Makes the node's link carry frames as a wire does. Returns what it was before: (at the node, link, …).
    fn carry_wire_size(&self, node: &NodePlan) -> Result<Vec<(String, String, bool)>, LabError> {
        let mut before = Vec::new();
        for (place, netns, link) in self.link_ends(node) {
            let changed = offloads::switch(&space::open(&netns)?, &link, &WIRE_SIZE)?;
            before.extend(
                changed
                    .into_iter()
                    .map(|(name, on)| (place.clone(), name, on)),
            );
        }
        Ok(before)
    }

    fn switch_offloads(
        &self,
        node: &NodePlan,
        wanted: &[(String, String, bool)],
    ) -> Result<(), LabError> {
        for (place, netns, link) in self.link_ends(node) {
            let here = wanted.iter().filter(|(at, _, _)| *at == place);
            let switches: Vec<_> = here.map(|(_, name, on)| (name.as_str(), *on)).collect();
            offloads::switch(&space::open(&netns)?, &link, &switches)?;
        }
        Ok(())
    }

    /// Both ends of a node's link: a word for it, the namespace, the link.
    fn link_ends(&self, node: &NodePlan) -> [(String, String, String); 2] {
        [
            ("node".into(), node.netns.clone(), NODE_LINK.into()),
            (SWITCH.into(), self.plan().switch.clone(), node.nic()),
        ]
    }

    fn spawn_relay(&self, switch: &Netns, node: &NodePlan) -> Result<ProcessId, LabError> {
        let dir = self.node_dir(&node.name);
        fs::create_dir_all(&dir).context(|| format!("make {}", dir.display()))?;
        let control = self.relay_socket(&node.name).display().to_string();
        let args = [
            "lab",
            "relay",
            "--nic",
            &node.nic(),
            "--port",
            &inner_name(node),
            "--control",
            &control,
        ];
        process::spawn(&Spawn {
            lab: self.name(),
            netns: switch,
            program: &self.binary()?,
            args: &args.map(str::to_owned),
            log: &self.relay_log(&node.name),
        })
    }

    fn wait_for_relay(&self, node: &str, process: ProcessId) -> Result<(), LabError> {
        let end = Instant::now() + RELAY_LIMIT;
        loop {
            let Err(error) = relay::ask(&self.relay_socket(node), &Request::Report) else {
                return Ok(());
            };
            if process.ended_within(Duration::from_millis(2)) {
                let log = process::log_tail(&self.relay_log(node));
                return Err(LabError::Ended {
                    what: format!("the relay of {node}"),
                    log,
                });
            }
            if Instant::now() >= end {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn node_dir(&self, node: &str) -> PathBuf {
        self.state.dir().join(node)
    }

    fn relay_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("relay.sock")
    }

    fn relay_log(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("relay.log")
    }

    /// The user's own, and at its end the directory of the agents' program: `weft` is found in a lab even where it
    /// is not installed.
    fn search_path(&self) -> OsString {
        let own = std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
        let binary = self.binary().ok();
        let last = binary
            .as_deref()
            .and_then(Path::parent)
            .map(Path::to_path_buf);
        let all = std::env::split_paths(&own).chain(last);
        std::env::join_paths(all).unwrap_or(own)
    }

    /// The program that agents and relays run: this one, unless another was asked for.
    fn binary(&self) -> Result<PathBuf, LabError> {
        match &self.plan().options.binary {
            Some(path) => Ok(path.clone()),
            None => std::env::current_exe().context(|| "find this program".into()),
        }
    }

    fn node_names(&self) -> Vec<String> {
        self.plan()
            .nodes
            .iter()
            .map(|node| node.name.clone())
            .collect()
    }

    fn workload_names(&self) -> Vec<String> {
        self.plan()
            .workloads
            .iter()
            .map(|workload| workload.name.clone())
            .collect()
    }

    fn no_place(&self, what: &'static str, name: &str, have: Vec<String>) -> LabError {
        LabError::NoPlace {
            lab: self.name().into(),
            what,
            name: name.into(),
            have: have.join(", "),
        }
    }
}

fn best_of_three(pinger: &mut Pinger, to: Ipv4Addr) -> Result<Option<Duration>, LabError> {
    let mut best = None;
    for _ in 0..3 {
        let time = pinger.ping(to, PING_LIMIT)?;
        best = [best, time].into_iter().flatten().min();
    }
    Ok(best)
}

/// Lines of the logs below `dir` that speak of an error or a panic.
fn log_faults(dir: &Path) -> Vec<String> {
    let bad = |line: &&str| line.contains("ERROR") || line.contains("panicked at");
    let mut found = Vec::new();
    for node in space::names_in(dir) {
        for log in ["agent.log", "relay.log"] {
            let text = fs::read_to_string(dir.join(&node).join(log)).unwrap_or_default();
            found.extend(
                text.lines()
                    .filter(bad)
                    .map(|line| format!("{node}: {line}")),
            );
        }
    }
    found
}

fn inner_name(node: &NodePlan) -> String {
    format!("rly-{}", node.name)
}

fn port_name(node: &NodePlan) -> String {
    format!("prt-{}", node.name)
}

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What the underlay is called as a place.
pub const SWITCH: &str = "net";
const GRACE: Duration = Duration::from_secs(3);
const AGENT_LIMIT: Duration = Duration::from_secs(10);
const RELAY_LIMIT: Duration = Duration::from_secs(3);
const FIRST_PING_LIMIT: Duration = Duration::from_secs(10);
const PING_TRY: Duration = Duration::from_millis(20);
const PING_LIMIT: Duration = Duration::from_millis(500);
