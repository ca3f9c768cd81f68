//! Super-frame sizes of links: how much TCP or UDP one frame on a veth may carry.
//!
//! A worker splits a super-frame into segments and hands each UDP_SEGMENT send as many as fit
//! 65507 bytes, the largest UDP payload over IPv4. A super-frame is therefore a whole number of such
//! sends, or a small send would trail each big one.

/// How a network's frames reach the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UplinkKind {
    /// AF_PACKET sockets on one end of a veth pair. Takes super-frames above 64 KiB.
    Packet,
    /// A TAP device. Super-frames end at 64 KiB.
    Tap,
}

/// `gso_max_segs` and friends of one link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GsoSizes {
    /// `gso_max_segs`: segments in one super-frame.
    pub max_segs: u32,
    /// `gso_max_size` in bytes: IPv6, and everything that is not TCP over IPv4. Fitted to one UDP send, unless TCP over
    /// IPv6 may be longer ([`GsoSizes::with_big_ipv6`]).
    pub max_size: u32,
    /// `gso_ipv4_max_size` in bytes: TCP over IPv4.
    pub ipv4_max_size: u32,
}

impl GsoSizes {
    /// What a link has when nobody changed it (`GSO_MAX_SEGS`, `GSO_LEGACY_MAX_SIZE`).
    pub const KERNEL_DEFAULT: GsoSizes = GsoSizes {
        max_segs: 65535,
        max_size: 65536,
        ipv4_max_size: 65536,
    };

    /// The sizes for an inner MTU of `mtu_inner` bytes.
    ///
    /// The byte limits hold that many full segments plus what the kernel sets aside for headers
    /// (`MAX_TCP_HEADER`, 320 bytes or less), and not one segment more even with TCP timestamps.
    pub fn fit(mtu_inner: u32, uplink: UplinkKind) -> GsoSizes {
        let per_send = segments_per_send(mtu_inner);
        let max_size = bytes_for(per_send, mtu_inner, IPV6_TCP_LEN).min(LEGACY_MAX);
        let ipv4_bytes = |segs| bytes_for(segs, mtu_inner, IPV4_TCP_LEN);
        match uplink {
            UplinkKind::Packet => {
                let max_segs = per_send * SENDS_PER_SUPER_FRAME;
                GsoSizes {
                    max_segs,
                    max_size,
                    ipv4_max_size: ipv4_bytes(max_segs).min(BIG),
                }
            }
            UplinkKind::Tap => GsoSizes {
                max_segs: per_send,
                max_size,
                ipv4_max_size: ipv4_bytes(per_send).min(LEGACY_MAX),
            },
        }
    }
}

impl GsoSizes {
    /// Lets TCP over IPv6 fill super-frames beyond 64 KiB as well, where those of IPv4 go beyond: kernels before 5.19
    /// refuse such sizes. Other protocols stay below 64 KiB by themselves (`sk_dst_gso_max_size`).
    pub fn with_big_ipv6(self, mtu_inner: u32) -> GsoSizes {
        if self.ipv4_max_size <= LEGACY_MAX {
            return self;
        }
        GsoSizes {
            max_size: bytes_for(self.max_segs, mtu_inner, IPV6_TCP_LEN).min(BIG),
            ..self
        }
    }

    /// The sizes for the links between the agent and a workload's own interface.
    ///
    /// Only the workload's interface shapes what is sent. What the agent delivers is merged from what
    /// other nodes sent, and may be a little longer, or of more and smaller segments. The kernel drops
    /// such a frame (`ENOBUFS`, or silently where it would have to segment behind a packet socket that
    /// bypasses the queueing discipline), so these links take all of 64 KiB and any number; and of TCP over IPv6 beyond
    /// that, whatever the agent makes.
    pub fn for_delivery(self) -> GsoSizes {
        GsoSizes {
            max_segs: GsoSizes::KERNEL_DEFAULT.max_segs,
            max_size: if self.max_size > LEGACY_MAX {
                DELIVERY_MAX
            } else {
                LEGACY_MAX
            },
            ipv4_max_size: self.ipv4_max_size.max(LEGACY_MAX),
        }
    }
}

