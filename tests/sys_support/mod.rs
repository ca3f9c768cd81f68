//! Private network namespaces for the tests of the kernel layer.
//!
//! A [`Lab`] namespace has no name: it is gone with its last user, also after a panic, and two tests never meet.

#![allow(dead_code)] // Each test binary uses a part.

use std::io::IoSlice;
use std::path::Path;
use std::time::{Duration, Instant};

use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use weft::sys::link;
use weft::sys::netns::Netns;
use weft::sys::packet::{PacketMeta, PacketOptions, PacketSocket, VNET_HEADER_LEN};
use weft::sys::udp::{RecvMeta, UdpSocket};

/// Longest a test waits for something the kernel does "at once".
const PATIENCE: Duration = Duration::from_secs(5);

/// A private network namespace with the loopback up.
pub struct Lab {
    pub netns: Netns,
}

impl Lab {
    /// Makes the namespace. IPv6 is off where `ipv6` is false, so that no neighbour discovery disturbs the counts.
    pub fn new(ipv6: bool) -> Self {
        let lab = Self {
            netns: Netns::create_unnamed().expect("these tests need CAP_SYS_ADMIN"),
        };
        if !ipv6 {
            lab.sysctl("net/ipv6/conf/all/disable_ipv6", "1");
            lab.sysctl("net/ipv6/conf/default/disable_ipv6", "1");
        }
        lab.sysctl("net/ipv6/conf/default/accept_dad", "0");
        lab.ip("link set lo up");
        lab
    }

    /// Runs one `ip` command, given as in a shell.
    pub fn ip(&self, arguments: &str) {
        let mut command = self.netns.command("ip").expect("duplicate namespace");
        let output = command
            .args(arguments.split_whitespace())
            .output()
            .expect("the tests need iproute2");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "ip {arguments}: {text}");
    }

    /// Writes one file below `/proc/sys`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = Path::new("/proc/sys").join(name);
        self.run(|| {
            // No such file: this kernel has no IPv6, or none of this knob.
            if path.exists() {
                std::fs::write(&path, value)
                    .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            }
        });
    }

    /// Runs `work` in the namespace; a panic in it fails the test.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.netns
            .run_in(work)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// Makes a veth pair of two links that are up, both in this namespace.
    pub fn veth(&self, one: &str, other: &str) {
        self.ip(&format!("link add {one} type veth peer name {other}"));
        self.ip(&format!("link set {one} up"));
        self.ip(&format!("link set {other} up"));
    }

    /// Makes a veth pair with the other end in another namespace.
    pub fn veth_to(&self, one: &str, other_lab: &Lab, other: &str) {
        self.ip(&format!("link add {one} type veth peer name {other}"));
        let fd = std::os::fd::AsFd::as_fd(&other_lab.netns)
            .try_clone_to_owned()
            .unwrap();
        let index = self.run(|| link::index_of(other).unwrap());
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        self.change_link(LinkUnspec::new_with_index(index).setns_by_fd(raw));
        self.ip(&format!("link set {one} up"));
        other_lab.ip(&format!("link set {other} up"));
    }

    /// Lets a link carry super-frames of `bytes` and `segments`; both ends of a pair need it.
    pub fn allow_super_frames(&self, link_name: &str, bytes: u32, segments: u32) {
        let index = self.run(|| link::index_of(link_name).unwrap());
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::GsoMaxSize(bytes))
            .append_extra_attribute(LinkAttribute::GsoIpv4MaxSize(bytes))
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(segments));
        self.change_link(message);
    }

    /// Opens a packet socket on a link.
    pub fn packet(&self, link_name: &str, options: &PacketOptions) -> PacketSocket {
        self.run(|| PacketSocket::open(link::index_of(link_name).unwrap(), options))
            .unwrap()
    }

    fn change_link(&self, message: LinkMessageBuilder<LinkUnspec>) {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (connection, handle, _) = rtnetlink::new_connection().unwrap();
                tokio::spawn(connection);
                handle
                    .link()
                    .change(message.build())
                    .execute()
                    .await
                    .unwrap();
            });
        });
    }
}

/// Asks again until there is an answer.
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Receives the next frame.
pub fn recv_frame(socket: &PacketSocket, buf: &mut [u8]) -> PacketMeta {
    eventually("a frame", || socket.recv(buf).unwrap())
}

/// Receives the next message.
pub fn recv_message(socket: &UdpSocket, buf: &mut [u8]) -> RecvMeta {
    eventually("a datagram", || socket.recv(buf).unwrap())
}

/// Sends one ordinary frame: a zero virtio header and the bytes.
pub fn send_frame(socket: &PacketSocket, frame: &[u8]) -> std::io::Result<()> {
    socket.send(&[IoSlice::new(&[0; VNET_HEADER_LEN]), IoSlice::new(frame)])
}

/// A frame between two fixed stations, of the local experimental type, with `len` counted payload bytes.
pub fn ethernet(len: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend((0..len).map(|i| i as u8));
    frame
}

/// An IPv4 UDP frame with the given source port; checksums zero.
pub fn udp_frame(source_port: u16) -> Vec<u8> {
    let mut frame = ethernet(28 + 18);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = [
        0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ];
    frame[14..34].copy_from_slice(&ip);
    frame[34..36].copy_from_slice(&source_port.to_be_bytes());
    frame[36..42].copy_from_slice(&[0, 9, 0, 26, 0, 0]);
    frame
}
