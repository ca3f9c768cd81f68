//! The whole path in process: a frame of a workload on node A, through both workers, to the uplink of
//! node B, over channels: `cargo bench --bench two_nodes`. No kernel, so this is the loop's own cost.

#[path = "../tests/common/mod.rs"]
mod common;

use std::net::Ipv4Addr;

use common::dataplane::{Pair, eth_ipv4_udp, fix_ipv4_checksum, mac_of};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use weft::dataplane::channel::Frame;
use weft::tables::SegmentPolicy;
use weft::wire::VnetHdr;
use weft::wire::frame::FrameBuilder;

const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

fn main() {
    divan::main();
}

/// A TCP super-frame of `segments` full segments.
fn superframe(segments: usize) -> Frame {
    let mut bytes = FrameBuilder::v4()
        .src(mac_of(A))
        .dst(mac_of(B))
        .ipv4(A, B)
        .dont_fragment()
        .tcp(4000, 5000)
        .payload_len(1000)
        .partial_checksum()
        .build();
    let len = 54 + segments * 1398;
    bytes.resize(len, 7);
    let total = u16::try_from(len - 14).unwrap_or(0);
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    fix_ipv4_checksum(&mut bytes);
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1398,
        csum_start: 34,
        csum_offset: 16,
    };
    Frame {
        vnet,
        bytes,
        vlan: None,
    }
}

fn small() -> Frame {
    let mut bytes = eth_ipv4_udp(A, B, &[1; 64]);
    bytes[20] |= 0x40;
    fix_ipv4_checksum(&mut bytes);
    Frame::plain(bytes)
}

fn run(bencher: Bencher, frames: Vec<Frame>) {
    let bytes: usize = frames.iter().map(|f| f.bytes.len()).sum();
    let mut pair = Pair::new(SegmentPolicy::default());
    bencher
        .counter(BytesCount::new(bytes))
        .counter(ItemsCount::new(frames.len()))
        .bench_local(|| {
            for frame in &frames {
                pair.a.port.push(frame.clone());
            }
            pair.run();
            pair.wire.take_heard();
            pair.b.port.take()
        });
}

#[divan::bench(args = [1, 44, 132])]
fn tcp_superframe(bencher: Bencher, segments: usize) {
    run(bencher, vec![superframe(segments)]);
}

#[divan::bench(args = [1, 32])]
fn udp_64(bencher: Bencher, count: usize) {
    run(bencher, vec![small(); count]);
}
