//! Swarm's services on a managed plugin: replicas, limits, updates and drains, with clients outside all the while.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::common::skip::long;
use super::docker_support::{
    Bed, Engine, IMAGE, OUTSIDE, PATIENCE, eventually, get, ip, note, run,
};
use super::restarts::{BootAgent, BootDocker, KillAgent, KillDocker, Step, take};

/// Serves its name, and goes on with that for two seconds when it is told to end, as servers do that end in order.
const SERVER: &str = "mkdir -p /www; hostname > /www/index.html; httpd -f -p 80 -h /www & \
    trap 'sleep 2; exit 0' TERM; wait";
/// Tasks come and go with pauses of Swarm's own.
const SWARM_PATIENCE: Duration = Duration::from_secs(120);

/// Clients outside of the engines, until they are told to end.
struct Clients {
    stop: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
    servers: Mutex<BTreeSet<String>>,
}

impl Clients {
    fn ask(&self, bed: &Bed, to: SocketAddr) {
        let outside = bed.outside();
        while !self.stop.load(Ordering::Relaxed) {
            match get(&outside, to) {
                Ok(body) if !body.trim().is_empty() => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    let server = body.trim().to_owned();
                    self.servers.lock().unwrap().insert(server);
                }
                other => self
                    .failures
                    .lock()
                    .unwrap()
                    .push(format!("{to}: {other:?}")),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Makes the plugin and enables it on both engines.
fn enable_plugin(bed: &Bed, dir: &Path) {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = dir.join("plugin");
    let mut build = Command::new(top.join("deploy/docker-plugin/build"));
    run(build.arg(&made).arg(env!("CARGO_BIN_EXE_weft")));
    for engine in &bed.engines {
        engine.done(&format!("plugin create weft-swarm {}", made.display()));
        engine.done("plugin enable weft-swarm");
    }
}

fn replicas(engine: &Engine) -> String {
    let listed = engine.done("service ls --format {{.Replicas}}");
    listed.trim().to_owned()
}

/// Names of the service's containers on an engine.
fn tasks(engine: &Engine) -> Vec<String> {
    let listed = engine.done("ps --filter name=my-web --format {{.Names}}");
    listed.lines().map(str::to_owned).collect()
}

/// Waits for the service to be as it should, with as many backends at the published port.
fn settled(bed: &Bed, count: usize) {
    eventually("the replicas", SWARM_PATIENCE, || {
        replicas(bed.one()) == format!("{count}/{count}")
    });
    let all = format!("{count}/{count}");
    eventually("the backends", SWARM_PATIENCE, || {
        bed.engines.iter().all(|engine| {
            // A node without a task hears nothing of the network.
            let listed = engine.weft_done("ingress ls");
            listed.contains(&all) || tasks(engine).is_empty()
        })
    });
}

#[test]
fn a_swarm_service_on_weft_loses_no_client_to_scaling_updates_and_drains() {
    let Some(bed) = Bed::new(Default::default()) else {
        return;
    };
    let (one, two) = (bed.one(), bed.two());
    let dir = tempfile::tempdir().unwrap();
    enable_plugin(&bed, dir.path());
    bed.form_swarm();
    let name = "--driver weft-swarm:latest --subnet 10.0.1.0/24 --gateway 10.0.1.254 my-network";
    one.done(&format!("network create {name}"));
    let seen = one.inspect("my-network");
    assert_eq!(
        seen["Options"]["com.docker.network.driver.overlay.vxlanid_list"],
        "4097"
    );
    assert_eq!(seen["Scope"], "swarm");
    let mut create: Vec<&str> = "service create --detach --quiet --replicas 3 --name my-web --network my-network \
        --endpoint-mode dnsrr --label weft.publish=8080:80 --limit-cpu 0.5 --limit-memory 64M --reserve-cpu 0.05 \
        --reserve-memory 8M --update-parallelism 1 --update-delay 1s --update-order start-first"
        .split_whitespace()
        .collect();
    create.extend([IMAGE, "sh", "-c", SERVER]);
    let created = one.docker_words(&create);
    assert!(created.ok, "{created:?}");
    settled(&bed, 3);
    // Each is reached by name and address from each, and runs within its limits.
    let mut addresses: Vec<Ipv4Addr> = Vec::new();
    for engine in &bed.engines {
        let own = tasks(engine);
        assert!(!own.is_empty(), "both engines have tasks");
        for task in own {
            addresses.push(engine.ip(&task, "my-network"));
            let host = engine.inspect(&task)["HostConfig"].clone();
            assert_eq!(host["NanoCpus"], 500_000_000, "{task}");
            assert_eq!(host["Memory"], 64 << 20, "{task}");
            let listed = one.weft_done("ps");
            assert!(listed.contains(&task), "{task}: {listed}");
        }
    }
    assert_eq!(addresses.iter().collect::<BTreeSet<_>>().len(), 3);
    for engine in &bed.engines {
        for task in tasks(engine) {
            for to in &addresses {
                let got = engine.exec(&task, &format!("wget -qO- http://{to}/"));
                assert!(got.ok, "{task} to {to}: {got:?}");
            }
            let got = engine.exec(&task, "wget -qO- http://my-web/");
            assert!(got.ok, "{task} by name: {got:?}");
        }
    }
    // What follows has to go unnoticed by clients of both nodes.
    ip(&format!(
        "-n {} address replace {OUTSIDE}/24 dev sw0",
        bed.switch()
    ));
    let clients = Clients {
        stop: AtomicBool::new(false),
        answered: AtomicUsize::new(0),
        failures: Mutex::default(),
        servers: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for engine in &bed.engines {
            let to = SocketAddr::new(engine.address().into(), 8080);
            let (clients, bed) = (&clients, &bed);
            scope.spawn(move || clients.ask(bed, to));
        }
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut before = 0;
            let mut step = |what: &str| {
                let now = clients.answered.load(Ordering::Relaxed);
                assert!(now > before, "clients were answered during {what}");
                before = now;
                let failures = clients.failures.lock().unwrap().clone();
                assert!(failures.is_empty(), "{what}: {failures:#?}");
            };
            one.done("service scale --detach my-web=5");
            settled(&bed, 5);
            step("scaling up");
            one.done("service scale --detach my-web=3");
            settled(&bed, 3);
            step("scaling down");
            let old: BTreeSet<String> = bed.engines.iter().flat_map(tasks).collect();
            one.done("service update --detach --quiet --env-add ROUND=2 my-web");
            eventually("the end of the update", SWARM_PATIENCE, || {
                let state = one.inspect("my-web")["UpdateStatus"]["State"].clone();
                state == "completed"
            });
            settled(&bed, 3);
            eventually("new tasks alone", PATIENCE, || {
                let now: BTreeSet<String> = bed.engines.iter().flat_map(tasks).collect();
                now.is_disjoint(&old)
            });
            step("a rolling update");
            let node = two.done("info --format {{.Swarm.NodeID}}");
            one.done(&format!("node update --availability drain {}", node.trim()));
            eventually("no task on a drained node", SWARM_PATIENCE, || {
                tasks(two).is_empty()
            });
            settled(&bed, 3);
            step("a drain");
        }));
        clients.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = work {
            std::panic::resume_unwind(panic);
        }
    });
    let servers = clients.servers.lock().unwrap().len();
    let answered = clients.answered.load(Ordering::Relaxed);
    let failures = clients.failures.lock().unwrap().clone();
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(servers >= 6, "{servers} servers have answered");
    note(&format!(
        "scaling, a rolling update and a drain: {answered} requests through two nodes, 0 failed, {servers} servers"
    ));
    one.done("service rm my-web");
    eventually("the end of the published port", SWARM_PATIENCE, || {
        !one.weft_done("ingress ls").contains("my-web")
    });
    eventually("the end of the tasks", SWARM_PATIENCE, || {
        bed.engines.iter().all(|engine| tasks(engine).is_empty())
    });
    eventually("the end of the network", SWARM_PATIENCE, || {
        one.docker("network rm my-network").ok
    });
    eventually("nothing left in weft", PATIENCE, || {
        !one.weft_done("network ls").contains("my-network")
    });
}

