//! The impairment relay: a small program between a node's link and the underlay's bridge.
//!
//! ```text
//!   node            underlay namespace
//!  ┌──────┐        ┌────────────────────────────────────────────┐
//!  │ eth0 ══════════ nic-n1 ── relay ── rly-n1 ═══ prt-n1 ── ul0 │
//!  └──────┘        └────────────────────────────────────────────┘
//! ```
//!
//! It holds `nic` and `rly` through packet sockets, puts each frame through a [`Lane`] and sends it on when
//! it is due. The ills change while it runs, through a unix socket: one JSON request per connection, one
//! JSON reply. Unfinished checksums are finished first, so that a flipped bit is a wrong checksum.
//! It ends by signal, or when one of its links goes away.

use std::fs;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{Context, LabError};
use super::impair::LinkImpairment;
use super::lane::{Frame, Lane, LaneCounters};
use crate::sys::link;
use crate::sys::packet::{PacketMeta, PacketOptions, PacketSocket, VNET_HEADER_LEN};
use crate::sys::poll::Poller;
use crate::wire::{VnetHdr, checksum};

/// What a relay is started with.
#[derive(Clone, Debug, clap::Args)]
pub struct RelayArgs {
    /// Link towards the node, in the namespace the relay runs in.
    #[arg(long)]
    pub nic: String,
    /// Link towards the bridge.
    #[arg(long)]
    pub port: String,
    /// Path of the control socket.
    #[arg(long)]
    pub control: PathBuf,
}

/// What a relay is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Has these ills from now on.
    Change(LinkImpairment),
    /// Only tells what it did.
    Report,
}

/// What a relay answers: its state after the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The ills it has.
    pub impairment: LinkImpairment,
    /// What became of the frames from the node.
    pub out: LaneCounters,
    /// What became of the frames to the node.
    #[serde(rename = "in")]
    pub into: LaneCounters,
}

/// Asks a relay by its control socket.
///
/// # Errors
/// [`LabError::Io`] naming the socket: no relay answers there.
pub fn ask(control: &Path, request: &Request) -> Result<Report, LabError> {
    let what = || format!("ask the relay at {}", control.display());
    let mut stream = UnixStream::connect(control).context(what)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT)).context(what)?;
    let mut line = serde_json::to_string(request).context(what)?;
    line.push('\n');
    stream.write_all(line.as_bytes()).context(what)?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).context(what)?;
    serde_json::from_str(&reply).context(what)
}

/// Runs a relay until a link of its goes away.
///
/// # Errors
/// [`LabError`] when the links or the control socket cannot be opened, or the kernel fails a socket.
pub fn run(args: &RelayArgs) -> Result<(), LabError> {
    let _ = fs::remove_file(&args.control);
    let listener = UnixListener::bind(&args.control)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .context(|| format!("listen at {}", args.control.display()))?;
    let mut relay = Relay::open(args)?;
    let mut poller = Poller::new().context(|| "wait for frames".into())?;
    for (fd, token) in [
        (relay.nic.as_fd(), NIC),
        (relay.port.as_fd(), PORT),
        (listener.as_fd(), CONTROL),
    ] {
        poller.add(fd, token).context(|| "wait for frames".into())?;
    }
    loop {
        let ready = poller
            .wait(relay.patience())
            .context(|| "wait for frames".into())?;
        if ready.iter().any(|event| event.token == CONTROL) {
            relay.serve(&listener);
        }
        match relay.step() {
            Err(error) if is_gone(&error) => return Ok(()),
            other => other.context(|| "relay frames".into())?,
        }
        if relay.impatient() {
            thread::yield_now();
        }
    }
}

struct Relay {
    nic: PacketSocket,
    port: PacketSocket,
    impairment: LinkImpairment,
    out: Lane,
    into: Lane,
    start: Instant,
    buffer: Vec<u8>,
}

