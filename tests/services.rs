//! Services on real agents: virtual addresses, published ports, and whom a backend sees.

mod lab_support;
mod service_support;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, long, note};
use service_support::{
    CLIENT_V4, CLIENT_V6, Field, LIMIT, PATIENCE, Server, all_answer, answered, ask, ask_datagram,
    ask_through, backends, netns_name, outsider, publish_my_web, run_in,
};
use weft::sys::netns::Netns;

/// The virtual address of a service, as its inspection tells it.
fn vip(field: &Field, service: &str) -> String {
    let text = field.done("n1", &["service", "inspect", service, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let found = find(&json, "vips").unwrap_or_else(|| panic!("{text}"));
    found[0].as_str().unwrap().to_owned()
}

fn find<'a>(json: &'a serde_json::Value, key: &str) -> Option<&'a serde_json::Value> {
    match json {
        serde_json::Value::Object(map) => map
            .get(key)
            .or_else(|| map.values().find_map(|value| find(value, key))),
        serde_json::Value::Array(list) => list.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

#[test]
fn every_node_leads_to_every_backend_and_each_sees_its_client() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let names = backends(&field);
    publish_my_web(&field);
    for node in 1..=3 {
        for (v6, client) in [(false, CLIENT_V4), (true, CLIENT_V6)] {
            let to = SocketAddr::new(field.address(node, v6), 8080);
            all_answer(&format!("TCP through {to}"), &names, client, || {
                ask(&field.client, to)
            });
            all_answer(&format!("UDP through {to}"), &names, client, || {
                ask_datagram(&field.client, to)
            });
        }
    }
    // A client people use.
    let url = format!("http://{}:8080/", field.address(1, false));
    let fetched = run_in(
        &field.client,
        &["curl", "-sS", "--fail", "--max-time", "5", &url],
    );
    assert!(fetched.trim_end().ends_with(CLIENT_V4), "{fetched}");
    let socket = field.lab.socket("n1").display().to_string();
    let metrics = run_in(
        &field.client,
        &[
            "curl",
            "-sS",
            "--unix-socket",
            &socket,
            "http://weft/metrics",
        ],
    );
    assert!(
        metrics.contains("weft_service_backends{service=\"my-web\",standing=\"ready\"} 3"),
        "{metrics}"
    );

    // From a node itself: by its own address it is the client, over loopback the agent is.
    let node = field.lab.netns("n2").unwrap();
    let own = SocketAddr::new(field.address(2, false), 8080);
    all_answer("from the node", &names, "10.99.0.2", || ask(&node, own));
    for loopback in ["127.0.0.1:8080", "[::1]:8080"] {
        let to: SocketAddr = loopback.parse().unwrap();
        answered(loopback, || ask(&node, to));
        answered(loopback, || ask_datagram(&node, to));
    }
    // From a workload of the node, over its way out.
    let caller = field.workload("n2", "caller", "my-network", &[]);
    answered("a workload through its own node", || ask(&caller, own));
    let other = SocketAddr::new(field.address(3, false), 8080);
    all_answer(
        "a workload through another node",
        &names,
        "10.99.0.2",
        || ask(&caller, other),
    );

    // Nobody is left to answer: said at once. With the service the port goes.
    field.done("n1", &["service", "rm", "my-web"]);
    eventually(
        "the port is closed",
        PATIENCE,
        || matches!(ask(&field.client, own), Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused),
    );
    eventually("the ingress namespace is gone", PATIENCE, || {
        field
            .done("n2", &["ps", "--network", "ingress", "--local", "-q"])
            .is_empty()
    });
}

#[test]
fn a_virtual_address_spreads_connections_and_keeps_the_source() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let names = backends(&field);
    field.done(
        "n2",
        &[
            "service",
            "create",
            "--name",
            "my-web",
            "--network",
            "my-network",
        ],
    );
    let caller = field.workload("n1", "caller", "my-network", &[]);
    let own = run_in(
        &caller,
        &["ip", "-4", "-brief", "address", "show", "dev", "eth0"],
    );
    let own = own
        .split_whitespace()
        .nth(2)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let to: SocketAddr = format!("{}:80", vip(&field, "my-web")).parse().unwrap();
    all_answer("TCP", &names, &own, || ask(&caller, to));
    all_answer("UDP", &names, &own, || ask_datagram(&caller, to));
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..300 {
        *counts.entry(ask(&caller, to).unwrap().0).or_default() += 1;
    }
    for (name, count) in &counts {
        assert!((90..=110).contains(count), "{name}: {counts:?}");
    }
    // An idle connection lives as long as the kernel lets it: five days, not fifteen minutes.
    let idle = caller
        .run_in(|| TcpStream::connect_timeout(&to, LIMIT))
        .unwrap()
        .unwrap();
    let flows = run_in(
        &caller,
        &["conntrack", "-L", "-p", "tcp", "--state", "ESTABLISHED"],
    );
    let left: u64 = flows
        .lines()
        .find(|line| line.contains(&format!("dst={}", to.ip())))
        .and_then(|line| line.split_whitespace().nth(2))
        .and_then(|seconds| seconds.parse().ok())
        .unwrap_or_else(|| panic!("{flows}"));
    assert!(left > 2 * 60 * 60, "{left} s");
    drop(idle);

    // By the client's address: one client, one backend.
    field.done(
        "n1",
        &["service", "update", "my-web", "--balance", "source-hash"],
    );
    eventually("the client stays with one backend", PATIENCE, || {
        let seen: BTreeSet<String> = (0..20)
            .filter_map(|_| ask(&caller, to).ok())
            .map(|a| a.0)
            .collect();
        seen.len() == 1
    });
    // Without a backend the client hears so at once.
    for (index, name) in names.iter().enumerate() {
        field.done(&format!("n{}", index + 1), &["detach", "my-network", name]);
    }
    eventually("refused", PATIENCE, || {
        let begun = Instant::now();
        let error = ask(&caller, to).unwrap_err();
        error.kind() == std::io::ErrorKind::ConnectionRefused && begun.elapsed() < LIMIT
    });
}

