//! Bytes through the overlay, checked one by one: what a receiver reads is compared with what the
//! sender must have sent at that place, so loss, change, repetition and reordering all show.

use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use weft::sys::udp::{Destination, UdpOptions, UdpSocket};

use super::hosts::{Hosts, named};
use super::wiretap::PATIENCE;

const BLOCK: usize = 64 << 10;

/// The word at position `index` of stream `seed`.
fn word(seed: u64, index: u64) -> u64 {
    (index ^ seed.rotate_left(17)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Bytes `start..start + out.len()` of a stream; both multiples of eight.
fn fill(seed: u64, start: u64, out: &mut [u8]) {
    for (index, chunk) in out.chunks_exact_mut(8).enumerate() {
        let word = word(seed, start / 8 + index as u64);
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
}

/// Sends `len` bytes by TCP from one workload to another and checks each; returns the time it took.
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
        send(connected.expect("TCP connects"), seed, len);
        assert_eq!(receiver.join().unwrap(), len, "bytes received");
    });
    start.elapsed()
}

fn send(mut stream: TcpStream, seed: u64, len: u64) {
    stream.set_write_timeout(Some(2 * PATIENCE)).unwrap();
    let mut block = vec![0; BLOCK];
    let mut sent = 0;
    while sent < len {
        fill(seed, sent, &mut block);
        stream.write_all(&block).expect("TCP takes the data");
        sent += BLOCK as u64;
    }
}

/// Reads to the end and compares; returns how many bytes.
fn receive(mut stream: TcpStream, seed: u64) -> u64 {
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
        fill(seed, position, &mut want);
        if got[..filled] != want[..filled] {
            let at = (0..filled).find(|i| got[*i] != want[*i]).unwrap();
            panic!("byte {} of the stream is wrong", position + at as u64);
        }
        position += filled as u64;
        if filled < BLOCK {
            return position;
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
    let size = size(kind, index);
    let mut bytes = vec![0; size.next_multiple_of(8)];
    fill(index as u64, 0, &mut bytes);
    bytes.truncate(size);
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
    const WINDOW: usize = 42;
    let per_call = match kind {
        Datagrams::Plain(_) => 1,
        Datagrams::Segmented(_) => 21,
    };
    for first in (0..count).step_by(per_call) {
        let start = Instant::now();
        while first + per_call > came.load(Ordering::Relaxed) + WINDOW {
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
