//! What should be against what is: at the start, and again and again while running.
//!
//! Level-triggered: nothing here depends on having seen an event. [`diff`] is pure and decides; the rest
//! looks and applies. One network that cannot be repaired is reported and tried again; the others go on.

use std::collections::BTreeSet;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::error::{ApiError, ErrorCode};
use super::events::Event;
use super::handle::Agent;
use super::ident;
use super::network::Network;
use super::plumbing::{EndpointPlan, Keep, NetworkPlan};
use super::task::pause;

/// One repair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The endpoint's workload is gone: forget it.
    Forget(String),
    /// Make the network, or take it over as it is.
    Up,
    /// Make the endpoint's interface, or take it over as it is.
    Plug(String),
    /// Remove an interface that belongs to no endpoint of ours.
    Stray(String),
    /// Nobody uses the network here: remove it from the kernel.
    Down,
}

/// What was seen of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Endpoints with kernel objects; `None`: the network's namespace does not exist.
    pub present: Option<BTreeSet<String>>,
    /// Those of them that are not as they were made.
    pub damaged: BTreeSet<String>,
    /// Endpoints whose workload is gone.
    pub gone: BTreeSet<String>,
    /// Whether this agent already forwards for the network.
    pub forwarding: bool,
    /// Whether the network itself is not as it was made.
    pub faulty: bool,
}

/// The repairs that lead from what was seen to what should be, in the order to apply them.
pub fn diff(desired: &BTreeSet<String>, observed: &Observed) -> Vec<Step> {
    let mut steps: Vec<Step> = desired
        .intersection(&observed.gone)
        .cloned()
        .map(Step::Forget)
        .collect();
    let staying: BTreeSet<String> = desired.difference(&observed.gone).cloned().collect();
    let nothing = BTreeSet::new();
    let present = observed.present.as_ref().unwrap_or(&nothing);
    let strays = present.difference(desired).cloned().map(Step::Stray);
    if staying.is_empty() {
        steps.extend(strays);
        if observed.forwarding || observed.present.is_some() {
            steps.push(Step::Down);
        }
        return steps;
    }
    let whole = observed.forwarding && observed.present.is_some();
    if !whole || observed.faulty {
        steps.push(Step::Up);
    }
    steps.extend(strays);
    // A network that is taken over may hold half-made interfaces: every one is gone through.
    let sound = |id: &String| whole && present.contains(id) && !observed.damaged.contains(id);
    let plug = staying.into_iter().filter(|id| !sound(id));
    steps.extend(plug.map(Step::Plug));
    steps
}

/// Makes the kernel agree with the state that was just loaded, and removes what belongs to neither.
pub async fn at_start(agent: &Agent) {
    look_at_underlay(agent).await;
    for network in networks(agent) {
        repair(agent, &network).await;
    }
    let keep: Keep = {
        let live = agent.live();
        let kept = live
            .node
            .catalog
            .networks
            .keys()
            .filter(|id| live.endpoints_of(id).next().is_some());
        kept.map(|id| {
            (
                id.clone(),
                live.endpoints_of(id).map(|e| e.id.clone()).collect(),
            )
        })
        .collect()
    };
    match agent.plumbing().sweep(keep).await {
        Ok(swept) => {
            for object in swept.removed {
                agent.emit(Event::Swept { object });
            }
            if !swept.failures.is_empty() {
                agent.trouble("sweep", "kernel_refused", &left_behind(&swept.failures));
            }
        }
        Err(error) => agent.trouble("sweep", "kernel_refused", &error),
    }
}

fn left_behind(failures: &[String]) -> ApiError {
    ApiError::new(
        ErrorCode::KernelRefused,
        format!("leftovers could not be removed: {}", failures.join("; ")),
        "free what holds them, then restart the agent: systemctl restart weft",
    )
}

/// Starts the task that compares at every interval.
pub fn spawn(agent: &Agent) {
    let watched = agent.clone();
    agent.inner.tasks.spawn("reconcile", |mut stop| async move {
        let interval = watched.settings().reconcile_interval;
        while pause(&mut stop, interval).await {
            look_at_underlay(&watched).await;
            watched.names_changed();
            for network in networks(&watched) {
                if watched.inner.tasks.stopping() {
                    return;
                }
                repair(&watched, &network).await;
            }
        }
    });
}

