//! Bulk transfers between namespaces that check every byte.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::hosts::named;
use weft::sys::affinity;

/// Runs in a namespace; sockets opened there stay there.
pub fn within<T: Send>(ns: &str, work: impl FnOnce() -> T + Send) -> T {
    named(ns).run_in(work).unwrap()
}

/// A stream of bytes in which every shift, loss and repetition shows.
pub struct Pattern(u64);

impl Pattern {
    pub fn new(seed: u64) -> Pattern {
        Pattern(seed.wrapping_mul(2).wrapping_add(1))
    }

    pub fn fill(&mut self, out: &mut [u8]) {
        let (words, rest) = out.as_chunks_mut::<8>();
        for word in words {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            *word = self.0.to_le_bytes();
        }
        rest.fill(0x5a);
    }
}

const BLOCK: usize = 64 << 10;

/// Listens in a namespace on a free port.
pub fn listen(ns: &str, ip: IpAddr) -> (TcpListener, SocketAddr) {
    let listener = within(ns, || TcpListener::bind((ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Connects from a namespace.
pub fn connect(ns: &str, address: SocketAddr) -> TcpStream {
    let stream = within(ns, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(5))
    });
    stream.unwrap_or_else(|error| panic!("{ns} cannot reach {address}: {error}"))
}

/// Sends `len` bytes by TCP from one namespace to an address in another and compares each with what was
/// sent. `len` is a multiple of 64 KiB.
pub fn tcp_transfer(from: &str, to: &str, ip: IpAddr, len: usize) {
    let (listener, address) = listen(to, ip);
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut pattern = Pattern::new(len as u64);
        let (mut got, mut want) = (vec![0; BLOCK], vec![0; BLOCK]);
        for block in 0..len / BLOCK {
            stream
                .read_exact(&mut got)
                .unwrap_or_else(|error| panic!("TCP stopped at block {block}: {error}"));
            pattern.fill(&mut want);
            assert!(got == want, "block {block} differs");
        }
        assert_eq!(stream.read(&mut got).unwrap(), 0, "more than was sent");
    });
    let mut stream = connect(from, address);
    stream
        .set_write_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut pattern = Pattern::new(len as u64);
    let mut block = vec![0; BLOCK];
    for _ in 0..len / BLOCK {
        pattern.fill(&mut block);
        if stream.write_all(&block).is_err() {
            break; // the receiver says why
        }
    }
    drop(stream);
    receiver.join().unwrap();
}

/// Sends numbered datagrams of sizes in a range, in bursts that wait for the receiver: none may be lost,
/// changed or out of order. Fragmented and whole datagrams are of different flows to anything that
/// hashes ports, so a range is of one kind.
pub fn udp_transfer(from: &str, to: &str, ip: IpAddr, count: u32, sizes: RangeInclusive<usize>) {
    let next_only = |number, received| number == received;
    transfer_datagrams(from, to, ip, count, sizes, next_only);
}

/// The same where floods keep `ksoftirqd` busy: each datagram once, in any order. A worker that moves
/// to another CPU then overtakes what it left in the first one's veth backlog, as any sender does.
pub fn udp_transfer_beside_floods(
    from: &str,
    to: &str,
    ip: IpAddr,
    count: u32,
    sizes: RangeInclusive<usize>,
) {
    transfer_datagrams(from, to, ip, count, sizes, |_, _| true);
}

/// `may_come` says whether a datagram of a number may come after so many others.
fn transfer_datagrams(
    from: &str,
    to: &str,
    ip: IpAddr,
    count: u32,
    sizes: RangeInclusive<usize>,
    may_come: fn(u32, u32) -> bool,
) {
    let (len_min, len_max) = (*sizes.start(), *sizes.end());
    // What the receiver's default buffer holds for sure.
    let window = (48 * 1500 / len_max).clamp(3, 48) as u64;
    let receiver = within(to, || UdpSocket::bind((ip, 0)).unwrap());
    let address = receiver.local_addr().unwrap();
    receiver
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let done = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&done);
    let thread = std::thread::spawn(move || {
        let mut buf = vec![0; 65_536];
        let mut came = vec![false; count as usize];
        for received in 0..count {
            let len = receiver
                .recv(&mut buf)
                .unwrap_or_else(|error| panic!("datagram {received} of {count}: {error}"));
            let number = u32::from_be_bytes(*buf.first_chunk().expect("four bytes of number"));
            assert!(number < count, "{number} of {count}");
            assert!(
                buf[..len] == datagram(number, len_min, len_max)[..],
                "datagram {number} of {len} bytes is not what was sent"
            );
            assert!(
                may_come(number, received),
                "datagram {number} came in place of {received}"
            );
            let twice = std::mem::replace(&mut came[number as usize], true);
            assert!(!twice, "datagram {number} came twice");
            seen.store(u64::from(received) + 1, Ordering::Release);
        }
    });
    let unspecified: IpAddr = match ip {
        IpAddr::V4(_) => [0; 4].into(),
        IpAddr::V6(_) => [0_u16; 8].into(),
    };
    let sender = within(from, || UdpSocket::bind((unspecified, 0)).unwrap());
    std::thread::scope(|scope| {
        // A sender moved to another CPU overtakes what waits in the veth's backlog of the first.
        scope.spawn(|| {
            let cpus = affinity::allowed_cpus().unwrap();
            affinity::pin_this_thread(cpus[0]).unwrap();
            for number in 0..count {
                while u64::from(number) >= done.load(Ordering::Acquire) + window
                    && !thread.is_finished()
                {
                    std::thread::sleep(Duration::from_micros(50));
                }
                if sender
                    .send_to(&datagram(number, len_min, len_max), address)
                    .is_err()
                {
                    break; // the receiver says which is missing
                }
            }
        });
    });
    thread.join().unwrap();
}

fn datagram(number: u32, len_min: usize, len_max: usize) -> Vec<u8> {
    let random = number.wrapping_mul(2_654_435_761) as usize;
    let len = len_min + random % (len_max - len_min + 1);
    // Runs of equal sizes, so that some are merged.
    let len = if number % 8 < 5 { len_max } else { len };
    let mut out = vec![0; len];
    Pattern::new(u64::from(number)).fill(&mut out);
    out[..4].copy_from_slice(&number.to_be_bytes());
    out
}

/// A TCP connection that sends a little all the time, to see when it stalls.
pub struct Trickle {
    received: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Trickle {
    /// 32 KiB each two milliseconds.
    pub fn start(from: &str, to: &str, ip: IpAddr) -> Trickle {
        let (listener, address) = listen(to, ip);
        let received = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let (count, ended) = (Arc::clone(&received), Arc::clone(&stop));
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buf = vec![0; BLOCK];
            while let Ok(len @ 1..) = stream.read(&mut buf) {
                count.fetch_add(len as u64, Ordering::Relaxed);
            }
        });
        let mut stream = connect(from, address);
        stream
            .set_write_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let sender = std::thread::spawn(move || {
            let block = [7; 32 << 10];
            while !ended.load(Ordering::Relaxed) && stream.write_all(&block).is_ok() {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        Trickle {
            received,
            stop,
            threads: vec![receiver, sender],
        }
    }

    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How long until `len` more bytes have arrived; ten seconds is the end of patience.
    pub fn time_for(&self, len: u64) -> Duration {
        let (start, first) = (Instant::now(), self.received());
        while self.received() < first + len && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        start.elapsed()
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _what_matters_was_counted = thread.join();
        }
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.end();
    }
}