impl Relay {
    fn open(args: &RelayArgs) -> Result<Relay, LabError> {
        let impairment = LinkImpairment::default();
        Ok(Relay {
            nic: open_link(&args.nic)?,
            port: open_link(&args.port)?,
            out: Lane::new(impairment.out.clone(), 0, 0),
            into: Lane::new(impairment.into.clone(), 0, 0),
            impairment,
            start: Instant::now(),
            buffer: vec![0; BUFFER_LEN],
        })
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Takes in what has come, sends what is due.
    fn step(&mut self) -> io::Result<()> {
        for _ in 0..BATCH {
            let now_ns = self.now_ns();
            let mut moved = take(&self.nic, &mut self.buffer, &mut self.out, now_ns)?;
            moved |= take(&self.port, &mut self.buffer, &mut self.into, now_ns)?;
            give(&self.port, &mut self.out, now_ns)?;
            give(&self.nic, &mut self.into, now_ns)?;
            if !moved {
                break;
            }
        }
        Ok(())
    }

    fn next_due(&self) -> Option<u64> {
        [self.out.next_due(), self.into.next_due()]
            .into_iter()
            .flatten()
            .min()
    }

    /// How long nothing is to be done: whole milliseconds, as that is what the kernel's wait can do; the rest
    /// of the time goes by in [`Relay::impatient`] rounds.
    fn patience(&self) -> Option<Duration> {
        let due_ns = self.next_due()?.saturating_sub(self.now_ns());
        Some(Duration::from_millis(due_ns / 1_000_000))
    }

    fn impatient(&self) -> bool {
        self.patience() == Some(Duration::ZERO)
    }

    fn serve(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            // A client that says nothing or goes away is its own loss.
            let _ = self.answer(stream);
        }
    }

    fn answer(&mut self, mut stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(QUESTION_LIMIT))?;
        stream.set_write_timeout(Some(QUESTION_LIMIT))?;
        let mut line = String::new();
        BufReader::new(&stream)
            .take(QUESTION_LEN_MAX)
            .read_line(&mut line)?;
        if let Request::Change(impairment) = serde_json::from_str(&line)? {
            self.change(impairment);
        }
        let report = Report {
            impairment: self.impairment.clone(),
            out: self.out.counters(),
            into: self.into.counters(),
        };
        stream.write_all(serde_json::to_string(&report)?.as_bytes())
    }

    fn change(&mut self, impairment: LinkImpairment) {
        let now_ns = self.now_ns();
        let seed = impairment.seed;
        self.out.change(impairment.out.clone(), seed, now_ns);
        // The other direction rolls other dice, or both would lose the same numbers.
        self.into.change(impairment.into.clone(), !seed, now_ns);
        self.impairment = impairment;
    }
}

fn open_link(name: &str) -> Result<PacketSocket, LabError> {
    let what = || format!("open link {name}");
    let index = link::index_of(name)
        .map_err(io::Error::from)
        .context(what)?;
    let options = PacketOptions {
        rcvbuf: SOCKET_BUFFER,
        sndbuf: SOCKET_BUFFER,
        ..PacketOptions::default()
    };
    PacketSocket::open(index, &options)
        .map_err(io::Error::from)
        .context(what)
}

/// Puts one frame from the socket into the lane. Returns whether there was one.
fn take(
    socket: &PacketSocket,
    buffer: &mut [u8],
    lane: &mut Lane,
    now_ns: u64,
) -> io::Result<bool> {
    let meta = match socket.recv(buffer) {
        Ok(Some(meta)) => meta,
        Ok(None) => return Ok(false),
        // Told once when a link goes down; frames come again when it is up.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENETDOWN) => return Ok(false),
        Err(error) => return Err(error),
    };
    if let Some(frame) = read_frame(buffer, meta) {
        lane.offer(now_ns, frame);
    }
    Ok(true)
}

/// The received frame with its VLAN tag back in place and its checksum finished. `None` for a frame that
/// was too long for the buffer or too short to be one.
pub(super) fn read_frame(buffer: &[u8], meta: PacketMeta) -> Option<Frame> {
    let (header, bytes) = buffer.get(..meta.len)?.split_at_checked(VNET_HEADER_LEN)?;
    if meta.truncated || bytes.len() < ETHERNET_LEN {
        return None;
    }
    let mut frame = Frame {
        vnet: VnetHdr::parse(header),
        bytes: bytes.to_vec(),
    };
    if let Some(tag) = meta.vlan {
        let [a, b] = tag.tpid.to_be_bytes();
        let [c, d] = tag.tci.to_be_bytes();
        frame.bytes.splice(12..12, [a, b, c, d]);
        frame.vnet.csum_start = frame.vnet.csum_start.saturating_add(4);
        frame.vnet.hdr_len = frame.vnet.hdr_len.saturating_add(4);
    }
    if frame.vnet.gso_type == VnetHdr::GSO_NONE {
        finish_checksum(&mut frame);
    }
    Some(frame)
}

