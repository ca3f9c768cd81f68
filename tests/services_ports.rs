//! Published ports on real agents: as they come and go, who else may have them, and who calls from the node itself.

mod lab_support;
mod service_support;

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, eventually, long, said, skip};
use service_support::{
    CLIENT_V4, Field, LIMIT, PATIENCE, Server, answered, ask, ask_datagram, backends, outsider,
    publish_my_web, run_in,
};
use weft::sys::netns::Netns;

#[test]
fn ports_are_bound_kept_and_closed_as_they_should_be() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let node = field.lab.netns("n1").unwrap();
    // A program has one of the ports already.
    let squatter = node
        .run_in(|| std::net::TcpListener::bind("0.0.0.0:8081"))
        .unwrap()
        .unwrap();
    field.done(
        "n1",
        &[
            "service",
            "create",
            "--name",
            "my-web",
            "--network",
            "my-network",
            "--publish",
            "127.0.0.1:8080:80",
            "--publish",
            "8081:80",
            "--publish",
            "10.99.0.2:8082:80",
            "--publish",
            "8083:80/tcp,mode=host",
            "--publish",
            "8084:80,proxy-protocol",
        ],
    );
    let loopback: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    answered("loopback", || ask(&node, loopback));
    // From a neighbour the same port is closed, also for one who routes loopback to the node.
    let at = |node: usize, port: u16| SocketAddr::new(field.address(node, false), port);
    assert!(ask(&field.client, at(1, 8080)).is_err());
    let neighbour = outsider(&field.lab, "evil", "10.99.0.101", "fd99::101");
    run_in(
        &neighbour,
        &["sysctl", "-qw", "net.ipv4.conf.all.route_localnet=1"],
    );
    run_in(
        &neighbour,
        &["ip", "address", "del", "127.0.0.1/8", "dev", "lo"],
    );
    run_in(
        &neighbour,
        &["ip", "route", "add", "127.0.0.1/32", "via", "10.99.0.1"],
    );
    assert!(ask(&neighbour, loopback).is_err());
    let knob = run_in(
        &node,
        &[
            "sysctl",
            "-n",
            "net.ipv4.conf.docker_gwbridge.route_localnet",
        ],
    );
    assert_eq!(knob.trim(), "0");

    // Squatted on one node: said there, and served by the others.
    answered("the other node", || ask(&field.client, at(2, 8081)));
    eventually("it is said", PATIENCE, || {
        let output = field.weft("n1", &["status"]);
        let text = said(&output);
        text.contains("8081") && text.contains("my-web")
    });
    drop(squatter);
    answered("once it is free", || ask(&field.client, at(1, 8081)));
    // And nobody else can take a published port by mistake.
    let taken = node
        .run_in(|| std::net::TcpListener::bind("0.0.0.0:8081"))
        .unwrap();
    assert_eq!(taken.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);

    // Bound to one node's address: there, and nowhere else.
    answered("the address itself", || ask(&field.client, at(2, 8082)));
    assert!(ask(&field.client, at(1, 8082)).is_err());
    // In host mode each node leads to its own backend, which sees its client.
    for index in 1..=3 {
        let (name, seen) = answered("host mode", || ask(&field.client, at(index, 8083)));
        assert_eq!(
            (name, seen.as_str()),
            (format!("my-web.{index}"), CLIENT_V4)
        );
    }
    // With a header in front: the first bytes a backend gets tell the client.
    let lines = proxied(&field, at(3, 8084));
    assert!(
        lines.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x63\x00\x64"),
        "{lines:?}"
    );

    // So is a port that the nodes need themselves.
    let output = field.weft(
        "n2",
        &["service", "update", "my-web", "--publish-add", "7378:80"],
    );
    assert!(!output.status.success());
    assert!(said(&output).contains("weft itself"), "{}", said(&output));

    // A second owner of a port is refused, naming the first.
    let output = field.weft(
        "n2",
        &[
            "service",
            "create",
            "--name",
            "other",
            "--network",
            "my-network",
            "--publish",
            "8081:80",
        ],
    );
    assert!(!output.status.success());
    assert!(said(&output).contains("my-web"), "{}", said(&output));
}

/// What a backend receives first of a connection to `to`.
fn proxied(field: &Field, to: SocketAddr) -> Vec<u8> {
    let got = std::sync::Mutex::new(Vec::new());
    let netns = field.lab.netns("my-web.1").unwrap();
    // The lab's own servers answer on port 80 of every backend: another port tells.
    field.done(
        "n1",
        &[
            "service",
            "update",
            "my-web",
            "--publish-add",
            "8085:81,proxy-protocol",
        ],
    );
    let listener = netns
        .run_in(|| std::net::TcpListener::bind("[::]:81"))
        .unwrap()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    let to = SocketAddr::new(to.ip(), 8085);
    eventually("a header arrives", PATIENCE, || {
        if let Ok(Ok(client)) = field
            .client
            .run_in(|| TcpStream::connect_timeout(&to, LIMIT))
        {
            std::thread::sleep(Duration::from_millis(100));
            if let Ok((mut server, _)) = listener.accept() {
                server.set_nonblocking(false).unwrap();
                server.set_read_timeout(Some(LIMIT)).unwrap();
                let mut head = [0; 28];
                if server.read_exact(&mut head).is_ok() {
                    got.lock().unwrap().extend(head);
                    return true;
                }
            }
            drop(client);
        }
        false
    });
    got.into_inner().unwrap()
}

