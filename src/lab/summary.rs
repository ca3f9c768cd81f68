//! One line per captured frame, for people: the outer packet and, for VXLAN, the frame inside.
//!
//! Pure. For everything else there is the pcapng file and Wireshark.

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

/// Describes an Ethernet frame; `vxlan_port` is the tunnel's UDP port.
pub fn summary(frame: &[u8], vxlan_port: u16) -> String {
    let Ok(packet) = SlicedPacket::from_ethernet(frame) else {
        return format!("{} bytes, not understood", frame.len());
    };
    if let Some(TransportSlice::Udp(udp)) = &packet.transport
        && udp.destination_port() == vxlan_port
        && let Some((vni, inner)) = vxlan(udp.payload())
    {
        return format!("{} vxlan vni {vni} | {}", outer(&packet), summary(inner, 0));
    }
    let transport = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => {
            format!(
                " udp {} > {} len {}",
                udp.source_port(),
                udp.destination_port(),
                udp.payload().len()
            )
        }
        Some(TransportSlice::Tcp(tcp)) => {
            let flags = [
                (tcp.syn(), 'S'),
                (tcp.fin(), 'F'),
                (tcp.rst(), 'R'),
                (tcp.psh(), 'P'),
                (tcp.ack(), '.'),
            ];
            let flags: String = flags
                .iter()
                .filter(|flag| flag.0)
                .map(|flag| flag.1)
                .collect();
            format!(
                " tcp {} > {} [{flags}] len {}",
                tcp.source_port(),
                tcp.destination_port(),
                tcp.payload().len()
            )
        }
        Some(TransportSlice::Icmpv4(icmp)) => format!(" icmp {}", icmp_word(icmp.type_u8())),
        Some(TransportSlice::Icmpv6(icmp)) => format!(" icmp6 type {}", icmp.type_u8()),
        Some(_) | None => String::new(),
    };
    format!("{}{transport}", outer(&packet))
}

fn outer(packet: &SlicedPacket<'_>) -> String {
    match &packet.net {
        Some(NetSlice::Ipv4(ip)) => {
            format!(
                "{} > {}",
                ip.header().source_addr(),
                ip.header().destination_addr()
            )
        }
        Some(NetSlice::Ipv6(ip)) => {
            format!(
                "{} > {}",
                ip.header().source_addr(),
                ip.header().destination_addr()
            )
        }
        Some(NetSlice::Arp(arp)) => arp_text(arp),
        None => "no IP".into(),
    }
}

fn arp_text(arp: &etherparse::ArpPacketSlice<'_>) -> String {
    let dotted = |bytes: &[u8]| {
        bytes
            .iter()
            .map(u8::to_string)
            .collect::<Vec<_>>()
            .join(".")
    };
    let (sender, target) = (
        dotted(arp.sender_protocol_addr()),
        dotted(arp.target_protocol_addr()),
    );
    match arp.operation().0 {
        1 => format!("arp who-has {target} tell {sender}"),
        2 => format!("arp {sender} is-at"),
        other => format!("arp operation {other}"),
    }
}

fn icmp_word(kind: u8) -> String {
    match kind {
        0 => "echo reply".into(),
        8 => "echo request".into(),
        3 => "unreachable".into(),
        other => format!("type {other}"),
    }
}

/// RFC 7348 §5: flags with the I bit, 3 reserved bytes, VNI, 1 reserved byte.
fn vxlan(payload: &[u8]) -> Option<(u32, &[u8])> {
    let (header, inner) = payload.split_first_chunk::<8>()?;
    let [flags, _, _, _, a, b, c, _] = *header;
    (flags & 0x08 != 0).then(|| (u32::from_be_bytes([0, a, b, c]), inner))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn echo() -> Vec<u8> {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 1, 1], [10, 0, 1, 2], 64)
            .icmpv4_echo_request(1, 1)
            .write(&mut bytes, &[])
            .unwrap();
        bytes
    }

    #[test]
    fn a_tunnelled_ping_shows_both_layers() {
        let mut payload = vec![8, 0, 0, 0, 0, 0x10, 0x01, 0];
        payload.extend(echo());
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 99, 0, 1], [10, 99, 0, 2], 64)
            .udp(50_000, 4789)
            .write(&mut bytes, &payload)
            .unwrap();
        assert_eq!(
            summary(&bytes, 4789),
            "10.99.0.1 > 10.99.0.2 vxlan vni 4097 | 10.0.1.1 > 10.0.1.2 icmp echo request"
        );
        assert!(summary(&bytes, 8472).contains("udp 50000 > 4789"));
    }

    #[test]
    fn rubbish_is_said_to_be_rubbish() {
        assert_eq!(summary(&[1, 2, 3], 4789), "3 bytes, not understood");
    }
}
