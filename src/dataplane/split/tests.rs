//! Rules of segmentation, each a test against a slow builder.

use super::*;

#[path = "../../../tests/offload/frames.rs"]
pub(in crate::dataplane) mod frames;
use frames::{ACK, CWR, ECE, FIN, PSH, Spec, Sum, bytes};

fn vnet(spec: &Spec, gso_size: u16) -> VnetHdr {
    VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: spec.gso_type(),
        hdr_len: 0,
        gso_size,
        csum_start: spec.l4() as u16,
        csum_offset: spec.csum_offset(),
    }
}

fn cut(frame: &[u8], vnet: &VnetHdr) -> Result<Vec<Vec<u8>>, SplitError> {
    let plan = plan(frame, vnet)?;
    let mut out = Vec::new();
    for i in 0..plan.count() {
        let mut headers = [0xee; HEADERS_MAX];
        let payload = plan.segment(i, frame, &mut headers);
        let one = [&headers[..plan.header_len()], &frame[payload]].concat();
        assert_eq!(one.len(), plan.frame_len(i));
        out.push(one);
    }
    Ok(out)
}

#[track_caller]
fn check(mut spec: Spec, gso_size: u16) {
    spec.checksum = Sum::Unfinished;
    let got = cut(&spec.build(), &vnet(&spec, gso_size)).unwrap();
    let want = spec.segments(usize::from(gso_size));
    assert_eq!(got.len(), want.len());
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert_eq!(got, &want.build(), "segment {i} of {}", want.payload.len());
    }
}

#[track_caller]
fn refuse(spec: &Spec, change: impl FnOnce(&mut VnetHdr, &mut Vec<u8>), want: SplitError) {
    let mut frame = spec.build();
    let mut vnet = vnet(spec, 100);
    change(&mut vnet, &mut frame);
    assert_eq!(plan(&frame, &vnet).map(|p| p.count()), Err(want));
}

#[test]
fn a_two_segment_super_frame_gives_these_bytes() {
    #[rustfmt::skip]
    let frame = [
        0x02, 0x42, 10, 0, 1, 3,  0x02, 0x42, 10, 0, 1, 2,  0x08, 0x00,
        0x45, 0x02, 0, 45,  0xff, 0xff, 0x40, 0,  64, 6, 0, 0,  10, 0, 1, 2,  10, 0, 1, 3,
        0x9c, 0x40, 0x14, 0x51,  0xff, 0xff, 0xff, 0xff,  0, 0, 0, 77,  0x50, 0x99, 1, 0xf5,  0x16, 0x26, 0, 0,
        b'h', b'e', b'l', b'l', b'o',
    ];
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        gso_type: VnetHdr::GSO_TCPV4 | VnetHdr::GSO_ECN,
        hdr_len: 54,
        gso_size: 3,
        csum_start: 34,
        csum_offset: 16,
    };
    #[rustfmt::skip]
    let first = [
        0x02, 0x42, 10, 0, 1, 3,  0x02, 0x42, 10, 0, 1, 2,  0x08, 0x00,
        0x45, 0x02, 0, 43,  0xff, 0xff, 0x40, 0,  64, 6, 0x24, 0xc7,  10, 0, 1, 2,  10, 0, 1, 3,
        0x9c, 0x40, 0x14, 0x51,  0xff, 0xff, 0xff, 0xff,  0, 0, 0, 77,  0x50, 0x90, 1, 0xf5,  0x12, 0x14, 0, 0,
        b'h', b'e', b'l',
    ];
    #[rustfmt::skip]
    let second = [
        0x02, 0x42, 10, 0, 1, 3,  0x02, 0x42, 10, 0, 1, 2,  0x08, 0x00,
        0x45, 0x02, 0, 42,  0, 0, 0x40, 0,  64, 6, 0x24, 0xc8,  10, 0, 1, 2,  10, 0, 1, 3,
        0x9c, 0x40, 0x14, 0x51,  0, 0, 0, 2,  0, 0, 0, 77,  0x50, 0x19, 1, 0xf5,  0x7a, 0x80, 0, 0,
        b'l', b'o',
    ];
    let got = cut(&frame, &vnet).unwrap();
    assert_eq!(got, [first.to_vec(), second.to_vec()]);
}

#[test]
fn all_four_kinds_match_segments_built_one_by_one() {
    for payload in [1, 99, 100, 101, 4000, 4001] {
        check(Spec::tcp4(&bytes(payload)), 100);
        check(Spec::tcp6(&bytes(payload)), 100);
        check(Spec::udp4(&bytes(payload)), 100);
        check(Spec::udp6(&bytes(payload)), 100);
    }
}