/// Computes the checksum that the sender left to the hardware. The field holds the folded sum of the
/// pseudo-header; a UDP sum of zero is sent as all ones (RFC 768).
fn finish_checksum(frame: &mut Frame) {
    if frame.vnet.flags & VnetHdr::NEEDS_CSUM == 0 {
        return;
    }
    let start = usize::from(frame.vnet.csum_start);
    let field = start + usize::from(frame.vnet.csum_offset);
    if field + 2 > frame.bytes.len() {
        return;
    }
    let sum = checksum::finish(checksum::sum(&frame.bytes[start..], 0));
    let sum = if sum == 0 { u16::MAX } else { sum };
    frame.bytes[field..field + 2].copy_from_slice(&sum.to_ne_bytes());
    frame.vnet = VnetHdr::default();
}

/// Sends what is due.
fn give(socket: &PacketSocket, lane: &mut Lane, now_ns: u64) -> io::Result<()> {
    while let Some(frame) = lane.pop_due(now_ns) {
        let header = frame.vnet.to_bytes();
        match socket.send(&[IoSlice::new(&header), IoSlice::new(&frame.bytes)]) {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Err(error),
            // The link is down, its queue full, or the frame is one it does not take.
            Err(_) => lane.send_failed(),
        }
    }
    Ok(())
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(nix::libc::ENXIO | nix::libc::ENODEV)
    )
}

const NIC: u64 = 0;
const PORT: u64 = 1;
const CONTROL: u64 = 2;
const BATCH: usize = 64;
const ETHERNET_LEN: usize = 14;
/// The largest super-frame and its headers.
const BUFFER_LEN: usize = 1 << 18;
const SOCKET_BUFFER: usize = 16 << 20;
const QUESTION_LIMIT: Duration = Duration::from_millis(200);
const QUESTION_LEN_MAX: u64 = 1 << 16;
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::packet::VlanTag;

    fn received(vnet: VnetHdr, bytes: &[u8]) -> (Vec<u8>, PacketMeta) {
        let mut buffer = vnet.to_bytes().to_vec();
        buffer.extend(bytes);
        let meta = PacketMeta {
            len: buffer.len(),
            truncated: false,
            vlan: None,
        };
        (buffer, meta)
    }

    #[test]
    fn a_checksum_left_open_is_finished() {
        // Eight bytes from 14 on, of which the last two are the field and hold a seed of 0x0001.
        let mut bytes = vec![0; 14];
        bytes.extend([0x12, 0x34, 0x56, 0x78, 0, 0, 0, 1]);
        let vnet = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            csum_start: 14,
            csum_offset: 6,
            ..VnetHdr::default()
        };
        let (buffer, meta) = received(vnet, &bytes);
        let frame = read_frame(&buffer, meta).unwrap();
        // 0x1234 + 0x5678 + 0x0001 = 0x68ad, inverted 0x9752.
        assert_eq!(frame.bytes[20..], [0x97, 0x52]);
        assert_eq!(frame.vnet, VnetHdr::default());
    }

    #[test]
    fn a_checksum_outside_of_the_frame_is_left_alone() {
        let vnet = VnetHdr {
            flags: VnetHdr::NEEDS_CSUM,
            csum_start: 60,
            csum_offset: 6,
            ..VnetHdr::default()
        };
        let (buffer, meta) = received(vnet, &[7; 60]);
        assert_eq!(read_frame(&buffer, meta).unwrap().bytes, [7; 60]);
    }

    #[test]
    fn a_vlan_tag_goes_back_to_its_place() {
        let (buffer, mut meta) = received(VnetHdr::default(), &[9; 60]);
        meta.vlan = Some(VlanTag {
            tci: 5,
            tpid: 0x8100,
        });
        let frame = read_frame(&buffer, meta).unwrap();
        assert_eq!(frame.bytes.len(), 64);
        assert_eq!(frame.bytes[11..17], [9, 0x81, 0, 0, 5, 9]);
    }

    #[test]
    fn what_is_no_whole_frame_is_dropped() {
        let (buffer, meta) = received(VnetHdr::default(), &[1; 13]);
        assert_eq!(read_frame(&buffer, meta), None);
        let (buffer, meta) = received(VnetHdr::default(), &[1; 60]);
        assert_eq!(
            read_frame(
                &buffer,
                PacketMeta {
                    truncated: true,
                    ..meta
                }
            ),
            None
        );
        assert_eq!(read_frame(&buffer, PacketMeta { len: 5, ..meta }), None);
    }

    #[test]
    fn requests_have_a_stable_form() {
        let text = serde_json::to_string(&Request::Report).unwrap();
        assert_eq!(text, r#""report""#);
        let request: Request =
            serde_json::from_str(r#"{"change":{"out":{"loss_percent":5}}}"#).unwrap();
        let Request::Change(impairment) = request else {
            panic!("{request:?}")
        };
        assert_eq!(impairment.out.loss_percent, 5.0);
    }
}