fn networks(agent: &Agent) -> Vec<Network> {
    agent
        .live()
        .node
        .catalog
        .networks
        .values()
        .cloned()
        .collect()
}

async fn look_at_underlay(agent: &Agent) {
    match agent.plumbing().underlay().await {
        Ok(found) => {
            let before = std::mem::replace(&mut agent.live().underlay_mtu, found.mtu);
            agent.well_again("underlay");
            // Each network's MTU is compared by itself.
            if before != 0 && before != found.mtu {
                tracing::info!(
                    device = found.ifname,
                    before,
                    now = found.mtu,
                    "underlay MTU changed"
                );
            }
        }
        Err(error) => agent.trouble("underlay", "vtep_missing", &error),
    }
}

/// Compares one network and repairs it.
async fn repair(agent: &Agent, network: &Network) {
    let _turn = agent.lock_network(&network.id).await;
    // It may have been removed while waiting for the turn.
    if agent.live().network(&network.id).is_err() {
        return;
    }
    let mut result = Ok(true);
    for _ in 0..ROUNDS {
        if let Ok(true) = result {
            result = repair_once(agent, network).await;
        }
    }
    // Without a comparison, a server that failed to start would stay away.
    let up = agent.live().up.contains_key(&network.id);
    if up {
        agent.serve_names(network).await;
    }
    report(agent, network, result.map(drop));
}

/// Tells whether anything was done.
async fn repair_once(agent: &Agent, network: &Network) -> Result<bool, ApiError> {
    let endpoints: Vec<Endpoint> = agent.live().endpoints_of(&network.id).cloned().collect();
    let observed = observe(agent, network, &endpoints).await?;
    let desired = endpoints.iter().map(|e| e.id.clone()).collect();
    let steps = diff(&desired, &observed);
    let any = !steps.is_empty();
    apply(agent, network, &endpoints, &observed, steps).await?;
    Ok(any)
}

/// A repair of a network, its MTU or its bridge, shows what its endpoints need: one more look.
const ROUNDS: usize = 2;

fn report(agent: &Agent, network: &Network, result: Result<(), ApiError>) {
    let key = format!("network {}", network.name);
    match result {
        Ok(()) => agent.well_again(&key),
        Err(error) => agent.trouble(&key, error.code.as_str(), &error),
    }
}

async fn observe(
    agent: &Agent,
    network: &Network,
    endpoints: &[Endpoint],
) -> Result<Observed, ApiError> {
    let forwarding = agent.live().up.contains_key(&network.id);
    if endpoints.is_empty() && !forwarding {
        // What a killed agent left of it is swept at the start.
        return Ok(Observed::default());
    }
    let present = agent.plumbing().present(NetworkPlan::of(network)).await?;
    let mut gone = BTreeSet::new();
    for endpoint in endpoints {
        let key = endpoint_key(network, endpoint);
        match is_alive(agent, endpoint) {
            Ok(true) => agent.well_again(&key),
            Ok(false) => drop(gone.insert(endpoint.id.clone())),
            // A lack of descriptors or memory says nothing about the workload.
            Err(error) => agent.trouble(&key, error.code.as_str(), &error),
        }
    }
    let mut observed = Observed {
        gone,
        forwarding,
        damaged: outdated(agent, network, endpoints),
        ..Observed::default()
    };
    if let Some(present) = present {
        if !present.faults.is_empty() {
            tracing::warn!(network = network.name, faults = ?present.faults, "not as it was made");
        }
        observed.faulty = !present.faults.is_empty();
        observed.damaged.extend(present.damaged);
        observed.present = Some(present.endpoints);
    }
    Ok(observed)
}

/// A container engine runs its containers a moment after it has made their interfaces.
pub(super) fn is_alive(agent: &Agent, endpoint: &Endpoint) -> Result<bool, ApiError> {
    if endpoint.netns_inode != 0 {
        let (target, inode) = (&endpoint.target, endpoint.netns_inode);
        return agent.plumbing().workload_alive(target, inode);
    }
    match agent.plumbing().workload(&endpoint.target) {
        Ok(found) => {
            if let Some(own) = agent.live().node.endpoints.get_mut(&endpoint.id) {
                own.netns = found.path;
                own.netns_inode = found.netns_inode;
            }
            Ok(true)
        }
        Err(error) if error.code == ErrorCode::TargetNotFound => {
            let age = ident::unix_nanos().saturating_sub(endpoint.created);
            Ok(Duration::from_nanos(age) < START_LIMIT)
        }
        Err(error) => Err(error),
    }
}