/// Connections one after another from several threads until told to end, and which of them failed.
struct Load {
    began: Instant,
    asked: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
    failures: std::sync::Mutex<Vec<Failure>>,
}

/// A connection that failed.
struct Failure {
    to: SocketAddr,
    begun: Instant,
    took: Duration,
    error: std::io::Error,
}

impl Load {
    fn new() -> Load {
        Load {
            began: Instant::now(),
            asked: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            over: AtomicBool::new(false),
            failures: std::sync::Mutex::new(Vec::new()),
        }
    }

    /// Ends the load when it goes, also by a failed check: a scope waits for its threads.
    fn ending(&self) -> EndOfLoad<'_> {
        EndOfLoad(self)
    }

    fn run(&self, from: &Netns, to: impl Fn(u64) -> SocketAddr + Sync) {
        from.run_in(|| {
            while !self.over.load(Ordering::Relaxed) {
                let number = self.asked.fetch_add(1, Ordering::Relaxed);
                let (to, begun) = (to(number), Instant::now());
                if let Err(error) = ask_here(to) {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    let took = begun.elapsed();
                    self.failures.lock().unwrap().push(Failure {
                        to,
                        begun,
                        took,
                        error,
                    });
                }
            }
        })
        .unwrap();
    }

    /// For how long after a moment connections were begun that failed.
    fn failing_after(&self, moment: Instant) -> Duration {
        let failures = self.failures.lock().unwrap();
        let lasted = failures
            .iter()
            .map(|one| one.begun.saturating_duration_since(moment));
        lasted.max().unwrap_or_default()
    }

    /// How long, once connections begun after a moment failed, they went on to.
    fn failing_from(&self, moment: Instant) -> Duration {
        let failures = self.failures.lock().unwrap();
        let begun = || {
            failures
                .iter()
                .map(|one| one.begun)
                .filter(|at| *at >= moment)
        };
        let span = begun().max().zip(begun().min());
        span.map(|(last, first)| last - first).unwrap_or_default()
    }

    /// Where failures came together: when the first and the last of them began, how many, and how each ended.
    fn failures(&self) -> String {
        let failures = self.failures.lock().unwrap();
        let mut groups: Vec<(u128, u128, BTreeMap<String, u32>)> = Vec::new();
        let mut all: Vec<&Failure> = failures.iter().collect();
        all.sort_by_key(|one| one.begun);
        for one in all {
            let begun = (one.begun - self.began).as_millis();
            let late = if one.took >= Duration::from_millis(500) {
                " late"
            } else {
                ""
            };
            let how = format!("{}{late}: {}", one.to, one.error);
            match groups.last_mut() {
                Some((_, last, hows)) if begun < *last + 300 => {
                    *last = begun;
                    *hows.entry(how).or_default() += 1;
                }
                _ => groups.push((begun, begun, BTreeMap::from([(how, 1)]))),
            }
        }
        let line = |(first, last, hows): &(u128, u128, BTreeMap<String, u32>)| {
            format!("\n{first} to {last} ms: {hows:?}")
        };
        groups.iter().map(line).collect()
    }
}

struct EndOfLoad<'a>(&'a Load);

