//! The whole path in process: a frame of a workload on node A, through both workers, to the uplink of
//! node B, over channels: `cargo bench --bench two_nodes`. No kernel, so this is the loop's own cost.

#[path = "../tests/common/mod.rs"]
mod common;

use common::dataplane::Pair;
use common::replay::{HERE, Read, THERE, datagram, plain, super_frame};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use weft::dataplane::channel::Frame;
use weft::tables::SegmentPolicy;

fn main() {
    divan::main();
}

fn frame((vnet, bytes): Read) -> Frame {
    Frame {
        vnet,
        bytes,
        vlan: None,
    }
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
    run(bencher, vec![frame(super_frame(segments))]);
}

#[divan::bench(args = [1, 32])]
fn udp_64(bencher: Bencher, count: usize) {
    run(
        bencher,
        vec![frame(plain(datagram(HERE, THERE, 64))); count],
    );
}
