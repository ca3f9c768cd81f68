//! What the loop of one worker is measured with: one kind of frame in one direction each, between ends that cost
//! next to nothing. Used for time (`worker`) and for instructions (`instructions`).
#![allow(dead_code)] // each bench uses a part

use std::net::Ipv4Addr;
use std::sync::Arc;

use crossbeam_utils::CachePadded;
use weft::dataplane::checks;
use weft::dataplane::counters::Counters;
use weft::tables::{SegmentIndex, Tables};

use crate::common::dataplane::{arp_request, mac_of};
use crate::common::replay::{
    self, Fill, HERE, Message, Read, ReplayPort, ReplayUnderlay, ReplayWorker, THERE, datagram,
    message, plain, received_tcp, super_frame, with_tos,
};

/// One kind of traffic.
pub struct Case {
    pub name: &'static str,
    traffic: Traffic,
    /// Reads or messages that are there at a time: less than a worker's budget.
    burst: usize,
}

enum Traffic {
    Encap(fn() -> Read),
    /// In turn, all of one shape.
    Decap(fn() -> Vec<Message>),
}

/// ECT(0): what a sender that knows ECN sets.
const ECT0: u8 = 2;
/// The gateway of [`replay::tables`].
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 254);

/// All of them.
pub const CASES: [Case; 9] = [
    Case {
        name: "encap udp 64",
        traffic: Traffic::Encap(|| plain(datagram(HERE, THERE, 64))),
        burst: 32,
    },
    Case {
        name: "encap udp 1400",
        traffic: Traffic::Encap(|| plain(datagram(HERE, THERE, 1400))),
        burst: 32,
    },
    Case {
        name: "encap tcp 44",
        traffic: Traffic::Encap(|| super_frame(44)),
        burst: 16,
    },
    Case {
        name: "encap tcp 132",
        traffic: Traffic::Encap(|| super_frame(132)),
        burst: 8,
    },
    Case {
        name: "decap udp 64",
        traffic: Traffic::Decap(|| vec![message(&datagram(THERE, HERE, 64), 1)]),
        burst: 64,
    },
    Case {
        name: "decap udp 64 ect",
        traffic: Traffic::Decap(|| {
            let frame = with_tos(datagram(THERE, HERE, 64), ECT0);
            let tos = ECT0;
            vec![Message {
                tos,
                ..message(&frame, 1)
            }]
        }),
        burst: 64,
    },
    // No two neighbours alike, so each is decided by itself: one for the endpoint, one for the gateway.
    Case {
        name: "decap udp 64 mixed",
        traffic: Traffic::Decap(|| {
            let mut other = datagram(THERE, HERE, 64);
            other[..6].copy_from_slice(&mac_of(GATEWAY).0);
            vec![message(&datagram(THERE, HERE, 64), 1), message(&other, 1)]
        }),
        burst: 64,
    },
    Case {
        name: "decap tcp 44",
        traffic: Traffic::Decap(|| vec![received_tcp(44)]),
        burst: 16,
    },
    Case {
        name: "arp answer",
        traffic: Traffic::Encap(|| plain(arp_request(HERE, THERE))),
        burst: 32,
    },
];

/// A worker with the traffic of one case before it.
pub struct Loop {
    worker: ReplayWorker,
    counters: Arc<CachePadded<Counters>>,
    encap: bool,
    /// Frames on the wire per read or message, and their bytes.
    segments: u64,
    len: u64,
    now_ns: u64,
    done: u64,
}

impl Loop {
    /// Of a worker of its own; `tables` as [`replay::tables`] makes them.
    pub fn new(case: &Case, tables: Arc<Tables>) -> Loop {
        let (mut reads, mut messages) = (Vec::new(), Vec::new());
        let (encap, segments, len) = match case.traffic {
            Traffic::Encap(read) => {
                let (vnet, frame) = read();
                let (len, size) = (frame.len(), usize::from(vnet.gso_size));
                reads.push((vnet, frame));
                let headers = usize::from(vnet.hdr_len);
                let segments = (len - headers).checked_div(size).unwrap_or(1);
                (true, segments, len + (segments - 1) * headers)
            }
            Traffic::Decap(each) => {
                messages = each();
                let len = messages[0].bytes.len();
                let segments = len / messages[0].segment_size;
                (false, segments, len - segments * 8)
            }
        };
        let port = ReplayPort::new(reads, case.burst, Fill::Headers);
        let underlay = ReplayUnderlay::new(messages, case.burst, Fill::Headers);
        let (worker, counters) = replay::worker(tables, port, underlay);
        Loop {
            worker,
            counters,
            encap,
            segments: segments as u64,
            len: len as u64,
            now_ns: 10_000_000_000,
            done: 0,
        }
    }

    /// One burst; returns how many frames on the wire it dealt with.
    #[inline]
    pub fn burst(&mut self) -> u64 {
        self.now_ns += 1000;
        let items = if self.encap {
            self.worker.encap_burst(SegmentIndex(0), self.now_ns) as u64
        } else {
            let before = self.worker.underlay().given;
            self.worker.decap_burst(self.now_ns);
            self.worker.underlay().given - before
        };
        let frames = items * self.segments;
        self.done += frames;
        frames
    }

    /// Bytes of one frame, the mean over segments.
    pub fn frame_len(&self) -> f64 {
        self.len as f64 / self.segments as f64
    }

    /// Whether every frame went where it should.
    pub fn check(&self) {
        if !checks::ENFORCED {
            return; // nothing is counted then
        }
        let seen = self.counters.snapshot();
        seen.check_conservation().expect("frames are conserved");
        let passed = if self.encap {
            seen.forwarded + seen.answered
        } else {
            seen.delivered
        };
        assert_eq!(passed, self.done, "{seen:?}");
    }
}