impl Drop for EndOfLoad<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// As [`ask`], in the namespace the thread is in.
fn ask_here(to: SocketAddr) -> std::io::Result<()> {
    use std::io::Write;
    let mut stream = TcpStream::connect_timeout(&to, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.contains("200 OK") {
        true => Ok(()),
        false => Err(std::io::Error::other("cut off")),
    }
}

#[test]
fn draining_and_replacing_every_backend_fails_no_connection() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let servers = field.serve_my_web();
    publish_my_web(&field);
    let node = |number: u64| SocketAddr::new(field.address((number % 3) as usize + 1, false), 8080);
    for index in 0..3 {
        all_answer("ready", &backends(&field), CLIENT_V4, || {
            ask(&field.client, node(index))
        });
    }
    let caller = field.workload("n1", "caller", "my-network", &[]);
    let inside: SocketAddr = format!("{}:80", vip(&field, "my-web")).parse().unwrap();
    answered("inside", || ask(&caller, inside));
    let second = outsider(&field.lab, "second", "10.99.0.102", "fd99::102");
    let (outside_load, inside_load) = (Load::new(), Load::new());
    let mut replacements = Vec::new();
    std::thread::scope(|scope| {
        let _ends = (outside_load.ending(), inside_load.ending());
        // As below: each client through a node of its own.
        for (index, client) in [&field.client, &second].into_iter().enumerate() {
            let (load, to) = (&outside_load, node(index as u64));
            scope.spawn(move || load.run(client, |_| to));
        }
        scope.spawn(|| inside_load.run(&caller, |_| inside));
        let rounds = if long() { 3 } else { 1 };
        for round in 0..rounds {
            for index in 1..=3 {
                let home = format!("n{index}");
                let old = match round {
                    0 => format!("my-web.{index}"),
                    _ => format!("new.{index}.{}", round - 1),
                };
                let new = format!("new.{index}.{round}");
                // The new one comes first, and is in use before the old one goes.
                let netns = space_for(&field, &new);
                replacements.push(Server::start(&new, &netns, 80));
                let target = format!("weft-{}-{new}", field.lab.name());
                field.done(
                    &home,
                    &[
                        "attach",
                        "my-network",
                        &target,
                        "--name",
                        &new,
                        "--service",
                        "my-web",
                    ],
                );
                field.done(&home, &["service", "drain", "my-web", &old]);
                // Every node hears of it, and the last connections end.
                let server = servers
                    .iter()
                    .chain(&replacements)
                    .find(|server| server.name == old);
                quiet(server.unwrap());
                field.done(&home, &["detach", "my-network", &old]);
            }
        }
    });
    for (what, load) in [
        ("published port", &outside_load),
        ("virtual address", &inside_load),
    ] {
        let (asked, failed) = (
            load.asked.load(Ordering::Relaxed),
            load.failed.load(Ordering::Relaxed),
        );
        note(&format!(
            "{what}: {asked} connections while every backend was replaced, {failed} failed"
        ));
        assert!(asked > 100, "{asked}");
        assert_eq!(failed, 0, "{what}{}", load.failures());
    }
    drop((servers, replacements));
}

/// Waits until a server has answered nobody for a second.
fn quiet(server: &Server) {
    let mut last = (server.answered.load(Ordering::Relaxed), Instant::now());
    eventually("nobody calls any more", PATIENCE, || {
        let now = server.answered.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
        last.1.elapsed() > Duration::from_secs(1)
    });
}

fn space_for(field: &Field, name: &str) -> Netns {
    weft::lab::space::create(&format!("weft-{}-{name}", field.lab.name())).unwrap()
}

#[test]
fn a_dead_backend_is_left_within_a_second_datagrams_included() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let mut servers = field.serve_my_web();
    publish_my_web(&field);
    field.done(
        "n1",
        &[
            "service",
            "update",
            "my-web",
            "--health-tcp",
            "80",
            "--health-interval",
            "200ms",
            "--health-timeout",
            "200ms",
            "--health-retries",
            "1",
        ],
    );
    let to = SocketAddr::new(field.address(1, false), 8080);
    all_answer("ready", &backends(&field), CLIENT_V4, || {
        ask(&field.client, to)
    });
    // One client's socket keeps its backend as long as that lives.
    let socket = field
        .client
        .run_in(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    let (first, _) = answered("a datagram", || ask_through(&socket, to));
    for _ in 0..10 {
        assert_eq!(ask_through(&socket, to).unwrap().0, first);
    }
    let victim = servers
        .iter()
        .position(|server| server.name == first)
        .unwrap();
    let died = Instant::now();
    drop(servers.remove(victim));
    let (second, _) = answered("another backend answers", || ask_through(&socket, to));
    let moved = died.elapsed();
    assert_ne!(first, second);
    // The check notices after 200 ms at most and asks once; then it is known within the second.
    eventually("no connection fails any more", PATIENCE, || {
        (0..30).all(|_| ask(&field.client, to).is_ok())
    });
    let left = died.elapsed();
    note(&format!(
        "a backend died: its UDP client was answered by another after {} ms, connections fail no more after {} ms at most",
        moved.as_millis(),
        left.as_millis()
    ));
    assert!(moved < Duration::from_millis(2500), "{moved:?}");
    // It comes back, and is asked again.
    let netns = field.lab.netns(&first).unwrap();
    servers.push(Server::start(&first, &netns, 80));
    all_answer("well again", &backends(&field), CLIENT_V4, || {
        ask(&field.client, to)
    });
}

