//! Pseudo-random bytes through the overlay, checked one by one: what a receiver reads is compared with
//! what the sender must have sent at that place, so loss, change, repetition and reordering all show.
//! Streams are hashed at both ends besides, by code that shares nothing with the comparison.

use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use weft::bench::traffic::pattern::{Digest, fill};
use weft::sys::udp::{Destination, UdpOptions, UdpSocket};

use super::hosts::{Hosts, named};
use super::wiretap::PATIENCE;

const BLOCK: usize = 64 << 10;

/// Sends `len` bytes by TCP from one workload to another, checks each and compares the hashes of both
/// ends; returns the time it took.
pub fn tcp(hosts: &Hosts, from: u8, to: u8, address: IpAddr, len: u64) -> Duration {
    let bind = || TcpListener::bind((address, 0)).unwrap();
    let listener = named(&hosts.host(to).workload).run_in(bind).unwrap();
    let target = listener.local_addr().unwrap();
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let seed = u64::from(target.port());
    let start = Instant::now();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            receive(stream, seed)
        });
        let connected = named(&hosts.host(from).workload).run_in(connect).unwrap();
        let sent = send(connected.expect("TCP connects"), seed, len);
        let (came, hash) = receiver.join().unwrap();
        assert_eq!(came, len, "bytes received");
        assert_eq!(hash, sent, "hash of what came and of what was sent");
    });
    start.elapsed()
}

/// Returns the hash of what was handed to the kernel.
fn send(mut stream: TcpStream, seed: u64, len: u64) -> u64 {
    let mut digest = Digest::default();
    stream.set_write_timeout(Some(2 * PATIENCE)).unwrap();
    let mut block = vec![0; BLOCK];
    let mut sent = 0;
    while sent < len {
        fill(seed, sent, &mut block);
        stream.write_all(&block).expect("TCP takes the data");
        digest.update(&block);
        sent += BLOCK as u64;
    }
    digest.finish()
}

/// Reads to the end and compares; returns how many bytes came, and their hash.
fn receive(mut stream: TcpStream, seed: u64) -> (u64, u64) {
    let mut digest = Digest::default();
    stream.set_read_timeout(Some(2 * PATIENCE)).unwrap();
    let (mut got, mut want) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut position = 0;
    loop {
        let mut filled = 0;
        while filled < BLOCK {
            match stream.read(&mut got[filled..]).expect("TCP gives data") {
                0 => break,
                count => filled += count,
            }
        }
        digest.update(&got[..filled]);
        fill(seed, position, &mut want);
        if got[..filled] != want[..filled] {
            let at = (0..filled).find(|i| got[*i] != want[*i]).unwrap();
            panic!("byte {} of the stream is wrong", position + at as u64);
        }
        position += filled as u64;
        if filled < BLOCK {
            return (position, digest.finish());
        }
    }
}

/// How datagrams are handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagrams {
    /// One call each, of these sizes in turn; larger than the MTU means inner fragments.
    Plain(&'static [usize]),
    /// One call for 20 of this size and a last one of half: inner `UDP_SEGMENT`.
    Segmented(u16),
}

/// Sends `count` datagrams and checks that each comes once, whole and in order. No more than a small
/// window is on its way, so none may be lost.
pub fn udp(hosts: &Hosts, from: u8, to: u8, address: IpAddr, kind: Datagrams, count: usize) {
    let options = UdpOptions {
        rcvbuf: 8 << 20,
        sndbuf: 4 << 20,
        recv_errors: false,
        ..UdpOptions::default()
    };
    let open = |address: IpAddr, options: &UdpOptions| {
        UdpSocket::bind(SocketAddr::new(address, 0), options).unwrap()
    };
    let receiver = named(&hosts.host(to).workload)
        .run_in(|| open(address, &options))
        .unwrap();
    let target = Destination::new(receiver.local_addr().unwrap());
    let any: IpAddr = if address.is_ipv4() {
        [0; 4].into()
    } else {
        [0; 16].into()
    };
    let sender = named(&hosts.host(from).workload)
        .run_in(|| match kind {
            // The standard library's sockets let the kernel fragment.
            Datagrams::Plain(_) => Sender::Plain(std::net::UdpSocket::bind((any, 0)).unwrap()),
            Datagrams::Segmented(size) => Sender::Segmented(open(any, &options), size),
        })
        .unwrap();
    let came = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| expect(&receiver, kind, count, &came));
        send_datagrams(&sender, &target, kind, count, &came);
        let missing = reading.join().unwrap();
        assert_eq!(missing, None, "{kind:?}: first missing of {count}");
    });
}

/// Size of datagram `index`.
fn size(kind: Datagrams, index: usize) -> usize {
    match kind {
        Datagrams::Plain(sizes) => sizes[index % sizes.len()],
        Datagrams::Segmented(size) if index % 21 == 20 => usize::from(size) / 2,
        Datagrams::Segmented(size) => size.into(),
    }
}

fn datagram(kind: Datagrams, index: usize) -> Vec<u8> {
    let mut bytes = vec![0; size(kind, index)];
    fill(index as u64, 0, &mut bytes);
    bytes
}

enum Sender {
    Plain(std::net::UdpSocket),
    Segmented(UdpSocket, u16),
}

impl Sender {
    /// Hands datagrams to the workload's kernel in one call.
    fn send(&self, bytes: &[u8], target: &Destination) -> std::io::Result<usize> {
        match self {
            Sender::Plain(socket) => socket.send_to(bytes, target.address()),
            Sender::Segmented(socket, size) => {
                socket.send(&[IoSlice::new(bytes)], target, Some(*size), 0)
            }
        }
    }
}

fn send_datagrams(
    sender: &Sender,
    target: &Destination,
    kind: Datagrams,
    count: usize,
    came: &AtomicUsize,
) {
    // A plain one may be 45 fragments, and an uplink holds some 400 of those.
    let (window, per_call) = match kind {
        Datagrams::Plain(_) => (8, 1),
        Datagrams::Segmented(_) => (42, 21),
    };
    for first in (0..count).step_by(per_call) {
        let start = Instant::now();
        while first + per_call > came.load(Ordering::Relaxed) + window {
            if start.elapsed() > PATIENCE {
                return;
            }
            std::thread::yield_now();
        }
        let bytes: Vec<u8> = (first..first + per_call)
            .flat_map(|index| datagram(kind, index))
            .collect();
        sender
            .send(&bytes, target)
            .expect("the workload's kernel takes the datagram");
    }
}

/// Receives until all came or nothing comes any more; returns the first that did not come.
fn expect(socket: &UdpSocket, kind: Datagrams, count: usize, came: &AtomicUsize) -> Option<usize> {
    let mut buf = vec![0; 65_536];
    let mut last = Instant::now();
    let mut next = 0;
    while next < count && last.elapsed() < PATIENCE / 2 {
        match socket.recv(&mut buf).expect("the workload's socket works") {
            Some(meta) => {
                let want = datagram(kind, next);
                assert_eq!(meta.len, want.len(), "length of datagram {next}");
                assert!(buf[..meta.len] == want, "bytes of datagram {next}");
                next += 1;
                came.store(next, Ordering::Relaxed);
                last = Instant::now();
            }
            None => std::thread::yield_now(),
        }
    }
    (next < count).then_some(next)
}