/// How a call of a port that is just being published may end: refused, or answered.
#[test]
fn a_port_that_is_being_published_refuses_or_answers() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let node = field.lab.netns("n1").unwrap();
    let own = SocketAddr::new(field.address(1, false), 8080);
    let own_v6 = SocketAddr::new(field.address(1, true), 8080);
    let loopback: SocketAddr = "127.0.0.1:8080".parse().unwrap();
    let callers = [
        (&field.client, own),
        (&field.client, own_v6),
        (&node, own),
        (&node, loopback),
    ];
    let rounds = if long() { 10 } else { 3 };
    for _ in 0..rounds {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let call = |from: &Netns, to: SocketAddr| {
                let (mut answers, mut refusals, mut odd) = (0_u32, 0_u32, Vec::new());
                while !over.load(Ordering::Relaxed) && answers < 100 {
                    match ask(from, to) {
                        Ok(_) => answers += 1,
                        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                            refusals += 1;
                        }
                        Err(error) => odd.push(format!("{to}: {error}")),
                    }
                }
                (answers, refusals, odd)
            };
            let calls = callers.map(|(from, to)| scope.spawn(move || call(from, to)));
            publish_my_web(&field);
            let patience = Instant::now() + PATIENCE;
            while !calls.iter().all(|call| call.is_finished()) && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(5));
            }
            over.store(true, Ordering::Relaxed);
            for call in calls {
                let (answers, refusals, odd) = call.join().unwrap();
                assert!(
                    answers >= 100 && refusals > 0,
                    "{answers}, {refusals}: {odd:?}"
                );
                assert!(odd.is_empty(), "{odd:?}");
            }
        });
        // With nobody to answer, clients are refused again, over loopback, too.
        for (index, name) in backends(&field).iter().enumerate() {
            field.done(
                &format!("n{}", index + 1),
                &["service", "drain", "my-web", name],
            );
        }
        for (from, to) in callers {
            eventually(
                "refused",
                PATIENCE,
                || matches!(ask(from, to), Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused),
            );
        }
        for (index, name) in backends(&field).iter().enumerate() {
            let home = format!("n{}", index + 1);
            field.done(&home, &["service", "ready", "my-web", name]);
        }
        for (from, to) in callers {
            answered("answered again", || ask(from, to));
        }
        // When it is gone, nobody waits for an answer that cannot come.
        field.done("n1", &["service", "rm", "my-web"]);
        for (from, to) in callers {
            eventually("refused", PATIENCE, || {
                let begun = Instant::now();
                let called = from.run_in(|| TcpStream::connect_timeout(&to, LIMIT));
                let error = called.unwrap().err();
                assert!(begun.elapsed() < LIMIT, "{to}: {error:?}");
                error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
            });
        }
    }
}

/// As the kernel is wherever br_netfilter is loaded: it sends bridged frames through the node's rules.
#[test]
fn a_workload_calls_a_host_port_of_its_own_node_whether_bridged_frames_are_filtered_or_not() {
    if !can_make_labs() {
        return;
    }
    let guard = Guard::new();
    let field = Field::new(&guard);
    let _servers = field.serve_my_web();
    let create = |name: &str, network: &str, ports: &[&str]| {
        let mut words = vec!["service", "create", "--name", name, "--network", network];
        words.extend(ports.iter().flat_map(|port| ["--publish", *port]));
        field.done("n1", &words);
    };
    let ports = [
        "8083:80,mode=host",
        "8083:80/udp,mode=host",
        "10.99.0.1:8084:80,mode=host",
        "10.99.0.1:8084:80/udp,mode=host",
    ];
    create("my-web", "my-network", &ports);
    field.done("n1", &["network", "create", "--ipv6", "six"]);
    create(
        "api",
        "six",
        &["8085:80,mode=host", "8085:80/udp,mode=host"],
    );
    let api = field.workload("n1", "api.1", "six", &["--service", "api"]);
    let _api = Server::start("api.1", &api, 80);
    let six = field.workload("n1", "six-caller", "six", &[]);
    let node = field.lab.netns("n1").unwrap();
    let caller = field.workload("n1", "caller", "my-network", &[]);
    let own = SocketAddr::new(field.address(1, false), 8083);
    let (name, seen) = answered("from outside", || ask(&field.client, own));
    assert_eq!((name.as_str(), seen.as_str()), ("my-web.1", CLIENT_V4));
    for filtered in ["1", "0"] {
        for knob in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
            let set = format!("net.bridge.{knob}={filtered}");
            let done = node.command("sysctl").unwrap().args(["-qw", &set]).output();
            if !done.unwrap().status.success() {
                skip("this kernel has no br_netfilter: bridged frames are never filtered");
            }
        }
        let at = |v6: bool, port: u16| SocketAddr::new(field.address(1, v6), port);
        for (from, to, who) in [
            (&caller, own, "my-web.1"),
            (&caller, at(false, 8084), "my-web.1"),
            (&six, at(false, 8085), "api.1"),
            (&six, at(true, 8085), "api.1"),
        ] {
            let what = format!("{to}, bridged frames filtered: {filtered}");
            let (name, _) = answered(&format!("TCP to {what}"), || ask(from, to));
            assert_eq!(name, who);
            let (name, _) = answered(&format!("UDP to {what}"), || ask_datagram(from, to));
            assert_eq!(name, who);
        }
        let there = SocketAddr::new(field.address(2, false), 8083);
        let (name, _) = answered("another node's", || ask(&caller, there));
        assert_eq!(name, "my-web.2");
    }
}
