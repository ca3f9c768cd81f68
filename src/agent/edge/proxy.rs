//! Bytes from one side to the other, where rules alone do not do: callers on the node itself, and connections that begin
//! with a header.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;

use super::ports::Way;
use crate::services::balance::Target;
use crate::sys::netns::Netns;

/// Serves a published TCP port to callers on this node: `listener` hears nobody else.
pub(super) async fn serve(listener: TcpListener, to: SocketAddr) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Some((mut client, _)) = accept(&listener).await else {
            return;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        tokio::spawn(async move {
            if let Ok(Ok(mut server)) = timeout(CONNECT_LIMIT, TcpStream::connect(to)).await {
                // Either side's end is the other's.
                let _ended = copy_bidirectional(&mut client, &mut server).await;
            }
            drop(slot);
        });
    }
}

/// The next connection; pauses when there is no descriptor left for one.
async fn accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    loop {
        match listener.accept().await {
            Ok(accepted) => return Some(accepted),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
                ) =>
            {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            // A client that went away while it waited.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return None,
        }
    }
}

/// Serves a published UDP port to callers on this node: one socket per client, for as long as datagrams pass.
pub(super) async fn relay(socket: UdpSocket, way: watch::Receiver<Option<Way>>) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut room = vec![0; 65_535];
    loop {
        let (len, peer) = match socket.recv_from(&mut room).await {
            Ok(received) => received,
            // The port of an earlier answer's receiver was closed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(_) => return,
        };
        let to = way.borrow().as_ref().and_then(|way| way.of(peer.ip()));
        let Some(to) = to else {
            continue;
        };
        clients.retain(|_, client| !client.is_closed());
        if clients.len() >= CONNECTIONS_MAX && !clients.contains_key(&peer) {
            continue;
        }
        let client = clients.entry(peer).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(64);
            tokio::spawn(relay_one(Arc::clone(&socket), peer, to, receiver));
            sender
        });
        // A client faster than its server loses datagrams, as anywhere.
        let _full = client.try_send(room[..len].to_vec());
    }
}

async fn relay_one(
    socket: Arc<UdpSocket>,
    peer: SocketAddr,
    to: SocketAddr,
    mut from_client: mpsc::Receiver<Vec<u8>>,
) {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => [0, 0, 0, 0].into(),
        SocketAddr::V6(_) => [0_u16; 8].into(),
    };
    let Ok(server) = UdpSocket::bind((any, 0)).await else {
        return;
    };
    if server.connect(to).await.is_err() {
        return;
    }
    let mut room = vec![0; 65_535];
    loop {
        let next = timeout(DATAGRAM_IDLE, async {
            tokio::select! {
                datagram = from_client.recv() => match datagram {
                    Some(datagram) => server.send(&datagram).await.map(|_| true),
                    None => Ok(false),
                },
                received = server.recv(&mut room) => match received {
                    Ok(len) => socket.send_to(&room[..len], peer).await.map(|_| true),
                    Err(error) => Err(error),
                },
            }
        });
        match next.await {
            Ok(Ok(true)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            _ => return,
        }
    }
}

/// Takes connections in on a port of the ingress namespace and leads each to a backend, behind a PROXY header that tells
/// who the client is.
pub(super) async fn serve_with_header(
    listener: TcpListener,
    netns: Netns,
    backends: watch::Receiver<(Vec<Target>, u16)>,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let netns = Arc::new(netns);
    let turn = AtomicUsize::new(0);
    loop {
        let Some((mut client, peer)) = accept(&listener).await else {
            return;
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            continue;
        };
        let (targets, port) = backends.borrow().clone();
        let first = turn.fetch_add(1, Ordering::Relaxed);
        let netns = Arc::clone(&netns);
        tokio::spawn(async move {
            let local = client.local_addr().unwrap_or(peer);
            let header = header(peer, SocketAddr::new(local.ip(), local.port()));
            for to in order(&targets, peer.ip().to_canonical().is_ipv6(), first) {
                let to = SocketAddr::new(to, port);
                let Ok(socket) = socket_in(&netns, to) else {
                    break;
                };
                if let Ok(Ok(mut server)) = timeout(CONNECT_LIMIT, socket.connect(to)).await {
                    if server.write_all(&header).await.is_ok() {
                        let _ended = copy_bidirectional(&mut client, &mut server).await;
                    }
                    break;
                }
            }
            drop(slot);
        });
    }
}

/// Sockets belong to the namespace they are made in.
fn socket_in(netns: &Netns, to: SocketAddr) -> io::Result<TcpSocket> {
    let made = netns.run_in(|| match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    });
    made.map_err(io::Error::other)?
}

