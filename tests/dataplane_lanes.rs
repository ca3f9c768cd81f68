//! Flows of many datagrams get a lane of their own and come back from it: nothing is lost, repeated or overtaken, by
//! what the worker does with any order of events and by what the kernel does with its sockets; and what shares the
//! uplink with such a flow does not wait for it.

mod common;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::dataplane::{mac_of, record, segment_config, vni};
use common::hosts::{Hosts, Underlay, ip4, settled_counters};
use common::random::Random;
use common::traffic::within;
use crossbeam_utils::CachePadded;
use weft::dataplane::channel::ChannelWire;
use weft::dataplane::counters::Counters;
use weft::dataplane::forwarder::{Worker, WorkerConfig};
use weft::dataplane::io::{FramePort, Lane, ReceivedFrame};
use weft::tables::{SegmentIndex, SegmentPolicy, TableWriter};
use weft::wire::flow::DatagramFlow;
use weft::wire::frame::FrameBuilder;
use weft::wire::{VnetHdr, inner};

const SEGMENT: SegmentIndex = SegmentIndex(0);
const FLOWS: u16 = 3;

/// What a kernel does with an uplink's sockets. Frames come and changes take effect at any time: while the worker reads.
struct Kernel {
    random: Random,
    /// Sent by workloads, and not there yet.
    coming: VecDeque<Vec<u8>>,
    /// By lane: all but bulk, bulk.
    queues: [VecDeque<Vec<u8>>; 2],
    diverted: Vec<DatagramFlow>,
    /// Asked for and not carried out yet; `None` restores all.
    asked: VecDeque<Option<DatagramFlow>>,
}

impl Kernel {
    fn arrive(&mut self) {
        if let Some(frame) = self.coming.pop_front() {
            let flow = DatagramFlow::of(&frame, &inner::parse(&frame).unwrap()).unwrap();
            let bulk = self.diverted.contains(&flow);
            self.queues[usize::from(bulk)].push_back(frame);
        }
    }

    /// Something or nothing happens.
    fn go_on(&mut self) {
        match self.random.below(8) {
            0 => self.carry_out(),
            1..4 => self.arrive(),
            _ => {}
        }
    }

    fn carry_out(&mut self) {
        match self.asked.pop_front() {
            Some(Some(flow)) => self.diverted.push(flow),
            Some(None) => self.diverted.clear(),
            None => {}
        }
    }
}

/// An uplink with lanes, in memory.
#[derive(Clone)]
struct LanePort {
    kernel: Arc<Mutex<Kernel>>,
    lane: Lane,
}

impl FramePort for LanePort {
    fn recv(&mut self, buf: &mut [u8]) -> io::Result<Option<ReceivedFrame>> {
        let queue = usize::from(self.lane == Lane::Bulk);
        let mut kernel = self.kernel.lock().unwrap();
        kernel.go_on();
        let frame = kernel.queues[queue].pop_front();
        kernel.go_on();
        let Some(frame) = frame else {
            return Ok(None);
        };
        buf[..VnetHdr::LEN].fill(0);
        let len = VnetHdr::LEN + frame.len();
        buf[VnetHdr::LEN..len].copy_from_slice(&frame);
        Ok(Some(ReceivedFrame {
            len,
            truncated: false,
            vlan: None,
        }))
    }

