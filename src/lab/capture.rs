//! Capturing at a node's or workload's link, both directions.
//!
//! Both ends of the link's pair are listened at, incoming frames only: what arrives at this end came in, what
//! arrives at the other end went out. Frames are shown as the link carries them: super-frames whole, checksums
//! perhaps unfinished.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::error::{Context, LabError};
use super::harness::{Lab, SWITCH};
use super::links::{self, NODE_LINK, block_on};
use super::pcapng::Way;
use super::plan::NodeKind;
use super::relay::read_frame;
use super::space;
use super::steps::Interrupt;
use crate::sys::link::index_of;
use crate::sys::netns::Netns;
use crate::sys::packet::{PacketOptions, PacketSocket};
use crate::sys::poll::Poller;

/// When a capture ends by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// After so many frames.
    pub frames: Option<u64>,
    /// After so much time.
    pub time: Option<Duration>,
}

/// A frame, when it was seen and which way it went.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Nanoseconds since 1970, when it was read.
    pub time_ns: u64,
    /// Seen from the node or workload.
    pub way: Way,
    /// Ethernet header and on.
    pub frame: &'a [u8],
}

/// What a capture saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames handed on.
    pub frames: u64,
    /// Frames the kernel dropped because they were not read fast enough.
    pub missed: u64,
}

/// Both ends of a link, open for capture.
#[derive(Debug)]
pub struct Tap {
    here: PacketSocket,
    there: PacketSocket,
}

impl Tap {
    /// Opens the link of a node (its underlay) or workload.
    ///
    /// # Errors
    /// [`LabError::NoPlace`]; [`LabError::Options`] for the underlay's own namespace; [`LabError::Io`].
    pub fn open(lab: &Lab, place: &str) -> Result<Tap, LabError> {
        if place == SWITCH {
            return Err(LabError::Options(
                "capture at a node: its link carries the tunnel".into(),
            ));
        }
        let here = lab.netns(place)?;
        let (there, index) = match lab.plan().node(place) {
            Some(node) => {
                let switch = lab.netns(SWITCH)?;
                let nic = node.nic();
                let index =
                    in_netns(&switch, || index_of(&nic)).context(|| format!("find link {nic}"))?;
                (switch, index)
            }
            None => other_end(lab, place, &here)?,
        };
        let own = in_netns(&here, || index_of(NODE_LINK))
            .context(|| format!("find {NODE_LINK} of {place}"))?;
        Ok(Tap {
            here: open(&here, own)?,
            there: open(&there, index)?,
        })
    }

    /// Hands every frame to `sink` until a limit is reached, the user stops it, or the sink has enough
    /// (`ErrorKind::BrokenPipe`).
    ///
    /// # Errors
    /// [`LabError::Io`]: of the sockets or the sink.
    pub fn run(
        &self,
        limits: Limits,
        interrupt: &Interrupt,
        mut sink: impl FnMut(Seen<'_>) -> io::Result<()>,
    ) -> Result<Totals, LabError> {
        let mut poller = Poller::new()
            .map_err(io::Error::from)
            .context(|| "wait for frames".into())?;
        let mut buffer = vec![0; BUFFER_LEN];
        let mut totals = Totals::default();
        poller
            .add(&self.here, 0)
            .context(|| "wait for frames".into())?;
        poller
            .add(&self.there, 1)
            .context(|| "wait for frames".into())?;
        let start = Instant::now();
        while interrupt.check().is_ok() && limits.time.is_none_or(|limit| start.elapsed() < limit) {
            poller
                .wait(Some(POLL))
                .context(|| "wait for frames".into())?;
            match self.drain(&mut buffer, limits.frames, &mut totals, &mut sink) {
                Ok(false) => {}
                Ok(true) => break,
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
                Err(error) => return Err(error).context(|| "capture".into()),
            }
        }
        for socket in [&self.here, &self.there] {
            totals.missed += socket
                .statistics()
                .context(|| "read statistics".into())?
                .drops;
        }
        Ok(totals)
    }

    /// Reads what has come. Returns whether it is enough.
    fn drain(
        &self,
        buffer: &mut [u8],
        most: Option<u64>,
        totals: &mut Totals,
        sink: &mut impl FnMut(Seen<'_>) -> io::Result<()>,
    ) -> io::Result<bool> {
        loop {
            let mut any = false;
            for (socket, way) in [(&self.here, Way::In), (&self.there, Way::Out)] {
                let Some(meta) = socket.recv(buffer)? else {
                    continue;
                };
                any = true;
                let time_ns = SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                let Some(frame) = read_frame(buffer, meta) else {
                    continue;
                };
                sink(Seen {
                    time_ns: time_ns.as_nanos() as u64,
                    way,
                    frame: &frame.bytes,
                })?;
                totals.frames += 1;
                if most.is_some_and(|most| totals.frames >= most) {
                    return Ok(true);
                }
            }
            if !any {
                return Ok(false);
            }
        }
    }
}

/// The end of a workload's pair that is not in the workload: the network's namespace, or a kernel peer's node.
fn other_end(lab: &Lab, workload: &str, here: &Netns) -> Result<(Netns, u32), LabError> {
    let workload = lab.workload(workload)?;
    let node = lab.node(&workload.node)?;
    let there = match node.kind {
        NodeKind::Kernel => space::open(&node.netns)?,
        NodeKind::Agent => {
            let path = network_netns(lab, &node.name);
            Netns::open(&path)
                .map_err(io::Error::from)
                .context(|| format!("open {}", path.display()))?
        }
    };
    let link = block_on(links::find(here, NODE_LINK))?;
    let index = link.peer.ok_or(io::Error::from(io::ErrorKind::NotFound));
    Ok((
        there,
        index.context(|| format!("find the other end of {}'s link", workload.name))?,
    ))
}

fn network_netns(lab: &Lab, node: &str) -> PathBuf {
    let run_dir = lab.socket(node).with_file_name("netns");
    run_dir.join(&lab.plan().network_id[..12])
}

fn open(netns: &Netns, index: u32) -> Result<PacketSocket, LabError> {
    let options = PacketOptions {
        rcvbuf: RECEIVE_BUFFER,
        ..PacketOptions::default()
    };
    in_netns(netns, || PacketSocket::open(index, &options))
        .context(|| "open a packet socket".into())
}

fn in_netns<T: Send, E: Into<io::Error> + Send>(
    netns: &Netns,
    work: impl FnOnce() -> Result<T, E> + Send,
) -> io::Result<T> {
    netns
        .run_in(work)
        .map_err(io::Error::from)?
        .map_err(Into::into)
}

const BUFFER_LEN: usize = 1 << 18;
const RECEIVE_BUFFER: usize = 32 << 20;
const POLL: Duration = Duration::from_millis(100);