#[test]
fn vlan_tags_move_all_offsets() {
    for tags in [vec![(0x8100, 100)], vec![(0x88a8, 7), (0x8100, 0x2064)]] {
        for spec in [Spec::tcp4(&bytes(500)), Spec::udp6(&bytes(500))] {
            let tags = tags.clone();
            check(Spec { tags, ..spec }, 200);
        }
    }
}

#[test]
fn fin_and_psh_stay_on_the_last_segment_and_cwr_on_the_first() {
    for flags in [ACK | PSH, ACK | FIN | PSH, ACK | CWR, ACK | ECE | CWR] {
        let spec = Spec {
            flags,
            ..Spec::tcp4(&bytes(350))
        };
        let got = cut(&spec.build(), &vnet(&spec, 100)).unwrap();
        let seen: Vec<u8> = got.iter().map(|f| f[14 + 20 + 13]).collect();
        let middle = flags & !(FIN | PSH | CWR);
        assert_eq!(seen, [flags & !(FIN | PSH), middle, middle, flags & !CWR]);
        check(spec, 100);
    }
}

#[test]
fn sequence_and_identification_wrap_around() {
    check(
        Spec {
            seq: u32::MAX - 150,
            id: u16::MAX,
            ..Spec::tcp4(&bytes(1000))
        },
        100,
    );
}

#[test]
fn ipv4_options_and_long_tcp_options_are_copied() {
    check(
        Spec {
            ip_options: vec![7, 7, 4, 0, 0, 0, 0, 0],
            tcp_options: vec![1; 40],
            ..Spec::tcp4(&bytes(333))
        },
        111,
    );
}

#[test]
fn a_computed_udp_checksum_of_zero_becomes_all_ones() {
    let mut spec = Spec::udp4(&bytes(40));
    // Choose two payload bytes so that the first segment sums to 0xffff.
    spec.payload[0..2].fill(0);
    let probe = spec.segments(20)[0].build();
    spec.payload[0..2].copy_from_slice(&probe[40..42]);
    let got = cut(&spec.build(), &vnet(&spec, 20)).unwrap();
    assert_eq!(got[0][40..42], [0xff, 0xff]);
    check(spec, 20);
}

#[test]
fn ethernet_padding_is_not_payload() {
    check(
        Spec {
            padding: 9,
            ..Spec::tcp4(&bytes(250))
        },
        100,
    );
}

#[test]
fn a_big_ipv4_frame_of_184_kilobytes_gives_132_segments() {
    let spec = Spec {
        checksum: Sum::Unfinished,
        ..Spec::tcp4(&bytes(132 * 1398))
    };
    assert_eq!(spec.build()[16..18], [0, 0]);
    check(spec, 1398);
}

#[test]
fn a_big_ipv6_frame_loses_its_jumbo_header() {
    let payload = bytes(70_000);
    let plain = Spec::tcp6(&payload);
    let len = (8 + 20 + plain.tcp_options.len() + payload.len()) as u32;
    let jumbo = [&[6, 0, 0xc2, 4][..], &len.to_be_bytes()].concat();
    let with = Spec {
        extensions: Some((0, jumbo)),
        checksum: Sum::Unfinished,
        ..plain.clone()
    };
    let ours = Spec {
        extensions: Some((0, ipv6::PADDING.to_vec())),
        ..with.clone()
    };
    let want: Vec<_> = plain.segments(1378).iter().map(Spec::build).collect();
    for spec in [with, ours] {
        assert!(cut(&spec.build(), &vnet(&spec, 1378)).unwrap() == want);
    }
    // Newer kernels leave it out from the start.
    check(plain, 1378);
}

#[test]
fn a_hop_by_hop_header_of_any_other_form_is_refused_in_a_frame_without_length() {
    let payload = bytes(70_000);
    let refuse = |first, header: &[u8]| {
        let spec = Spec {
            extensions: Some((first, header.to_vec())),
            ..Spec::tcp6(&payload)
        };
        refuse(&spec, |_, _| (), SplitError::LengthMismatch);
    };
    // 70,040 bytes follow the fixed header where this one has eight.
    let right = [6, 0, 0xc2, 4, 0, 1, 0x11, 0x98];
    assert_eq!(right[4..], 70_040_u32.to_be_bytes());
    for at in [3, 5, 7] {
        let mut wrong = right;
        wrong[at] ^= 1;
        refuse(0, &wrong);
        let mut wrong = ipv6::PADDING;
        wrong[at] ^= 1;
        refuse(0, &wrong);
    }
    refuse(60, &right);
    refuse(60, &ipv6::PADDING);
    refuse(
        0,
        &[&[60, 0][..], &right[2..], &[6, 0, 1, 4, 0, 0, 0, 0]].concat(),
    );
    refuse(
        0,
        &[6, 1, 1, 2, 0, 0, 0xc2, 4, 0, 1, 0x11, 0xa0, 1, 2, 0, 0],
    );
}