#[test]
fn flushed_rules_of_a_client_a_backend_and_the_mesh_come_back() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let names = backends(&field);
    publish_my_web(&field);
    let to = SocketAddr::new(field.address(1, false), 8080);
    all_answer("before", &names, CLIENT_V4, || ask(&field.client, to));
    let node = field.lab.netns("n1").unwrap();
    let backend = field.lab.netns("my-web.2").unwrap();
    let mut worst = Duration::ZERO;
    for netns in [&node, &backend] {
        run_in(netns, &["nft", "flush", "ruleset"]);
        let begun = Instant::now();
        eventually("rules are back", PATIENCE, || {
            let shown = netns
                .command("nft")
                .unwrap()
                .args(["list", "table", "inet", "weft"])
                .output();
            shown.unwrap().status.success()
        });
        worst = worst.max(begun.elapsed());
        all_answer("after", &names, CLIENT_V4, || ask(&field.client, to));
    }
    note(&format!(
        "rules of a node and of a backend were back after {} ms at most",
        worst.as_millis()
    ));
    assert!(worst <= Duration::from_secs(1), "{worst:?}");
    let _ = netns_name(&field.lab, "n1");
}

/// Many short connections while backends come, are killed, drain and go; 100,000 with `WEFT_SOAK=1`.
#[test]
fn many_connections_fail_only_where_a_backend_was_killed() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let mut servers: BTreeMap<String, Server> = field
        .serve_my_web()
        .into_iter()
        .map(|server| (server.name.clone(), server))
        .collect();
    publish_my_web(&field);
    field.done(
        "n1",
        &[
            "service",
            "update",
            "my-web",
            "--health-tcp",
            "80",
            "--health-interval",
            "200ms",
            "--health-timeout",
            "2s",
            "--health-retries",
            "1",
        ],
    );
    // Twice as many to the first as to the others.
    field.done("n1", &["service", "weight", "my-web", "my-web.1", "2"]);
    let node = |number: u64| SocketAddr::new(field.address((number % 3) as usize + 1, false), 8080);
    for index in 0..3 {
        all_answer("ready", &backends(&field), CLIENT_V4, || {
            ask(&field.client, node(index))
        });
    }
    let soak = std::env::var_os("WEFT_SOAK").is_some_and(|value| value == "1");
    let goal = if soak { 100_000 } else { 3_000 };
    // Each through a node of its own: one client that uses a port of its own again, through another node, meets what its
    // backend remembers of the connection before (TIME_WAIT), with timestamps that are not comparable.
    let second = outsider(&field.lab, "second", "10.99.0.102", "fd99::102");
    let third = outsider(&field.lab, "third", "10.99.0.103", "fd99::103");
    let load = Load::new();
    let before: BTreeMap<String, u64> = servers
        .iter()
        .map(|(name, server)| (name.clone(), server.answered.load(Ordering::Relaxed)))
        .collect();
    let (mut worst, mut strays) = (Duration::ZERO, 0);
    std::thread::scope(|scope| {
        let _end = load.ending();
        for (index, client) in [&field.client, &second, &third].into_iter().enumerate() {
            let (load, to) = (&load, node(index as u64));
            scope.spawn(move || load.run(client, |_| to));
        }
        let reached = |count: u64| {
            eventually("as many connections", Duration::from_secs(600), || {
                load.asked.load(Ordering::Relaxed) >= count
            });
        };
        reached(goal / 3);
        assert_eq!(
            load.failed.load(Ordering::Relaxed),
            0,
            "nothing has happened yet"
        );
        // Each by its weight: checks are answered, too, and are few.
        let shares: BTreeMap<&String, u64> = servers
            .iter()
            .map(|(name, server)| (name, server.answered.load(Ordering::Relaxed) - before[name]))
            .collect();
        let all: u64 = shares.values().sum();
        for (name, count) in &shares {
            let due = if *name == "my-web.1" { 0.5 } else { 0.25 };
            let share = *count as f64 / all as f64;
            assert!(
                (share / due - 1.0).abs() < 0.1,
                "{name} got {share:.3} of all: {shares:?}"
            );
        }
        for (round, until) in [(0, 2 * goal / 3), (1, goal)] {
            // One comes, one drains and goes: nobody notices.
            let failed = load.failed.load(Ordering::Relaxed);
            let (new, old) = (format!("late.{round}"), format!("my-web.{}", round + 1));
            let home = format!("n{}", round + 1);
            let netns = space_for(&field, &new);
            servers.insert(new.clone(), Server::start(&new, &netns, 80));
            let target = format!("weft-{}-{new}", field.lab.name());
            field.done(
                &home,
                &[
                    "attach",
                    "my-network",
                    &target,
                    "--name",
                    &new,
                    "--service",
                    "my-web",
                ],
            );
            field.done(&home, &["service", "drain", "my-web", &old]);
            quiet(&servers[&old]);
            field.done(&home, &["detach", "my-network", &old]);
            servers.remove(&old);
            std::thread::sleep(Duration::from_millis(300));
            // On a busy machine a connection whose first packet was lost may come a second late, when its backend has gone.
            let lost = load.failed.load(Ordering::Relaxed) - failed;
            strays += lost;
            assert!(
                lost <= 5,
                "{lost} failed while {old} went{}",
                load.failures()
            );
            if round == 0 {
                // One is killed: for a moment it is noticed.
                servers.remove("my-web.3");
                let known = said_to_fail(&field, "n3", "my-web.3");
                std::thread::sleep(Duration::from_secs(3));
                worst = load.failing_after(known);
            }
            reached(until);
        }
    });
    let (asked, failed) = (
        load.asked.load(Ordering::Relaxed),
        load.failed.load(Ordering::Relaxed),
    );
    note(&format!(
        "{asked} connections, {failed} failed, all but {strays} until {} ms after its node knew that a backend was killed",
        worst.as_millis()
    ));
    assert!(worst <= AFTER_KNOWN, "{worst:?}{}", load.failures());
}

