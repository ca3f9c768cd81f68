//! The conversation over loopback: nodes 127.0.0.1, .2 and so on, each with its own sockets.

use std::collections::BTreeSet;

use super::*;
use crate::cluster::sample;
use crate::tables::record::{Backing, Version};
use crate::wire::{Mac, Vni};

const PATIENCE: Duration = Duration::from_secs(20);

struct Node {
    runtime: Runtime,
    news: mpsc::Receiver<News>,
    shown: BTreeMap<String, EndpointRecord>,
    suspended: BTreeSet<NodeNumber>,
}

impl Node {
    async fn start(n: u8, port: u16, directory: &Arc<Directory>) -> Node {
        let config = Config {
            node: NodeNumber(n.into()),
            epoch: 1,
            addr: SocketAddr::new(sample::vtep(n), port),
            signing_seed: sample::seed(n),
            seed: n.into(),
            member: MemberConfig::default(),
        };
        let (runtime, news) = Runtime::start(config, Arc::clone(directory)).await.unwrap();
        Node {
            runtime,
            news,
            shown: BTreeMap::new(),
            suspended: BTreeSet::new(),
        }
    }

    /// Takes news in until what is known fits.
    async fn until(&mut self, what: &str, fits: impl Fn(&Node) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !fits(self) {
            let news = tokio::time::timeout_at(end, self.news.recv()).await;
            let news = news.unwrap_or_else(|_| panic!("{what}: {:?}", self.shown));
            self.take(news.expect("the conversation goes on"));
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Table(shown) => {
                let records = shown.into_iter().map(|s| (*s.record).clone());
                self.shown = records.map(|r| (r.endpoint.clone(), r)).collect();
            }
            News::Changes(events) => events.into_iter().for_each(|event| match event {
                Event::Upsert { record, .. } => {
                    self.shown
                        .insert(record.endpoint.clone(), (*record).clone());
                }
                Event::Remove { record, .. } => drop(self.shown.remove(&record.endpoint)),
                Event::Suspend(node) => drop(self.suspended.insert(node)),
                Event::Resume(node) => drop(self.suspended.remove(&node)),
                _ => {}
            }),
            News::Member(_) => {}
        }
    }
}

fn record(n: u8, last: u8) -> EndpointRecord {
    EndpointRecord {
        network: "net".into(),
        vni: Vni::FIRST_USER,
        endpoint: format!("e{n}-{last}"),
        mac: Mac([2, 0x42, 10, 0, 1, last]),
        ips: vec![format!("10.0.1.{last}").parse().unwrap()],
        vtep: sample::vtep(n),
        node: format!("node{n}"),
        name: format!("name{last}"),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    }
}

/// A port that is free on the first addresses.
async fn free_port() -> u16 {
    let socket = UdpSocket::bind((sample::vtep(1), 0)).await.unwrap();
    socket.local_addr().unwrap().port()
}

