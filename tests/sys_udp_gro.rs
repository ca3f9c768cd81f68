//! Receiving many datagrams at once: the cases of Linux' selftest `udpgro.sh` that concern a socket.

mod sys_support;

use std::io::IoSlice;
use std::net::SocketAddr;

use sys_support::{Lab, recv_message};
use weft::sys::udp::{Destination, UdpOptions, UdpSocket};

/// Two hosts joined by a veth pair, whose receive offload for forwarded datagrams is off (the default).
struct Hosts {
    one: Lab,
    other: Lab,
    v6: bool,
}

impl Hosts {
    fn new(v6: bool) -> Self {
        let (one, other) = (Lab::new(true), Lab::new(true));
        one.veth_to("va", &other, "vb");
        let hosts = Self { one, other, v6 };
        let prefix = if v6 { 64 } else { 24 };
        hosts
            .one
            .address("va", &format!("{}/{prefix}", hosts.address(1)));
        hosts
            .other
            .address("vb", &format!("{}/{prefix}", hosts.address(2)));
        hosts
    }

    fn address(&self, host: u8) -> String {
        if self.v6 {
            format!("2001:db8::{host}")
        } else {
            format!("192.0.2.{host}")
        }
    }

    fn sender(&self) -> UdpSocket {
        open(&self.one, &self.address(1), false)
    }

    fn receiver(&self, gro: bool) -> (UdpSocket, Destination) {
        let socket = open(&self.other, &self.address(2), gro);
        let destination = Destination::new(socket.local_addr().unwrap());
        (socket, destination)
    }
}

fn open(lab: &Lab, address: &str, gro: bool) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), 0);
    let options = UdpOptions {
        gro,
        rcvbuf: 8 << 20,
        sndbuf: 8 << 20,
        ..UdpOptions::default()
    };
    lab.run(|| UdpSocket::bind(address, &options)).unwrap()
}

