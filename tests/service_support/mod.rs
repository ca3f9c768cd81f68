//! What the tests of services share: a lab with backends that tell who calls, and clients outside of it.
#![allow(dead_code)] // each test program uses a part

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use weft::lab::space;
use weft::lab::{Lab, links};
use weft::sys::netns::Netns;

use crate::lab_support::{Guard, eventually, said, weft};

/// How long something may take that takes well below a second on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How long one question may take.
pub const LIMIT: Duration = Duration::from_secs(2);

/// A lab with a cluster, and a client outside of it.
pub struct Field {
    pub lab: Lab,
    pub client: Netns,
}

/// The client's addresses on the underlay.
pub const CLIENT_V4: &str = "10.99.0.100";
pub const CLIENT_V6: &str = "fd99::100";

impl Field {
    /// A lab of three nodes with a backend of `my-web` on each, and a client beside the nodes. The underlay speaks IPv4 and IPv6.
    pub fn new(guard: &Guard) -> Field {
        let lab = guard
            .up(|options| (options.nodes, options.managers) = (3, 1))
            .unwrap();
        for index in 1..=3 {
            let node = netns_name(&lab, &format!("n{index}"));
            let address = format!("fd99::{index}/64");
            ip(&[
                "-n", &node, "address", "add", &address, "dev", "eth0", "nodad",
            ]);
        }
        let client = outsider(&lab, "client", CLIENT_V4, CLIENT_V6);
        Field { lab, client }
    }

    /// Runs `weft` against a node's agent.
    pub fn weft(&self, node: &str, words: &[&str]) -> Output {
        Command::new(weft())
            .args(words)
            .env("WEFT_SOCKET", self.lab.socket(node))
            .output()
            .unwrap()
    }

    /// As [`Field::weft`], and it has to work.
    pub fn done(&self, node: &str, words: &[&str]) -> String {
        let output = self.weft(node, words);
        assert!(output.status.success(), "{words:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// A node's address on the underlay.
    pub fn address(&self, node: usize, v6: bool) -> IpAddr {
        match v6 {
            false => format!("10.99.0.{node}").parse().unwrap(),
            true => format!("fd99::{node}").parse().unwrap(),
        }
    }

    /// The lab's own workloads, each with a server on port 80.
    pub fn serve_my_web(&self) -> Vec<Server> {
        let names: Vec<String> = self
            .lab
            .plan()
            .workloads
            .iter()
            .map(|w| w.name.clone())
            .collect();
        let server = |name: &String| Server::start(name, &self.lab.netns(name).unwrap(), 80);
        names.iter().map(server).collect()
    }

    /// A workload beside those of the lab, attached to `network`.
    pub fn workload(&self, node: &str, name: &str, network: &str, words: &[&str]) -> Netns {
        let netns = format!("weft-{}-{name}", self.lab.name());
        let made = space::create(&netns).unwrap();
        let mut all = vec!["attach", network, &netns, "--name", name];
        all.extend(words);
        self.done(node, &all);
        made
    }
}

/// The backends the lab comes with.
pub fn backends(field: &Field) -> Vec<String> {
    field
        .lab
        .plan()
        .workloads
        .iter()
        .map(|w| w.name.clone())
        .collect()
}

/// Publishes `my-web` on port 8080, over TCP and UDP.
pub fn publish_my_web(field: &Field) {
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
            "8080:80",
            "--publish",
            "8080:80/udp",
        ],
    );
}

/// A namespace on the underlay that is no node.
pub fn outsider(lab: &Lab, name: &str, v4: &str, v6: &str) -> Netns {
    let netns = format!("weft-{}-{name}", lab.name());
    let made = space::create(&netns).unwrap();
    let switch = lab.plan().switch.clone();
    let port = format!("nic-{name}");
    ip(&[
        "link", "add", &port, "netns", &switch, "type", "veth", "peer", "name", "eth0", "netns",
        &netns,
    ]);
    ip(&[
        "-n",
        &switch,
        "link",
        "set",
        &port,
        "master",
        links::BRIDGE,
        "up",
    ]);
    ip(&["-n", &netns, "link", "set", "lo", "up"]);
    ip(&["-n", &netns, "link", "set", "eth0", "up"]);
    ip(&[
        "-n",
        &netns,
        "address",
        "add",
        &format!("{v4}/24"),
        "dev",
        "eth0",
    ]);
    ip(&[
        "-n",
        &netns,
        "address",
        "add",
        &format!("{v6}/64"),
        "dev",
        "eth0",
        "nodad",
    ]);
    made
}

/// Name of a node's namespace.
pub fn netns_name(lab: &Lab, node: &str) -> String {
    lab.node(node).unwrap().netns.clone()
}

/// Runs `ip`.
pub fn ip(words: &[&str]) {
    run(Command::new("ip").args(words));
}

