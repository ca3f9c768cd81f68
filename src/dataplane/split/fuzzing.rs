//! Fuzz target `split`: twelve bytes of virtio header, then a frame. A body of [`crate::fuzzing`].

use super::{HEADERS_MAX, finish_checksum, plan};
use crate::wire::frame::FrameBuilder;
use crate::wire::{VnetHdr, inner, ipv6, l4};

/// Cuts the frame and finishes its checksum as the virtio header says.
///
/// # Panics
/// When a segment does not parse, has a wrong checksum, or the segments are not the payload.
pub fn run(data: &[u8]) {
    let Some((head, frame)) = data.split_first_chunk::<{ VnetHdr::LEN }>() else {
        return;
    };
    let vnet = VnetHdr::parse(head);
    segments_are_valid(frame, &vnet);
    let mut whole = frame.to_vec();
    let addresses = whole.len().min(14);
    match finish_checksum(&mut whole, &vnet) {
        Ok(()) => assert_eq!(whole[..addresses], frame[..addresses]),
        Err(_) => assert_eq!(whole, frame),
    }
}

fn segments_are_valid(frame: &[u8], vnet: &VnetHdr) {
    let Ok(plan) = plan(frame, vnet) else { return };
    let mut next = None;
    for i in 0..plan.count() {
        let mut headers = [0; HEADERS_MAX];
        let payload = plan.segment(i, frame, &mut headers);
        assert_eq!(payload.start, next.unwrap_or(payload.start));
        next = Some(payload.end);
        let segment = [&headers[..plan.header_len()], &frame[payload]].concat();
        assert_eq!(segment.len(), plan.frame_len(i));
        let parsed = inner::parse(&segment).expect("segments are whole");
        assert_eq!(parsed.end, segment.len());
        assert_eq!(l4::verify(&segment, &parsed), Some(true));
    }
    let parsed = inner::parse_super(frame).expect("planned frames parse");
    assert_eq!(next, Some(parsed.end));
}

/// One super-frame of each kind, with and without tags, and an ordinary unfinished frame.
pub fn seeds() -> Vec<Vec<u8>> {
    let (v4, v6) = (FrameBuilder::v4, FrameBuilder::v6);
    let tcp = |b: FrameBuilder| b.tcp(40000, 80).tcp_options(&[1; 12]).flags(0x99);
    let udp = |b: FrameBuilder| b.udp(40000, 443);
    let seed = |gso_type: u8, csum_start: u16, frame: FrameBuilder| {
        let vnet = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            gso_type,
            hdr_len: 0,
            gso_size: 16,
            csum_start,
            csum_offset: if gso_type == VnetHdr::GSO_UDP_L4 {
                6
            } else {
                16
            },
        };
        let frame = frame.payload_len(50).partial_checksum().build();
        [&vnet.to_bytes()[..], &frame].concat()
    };
    vec![
        seed(VnetHdr::GSO_TCPV4, 34, tcp(v4())),
        seed(VnetHdr::GSO_TCPV6 | VnetHdr::GSO_ECN, 54, tcp(v6())),
        seed(VnetHdr::GSO_UDP_L4, 38, udp(v4().vlan(7))),
        seed(VnetHdr::GSO_UDP_L4, 62, udp(v6().vlan(7).vlan(8))),
        seed(
            VnetHdr::GSO_TCPV6,
            62,
            tcp(v6().extension(60, &[0, 1, 4, 0, 0, 0, 0])),
        ),
        seed(VnetHdr::GSO_NONE, 34, tcp(v4())),
        jumbo(ipv6::PADDING),
        jumbo([6, 0, ipv6::JUMBO_OPTION, 4, 0, 1, 0x04, 0x28]),
    ]
}

/// TCP over IPv6 beyond 64 KiB: 66,600 bytes behind the fixed header, eight of them this one.
fn jumbo(header: [u8; 8]) -> Vec<u8> {
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV6,
        gso_size: 30_000,
        csum_start: 62,
        csum_offset: 16,
        ..VnetHdr::default()
    };
    let frame = FrameBuilder::v6()
        .extension(ipv6::HOP_BY_HOP, &header[1..])
        .tcp(40000, 80)
        .payload(&[0; 66_572]);
    [&vnet.to_bytes()[..], &frame.build()].concat()
}