/// A container that has not begun to run so long after it joined will not.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Endpoints whose interface was made for another MTU than the network has.
fn outdated(agent: &Agent, network: &Network, endpoints: &[Endpoint]) -> BTreeSet<String> {
    let live = agent.live();
    let mtu = live.up.get(&network.id).map(|up| up.mtu);
    let other = endpoints
        .iter()
        .filter(|e| mtu.is_some() && live.mtus.get(&e.id).copied() != mtu);
    other.map(|e| e.id.clone()).collect()
}

async fn apply(
    agent: &Agent,
    network: &Network,
    endpoints: &[Endpoint],
    observed: &Observed,
    steps: Vec<Step>,
) -> Result<(), ApiError> {
    let mut first_error = Ok(());
    for step in steps {
        let result = apply_one(agent, network, endpoints, observed, &step).await;
        if let Err(error) = result {
            tracing::warn!(network = network.name, ?step, %error, "repair failed");
            let fatal = step == Step::Up;
            first_error = first_error.and(Err(error));
            if fatal {
                break;
            }
        }
    }
    first_error
}

async fn apply_one(
    agent: &Agent,
    network: &Network,
    endpoints: &[Endpoint],
    observed: &Observed,
    step: &Step,
) -> Result<(), ApiError> {
    let find = |id: &String| endpoints.iter().find(|endpoint| endpoint.id == *id);
    match step {
        Step::Forget(id) => match find(id) {
            Some(endpoint) => forget(agent, network, endpoint).await,
            None => Ok(()),
        },
        Step::Up => agent.bring_up(network).await.map(drop),
        Step::Plug(id) => {
            let Some(endpoint) = find(id) else {
                return Ok(());
            };
            plug(agent, network, endpoint).await?;
            let adopted = observed
                .present
                .as_ref()
                .is_some_and(|present| present.contains(id));
            if adopted && observed.forwarding {
                tracing::info!(network = network.name, endpoint = endpoint.name, "repaired");
                return Ok(());
            }
            let (network, endpoint, name) = (network.id.clone(), id.clone(), endpoint.name.clone());
            agent.emit(if adopted {
                Event::EndpointAdopted {
                    network,
                    endpoint,
                    name,
                }
            } else {
                Event::EndpointAttached {
                    network,
                    endpoint,
                    name,
                }
            });
            Ok(())
        }
        Step::Stray(id) => {
            agent.plumbing().endpoint_down(&network.id, id).await?;
            agent.emit(Event::Swept {
                object: format!("endpoint {id}"),
            });
            Ok(())
        }
        Step::Down => agent.bring_down(network).await,
    }
}

/// Makes or repairs an endpoint's interface. The caller holds the network's lock.
pub(super) async fn plug(
    agent: &Agent,
    network: &Network,
    endpoint: &Endpoint,
) -> Result<(), ApiError> {
    let up = agent
        .plumbing()
        .endpoint_up(EndpointPlan::of(network, endpoint))
        .await?;
    agent.live().mtus.insert(endpoint.id.clone(), up.mtu);
    Ok(())
}

/// Names an endpoint's trouble.
pub(super) fn endpoint_key(network: &Network, endpoint: &Endpoint) -> String {
    format!("endpoint {} of {}", endpoint.name, network.name)
}