#[test]
fn a_jumbo_option_beside_a_length_is_refused() {
    let spec = Spec {
        extensions: Some((0, vec![6, 0, 0xc2, 4, 0, 1, 0, 0])),
        ..Spec::tcp6(&bytes(300))
    };
    refuse(
        &spec,
        |_, _| (),
        SplitError::Malformed(Malformed::JumboOption),
    );
}

#[test]
fn other_extension_headers_are_kept_but_a_routing_header_is_refused() {
    let spec = |first, bytes_: Vec<u8>| Spec {
        extensions: Some((first, bytes_)),
        ..Spec::tcp6(&bytes(300))
    };
    check(spec(60, vec![6, 0, 1, 4, 0, 0, 0, 0]), 100);
    let routing = spec(43, vec![6, 0, 4, 0, 0, 0, 0, 0]);
    refuse(&routing, |_, _| (), SplitError::ExtensionHeader);
    let long = [&[6, 15][..], &[0; 126]].concat();
    refuse(&spec(60, long), |_, _| (), SplitError::HeadersTooLong);
}

#[test]
fn a_virtio_header_at_odds_with_itself_is_refused() {
    use SplitError::*;
    let tcp = Spec::tcp4(&bytes(300));
    for kind in [VnetHdr::GSO_NONE, VnetHdr::GSO_UDP, 0x21, 0x45] {
        refuse(&tcp, |v, _| v.gso_type = kind, UnknownGsoType);
    }
    refuse(&tcp, |v, _| v.flags |= 4, ReceiveInfo);
    refuse(&tcp, |v, _| v.flags = 0, NoChecksumRequest);
    refuse(&tcp, |v, _| v.csum_offset = 6, BadChecksumOffset);
    refuse(&tcp, |v, _| v.gso_size = 0, ZeroGsoSize);
    let udp = Spec::udp4(&bytes(300));
    refuse(&udp, |v, _| v.gso_type |= VnetHdr::GSO_ECN, GsoTypeMismatch);
    refuse(&udp, |v, _| v.csum_offset = 16, BadChecksumOffset);
}

#[test]
fn a_virtio_header_at_odds_with_the_frame_is_refused() {
    use SplitError::*;
    let tcp4 = Spec::tcp4(&bytes(300));
    let udp = Spec::udp4(&bytes(300));
    refuse(&tcp4, |v, _| v.gso_type = 4, GsoTypeMismatch);
    let as_udp = |v: &mut VnetHdr, _: &mut Vec<u8>| (v.gso_type, v.csum_offset) = (5, 6);
    refuse(&tcp4, as_udp, GsoTypeMismatch);
    refuse(&Spec::tcp6(&[1]), |v, _| v.gso_type = 1, GsoTypeMismatch);
    let as_tcp = |v: &mut VnetHdr, _: &mut Vec<u8>| (v.gso_type, v.csum_offset) = (1, 16);
    refuse(&udp, as_tcp, GsoTypeMismatch);
    refuse(&tcp4, |v, _| v.csum_start = 18, BadChecksumStart);
    refuse(&tcp4, |_, f| f[23] = 132, NotTcpOrUdp);
    refuse(
        &tcp4,
        |_, f| f[12..14].copy_from_slice(&[8, 6]),
        NotTcpOrUdp,
    );
}

#[test]
fn a_frame_that_lies_about_its_lengths_is_refused() {
    use SplitError::*;
    let tcp = Spec::tcp4(&bytes(300));
    refuse(
        &tcp,
        |_, f| f.truncate(10),
        Malformed(crate::wire::Malformed::Short),
    );
    let beyond = Malformed(crate::wire::Malformed::LengthBeyondFrame);
    refuse(&tcp, |_, f| f[16] = 0x7f, beyond);
    refuse(
        &tcp,
        |_, f| f[16..18].copy_from_slice(&[0, 30]),
        HeaderBeyondFrame,
    );
    refuse(&tcp, |_, f| f[46] = 0x40, BadDataOffset);
    refuse(&tcp, |_, f| f[20] = 0x20, Fragment);
    let short = Spec::tcp4(&[]);
    refuse(&short, |_, f| f[46] = 0xf0, HeaderBeyondFrame);
    refuse(&Spec::udp4(&bytes(300)), |_, f| f[39] ^= 1, LengthMismatch);
}