/// How long connections may fail once a backend's node knows that it is gone.
const AFTER_KNOWN: Duration = Duration::from_secs(1);

/// Has the backends checked, so that one failure within half a second is noticed.
fn check_my_web(field: &Field) {
    let check = [
        "--health-tcp",
        "80",
        "--health-interval",
        "500ms",
        "--health-retries",
        "1",
    ];
    field.done(
        "n1",
        &[&["service", "update", "my-web"][..], &check].concat(),
    );
}

/// Waits until the node says that a backend of its own fails its check.
fn said_to_fail(field: &Field, node: &str, backend: &str) -> Instant {
    eventually("the check fails", PATIENCE, || {
        let listed = field.done(node, &["service", "ps", "my-web", "--json"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let backends = listed["backends"].as_array().unwrap();
        let of_name = backends.iter().find(|one| one["name"] == backend);
        of_name.is_some_and(|one| one["standing"] == "unhealthy")
    });
    Instant::now()
}

/// Killed with a check that notices, and detached without being drained: both fail what is under way, and nothing for long.
#[test]
fn once_a_backend_is_known_to_be_gone_connections_fail_for_a_second_at_most() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let mut servers = field.serve_my_web();
    publish_my_web(&field);
    check_my_web(&field);
    let node = |number: usize| SocketAddr::new(field.address(number, false), 8080);
    for number in 1..=3 {
        all_answer("ready", &backends(&field), CLIENT_V4, || {
            ask(&field.client, node(number))
        });
    }
    let caller = field.workload("n1", "caller", "my-network", &[]);
    let inside: SocketAddr = format!("{}:80", vip(&field, "my-web")).parse().unwrap();
    answered("inside", || ask(&caller, inside));
    let second = outsider(&field.lab, "second", "10.99.0.102", "fd99::102");
    let load = Load::new();
    let under_load = |until: u64| {
        eventually("more connections", PATIENCE, || {
            load.asked.load(Ordering::Relaxed) > until
        });
    };
    let settle = || std::thread::sleep(AFTER_KNOWN + Duration::from_secs(1));
    let (mut killed, mut detached) = (Duration::ZERO, Duration::ZERO);
    let (mut noticed, mut command) = (Duration::ZERO, Duration::ZERO);
    std::thread::scope(|scope| {
        let _end = load.ending();
        scope.spawn(|| load.run(&field.client, |_| node(1)));
        scope.spawn(|| load.run(&second, |_| node(2)));
        scope.spawn(|| load.run(&caller, |_| inside));
        under_load(300);
        let died = Instant::now();
        servers.retain(|server| server.name != "my-web.3");
        let known = said_to_fail(&field, "n3", "my-web.3");
        noticed = known - died;
        settle();
        killed = load.failing_after(known);
        under_load(load.asked.load(Ordering::Relaxed) + 300);
        let begun = Instant::now();
        field.done("n2", &["detach", "my-network", "my-web.2"]);
        command = begun.elapsed();
        settle();
        // The command starts and comes to its turn before anything ends.
        detached = load.failing_from(begun);
    });
    note(&format!(
        "a backend was killed: its node knew after {} ms, connections begun {} ms later still failed; detached within {} ms: for {} ms",
        noticed.as_millis(),
        killed.as_millis(),
        command.as_millis(),
        detached.as_millis(),
    ));
    assert!(killed <= AFTER_KNOWN, "{killed:?}{}", load.failures());
    assert!(detached <= AFTER_KNOWN, "{detached:?}{}", load.failures());
}

/// The kernel keeps a connection that was reset for ten seconds, and leads the next one from the same port after it.
#[test]
fn a_client_whose_backend_died_may_call_from_the_same_port_again() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let mut servers = field.serve_my_web();
    publish_my_web(&field);
    check_my_web(&field);
    let published = SocketAddr::new(field.address(1, false), 8080);
    let caller = field.workload("n1", "caller", "my-network", &[]);
    let inside: SocketAddr = format!("{}:80", vip(&field, "my-web")).parse().unwrap();
    all_answer("ready", &backends(&field), CLIENT_V4, || {
        ask(&field.client, published)
    });
    answered("inside", || ask(&caller, inside));
    let clients = [(&field.client, published), (&caller, inside)];
    // One in three waits at the server that is about to die, and is reset.
    let calls = |(client, to): (&Netns, SocketAddr)| -> Vec<(u16, TcpStream)> {
        let ports = 20_000..20_012;
        let called = ports.map(|port| (port, call_from(client, port, to).unwrap()));
        called.collect()
    };
    let waiting = clients.map(calls);
    servers.retain(|server| server.name != "my-web.3");
    let was_reset = |(port, mut call): (u16, TcpStream)| {
        call.set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        let ended = call.read(&mut [0]).map_err(|error| error.kind());
        (ended == Err(std::io::ErrorKind::ConnectionReset)).then_some(port)
    };
    let reset = waiting.map(|calls| calls.into_iter().filter_map(was_reset).collect());
    let known = said_to_fail(&field, "n3", "my-web.3");
    for ((client, to), ports) in clients.into_iter().zip::<[Vec<u16>; 2]>(reset) {
        assert!(!ports.is_empty(), "nobody waited at the dead one");
        for port in ports {
            let left = (known + LIMIT).saturating_duration_since(Instant::now());
            eventually("the same port again", left, || {
                call_from(client, port, to).is_ok()
            });
        }
    }
}