/// Takes an endpoint whose workload is gone out of state, tables and kernel. The caller holds the
/// network's lock.
pub(super) async fn forget(
    agent: &Agent,
    network: &Network,
    endpoint: &Endpoint,
) -> Result<(), ApiError> {
    agent.live().node.endpoints.remove(&endpoint.id);
    if let Err(error) = agent.save().await {
        agent
            .live()
            .node
            .endpoints
            .insert(endpoint.id.clone(), endpoint.clone());
        return Err(error);
    }
    agent.emit(Event::EndpointLost {
        network: network.id.clone(),
        endpoint: endpoint.id.clone(),
        name: endpoint.name.clone(),
        reason: format!("the namespace of workload \"{}\" is gone", endpoint.target),
    });
    agent.unplug(network, endpoint).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn seen(present: Option<&[&str]>, gone: &[&str], forwarding: bool) -> Observed {
        Observed {
            present: present.map(set),
            gone: set(gone),
            forwarding,
            ..Observed::default()
        }
    }

    fn steps(desired: &[&str], observed: &Observed) -> Vec<Step> {
        diff(&set(desired), observed)
    }

    #[test]
    fn agreement_needs_nothing() {
        assert_eq!(steps(&[], &seen(None, &[], false)), []);
        assert_eq!(steps(&["a"], &seen(Some(&["a"]), &[], true)), []);
    }

    #[test]
    fn a_restarted_agent_takes_over_what_is_there() {
        let expect = [Step::Up, Step::Plug("a".into()), Step::Plug("b".into())];
        assert_eq!(
            steps(&["a", "b"], &seen(Some(&["a", "b"]), &[], false)),
            expect
        );
        assert_eq!(
            steps(&["a", "b"], &seen(None, &[], false)),
            expect,
            "and makes what is not"
        );
    }

    #[test]
    fn endpoints_of_dead_workloads_are_forgotten_and_the_last_takes_the_network_along() {
        assert_eq!(
            steps(&["a", "b"], &seen(Some(&["b"]), &["a"], true)),
            [Step::Forget("a".into())]
        );
        let last = seen(Some(&[]), &["a"], true);
        assert_eq!(steps(&["a"], &last), [Step::Forget("a".into()), Step::Down]);
    }

    #[test]
    fn lost_interfaces_and_namespaces_come_back() {
        assert_eq!(
            steps(&["a", "b"], &seen(Some(&["a"]), &[], true)),
            [Step::Plug("b".into())]
        );
        assert_eq!(
            steps(&["a"], &seen(None, &[], true)),
            [Step::Up, Step::Plug("a".into())]
        );
    }

    #[test]
    fn damage_is_repaired_where_it_is() {
        let mut observed = seen(Some(&["a", "b"]), &[], true);
        observed.faulty = true;
        assert_eq!(steps(&["a", "b"], &observed), [Step::Up]);
        observed.faulty = false;
        observed.damaged = set(&["b"]);
        assert_eq!(steps(&["a", "b"], &observed), [Step::Plug("b".into())]);
    }

    #[test]
    fn strays_go() {
        assert_eq!(
            steps(&["a"], &seen(Some(&["a", "x"]), &[], true)),
            [Step::Stray("x".into())]
        );
        assert_eq!(
            steps(&[], &seen(Some(&["x"]), &[], false)),
            [Step::Stray("x".into()), Step::Down]
        );
    }

    #[test]
    fn applying_the_steps_leads_to_agreement() {
        // Every combination of two endpoints wanted, present, gone, damaged, and of the network's own state.
        for bits in 0u32..2048 {
            let pick = |shift: u32| {
                let mut ids = Vec::new();
                if bits >> shift & 1 == 1 {
                    ids.push("a")
                }
                if bits >> (shift + 1) & 1 == 1 {
                    ids.push("b")
                }
                ids
            };
            let mut desired = set(&pick(0));
            let there = bits >> 6 & 1 == 1;
            let mut observed = seen(there.then_some(&pick(2)[..]), &pick(4), bits >> 7 & 1 == 1);
            observed.faulty = bits >> 8 & 1 == 1;
            observed.damaged = set(&pick(9));
            for step in diff(&desired, &observed) {
                match step {
                    Step::Forget(id) => {
                        desired.remove(&id);
                        if let Some(present) = &mut observed.present {
                            present.remove(&id);
                        }
                    }
                    Step::Up => {
                        observed.forwarding = true;
                        observed.faulty = false;
                        observed.present.get_or_insert_default();
                    }
                    Step::Plug(id) => {
                        observed.damaged.remove(&id);
                        assert!(
                            observed.present.as_mut().unwrap().insert(id) || observed.forwarding
                        );
                    }
                    Step::Stray(id) => assert!(observed.present.as_mut().unwrap().remove(&id)),
                    Step::Down => {
                        observed = Observed {
                            gone: observed.gone,
                            ..Observed::default()
                        }
                    }
                }
            }
            assert_eq!(diff(&desired, &observed), [], "{bits:011b}");
        }
    }
}