#[test]
fn segment_counts_and_sizes_are_bounded() {
    let big = Spec::tcp4(&bytes(9000));
    refuse(&big, |v, _| v.gso_size = 2, SplitError::TooManySegments);
    let huge = Spec::tcp4(&bytes(70_000));
    refuse(
        &huge,
        |v, _| v.gso_size = u16::MAX,
        SplitError::SegmentTooLong,
    );
}

#[test]
fn a_super_frame_no_longer_than_a_segment_passes_whole() {
    check(Spec::tcp4(&bytes(60)), 1398);
    check(Spec::udp6(&[]), 1398);
}

fn finish(spec: &Spec, change: impl FnOnce(&mut VnetHdr)) -> Result<Vec<u8>, SplitError> {
    let mut frame = spec.build();
    let mut vnet = VnetHdr {
        gso_type: 0,
        ..vnet(spec, 0)
    };
    change(&mut vnet);
    finish_checksum(&mut frame, &vnet).map(|()| frame)
}

#[test]
fn an_unfinished_checksum_is_finished_whatever_the_family_and_padding() {
    for spec in [Spec::tcp4, Spec::tcp6, Spec::udp4, Spec::udp6] {
        for (len, padding, tags) in [(5, 0, vec![]), (0, 6, vec![]), (1400, 0, vec![(0x8100, 5)])] {
            let want = Spec {
                padding,
                tags,
                ..spec(&bytes(len))
            };
            let open = Spec {
                checksum: Sum::Unfinished,
                ..want.clone()
            };
            assert_eq!(finish(&open, |_| ()), Ok(want.build()));
        }
    }
}

#[test]
fn padding_that_is_not_zero_does_not_enter_the_checksum() {
    let spec = Spec {
        padding: 6,
        ..Spec::udp4(&bytes(5))
    };
    let open = Spec {
        checksum: Sum::Unfinished,
        ..spec.clone()
    };
    let (mut frame, mut want) = (open.build(), spec.build());
    let end = frame.len() - 6;
    frame[end..].fill(0x5a);
    want[end..].fill(0x5a);
    finish_checksum(&mut frame, &vnet(&spec, 0)).unwrap();
    assert_eq!(frame, want);
}

#[test]
fn a_frame_without_a_request_is_left_alone() {
    let spec = Spec {
        checksum: Sum::Is(0),
        ..Spec::udp4(&bytes(9))
    };
    assert_eq!(finish(&spec, |v| v.flags = 0), Ok(spec.build()));
}

#[test]
fn a_checksum_request_cannot_reach_the_addresses() {
    use SplitError::*;
    let tcp = Spec::tcp4(&bytes(9));
    assert_eq!(finish(&tcp, |v| v.csum_start = 0), Err(BadChecksumStart));
    assert_eq!(finish(&tcp, |v| v.csum_start = 26), Err(BadChecksumStart));
    assert_eq!(finish(&tcp, |v| v.csum_start = 900), Err(BadChecksumStart));
    assert_eq!(finish(&tcp, |v| v.csum_offset = 0), Err(BadChecksumOffset));
    let at_end = |v: &mut VnetHdr| (v.csum_start, v.csum_offset) = (74, 1);
    assert_eq!(finish(&tcp, at_end), Err(BadChecksumOffset));
}

#[test]
fn a_checksum_of_a_tunnelled_frame_is_finished_where_it_is() {
    // UDP with an inner TCP segment as payload, whose checksum covers it to the end.
    let inner = Spec {
        checksum: Sum::Unfinished,
        ..Spec::tcp4(&bytes(50))
    };
    let outer = Spec {
        checksum: Sum::Is(0),
        ..Spec::udp4(&inner.build())
    };
    let start = outer.header_len() + inner.l4();
    let request = |v: &mut VnetHdr| (v.csum_start, v.csum_offset) = (start as u16, 16);
    let got = finish(&outer, request).unwrap();
    let finished = Spec {
        checksum: Sum::Right,
        ..inner
    };
    assert_eq!(got[outer.header_len()..], finished.build());
}

#[test]
fn sctp_gets_its_crc_32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    let mut frame = Spec::udp4(&bytes(24)).build();
    frame[23] = 132;
    let vnet = VnetHdr {
        flags: VnetHdr::NEEDS_CSUM,
        csum_start: 34,
        csum_offset: 8,
        ..VnetHdr::default()
    };
    finish_checksum(&mut frame, &vnet).unwrap();
    let stored = u32::from_le_bytes(frame[42..46].try_into().unwrap());
    frame[42..46].fill(0);
    assert_eq!(stored, crc32c(&frame[34..]));
}
