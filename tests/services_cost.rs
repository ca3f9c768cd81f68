//! What balancing and publishing cost: throughput and connections per second, by turns with the same without them.
//! Figures are printed. What is asserted (in full with `WEFT_LONG=1`) guards against changes for the worse: a machine's own
//! speed changes from second to second, so a bar counts as missed when three rounds of four miss it.

mod lab_support;
mod service_support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, long, note};
use service_support::{Field, LIMIT, PATIENCE, ip, netns_name, run_in};
use weft::sys::netns::Netns;

/// Swallows what connections bring, on one port, and closes those on another at once.
struct Sink {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

const BULK: u16 = 90;
const SHORT: u16 = 91;

impl Sink {
    fn start(netns: &Netns) -> Sink {
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let bound = |port: u16| {
            netns
                .run_in(|| TcpListener::bind(("0.0.0.0", port)))
                .unwrap()
                .unwrap()
        };
        let (bulk, short) = (bound(BULK), bound(SHORT));
        bulk.set_nonblocking(true).unwrap();
        let (halt, count) = (Arc::clone(&stop), Arc::clone(&received));
        let swallow = std::thread::spawn(move || {
            let mut room = vec![0; 1 << 20];
            while !halt.load(Ordering::Relaxed) {
                let Ok((mut client, _)) = bulk.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                client.set_nonblocking(false).unwrap();
                client
                    .set_read_timeout(Some(Duration::from_millis(200)))
                    .unwrap();
                while !halt.load(Ordering::Relaxed) {
                    match client.read(&mut room) {
                        Ok(0) => break,
                        Ok(len) => drop(count.fetch_add(len as u64, Ordering::Relaxed)),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => break,
                    }
                }
            }
        });
        let halt = Arc::clone(&stop);
        // Blocking: it ends with a connection of its own.
        let close = std::thread::spawn(move || {
            while !halt.load(Ordering::Relaxed) {
                drop(short.accept());
            }
        });
        Sink {
            stop,
            received,
            threads: vec![swallow, close],
        }
    }

    fn stop(mut self, netns: &Netns) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = netns.run_in(|| TcpStream::connect_timeout(&([127, 0, 0, 1], SHORT).into(), LIMIT));
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Gbit/s of one connection.
fn throughput(from: &Netns, to: SocketAddr, sink: &Sink, time: Duration) -> f64 {
    let mut stream = from
        .run_in(|| TcpStream::connect_timeout(&to, LIMIT))
        .unwrap()
        .unwrap();
    let block = vec![7; 1 << 18];
    let warm = Instant::now();
    while warm.elapsed() < Duration::from_millis(300) {
        stream.write_all(&block).unwrap();
    }
    let (begun, before) = (Instant::now(), sink.received.load(Ordering::Relaxed));
    while begun.elapsed() < time {
        stream.write_all(&block).unwrap();
    }
    let bytes = sink.received.load(Ordering::Relaxed) - before;
    bytes as f64 * 8.0 / 1e9 / begun.elapsed().as_secs_f64()
}

/// Connections opened and closed per second, one after another.
fn connections(from: &Netns, to: SocketAddr, time: Duration) -> f64 {
    let count = from.run_in(|| {
        let begun = Instant::now();
        let mut count = 0_u64;
        let mut room = [0; 1];
        while begun.elapsed() < time {
            let mut stream = TcpStream::connect_timeout(&to, LIMIT).unwrap();
            // The server closes first, so no port of ours waits.
            let _closed = stream.read(&mut room);
            count += 1;
        }
        count as f64 / begun.elapsed().as_secs_f64()
    });
    count.unwrap()
}

fn median(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (
        values[values.len() / 2],
        values[0],
        values[values.len() - 1],
    )
}

/// Runs both by turns; prints both and their ratio, and returns the ratio that three rounds of four do not exceed.
fn compare(
    what: &str,
    unit: &str,
    rounds: usize,
    one: impl Fn() -> f64,
    other: impl Fn() -> f64,
) -> f64 {
    let mut values = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        values.0.push(one());
        values.1.push(other());
    }
    let pairs = values.0.iter().zip(&values.1);
    let mut ratios: Vec<f64> = pairs.map(|(with, without)| with / without).collect();
    ratios.sort_by(f64::total_cmp);
    let (with, least, most) = median(values.0);
    let (without, low, high) = median(values.1);
    let ratio = with / without;
    note(&format!(
        "{what}: {with:.2} {unit} [{least:.2}-{most:.2}], without {without:.2} [{low:.2}-{high:.2}]: {ratio:.2}x [{:.2}-{:.2}]",
        ratios[0],
        ratios[rounds - 1]
    ));
    ratios[rounds * 3 / 4]
}

fn round_time() -> Duration {
    Duration::from_millis(if long() { 2000 } else { 500 })
}

#[test]
fn a_virtual_address_and_a_published_port_cost_little() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    // East and west: a caller on n1, the one backend on n2.
    let backend = field.workload("n2", "far", "my-network", &["--service", "far"]);
    field.done(
        "n1",
        &[
            "service",
            "create",
            "--name",
            "far",
            "--network",
            "my-network",
        ],
    );
    // Not one caller for both: its ports would be used for the virtual address and again for the backend's own, and the
    // backend, to whom both are one, remembers each for a minute and lets the second wait (RFC 7323, section 5).
    let caller = field.workload("n1", "caller", "my-network", &[]);
    let other = field.workload("n1", "other", "my-network", &[]);
    let address = run_in(
        &backend,
        &["ip", "-4", "-brief", "address", "show", "dev", "eth0"],
    );
    let direct = address
        .split_whitespace()
        .nth(2)
        .unwrap()
        .split('/')
        .next()
        .unwrap()
        .to_owned();
    let listed = field.done("n1", &["service", "inspect", "far", "--json"]);
    let (_, vip) = listed.split_once("\"vips\"").unwrap();
    let vip = vip.split('"').nth(1).unwrap().to_owned();
    let sink = Sink::start(&backend);
    let at = |ip: &str, port: u16| -> SocketAddr { format!("{ip}:{port}").parse().unwrap() };
    eventually("the virtual address answers", PATIENCE, || {
        let to = at(&vip, SHORT);
        caller
            .run_in(|| TcpStream::connect_timeout(&to, LIMIT))
            .unwrap()
            .is_ok()
    });
    let time = round_time();
    let (bulk_rounds, rate_rounds) = if long() { (5, 9) } else { (2, 2) };
    // The kernel remembers each connection for two minutes after its end (`nf_conntrack_max`), in the fast rounds, too.
    let short = Duration::from_millis(500);
    let bulk = compare(
        "through a virtual address",
        "Gbit/s",
        bulk_rounds,
        || throughput(&caller, at(&vip, BULK), &sink, time),
        || throughput(&other, at(&direct, BULK), &sink, time),
    );
    let rate = compare(
        "through a virtual address",
        "connections/s",
        rate_rounds,
        || connections(&caller, at(&vip, SHORT), short),
        || connections(&other, at(&direct, SHORT), short),
    );
    sink.stop(&backend);