/// Connects from a port of the client's.
fn call_from(client: &Netns, port: u16, to: SocketAddr) -> std::io::Result<TcpStream> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let called = client.run_in(|| {
        runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new([0, 0, 0, 0].into(), port))?;
            let called = tokio::time::timeout(LIMIT, socket.connect(to)).await;
            called.unwrap_or_else(|late| Err(late.into()))?.into_std()
        })
    });
    let stream = called.unwrap()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[test]
fn a_virtual_address_of_ipv6_leads_to_ready_backends_and_keeps_the_source() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    field.done("n1", &["network", "create", "--ipv6", "six"]);
    let names: Vec<String> = (1..=3).map(|index| format!("api.{index}")).collect();
    let mut servers = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let home = format!("n{}", index + 1);
        let netns = field.workload(&home, name, "six", &["--service", "api"]);
        servers.push(Server::start(name, &netns, 80));
    }
    field.done(
        "n2",
        &["service", "create", "--name", "api", "--network", "six"],
    );
    let caller = field.workload("n1", "caller", "six", &[]);
    let shown = run_in(
        &caller,
        &[
            "ip", "-6", "-brief", "address", "show", "dev", "eth0", "scope", "global",
        ],
    );
    let own = shown
        .split_whitespace()
        .nth(2)
        .unwrap()
        .split('/')
        .next()
        .unwrap();
    let text = field.done("n1", &["service", "inspect", "api", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let vips = find(&json, "vips")
        .and_then(|vips| vips.as_array())
        .unwrap();
    let vip = vips
        .iter()
        .filter_map(|vip| vip.as_str())
        .find(|vip| vip.contains(':'));
    let vip = vip.unwrap_or_else(|| panic!("{text}"));
    let to = SocketAddr::new(vip.parse().unwrap(), 80);
    all_answer("TCP", &names, own, || ask(&caller, to));
    all_answer("UDP", &names, own, || ask_datagram(&caller, to));

    // Its name leads there: the caller asks the network's gateway.
    let shown = field.done("n1", &["network", "inspect", "six"]);
    let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let gateway = find(&json, "Gateway").and_then(|ip| ip.as_str()).unwrap();
    let resolver = format!("@{gateway}");
    let answer = run_in(
        &caller,
        &["dig", "+short", "+tries=5", &resolver, "api", "AAAA"],
    );
    assert_eq!(answer.trim(), vip);

    // Drained: the others alone answer.
    field.done("n3", &["service", "drain", "api", "api.3"]);
    quiet(&servers[2]);
    let others: BTreeMap<String, u32> =
        all_answer("the others", &names[..2], own, || ask(&caller, to));
    assert!(!others.is_empty());
    let before = servers[2].answered.load(Ordering::Relaxed);
    for _ in 0..30 {
        assert_ne!(ask(&caller, to).unwrap().0, "api.3");
        assert_ne!(ask_datagram(&caller, to).unwrap().0, "api.3");
    }
    assert_eq!(servers[2].answered.load(Ordering::Relaxed), before);
    // A socket that a drained backend served goes on with another.
    let socket = caller
        .run_in(|| UdpSocket::bind("[::]:0"))
        .unwrap()
        .unwrap();
    let (first, _) = answered("a datagram", || ask_through(&socket, to));
    let home = format!("n{}", &first[4..]);
    field.done(&home, &["service", "drain", "api", &first]);
    eventually("another answers", PATIENCE, || {
        ask_through(&socket, to).is_ok_and(|(name, peer)| name != first && peer == own)
    });
    drop(servers);
}

/// What a node has counted of a service one way: connections, bytes to backends, bytes to clients.
fn counted(field: &Field, node: &str, path: &str) -> (u64, u64, u64) {
    let text = field.done(node, &["service", "inspect", "my-web", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let rows = find(&json, "traffic").unwrap_or_else(|| panic!("{text}"));
    let rows = rows.as_array().unwrap();
    let row = rows.iter().find(|row| row["path"] == path);
    let row = row.unwrap_or_else(|| panic!("{text}"));
    let number = |key: &str| row[key].as_u64().unwrap();
    (
        number("connections"),
        number("bytes_to_backend"),
        number("bytes_to_client"),
    )
}

/// Waits until a node has counted this many connections; more are too many.
fn until_counted(what: &str, field: &Field, node: &str, path: &str, expected: u64) {
    let mut last = 0;
    eventually(&format!("{what}: {expected} counted"), PATIENCE, || {
        last = counted(field, node, path).0;
        assert!(last <= expected, "{what}: {last} of {expected} counted");
        last == expected
    });
}

/// Waits until a node counts: just after rules were made for the first time, what they count is not looked at yet.
fn once_counting(field: &Field, node: &str, path: &str, least: u64) -> (u64, u64, u64) {
    eventually(&format!("{node} counts by {path}"), PATIENCE, || {
        counted(field, node, path).0 >= least
    });
    counted(field, node, path)
}

#[test]
fn every_connection_is_counted_once_whatever_becomes_of_backends_and_callers() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let names = backends(&field);
    publish_my_web(&field);
    let published = |node, port| SocketAddr::new(field.address(node, false), port);
    let (outside, inside): (SocketAddr, SocketAddr) = (
        published(2, 8080),
        format!("{}:80", vip(&field, "my-web")).parse().unwrap(),
    );
    let caller = field.workload("n1", "caller", "my-network", &[]);
    all_answer("outside", &names, CLIENT_V4, || ask(&field.client, outside));
    answered("inside", || ask(&caller, inside));

    // By the virtual address at the caller's node, by the published port at the node that was called.
    let (vip_before, port_before) = (
        once_counting(&field, "n1", "vip", 1),
        once_counting(&field, "n2", "ingress", 3),
    );
    let elsewhere = ["n2", "n3"].map(|node| counted(&field, node, "vip"));
    for _ in 0..20 {
        ask(&caller, inside).unwrap();
    }
    let socket = caller
        .run_in(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    for _ in 0..10 {
        ask_through(&socket, inside).unwrap();
    }
    for _ in 0..15 {
        ask(&field.client, outside).unwrap();
    }
    let mut through_vip = vip_before.0 + 20 + 1;
    let mut through_port = port_before.0 + 15;
    until_counted("inside", &field, "n1", "vip", through_vip);
    until_counted("outside", &field, "n2", "ingress", through_port);
    assert_eq!(
        ["n2", "n3"].map(|node| counted(&field, node, "vip")),
        elsewhere,
        "what others led is not counted here"
    );
    // A question is 18 bytes, an answer about 70; each connection has headers of at least 4 packets of 40 bytes each way.
    for (now, before, connections) in [
        (counted(&field, "n1", "vip"), vip_before, 20),
        (counted(&field, "n2", "ingress"), port_before, 15),
    ] {
        for (name, bytes) in [
            ("to backends", now.1 - before.1),
            ("to clients", now.2 - before.2),
        ] {
            let each = bytes / connections;
            assert!((150..1000).contains(&each), "{each} bytes {name}");
        }
    }

    // Rules change under way, and change again.
    let load = Load::new();
    std::thread::scope(|scope| {
        let _end = load.ending();
        scope.spawn(|| load.run(&caller, |_| inside));
        for round in 1..=4 {
            field.done("n2", &["service", "drain", "my-web", "my-web.2"]);
            field.done("n2", &["service", "ready", "my-web", "my-web.2"]);
            eventually("as many connections", PATIENCE, || {
                load.asked.load(Ordering::Relaxed) >= 50 * round
            });
        }
    });
    assert_eq!(load.failed.load(Ordering::Relaxed), 0);
    through_vip += load.asked.load(Ordering::Relaxed);
    until_counted("through changes", &field, "n1", "vip", through_vip);

    // With a header in front, over loopback, and to the node's own backend.
    field.done(
        "n1",
        &[
            "service",
            "update",
            "my-web",
            "--publish-add",
            "8084:80,proxy-protocol",
            "--publish-add",
            "8083:80,mode=host",
        ],
    );
    let node = field.lab.netns("n2").unwrap();
    let loopback: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    for (what, from, to, path) in [
        ("a header", &field.client, published(2, 8084), "ingress"),
        ("loopback", &node, loopback, "ingress"),
        ("host mode", &field.client, published(2, 8083), "host"),
    ] {
        answered(what, || ask(from, to));
        let before = once_counting(&field, "n2", path, 1);
        for _ in 0..5 {
            ask(from, to).unwrap();
        }
        until_counted(what, &field, "n2", path, before.0 + 5);
        let now = counted(&field, "n2", path);
        assert!(
            now.1 - before.1 > 500 && now.2 - before.2 > 500,
            "{what}: {before:?}, {now:?}"
        );
    }
    through_port = counted(&field, "n2", "ingress").0;

    // Who has called may go, by the way that is meant for it or without a word.
    let brief = field.workload("n1", "brief", "my-network", &[]);
    answered("a second caller", || ask(&brief, inside));
    through_vip = once_counting(&field, "n1", "vip", through_vip + 1).0;
    for _ in 0..5 {
        ask(&caller, inside).unwrap();
        ask(&brief, inside).unwrap();
    }
    let name = format!("weft-{}-brief", field.lab.name());
    service_support::ip(&["netns", "delete", &name]);
    drop(brief);
    field.done("n1", &["detach", "my-network", "caller"]);
    until_counted(
        "of callers that are gone",
        &field,
        "n1",
        "vip",
        through_vip + 10,
    );
    eventually("the second one is forgotten", PATIENCE, || {
        !field.done("n1", &["ps", "--local"]).contains("brief")
    });
    until_counted(
        "of callers that are forgotten",
        &field,
        "n1",
        "vip",
        through_vip + 10,
    );
    let socket = field.lab.socket("n2").display().to_string();
    let metrics = [
        "curl",
        "-sS",
        "--unix-socket",
        &socket,
        "http://weft/metrics",
    ];
    let metrics = run_in(&field.client, &metrics);
    let line = format!(
        "weft_service_connections_total{{service=\"my-web\",path=\"ingress\"}} {through_port}\n"
    );
    assert!(metrics.contains(&line), "{line}{metrics}");
    let bytes =
        "weft_service_bytes_total{service=\"my-web\",path=\"host\",direction=\"to_client\"} ";
    assert!(metrics.contains(bytes), "{metrics}");
}

/// The events of a node about services, each as kind and name, oldest first.
fn service_events(field: &Field, node: &str) -> Vec<(String, String)> {
    let text = field.done(node, &["events", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = json["events"].as_array().unwrap().iter();
    let word =
        |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let told = events.map(|event| (word(event, "event"), word(event, "name")));
    told.filter(|(kind, _)| kind.starts_with("service_") || kind.starts_with("backend"))
        .collect()
}

#[test]
fn what_becomes_of_services_and_backends_is_told_once_on_every_node() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let mut servers = field.serve_my_web();
    // Every node goes on to take part in the network, or it would see nobody there.
    let _stays = field.workload("n2", "stays", "my-network", &[]);
    publish_my_web(&field);
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut then = |what: &str, more: &[(&str, &str)]| {
        expected.extend(
            more.iter()
                .map(|(kind, name)| ((*kind).into(), (*name).into())),
        );
        for node in ["n1", "n2", "n3"] {
            let mut last = Vec::new();
            eventually(&format!("{what} on {node}"), PATIENCE, || {
                last = service_events(&field, node);
                assert!(last.len() <= expected.len(), "{what} on {node}: {last:?}");
                last.len() == expected.len()
            });
            // Backends of one step come in the order of their ids, or of their nodes' words.
            let step = expected.len() - more.len();
            last[step..].sort();
            expected[step..].sort();
            assert_eq!(last[step..], expected[step..], "{what} on {node}");
        }
    };
    then(
        "made",
        &[
            ("service_created", "my-web"),
            ("backend_ready", "my-web.1"),
            ("backend_ready", "my-web.2"),
            ("backend_ready", "my-web.3"),
        ],
    );
    field.done("n2", &["service", "drain", "my-web", "my-web.2"]);
    then("drained", &[("backend_draining", "my-web.2")]);
    field.done("n2", &["service", "ready", "my-web", "my-web.2"]);
    then("ready", &[("backend_ready", "my-web.2")]);
    field.done("n1", &["service", "weight", "my-web", "my-web.1", "2"]);
    field.done("n2", &["detach", "my-network", "my-web.2"]);
    then("detached", &[("backend_gone", "my-web.2")]);
    field.done("n3", &["service", "update", "my-web", "--label-add", "a=b"]);
    then("updated", &[("service_updated", "my-web")]);
    field.done("n3", &["service", "rm", "my-web"]);
    then("removed", &[("service_removed", "my-web")]);

    // One with a check: in use once it has answered, and not when it does not.
    servers.retain(|server| server.name == "my-web.3");
    let create = [
        "service",
        "create",
        "--name",
        "my-web",
        "--network",
        "my-network",
        "--health-tcp",
        "80",
        "--health-interval",
        "200ms",
        "--health-timeout",
        "200ms",
        "--health-retries",
        "1",
    ];
    field.done("n1", &create);
    let of = |name: &str| -> Vec<String> {
        let events = service_events(&field, "n1").into_iter();
        let of_name = events.filter(|(_, of)| of == name);
        of_name.map(|(kind, _)| kind).collect()
    };
    eventually("unhealthy", PATIENCE, || {
        of("my-web.1").last().unwrap() == "backend_unhealthy"
            && of("my-web.3").last().unwrap() == "backend_ready"
    });
    servers.clear();
    eventually("not answering any more", PATIENCE, || {
        of("my-web.3").last().unwrap() == "backend_unhealthy"
    });
}