/// Inner frames of `mtu_inner` that fit one UDP_SEGMENT send: Ethernet and VXLAN header each, at most
/// `UDP_MAX_SEGMENTS` and at least one.
fn segments_per_send(mtu_inner: u32) -> u32 {
    let datagram = mtu_inner.saturating_add(ETHERNET_LEN + VXLAN_LEN);
    (UDP_PAYLOAD_MAX / datagram.max(1)).clamp(1, UDP_MAX_SEGMENTS)
}

fn bytes_for(segs: u32, mtu_inner: u32, header_len: u32) -> u32 {
    segs.saturating_mul(mtu_inner.saturating_sub(header_len))
        .saturating_add(HEADER_ROOM)
}

const UDP_PAYLOAD_MAX: u32 = 65507;
/// Linux 6.9 and later; before that 64, which the sender finds out by `EINVAL`.
const UDP_MAX_SEGMENTS: u32 = 128;
const SENDS_PER_SUPER_FRAME: u32 = 3;
const ETHERNET_LEN: u32 = 14;
const VXLAN_LEN: u32 = 8;
const IPV4_TCP_LEN: u32 = 40;
const IPV6_TCP_LEN: u32 = 60;
const HEADER_ROOM: u32 = 512;
const LEGACY_MAX: u32 = 65536;
/// Room for one super-frame with its headers in a worker's read buffer.
const BIG: u32 = 190_000;
/// More than the merger makes.
const DELIVERY_MAX: u32 = 196_608;

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments TCP puts into one super-frame: the kernel's own arithmetic (`tcp_bound_to_half_wnd`
    /// left out), `MAX_TCP_HEADER + 1` off the byte limit.
    fn tcp_segments(size: u32, max_segs: u32, mss: u32) -> u32 {
        ((size - 321) / mss).min(max_segs)
    }

    #[test]
    fn a_super_frame_is_three_full_sends_or_one_with_a_tap() {
        let packet = GsoSizes::fit(1450, UplinkKind::Packet);
        assert_eq!(packet.max_segs, 132);
        let tap = GsoSizes::fit(1450, UplinkKind::Tap);
        assert_eq!(tap.max_segs, 44);
        for mss in [1410, 1398] {
            assert_eq!(
                tcp_segments(packet.ipv4_max_size, packet.max_segs, mss),
                132
            );
            assert_eq!(tcp_segments(tap.ipv4_max_size, tap.max_segs, mss), 44);
        }
    }

    #[test]
    fn ipv6_super_frames_fill_one_send() {
        for mtu in [1280, 1430, 1450, 8950] {
            let sizes = GsoSizes::fit(mtu, UplinkKind::Packet);
            let per_send = sizes.max_segs / 3;
            for mss in [mtu - 60, mtu - 72] {
                let segs = tcp_segments(sizes.max_size, sizes.max_segs, mss);
                assert_eq!(segs, per_send, "mtu {mtu} mss {mss}");
            }
        }
    }

    #[test]
    fn big_ipv6_super_frames_are_three_full_sends_and_others_stay() {
        for mtu in [1280, 1430, 1450, 8950] {
            let fitted = GsoSizes::fit(mtu, UplinkKind::Packet);
            let sizes = fitted.with_big_ipv6(mtu);
            for mss in [mtu - 60, mtu - 72] {
                let segs = tcp_segments(sizes.max_size, sizes.max_segs, mss);
                assert_eq!(segs, sizes.max_segs, "mtu {mtu} mss {mss}");
            }
            assert_eq!(sizes.ipv4_max_size, fitted.ipv4_max_size);
            assert!(sizes.for_delivery().max_size > BIG + 8);
            let tap = GsoSizes::fit(mtu, UplinkKind::Tap);
            assert_eq!(tap.with_big_ipv6(mtu), tap);
        }
    }

    #[test]
    fn limits_hold_for_every_mtu() {
        for mtu in 68..=65535 {
            let packet = GsoSizes::fit(mtu, UplinkKind::Packet);
            let per_send = packet.max_segs / 3;
            assert!((1..=128).contains(&per_send));
            assert!(per_send == 1 || per_send * (mtu + 22) <= UDP_PAYLOAD_MAX);
            assert!(packet.ipv4_max_size <= BIG && packet.max_size <= LEGACY_MAX);
            assert!(packet.max_size.min(packet.ipv4_max_size) >= HEADER_ROOM);
            assert!(packet.with_big_ipv6(mtu).max_size <= BIG);
            assert!(GsoSizes::fit(mtu, UplinkKind::Tap).ipv4_max_size <= LEGACY_MAX);
        }
    }
}