/// What is done to the second engine, which manages nothing.
const ORDERS: [&[Step]; 4] = [
    &[KillAgent, BootAgent],
    &[KillDocker, BootDocker],
    &[KillAgent, KillDocker, BootAgent, BootDocker],
    &[KillDocker, KillAgent, BootDocker, BootAgent],
];

#[test]
fn a_managed_plugin_serves_again_after_any_kill() {
    if !long("kills of engines and agents under a managed plugin") {
        return;
    }
    let Some(mut bed) = Bed::new(Default::default()) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    enable_plugin(&bed, dir.path());
    bed.form_swarm();
    let name = "--driver weft-swarm:latest --subnet 10.0.1.0/24 --gateway 10.0.1.254 my-network";
    bed.one().done(&format!("network create {name}"));
    let mut create: Vec<&str> =
        "service create --detach --quiet --mode global --name my-web --network my-network \
        --endpoint-mode dnsrr --label weft.publish=8080:80"
            .split_whitespace()
            .collect();
    create.extend([IMAGE, "sh", "-c", SERVER]);
    let created = bed.one().docker_words(&create);
    assert!(created.ok, "{created:?}");
    each_reaches_all(&bed);
    for order in ORDERS {
        take(&mut bed, &[1], order);
        let begun = Instant::now();
        each_reaches_all(&bed);
        note(&format!(
            "kills {order:?} under a managed plugin: all tasks reach each other {:.1} s after the last step",
            begun.elapsed().as_secs_f64()
        ));
    }
    bed.one().done("service rm my-web");
    eventually("the end of the network", SWARM_PATIENCE, || {
        bed.one().docker("network rm my-network").ok
    });
    eventually("nothing left in weft", PATIENCE, || {
        !bed.one().weft_done("network ls").contains("my-network")
    });
}

/// Waits until there is a running task on each engine, each reaches each by address and by the service's name, and the
/// published port answers on both nodes.
fn each_reaches_all(bed: &Bed) {
    eventually(
        "a task on each engine that reaches all",
        SWARM_PATIENCE,
        || {
            let running: Vec<(&Engine, String)> = bed
                .engines
                .iter()
                .filter_map(|engine| Some((engine, tasks(engine).pop()?)))
                .collect();
            let address = |(engine, task): &(&Engine, String)| {
                let found = engine.inspect(task);
                let ip = found["NetworkSettings"]["Networks"]["my-network"]["IPAddress"].clone();
                ip.as_str().unwrap_or_default().to_owned()
            };
            let mut targets: Vec<String> = running.iter().map(address).collect();
            targets.push("my-web".to_owned());
            running.len() == bed.engines.len()
                && running.iter().all(|(engine, task)| {
                    let reached = |to: &String| engine.exec(task, &format!("ping -c1 -W2 {to}")).ok;
                    targets.iter().all(reached)
                })
                && bed.engines.iter().all(|engine| {
                    let to = SocketAddr::new(engine.address().into(), 8080);
                    get(&bed.outside(), to).is_ok()
                })
        },
    );
}