/// The backends to try, by weight in turn: first whose turn it is, then the others.
fn order(targets: &[Target], v6: bool, turn: usize) -> Vec<IpAddr> {
    let of_family = targets
        .iter()
        .filter(|t| t.share > 0 && t.ip.is_ipv6() == v6);
    let ready: Vec<&Target> = of_family.collect();
    let total: usize = ready.iter().map(|target| usize::from(target.share)).sum();
    if total == 0 {
        return Vec::new();
    }
    let mut place = turn % total;
    let first = ready.iter().position(|target| {
        let here = place < usize::from(target.share);
        place = place.saturating_sub(target.share.into());
        here
    });
    let first = first.unwrap_or(0);
    let (before, from) = ready.split_at(first);
    from.iter().chain(before).map(|target| target.ip).collect()
}

/// A header of version 2 of the PROXY protocol (haproxy's `proxy-protocol.txt`, section 2.2): a stream from `client` that
/// was accepted at `server`.
fn header(client: SocketAddr, server: SocketAddr) -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    // Version 2, PROXY.
    bytes.push(0x21);
    let ports = [client.port().to_be_bytes(), server.port().to_be_bytes()].concat();
    match (client.ip().to_canonical(), server.ip().to_canonical()) {
        (IpAddr::V4(client), IpAddr::V4(server)) => {
            bytes.extend([0x11, 0, 12]);
            bytes.extend(client.octets());
            bytes.extend(server.octets());
        }
        (client, server) => {
            let wide = |ip| match ip {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            bytes.extend([0x21, 0, 36]);
            bytes.extend(wide(client).octets());
            bytes.extend(wide(server).octets());
        }
    }
    bytes.extend(ports);
    bytes
}

/// Connections or clients that one port serves at a time.
const CONNECTIONS_MAX: usize = 4096;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// As long as the kernel remembers a flow of datagrams both ways (`nf_conntrack_udp_timeout_stream`).
const DATAGRAM_IDLE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::super::ports::Door;
    use super::*;

    #[test]
    fn the_header_tells_client_and_server() {
        let v4 = header(
            "192.0.2.9:40000".parse().unwrap(),
            "172.18.0.2:8080".parse().unwrap(),
        );
        let expected = [
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".as_slice(),
            &[192, 0, 2, 9, 172, 18, 0, 2, 0x9c, 0x40, 0x1f, 0x90],
        ];
        assert_eq!(v4, expected.concat());
        let v6 = header(
            "[2001:db8::9]:1".parse().unwrap(),
            "[fd00::2]:2".parse().unwrap(),
        );
        assert_eq!((v6.len(), v6[13], v6[15]), (52, 0x21, 36));
        // A dual-stack socket shows IPv4 clients in IPv6 form.
        let mapped = header(
            "[::ffff:192.0.2.9]:40000".parse().unwrap(),
            "[::ffff:172.18.0.2]:8080".parse().unwrap(),
        );
        assert_eq!(mapped, v4);
    }

    #[test]
    fn backends_are_tried_in_turn_by_weight() {
        let target = |last, share| Target {
            ip: [10, 0, 0, last].into(),
            share,
        };
        let targets = [target(1, 2), target(2, 1), target(3, 0)];
        let firsts: Vec<u8> = (0..6)
            .map(|turn| match order(&targets, false, turn)[0] {
                IpAddr::V4(v4) => v4.octets()[3],
                IpAddr::V6(_) => 0,
            })
            .collect();
        assert_eq!(firsts, [1, 1, 2, 1, 1, 2]);
        assert_eq!(
            order(&targets, false, 2).len(),
            2,
            "a dead one is followed by the next"
        );
        assert!(order(&targets, true, 0).is_empty());
    }

    #[tokio::test]
    async fn who_calls_is_led_on() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut client, _) = server.accept().await.unwrap();
                client.write_all(b"hello").await.unwrap();
            }
        });
        let port = TcpListener::bind("[::]:0").await.unwrap();
        let address = port.local_addr().unwrap();
        tokio::spawn(serve(port, to));
        let mut client = TcpStream::connect(("127.0.0.1", address.port()))
            .await
            .unwrap();
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut client, &mut text)
            .await
            .unwrap();
        assert_eq!(text, "hello");
    }

    #[tokio::test]
    async fn datagrams_go_there_and_back() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let to = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut room = [0; 100];
            loop {
                let (len, peer) = server.recv_from(&mut room).await.unwrap();
                server.send_to(&room[..len], peer).await.unwrap();
            }
        });
        let doors = vec![Door::loopback()];
        let (way, receiver) = watch::channel(Some(Way { to, doors }));
        let port = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = port.local_addr().unwrap();
        tokio::spawn(relay(port, receiver));
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(address).await.unwrap();
        for text in ["one", "two"] {
            client.send(text.as_bytes()).await.unwrap();
            let mut room = [0; 100];
            let len = timeout(Duration::from_secs(5), client.recv(&mut room))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(&room[..len], text.as_bytes());
        }
        // Whoever comes in by no door gets no answer.
        way.send(Some(Way { to, doors: vec![] })).unwrap();
        client.send(b"three").await.unwrap();
        let mut room = [0; 100];
        let late = timeout(Duration::from_millis(100), client.recv(&mut room));
        late.await.unwrap_err();
    }
}