/// Runs a command, which has to work, and returns what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A program's run in a namespace, which has to work.
pub fn run_in(netns: &Netns, words: &[&str]) -> String {
    run(netns.command(words[0]).unwrap().args(&words[1..]))
}

/// Serves TCP (HTTP, one answer per connection) and UDP on a port, in both families: every answer is the server's name and
/// the client's address.
pub struct Server {
    pub name: String,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Connections answered.
    pub answered: Arc<AtomicU64>,
}

impl Server {
    pub fn start(name: &str, netns: &Netns, port: u16) -> Server {
        let any: SocketAddr = ([0_u16; 8], port).into();
        let (tcp, udp) = netns
            .run_in(|| {
                (
                    TcpListener::bind(any).unwrap(),
                    UdpSocket::bind(any).unwrap(),
                )
            })
            .unwrap();
        tcp.set_nonblocking(true).unwrap();
        udp.set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (own, halt, count) = (name.to_owned(), Arc::clone(&stop), Arc::clone(&answered));
        let streams = std::thread::spawn(move || {
            while !halt.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((client, peer)) => {
                        let text = format!("{own} {}\n", peer.ip().to_canonical());
                        // A health check connects and asks nothing.
                        if answer(client, &text) {
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    Err(_) => std::thread::sleep(Duration::from_micros(500)),
                }
            }
        });
        let (own, halt) = (name.to_owned(), Arc::clone(&stop));
        let datagrams = std::thread::spawn(move || {
            let mut room = [0; 2048];
            while !halt.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = udp.recv_from(&mut room) {
                    let text = format!("{own} {}\n", peer.ip().to_canonical());
                    let _gone = udp.send_to(text.as_bytes(), peer);
                }
            }
        });
        Server {
            name: name.into(),
            stop,
            threads: vec![streams, datagrams],
            answered,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Reads the head of a request and answers it; a client that goes away is none.
fn answer(mut client: TcpStream, text: &str) -> bool {
    let _ = client.set_nonblocking(false);
    let _ = client.set_read_timeout(Some(LIMIT));
    let mut head = [0; 1024];
    let asked = matches!(client.read(&mut head), Ok(len) if len > 0);
    if asked {
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
        let _ = client.write_all(format!("{head}{text}").as_bytes());
    }
    asked
}

/// Asks over TCP; who answered and whom it saw.
pub fn ask(from: &Netns, to: SocketAddr) -> std::io::Result<(String, String)> {
    let stream = from
        .run_in(|| TcpStream::connect_timeout(&to, LIMIT))
        .unwrap()?;
    read_answer(stream)
}

fn read_answer(mut stream: TcpStream) -> std::io::Result<(String, String)> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body)
        .unwrap_or_default();
    parse(body)
}

/// Asks over UDP.
pub fn ask_datagram(from: &Netns, to: SocketAddr) -> std::io::Result<(String, String)> {
    let any: SocketAddr = match to.is_ipv4() {
        true => ([0, 0, 0, 0], 0).into(),
        false => ([0_u16; 8], 0).into(),
    };
    let socket = from.run_in(|| UdpSocket::bind(any)).unwrap()?;
    ask_through(&socket, to)
}

/// Asks over UDP through a socket that may have asked before.
pub fn ask_through(socket: &UdpSocket, to: SocketAddr) -> std::io::Result<(String, String)> {
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(b"who", to)?;
    let mut room = [0; 512];
    let (len, from) = socket.recv_from(&mut room)?;
    if from.ip() != to.ip() || from.port() != to.port() {
        return Err(std::io::Error::other(format!("answered by {from}")));
    }
    parse(&String::from_utf8_lossy(&room[..len]))
}

fn parse(body: &str) -> std::io::Result<(String, String)> {
    let words = body.trim().split_once(' ');
    let (name, peer) =
        words.ok_or_else(|| std::io::Error::other(format!("no answer: {body:?}")))?;
    Ok((name.to_owned(), peer.to_owned()))
}

/// Asks until every one of `names` has answered; each time it must have seen `peer`.
pub fn all_answer(
    what: &str,
    names: &[String],
    peer: &str,
    mut ask: impl FnMut() -> std::io::Result<(String, String)>,
) -> BTreeMap<String, u32> {
    let end = Instant::now() + PATIENCE;
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut last = None;
    while !names.iter().all(|name| seen.contains_key(name)) {
        assert!(
            Instant::now() < end,
            "{what}: {seen:?} of {names:?}, last: {last:?}"
        );
        match ask() {
            Ok((name, from)) => {
                assert_eq!(from, peer, "{what}: {name} saw another client");
                *seen.entry(name).or_default() += 1;
            }
            Err(error) => {
                last = Some(error);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
    seen
}

/// Waits until a question is answered.
pub fn answered(
    what: &str,
    mut ask: impl FnMut() -> std::io::Result<(String, String)>,
) -> (String, String) {
    let mut found = None;
    eventually(what, PATIENCE, || {
        found = ask().ok();
        found.is_some()
    });
    found.unwrap()
}