fn counted(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn in_both_families(test: impl Fn(&Hosts)) {
    for v6 in [false, true] {
        test(&Hosts::new(v6));
    }
}

#[test]
fn ten_separate_datagrams_are_ten_receives_without_a_size() {
    in_both_families(|hosts| {
        for gro in [false, true] {
            let (sender, (receiver, destination)) = (hosts.sender(), hosts.receiver(gro));
            let (payload, mut buf) = (counted(1400), vec![0; 65_536]);
            for _ in 0..10 {
                sender
                    .send(&[IoSlice::new(&payload)], &destination, None, 0)
                    .unwrap();
            }
            for _ in 0..10 {
                let meta = recv_message(&receiver, &mut buf);
                assert_eq!(
                    (meta.len, meta.segment_size, meta.coalesced),
                    (1400, 1400, false)
                );
                assert_eq!(meta.source, sender.local_addr().unwrap());
            }
            assert!(receiver.recv(&mut buf).unwrap().is_none());
        }
    });
}

#[test]
fn ten_segments_are_one_receive_with_their_size() {
    in_both_families(|hosts| {
        let size: u16 = if hosts.v6 { 1452 } else { 1472 };
        let (sender, (receiver, destination)) = (hosts.sender(), hosts.receiver(true));
        let (payload, mut buf) = (counted(10 * usize::from(size)), vec![0; 65_536]);
        sender
            .send(&[IoSlice::new(&payload)], &destination, Some(size), 0)
            .unwrap();
        let meta = recv_message(&receiver, &mut buf);
        assert_eq!(
            (meta.len, meta.segment_size, meta.coalesced),
            (payload.len(), size.into(), true)
        );
        assert_eq!(
            (meta.truncated, meta.source),
            (false, sender.local_addr().unwrap())
        );
        assert_eq!(&buf[..meta.len], payload);
    });
}

#[test]
fn a_custom_size_and_a_short_last_segment_are_kept() {
    in_both_families(|hosts| {
        let (sender, (receiver, destination)) = (hosts.sender(), hosts.receiver(true));
        let mut buf = vec![0; 65_536];
        for len in [14_720, 5000, 501] {
            let payload = counted(len);
            sender
                .send(&[IoSlice::new(&payload)], &destination, Some(500), 0)
                .unwrap();
            let meta = recv_message(&receiver, &mut buf);
            assert_eq!(
                (meta.len, meta.segment_size, meta.coalesced),
                (len, 500, true)
            );
            assert_eq!(&buf[..len], payload);
        }
    });
}

#[test]
fn a_socket_that_did_not_ask_receives_segments_one_by_one() {
    in_both_families(|hosts| {
        let (sender, (receiver, destination)) = (hosts.sender(), hosts.receiver(false));
        let mut buf = vec![0; 65_536];
        sender
            .send(&[IoSlice::new(&counted(1250))], &destination, Some(500), 0)
            .unwrap();
        for len in [500, 500, 250] {
            let meta = recv_message(&receiver, &mut buf);
            assert_eq!(
                (meta.len, meta.segment_size, meta.coalesced),
                (len, len, false)
            );
        }
    });
}

#[test]
fn two_receivers_each_get_their_own_segments() {
    in_both_families(|hosts| {
        let sender = hosts.sender();
        let receivers = [hosts.receiver(true), hosts.receiver(true)];
        let mut buf = vec![0; 65_536];
        for round in 1..4_u8 {
            for (i, (_, destination)) in receivers.iter().enumerate() {
                let payload = vec![round * 10 + i as u8; 3000];
                sender
                    .send(&[IoSlice::new(&payload)], destination, Some(1000), 0)
                    .unwrap();
            }
        }
        for round in 1..4_u8 {
            for (i, (receiver, _)) in receivers.iter().enumerate() {
                let meta = recv_message(receiver, &mut buf);
                assert_eq!((meta.len, meta.segment_size), (3000, 1000));
                assert!(buf[..3000].iter().all(|byte| *byte == round * 10 + i as u8));
            }
        }
    });
}

#[test]
fn the_largest_aggregate_fits_64_kibibytes_and_a_smaller_buffer_is_reported() {
    let hosts = Hosts::new(false);
    let (sender, (receiver, destination)) = (hosts.sender(), hosts.receiver(true));
    let (payload, mut buf) = (counted(44 * 1472), vec![0; 65_536]);
    for _ in 0..2 {
        sender
            .send(&[IoSlice::new(&payload)], &destination, Some(1472), 0)
            .unwrap();
    }
    let meta = recv_message(&receiver, &mut buf);
    assert_eq!(
        (meta.len, meta.segment_size, meta.truncated),
        (44 * 1472, 1472, false)
    );
    let meta = recv_message(&receiver, &mut buf[..4000]);
    assert_eq!(
        (meta.len, meta.segment_size, meta.truncated),
        (4000, 1472, true)
    );
}

#[test]
fn tos_is_uniform_per_receive() {
    in_both_families(|hosts| {
        let address = SocketAddr::new(hosts.address(2).parse().unwrap(), 0);
        let options = UdpOptions {
            gro: true,
            recv_tos: true,
            ..UdpOptions::default()
        };
        let receiver = hosts
            .other
            .run(|| UdpSocket::bind(address, &options))
            .unwrap();
        let destination = Destination::new(receiver.local_addr().unwrap());
        let (sender, mut buf) = (hosts.sender(), vec![0; 65_536]);
        for tos in [0, 0xb8, 0x02, 0xff] {
            sender
                .send(
                    &[IoSlice::new(&counted(3000))],
                    &destination,
                    Some(1000),
                    tos,
                )
                .unwrap();
        }
        for tos in [0, 0xb8, 0x02, 0xff] {
            let meta = recv_message(&receiver, &mut buf);
            assert_eq!((meta.len, meta.segment_size, meta.tos), (3000, 1000, tos));
        }
    });
}