    // North and south, on one host: a published port beside a plain DNAT to a namespace on a bridge.
    let near = field.workload("n1", "near", "my-network", &["--service", "near"]);
    let publish = |port: u16| format!("{}:{port}", 9000 + port);
    field.done(
        "n1",
        &[
            "service",
            "create",
            "--name",
            "near",
            "--network",
            "my-network",
            "-p",
            &publish(BULK),
            "-p",
            &publish(SHORT),
        ],
    );
    let node = netns_name(&field.lab, "n1");
    let plain = weft::lab::space::create(&format!("weft-{}-plain", field.lab.name())).unwrap();
    let plain_name = format!("weft-{}-plain", field.lab.name());
    ip(&["-n", &node, "link", "add", "plain0", "type", "bridge"]);
    ip(&[
        "-n",
        &node,
        "address",
        "add",
        "203.0.113.1/24",
        "dev",
        "plain0",
    ]);
    ip(&["-n", &node, "link", "set", "plain0", "up"]);
    ip(&[
        "-n",
        &node,
        "link",
        "add",
        "pv0",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        &plain_name,
    ]);
    ip(&["-n", &node, "link", "set", "pv0", "master", "plain0", "up"]);
    ip(&[
        "-n",
        &plain_name,
        "address",
        "add",
        "203.0.113.2/24",
        "dev",
        "eth0",
    ]);
    ip(&["-n", &plain_name, "link", "set", "eth0", "up"]);
    ip(&["-n", &plain_name, "link", "set", "lo", "up"]);
    ip(&[
        "-n",
        &plain_name,
        "route",
        "add",
        "default",
        "via",
        "203.0.113.1",
    ]);
    let host = field.lab.netns("n1").unwrap();
    let dnat = format!(
        "table ip plain {{ chain lead {{ type nat hook prerouting priority -100; \
         tcp dport {} dnat to 203.0.113.2:{BULK}; tcp dport {} dnat to 203.0.113.2:{SHORT}; }}; }}",
        8000 + BULK,
        8000 + SHORT
    );
    run_in(&host, &["nft", &dnat]);
    let (near_sink, plain_sink) = (Sink::start(&near), Sink::start(&plain));
    // Before, the socket that holds the port takes connections in and closes them.
    eventually("the port is led on", PATIENCE, || {
        let rules = run_in(&host, &["nft", "list", "ruleset"]);
        rules.contains(&format!("dport {} dnat", 9000 + BULK))
    });
    for base in [8000, 9000] {
        eventually("both ports answer", PATIENCE, || {
            let to = at("10.99.0.1", base + SHORT);
            field
                .client
                .run_in(|| TcpStream::connect_timeout(&to, LIMIT))
                .unwrap()
                .is_ok()
        });
    }
    let mesh_bulk = compare(
        "through a published port",
        "Gbit/s",
        bulk_rounds,
        || {
            throughput(
                &field.client,
                at("10.99.0.1", 9000 + BULK),
                &near_sink,
                time,
            )
        },
        || {
            throughput(
                &field.client,
                at("10.99.0.1", 8000 + BULK),
                &plain_sink,
                time,
            )
        },
    );
    let mesh_rate = compare(
        "through a published port",
        "connections/s",
        rate_rounds,
        || connections(&field.client, at("10.99.0.1", 9000 + SHORT), short),
        || connections(&field.client, at("10.99.0.1", 8000 + SHORT), short),
    );
    near_sink.stop(&near);
    plain_sink.stop(&plain);
    let bars = if long() {
        [0.9, 0.85, 0.75, 0.65]
    } else {
        [0.5, 0.4, 0.3, 0.3]
    };
    for (ratio, bar) in [bulk, rate, mesh_bulk, mesh_rate].into_iter().zip(bars) {
        assert!(ratio >= bar, "{ratio:.2} < {bar}");
    }
}
