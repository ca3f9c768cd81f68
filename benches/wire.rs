//! Costs of the hot-path parts of the wire layer, per frame, and whether checksums meet their bar:
//! `cargo bench --bench wire`.

use std::time::Instant;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use weft::wire::frame::FrameBuilder;
use weft::wire::{Vni, checksum, ecn, flow, inner, vxlan};

/// Bytes per nanosecond (GB/s) that the checksum of a payload of bulk traffic is to reach.
const CHECKSUM_BAR: f64 = 15.0;
/// Payload of a full frame: an inner MTU of 1450 less IPv4, TCP and timestamps.
const PAYLOAD_LEN: usize = 1398;

fn main() {
    divan::main();
    tell_checksum_bar();
}

/// The bar: the median batch, so that losing the processor now and then does not decide. The payloads lie in
/// the first-level cache, where the kernel's copy has just put them.
fn tell_checksum_bar() {
    const PAYLOADS: usize = 16;
    let payloads: Vec<Vec<u8>> = (0..PAYLOADS)
        .map(|first| {
            (first..first + PAYLOAD_LEN)
                .map(|byte| byte as u8)
                .collect()
        })
        .collect();
    let rate = |_| {
        let (start, turns) = (Instant::now(), 50);
        for _ in 0..turns {
            for payload in &payloads {
                black_box(checksum::finish(checksum::sum(black_box(payload), 0)));
            }
        }
        let bytes = turns * PAYLOADS * PAYLOAD_LEN;
        bytes as f64 / start.elapsed().as_nanos() as f64
    };
    let mut rates: Vec<f64> = (0..2000).map(rate).collect();
    rates.sort_by(f64::total_cmp);
    let at = |percent: usize| rates[(rates.len() - 1) * percent / 100];
    let median = at(50);
    let verdict = if median >= CHECKSUM_BAR {
        "met"
    } else {
        "MISSED"
    };
    eprintln!(
        "checksum of {PAYLOAD_LEN} B: {median:.1} GB/s [{:.1}-{:.1}, 5th to 95th percentile] (bar {CHECKSUM_BAR} GB/s: {verdict})",
        at(5),
        at(95)
    );
}

/// A TCP frame of `len` bytes with timestamps, as bulk traffic has.
fn tcp_frame(len: usize) -> Vec<u8> {
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
    let builder = FrameBuilder::v4().tcp(40000, 5201).tcp_options(&timestamps);
    builder.payload_len(len.saturating_sub(66)).build()
}

fn tcp6_frame(len: usize) -> Vec<u8> {
    let builder = FrameBuilder::v6().tcp(40000, 5201);
    builder.payload_len(len.saturating_sub(74)).build()
}

mod parse {
    use super::*;

    #[divan::bench(args = [64, 512, 1450])]
    fn ipv4(bencher: Bencher, len: usize) {
        let frame = tcp_frame(len);
        bencher
            .counter(BytesCount::new(frame.len()))
            .bench_local(|| inner::parse(black_box(&frame)));
    }

    #[divan::bench(args = [64, 512, 1450])]
    fn ipv6(bencher: Bencher, len: usize) {
        let frame = tcp6_frame(len);
        bencher
            .counter(BytesCount::new(frame.len()))
            .bench_local(|| inner::parse(black_box(&frame)));
    }
}

mod checksums {
    use super::*;

    #[divan::bench(args = [20, 64, 512, 1398, 8948])]
    fn sum(bencher: Bencher, len: usize) {
        let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
        bencher
            .counter(BytesCount::new(len))
            .bench_local(|| checksum::finish(checksum::sum(black_box(&bytes), 0)));
    }

    #[divan::bench]
    fn replace16() -> u16 {
        checksum::replace16(black_box(0x1234), black_box(0x4500), black_box(0x4503))
    }
}

mod flows {
    use super::*;

    #[divan::bench]
    fn hash_ipv4(bencher: Bencher) {
        let frame = tcp_frame(1450);
        let parsed = inner::parse(&frame).unwrap();
        bencher
            .counter(BytesCount::new(frame.len()))
            .bench_local(|| flow::source_port(flow::hash(black_box(&frame), black_box(&parsed))));
    }

    #[divan::bench]
    fn hash_ipv6(bencher: Bencher) {
        let frame = tcp6_frame(1450);
        let parsed = inner::parse(&frame).unwrap();
        bencher
            .counter(BytesCount::new(frame.len()))
            .bench_local(|| flow::source_port(flow::hash(black_box(&frame), black_box(&parsed))));
    }
}

mod headers {
    use super::*;

    #[divan::bench]
    fn vxlan_round_trip() -> Result<vxlan::Decoded, vxlan::VxlanError> {
        vxlan::decode(black_box(&vxlan::encode(black_box(Vni::FIRST_USER))))
    }

    #[divan::bench]
    fn ecn_mark_ipv4(bencher: Bencher) {
        let mut frame = tcp_frame(64);
        let parsed = inner::parse(&frame).unwrap();
        bencher.bench_local(|| ecn::set(black_box(&mut frame), &parsed, ecn::Ecn::Ce));
    }
}