    fn send(&mut self, _pieces: &[IoSlice<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn overflow(&mut self) -> u64 {
        0
    }

    fn select(&mut self, lane: Lane) {
        self.lane = lane;
    }

    fn divert(&mut self, flow: DatagramFlow) -> bool {
        self.kernel.lock().unwrap().asked.push_back(Some(flow));
        true
    }

    fn restore(&mut self) -> bool {
        let mut kernel = self.kernel.lock().unwrap();
        let asked = kernel.random.below(4) > 0;
        if asked {
            kernel.asked.push_back(None);
        }
        asked
    }

    fn is_settled(&self) -> bool {
        self.kernel.lock().unwrap().asked.is_empty()
    }
}

fn datagram(flow: u16, number: u32) -> Vec<u8> {
    let [from, to] = [1, 2].map(|host| Ipv4Addr::new(10, 0, 1, host));
    FrameBuilder::new(mac_of(from), mac_of(to))
        .ipv4(from, to)
        .udp(1000 + flow, 9)
        .payload(&number.to_be_bytes())
        .build()
}

/// Source port and number of a datagram as it went out: behind VXLAN, Ethernet and IPv4.
fn flow_and_number(datagram: &[u8]) -> (u16, u32) {
    let port = u16::from_be_bytes(datagram[42..44].try_into().unwrap());
    let number = u32::from_be_bytes(datagram[50..54].try_into().unwrap());
    (port - 1000, number)
}

#[test]
fn no_order_of_events_loses_repeats_or_overtakes() {
    let (mut diverted, mut restored) = (0, 0);
    for seed in 1..60 {
        let mut random = Random(seed);
        let vteps = [1, 2].map(|host| SocketAddr::from(([192, 0, 2, host], 4789)));
        let (mut writer, tables) = TableWriter::new(4789, 1);
        let config = segment_config(vni().value(), SegmentPolicy::default());
        writer.add_segment(config).unwrap();
        writer.upsert_local(&record(1, vteps[0].ip())).unwrap();
        writer.upsert_remote(&record(2, vteps[1].ip())).unwrap();
        let wire = ChannelWire::new();
        let port = LanePort {
            kernel: Arc::new(Mutex::new(Kernel {
                random: Random(seed + 1000),
                coming: VecDeque::new(),
                queues: Default::default(),
                diverted: Vec::new(),
                asked: VecDeque::new(),
            })),
            lane: Lane::Rest,
        };
        let counters = Arc::new(CachePadded::new(Counters::default()));
        let mut worker = Worker::new(
            WorkerConfig::default(),
            tables,
            Arc::clone(&counters),
            wire.attach(vteps[0]),
            None,
        );
        worker.add_port(SEGMENT, port.clone());
        let mut sent = [0; FLOWS as usize];
        let mut now_ns = 1_000_000_000;
        // Flows send much or little for a while, in bursts; each tenth of a millisecond the worker does something.
        for _ in 0..12 {
            let rates = [(); FLOWS as usize].map(|()| [1, 3, 24][random.below(3)]);
            for _ in 0..[300, 1500][random.below(2)] {
                now_ns += 100_000;
                for (flow, rate) in (0..).zip(rates) {
                    for _ in 0..random.below(rate) {
                        let number = &mut sent[usize::from(flow)];
                        let frame = datagram(flow, *number);
                        port.kernel.lock().unwrap().coming.push_back(frame);
                        *number += 1;
                    }
                }
                match random.below(4) {
                    0 => worker.bulk_round(now_ns),
                    1 => 0,
                    _ => worker.uplink_burst(SEGMENT, Lane::Rest, now_ns),
                };
                let mut kernel = port.kernel.lock().unwrap();
                while kernel.coming.len() > 30 {
                    kernel.go_on();
                }
            }
        }
        for _ in 0..5000 {
            now_ns += 1_000_000;
            (0..20).for_each(|_| port.kernel.lock().unwrap().go_on());
            worker.uplink_burst(SEGMENT, Lane::Rest, now_ns);
            worker.bulk_round(now_ns);
        }
        let mut next = HashMap::new();
        for (flow, number) in wire
            .take_heard()
            .iter()
            .flat_map(|sent| sent.datagrams().map(flow_and_number))
        {
            let wanted = next.entry(flow).or_insert(0);
            assert_eq!(number, *wanted, "seed {seed}, flow {flow}");
            *wanted += 1;
        }
        for (flow, count) in (0..).zip(sent) {
            assert_eq!(
                next.get(&flow).copied(),
                Some(count),
                "seed {seed}, flow {flow}"
            );
        }
        let seen = counters.snapshot();
        seen.check_conservation().unwrap();
        diverted += u32::from(seen.bulk_frames > 0);
        assert_eq!(worker.bulk_due_ns(), None, "all lanes are at rest again");
        restored += u32::from(port.kernel.lock().unwrap().diverted.is_empty());
    }
    assert!(diverted > 40, "a lane was used in {diverted} of 59 runs");
    assert_eq!(restored, 59);
}

/// Sends numbered datagrams for a while, so many each millisecond, and returns how many.
fn send_numbered(socket: &UdpSocket, first: u64, for_: Duration, per_ms: usize) -> u64 {
    let (begin, mut number) = (Instant::now(), first);
    let mut payload = [0; 64];
    while begin.elapsed() < for_ {
        let due = begin.elapsed().as_millis() as u64 * per_ms as u64 + first;
        if number >= due {
            std::thread::sleep(Duration::from_micros(100));
        }
        let burst = due.saturating_sub(number).min(64);
        for _ in 0..burst {
            payload[..8].copy_from_slice(&number.to_be_bytes());
            socket.send(&payload).unwrap();
            number += 1;
        }
    }
    number
}

/// Half of the round trips between two workloads took no longer than this.
fn round_trip(client: &UdpSocket, count: usize) -> Duration {
    let mut times: Vec<Duration> = (0..count)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let begin = Instant::now();
            client.send(b"?").unwrap();
            client.recv(&mut [0; 8]).expect("an answer");
            begin.elapsed()
        })
        .collect();
    times.sort();
    times[count / 2]
}