async fn start(count: u8) -> Vec<Node> {
    let port = free_port().await;
    let directory = sample::directory(count);
    let mut nodes = Vec::new();
    for n in 1..=count {
        nodes.push(Node::start(n, port, &directory).await);
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_known_everywhere_and_goes_everywhere() {
    let mut nodes = start(3).await;
    for node in &nodes {
        node.runtime.join("net");
    }
    nodes[0].runtime.publish(record(1, 2)).await.unwrap();
    assert!(nodes[2].runtime.await_table("net", PATIENCE).await);
    for node in &mut nodes {
        node.until("it comes", |n| n.shown.contains_key("e1-2"))
            .await;
    }
    nodes[0].runtime.withdraw("net", "e1-2");
    for node in &mut nodes {
        node.until("it goes", |n| n.shown.is_empty()).await;
    }
    // Who takes part is told by each by itself.
    let end = tokio::time::Instant::now() + PATIENCE;
    let report = loop {
        let report = nodes[1].runtime.report().await.unwrap();
        if report.members.len() == 2 && report.networks["net"].takers.len() == 3 {
            break report;
        }
        assert!(tokio::time::Instant::now() < end, "{report:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(report.runtime.messages_received > 0 && report.runtime.bytes_sent > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_silent_node_are_suspended_and_come_back() {
    let mut nodes = start(2).await;
    for node in &nodes {
        node.runtime.join("net");
    }
    nodes[1].runtime.publish(record(2, 6)).await.unwrap();
    nodes[0]
        .until("it comes", |n| n.shown.contains_key("e2-6"))
        .await;
    let port = nodes[1].runtime.addr().port();
    nodes.pop().unwrap().runtime.stop(false).await;
    let two = NodeNumber(2);
    nodes[0]
        .until("suspended", |n| n.suspended.contains(&two))
        .await;
    assert!(
        nodes[0].shown.contains_key("e2-6"),
        "kept, for when it is back"
    );
    // It has started again, and the managers know.
    let mut replica = sample::replica(2);
    for node in replica.nodes.values_mut() {
        node.epoch += u64::from(node.number == 2);
    }
    let directory = Arc::new(Directory::new(Arc::new(replica)));
    nodes[0].runtime.set_directory(Arc::clone(&directory));
    let config = Config {
        node: two,
        epoch: 2,
        addr: SocketAddr::new(sample::vtep(2), port),
        signing_seed: sample::seed(2),
        seed: 5,
        member: MemberConfig::default(),
    };
    let (again, _news) = Runtime::start(config, directory).await.unwrap();
    again.join("net");
    again.publish(record(2, 7)).await.unwrap();
    nodes[0]
        .until("the new one instead of the old one", |n| {
            n.shown.contains_key("e2-7") && !n.shown.contains_key("e2-6") && n.suspended.is_empty()
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_counted_and_change_nothing() {
    let nodes = start(1).await;
    let addr = nodes[0].runtime.addr();
    let stranger = UdpSocket::bind("127.0.0.9:0").await.unwrap();
    let mut wrong = Seal::new(NodeNumber(1), 1);
    wrong.set_keys("", &[crate::cluster::seal::Secret([99; 32])]);
    let sealed = wrong.seal("", b"x").unwrap();
    let mut unknown = Seal::new(NodeNumber(77), 1);
    unknown.set_keys("", &[crate::cluster::seal::Secret([1; 32])]);
    let unknown = unknown.seal("", b"x").unwrap();
    for datagram in [
        &b""[..],
        b"\x01",
        b"hello",
        &[0xff; 1400],
        &sealed,
        &unknown,
    ] {
        stranger.send_to(datagram, addr).await.unwrap();
    }
    // A stream of nonsense, and one that announces too much.
    for bytes in [&[0, 0, 0, 3, 1, 2, 3][..], &[0xff; 8]] {
        let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut stream, bytes)
            .await
            .unwrap();
    }
    let end = Instant::now() + PATIENCE;
    loop {
        let counters = nodes[0].runtime.report().await.unwrap().runtime;
        let refused = counters.refused_malformed + counters.refused_unknown_key;
        if refused == 6 && counters.refused_unknown_sender == 1 {
            assert_eq!(counters.messages_received, 7);
            break;
        }
        assert!(Instant::now() < end, "{counters:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    nodes[0].runtime.stop(true).await;
    assert!(nodes[0].runtime.report().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_much_for_datagrams_goes_over_a_stream() {
    let port = free_port().await;
    let mut replica = sample::replica(2);
    // All of the subnet is the first node's.
    let (_, block) = &mut replica.blocks.get_mut("net").unwrap()[0];
    block.len = 128;
    replica.blocks.get_mut("net").unwrap()[1].0.first = "10.0.1.200".parse().unwrap();
    let directory = Arc::new(Directory::new(Arc::new(replica)));
    let first = Node::start(1, port, &directory).await;
    first.runtime.join("net");
    for last in 2..120 {
        let mut record = record(1, last);
        // Long, and nothing that could be left out on the wire.
        let mut text = |n: u64| {
            let mut dice = crate::cluster::dice::Dice::new(u64::from(last) * 100 + n);
            let letter = |_| char::from(b'a' + dice.below(26) as u8);
            (0..200).map(letter).collect::<String>()
        };
        record.aliases = (0..4).map(&mut text).collect();
        first.runtime.publish(record).await.unwrap();
    }
    let mut second = Node::start(2, port, &directory).await;
    second.runtime.join("net");
    second.until("all of them", |n| n.shown.len() == 118).await;
    let report = first.runtime.report().await.unwrap();
    assert!(report.runtime.streams_sent > 0, "{:?}", report.runtime);
}

#[tokio::test]
async fn a_port_in_use_is_waited_for_a_moment() {
    let holder = UdpSocket::bind("127.0.0.9:0").await.unwrap();
    let addr = holder.local_addr().unwrap();
    let release = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(holder);
    });
    let bound = while_in_use(|| UdpSocket::bind(addr)).await.unwrap();
    release.await.unwrap();
    let error = while_in_use(|| UdpSocket::bind(addr)).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    drop(bound);
}
