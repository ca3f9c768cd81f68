//! A server on real sockets of this host: its limits, and who it answers.

use std::net::Ipv4Addr;

use hickory_proto::op::Message;
use hickory_proto::rr::RecordType;

use super::super::forward::Source;
use super::super::message::question;
use super::super::zone::Contents;
use super::*;
use crate::tables::record::{Backing, EndpointRecord, Version};
use crate::wire::{Mac, Vni};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A server on a free port of this host, for clients of this host.
struct Running {
    server: Server,
    place: SocketAddr,
    counters: Arc<Counters>,
}

fn start(upstreams: Vec<SocketAddr>) -> Running {
    let mut sockets = Sockets::default();
    // The same port has to be free for both.
    let place = loop {
        let udp = StdUdpSocket::bind((HERE, 0)).unwrap();
        let place = udp.local_addr().unwrap();
        drop(udp);
        if sockets.add(place).is_ok() {
            break place;
        }
        sockets = Sockets::default();
    };
    let counters: Arc<Counters> = Arc::default();
    let forwarder = Forwarder::new(Source::Fixed(upstreams), Arc::clone(&counters));
    let shared = Shared::new(Some(Arc::new(forwarder)), Arc::clone(&counters));
    let record = EndpointRecord {
        network: "n".repeat(25),
        vni: Vni::FIRST_USER,
        endpoint: "e".repeat(25),
        mac: Mac([2; 6]),
        ips: vec![[10, 0, 1, 2].into()],
        vtep: [192, 0, 2, 1].into(),
        node: String::new(),
        name: "web".into(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version::default(),
    };
    let zone = Zone::new(&Contents {
        network: "blue".into(),
        domain: "weft.internal".into(),
        records: vec![Arc::new(record)],
        ..Contents::default()
    });
    shared.zone().store(Arc::new(zone));
    shared.expect(&[HERE]);
    let server = Server::start(sockets, Arc::new(shared)).unwrap();
    Running {
        server,
        place,
        counters,
    }
}

async fn client(place: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((HERE, 0)).await.unwrap();
    socket.connect(place).await.unwrap();
    socket
}

async fn answer(socket: &UdpSocket) -> Message {
    let mut buffer = [0; 2048];
    let len = timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await;
    Message::from_vec(&buffer[..len.unwrap().unwrap()]).unwrap()
}

async fn ask(socket: &UdpSocket, name: &str) -> Message {
    let query = question(name, RecordType::A).unwrap();
    socket.send(&query).await.unwrap();
    answer(socket).await
}

async fn ask_tcp(stream: &mut TcpStream, name: &str) -> Message {
    let query = question(name, RecordType::A).unwrap();
    stream.write_all(&framed(&query)).await.unwrap();
    let len = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; len.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

fn counted(counts: Vec<(&'static str, u64)>, name: &str) -> u64 {
    counts.iter().find(|(other, _)| *other == name).unwrap().1
}

#[tokio::test]
async fn both_ways_are_served_and_streams_carry_several_queries() {
    let running = start(vec![]);
    let socket = client(running.place).await;
    assert_eq!(ask(&socket, "web").await.answers.len(), 1);
    let mut stream = TcpStream::connect(running.place).await.unwrap();
    for name in ["web", "web.blue.weft.internal"] {
        assert_eq!(ask_tcp(&mut stream, name).await.answers.len(), 1, "{name}");
    }
    assert!(running.server.alive());
    running.server.stop().await;
    assert!(
        TcpStream::connect(running.place).await.is_err(),
        "no socket is left"
    );
}

#[tokio::test]
async fn who_is_no_endpoint_of_this_node_gets_nothing() {
    let running = start(vec![]);
    running.server.shared().set_clients(Clients::default());
    let socket = client(running.place).await;
    socket
        .send(&question("web", RecordType::A).unwrap())
        .await
        .unwrap();
    let mut stream = TcpStream::connect(running.place).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    running.server.shared().expect(&[HERE]);
    // Queries of one socket are read in their order.
    assert_eq!(ask(&socket, "web").await.answers.len(), 1);
    assert_eq!(counted(running.counters.drops(), "stranger"), 2);
}

#[tokio::test]
async fn a_stuck_upstream_holds_nobody_up() {
    let silent = UdpSocket::bind((HERE, 0)).await.unwrap();
    let running = start(vec![silent.local_addr().unwrap()]);
    let (slow, fast) = (client(running.place).await, client(running.place).await);
    for i in 0..CLIENT_WAITING_MAX {
        let query = question(&format!("n{i}.example.org"), RecordType::A).unwrap();
        slow.send(&query).await.unwrap();
        // All of them wait, as each got a place.
        silent.recv_from(&mut [0; 512]).await.unwrap();
    }
    let begun = Instant::now();
    assert_eq!(ask(&fast, "web").await.answers.len(), 1);
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
    // One more of the same client is not taken.
    let refused = ask(&fast, "more.example.org").await;
    assert_eq!(
        refused.metadata.response_code,
        hickory_proto::op::ResponseCode::Refused
    );
    assert_eq!(counted(running.counters.outcomes(), "refused"), 1);
}

#[tokio::test]
async fn slow_connections_hold_nobody_up_and_are_limited() {
    let running = start(vec![]);
    let mut slow = Vec::new();
    for _ in 0..CLIENT_CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(running.place).await.unwrap();
        // A query is served, then another one begun and not ended.
        ask_tcp(&mut stream, "web").await;
        stream.write_all(&[0]).await.unwrap();
        slow.push(stream);
    }
    let mut more = TcpStream::connect(running.place).await.unwrap();
    assert_eq!(
        more.read(&mut [0; 1]).await.unwrap_or(0),
        0,
        "closed at once"
    );
    assert_eq!(counted(running.counters.drops(), "connection_limit"), 1);
    assert_eq!(
        ask(&client(running.place).await, "web").await.answers.len(),
        1
    );
    drop(slow.pop());
    // Its place is free as soon as its end is noticed.
    loop {
        let mut stream = TcpStream::connect(running.place).await.unwrap();
        let query = question("web", RecordType::A).unwrap();
        let sent = stream.write_all(&framed(&query)).await;
        if sent.is_ok() && stream.read_u16().await.is_ok() {
            break;
        }
    }
}

#[tokio::test]
async fn what_an_upstream_said_is_kept() {
    let upstream = UdpSocket::bind((HERE, 0)).await.unwrap();
    let running = start(vec![upstream.local_addr().unwrap()]);
    let socket = client(running.place).await;
    let query = question("a.example.org", RecordType::A).unwrap();
    socket.send(&query).await.unwrap();
    let mut buffer = [0; 2048];
    let (len, from) = upstream.recv_from(&mut buffer).await.unwrap();
    let mut reply = Message::from_vec(&buffer[..len]).unwrap();
    reply.metadata.message_type = hickory_proto::op::MessageType::Response;
    let name = reply.queries[0].name().clone();
    let data = hickory_proto::rr::RData::A(hickory_proto::rr::rdata::A::new(192, 0, 2, 7));
    reply.add_answer(hickory_proto::rr::Record::from_rdata(name, 60, data));
    upstream
        .send_to(&reply.to_vec().unwrap(), from)
        .await
        .unwrap();
    assert_eq!(answer(&socket).await.answers.len(), 1);
    drop(upstream);
    assert_eq!(ask(&socket, "A.example.org").await.answers.len(), 1);
    assert_eq!(counted(running.counters.outcomes(), "cached"), 1);
}