#[test]
fn a_heavy_flow_waits_alone_and_arrives_whole() {
    let mut hosts = Hosts::new(2, Underlay::default());
    hosts.start_weft(1, SegmentPolicy::default(), &[2]);
    hosts.start_weft(2, SegmentPolicy::default(), &[1]);
    hosts.wait_ping(1, ip4(2).into());
    let there = &hosts.host(2).workload;
    let here = &hosts.host(1).workload;
    let open = |ns: &str, host: u8, port: u16| {
        let socket = within(ns, || UdpSocket::bind((ip4(host), port)).unwrap());
        let patience = Some(Duration::from_secs(2));
        socket.set_read_timeout(patience).unwrap();
        socket
    };
    let (sink, echo) = (open(there, 2, 9000), open(there, 2, 9001));
    nix::sys::socket::setsockopt(&sink, nix::sys::socket::sockopt::RcvBufForce, &(64 << 20))
        .unwrap();
    let (source, client) = (open(here, 1, 0), open(here, 1, 0));
    source.connect((ip4(2), 9000)).unwrap();
    client.connect((ip4(2), 9001)).unwrap();
    let over = AtomicBool::new(false);
    let bulk_frames = |hosts: &Hosts| {
        hosts
            .host(1)
            .dataplane
            .as_ref()
            .unwrap()
            .counters()
            .bulk_frames
    };
    let (sent, received) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buf = [0; 8];
            while !over.load(Ordering::Relaxed) {
                if let Ok((len, from)) = echo.recv_from(&mut buf) {
                    echo.send_to(&buf[..len], from).unwrap();
                }
            }
        });
        let receiver = scope.spawn(|| {
            let (mut buf, mut next) = ([0; 64], 0);
            while sink.recv(&mut buf).is_ok() {
                let number = u64::from_be_bytes(buf[..8].try_into().unwrap());
                assert_eq!(number, next, "lost, repeated or overtaken");
                next += 1;
            }
            next
        });
        let mut number = 0;
        for time in 0..2 {
            // Few: no lane.
            let before = bulk_frames(&hosts);
            number = send_numbered(&source, number, Duration::from_millis(300), 2);
            assert_eq!(bulk_frames(&hosts), before, "time {time}");
            // Many: a lane, and nobody else waits for it.
            let heavy = scope.spawn({
                let source = &source;
                move || send_numbered(source, number, Duration::from_millis(1500), 60)
            });
            std::thread::sleep(Duration::from_millis(300));
            assert!(
                bulk_frames(&hosts) > before,
                "a flow of 60,000 per second has a lane"
            );
            let beside = round_trip(&client, 100);
            let in_lane = bulk_frames(&hosts);
            number = heavy.join().unwrap();
            assert!(in_lane > before + 10_000, "{in_lane} frames in the lane");
            eprintln!("beside a heavy flow a round trip takes {beside:?}");
            // Few again: it has come back.
            number = send_numbered(&source, number, Duration::from_millis(400), 2);
        }
        let received = receiver.join().unwrap();
        over.store(true, Ordering::Relaxed);
        (number, received)
    });
    assert_eq!(received, sent);
    for host in &hosts.hosts {
        let counters = settled_counters(host.dataplane.as_ref().unwrap());
        assert_eq!(
            (counters.uplink_overflow, counters.underlay_overflow),
            (0, 0)
        );
    }
}
