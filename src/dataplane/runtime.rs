//! Workers as threads: opening their sockets, waiting for work, taking orders.
//!
//! A worker polls its underlay socket and its uplinks. With work it runs bursts; without, it yields
//! and looks again for a few dozen microseconds (sleeping at once costs a wake-up per packet), then
//! sleeps. Orders come through a channel and an eventfd; what workers know otherwise comes from the
//! tables.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use crossbeam_utils::CachePadded;

use super::counters::{CounterSnapshot, Counters};
use super::forwarder::{LearnEvent, Worker, WorkerConfig};
use super::io::Lane;
use super::linux::{
    self, LANES, LinuxPort, LinuxUnderlay, PacketLanes, SteerRequest, Steering, UnderlayOffloads,
};
use crate::sys::clock::now_ns;
use crate::sys::netns::Netns;
use crate::sys::packet::{Fanout, FanoutKind, PacketOptions, PacketSocket};
use crate::sys::poll::{Poller, Waker};
use crate::sys::tap::Tap;
use crate::sys::udp::{self, PathMtuDiscovery, UdpOptions, UdpSocket};
use crate::sys::{SysError, affinity};
use crate::tables::{SegmentIndex, Tables};
use crate::wire::flow;

/// What other nodes send while a worker does not run: many may send at once.
const UDP_RECEIVE_LEN: usize = 8 << 20;
/// What a network card has not sent yet, for each source port. More would only wait: at 1 Gbit/s this is 8 ms.
const UDP_SEND_LEN: usize = 512 << 10;
/// What workloads send, but TCP, while a worker does not run.
const UPLINK_RECEIVE_LEN: usize = 8 << 20;
/// TCP that waits at an uplink; the kernel counts twice this with its own overhead. TCP fills any buffer that does not
/// drop, and then waits behind itself, and all else behind what it sends: this much is a millisecond's at full speed,
/// ten super-frames (docs/perf.md, "What lost", has other sizes).
const UPLINK_TCP_LEN: usize = 1 << 20;
/// Deliveries that a workload's stack has not taken yet.
const UPLINK_SEND_LEN: usize = 16 << 20;
const TICK: Duration = Duration::from_secs(1);
const TOKEN_WAKER: u64 = 0;
/// Plus the lane, [`Lane::Rest`] or [`Lane::Tcp`].
const TOKEN_UNDERLAY: u64 = 1;
/// Plus twice the segment's index, plus the lane.
const TOKEN_UPLINK: u64 = 3;

fn underlay_token(lane: Lane) -> u64 {
    TOKEN_UNDERLAY + u64::from(lane == Lane::Tcp)
}

fn uplink_token(segment: SegmentIndex, lane: Lane) -> u64 {
    TOKEN_UPLINK + 2 * u64::from(segment.0) + u64::from(lane == Lane::Tcp)
}

/// What a ready descriptor stands for.
enum Source {
    Waker,
    Underlay(Lane),
    Uplink(SegmentIndex, Lane),
}

fn source_of(token: u64) -> Source {
    let lane = |bit| if bit == 1 { Lane::Tcp } else { Lane::Rest };
    match token {
        TOKEN_WAKER => Source::Waker,
        TOKEN_UNDERLAY..TOKEN_UPLINK => Source::Underlay(lane(token - TOKEN_UNDERLAY)),
        _ => {
            let number = token - TOKEN_UPLINK;
            Source::Uplink(SegmentIndex((number / 2) as u16), lane(number & 1))
        }
    }
}

fn is_tcp(token: u64) -> bool {
    matches!(
        source_of(token),
        Source::Underlay(Lane::Tcp) | Source::Uplink(_, Lane::Tcp)
    )
}

/// How a dataplane runs.
#[derive(Clone, Debug)]
pub struct DataplaneConfig {
    /// Underlay address of this node: source of all datagrams, and where they are received.
    pub vtep: IpAddr,
    /// UDP port, ours and other VTEPs'.
    pub port: u16,
    /// Worker threads.
    pub workers: usize,
    /// Source ports per worker, a power of two; half of them are TCP's.
    pub source_ports: usize,
    /// Use `UDP_SEGMENT` where the kernel grants it.
    pub segmentation: bool,
    /// Use `UDP_GRO` where the kernel grants it.
    pub receive_coalescing: bool,
    /// How long a worker without work looks again before it sleeps.
    pub spin: Duration,
    /// Pin worker `i` to CPU `i` modulo their number.
    pub pin: bool,
    /// Sizes of a worker's work.
    pub worker: WorkerConfig,
}

impl DataplaneConfig {
    /// The defaults for a VTEP address.
    pub fn new(vtep: IpAddr) -> DataplaneConfig {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        DataplaneConfig {
            vtep,
            port: crate::wire::vxlan::PORT,
            workers: (cpus / 2).clamp(1, 8),
            source_ports: 32,
            segmentation: true,
            receive_coalescing: true,
            spin: Duration::from_micros(60),
            pin: false,
            worker: WorkerConfig::default(),
        }
    }
}

/// Where the frames of a segment come from.
#[derive(Debug)]
pub enum UplinkSource<'a> {
    /// The held end of the uplink veth, by interface index in that namespace.
    Packet {
        /// The network's namespace.
        netns: &'a Netns,
        /// Interface index of `up1`.
        ifindex: u32,
    },
    /// Open queues of a TAP, as many as there are workers.
    Tap(Vec<Tap>),
}

/// Why the dataplane did not start or an uplink was not added; nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The VXLAN port is in use.
    #[error(
        "UDP port {port} on {vtep} is in use by another program (kernel VXLAN, Docker or another agent)"
    )]
    PortInUse {
        /// The address.
        vtep: IpAddr,
        /// The port.
        port: u16,
    },
    /// No interface has the VTEP address.
    #[error("no network interface here has the address {0}, which is to be the VTEP")]
    AddressMissing(IpAddr),
    /// Another system call failed.
    #[error(transparent)]
    Sys(#[from] SysError),
    /// The workers are gone.
    #[error("the forwarding threads have stopped")]
    Stopped,
    /// Wrong number of TAP queues.
    #[error("an uplink needs {wanted} TAP queues, got {got}")]
    Queues {
        /// One per worker.
        wanted: usize,
        /// As given.
        got: usize,
    },
}

/// State of the offloads, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OffloadStatus {
    /// `UDP_SEGMENT` is in use.
    pub segmentation: bool,
    /// `UDP_GRO` is in use.
    pub receive_coalescing: bool,
    /// Datagrams per send.
    pub segments_max: usize,
}

enum Order {
    AddPort(SegmentIndex, LinuxPort, Sender<()>),
    RemovePort(SegmentIndex, Sender<()>),
    Stop,
}

struct Handle {
    orders: Sender<Order>,
    waker: Arc<Waker>,
    counters: Arc<CachePadded<Counters>>,
    alive: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The running workers.
pub struct Dataplane {
    config: DataplaneConfig,
    workers: Vec<Handle>,
    offloads: Arc<UnderlayOffloads>,
    learned: Receiver<LearnEvent>,
    /// To the thread that steers; it ends when nobody can ask any more.
    steerer: Option<Sender<SteerRequest>>,
    steering_thread: Option<JoinHandle<()>>,
}

impl Dataplane {
    /// Opens the underlay sockets in the calling thread's network namespace and starts the workers.
    ///
    /// # Errors
    /// [`DataplaneError`]; no thread is left.
    pub fn start(
        config: DataplaneConfig,
        tables: Arc<Tables>,
    ) -> Result<Dataplane, DataplaneError> {
        check_port_free(&config)?;
        let offloads = Arc::new(UnderlayOffloads {
            segmentation: AtomicBool::new(config.segmentation && udp::probe_segmentation()),
            receive_coalescing: AtomicBool::new(config.receive_coalescing && udp::probe_gro()),
            segments_max: AtomicUsize::new(udp::SEGMENTS_MAX),
        });
        let (learn, learned) = bounded(1024);
        let mut dataplane = Dataplane {
            config,
            workers: Vec::new(),
            offloads,
            learned,
            steerer: None,
            steering_thread: None,
        };
        dataplane.start_steering()?;
        for (index, receive) in open_receivers(&dataplane.config, &dataplane.offloads)?
            .into_iter()
            .enumerate()
        {
            let underlay = open_underlay(&dataplane.config, receive, &dataplane.offloads)?;
            let handle = start_worker(index, &dataplane.config, &tables, underlay, learn.clone())?;
            dataplane.workers.push(handle);
        }
        Ok(dataplane)
    }

    fn start_steering(&mut self) -> Result<(), DataplaneError> {
        // Bounded, so that asking allocates nothing; a worker whose request has no room asks again.
        let (steerer, requests) = bounded(STEER_REQUESTS);
        let thread = std::thread::Builder::new()
            .name("weft-steering".into())
            .spawn(move || linux::steer(&requests))
            .map_err(|error| SysError::new("start thread", "weft-steering", error))?;
        (self.steerer, self.steering_thread) = (Some(steerer), Some(thread));
        Ok(())
    }

    /// How many workers there are, and so how many queues an uplink has.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }

    /// The configuration in force.
    pub fn config(&self) -> &DataplaneConfig {
        &self.config
    }

    /// Starts forwarding for a segment.
    ///
    /// # Errors
    /// When its sockets cannot be opened; then no worker has it.
    pub fn add_uplink(
        &self,
        segment: SegmentIndex,
        source: UplinkSource<'_>,
    ) -> Result<(), DataplaneError> {
        let wanted = self.worker_count();
        let ports: Vec<LinuxPort> = match source {
            UplinkSource::Packet { netns, ifindex } => {
                let steerer = self.steerer.as_ref().ok_or(DataplaneError::Stopped)?;
                open_packet_ports(netns, ifindex, wanted, steerer)?
            }
            UplinkSource::Tap(queues) => queues.into_iter().map(LinuxPort::Tap).collect(),
        };
        if ports.len() != wanted {
            return Err(DataplaneError::Queues {
                wanted,
                got: ports.len(),
            });
        }
        for (worker, port) in self.workers.iter().zip(ports) {
            if let Err(error) = worker.ask(|done| Order::AddPort(segment, port, done)) {
                let _one_has_ended = self.remove_uplink(segment);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Stops forwarding for a segment; when this returns no worker reads or writes its uplink.
    ///
    /// # Errors
    /// [`DataplaneError::Stopped`].
    pub fn remove_uplink(&self, segment: SegmentIndex) -> Result<(), DataplaneError> {
        // Those that run let go of it, whatever became of the others.
        let outcomes = self
            .workers
            .iter()
            .map(|worker| worker.ask(|done| Order::RemovePort(segment, done)));
        let outcomes: Vec<_> = outcomes.collect();
        outcomes.into_iter().collect()
    }

    /// Stations seen on learning segments; the owner of the table writer applies them.
    pub fn learned(&self) -> &Receiver<LearnEvent> {
        &self.learned
    }

    /// Sum over all workers.
    pub fn counters(&self) -> CounterSnapshot {
        let mut sum = CounterSnapshot::default();
        self.workers
            .iter()
            .for_each(|w| sum.add(&w.counters.snapshot()));
        sum
    }

    /// What each worker counted.
    pub fn counters_by_worker(&self) -> Vec<CounterSnapshot> {
        self.workers.iter().map(|w| w.counters.snapshot()).collect()
    }

    /// Offloads in use.
    pub fn offloads(&self) -> OffloadStatus {
        OffloadStatus {
            segmentation: self.offloads.segmentation.load(Ordering::Relaxed),
            receive_coalescing: self.offloads.receive_coalescing.load(Ordering::Relaxed),
            segments_max: self.offloads.segments_max.load(Ordering::Relaxed),
        }
    }

    /// The kill switch of send segmentation.
    pub fn set_segmentation(&self, on: bool) {
        self.offloads.segmentation.store(on, Ordering::Relaxed);
    }

    /// Workers that still run; fewer than [`Dataplane::worker_count`] means one has panicked.
    pub fn alive(&self) -> usize {
        self.workers
            .iter()
            .filter(|w| w.alive.load(Ordering::Relaxed))
            .count()
    }

    /// Stops all workers and waits for them.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        for worker in &self.workers {
            let _already_gone = worker.orders.send(Order::Stop);
            let _full_means_awake = worker.waker.wake();
        }
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _its_panic_was_logged = thread.join();
            }
        }
        self.steerer = None;
        if let Some(thread) = self.steering_thread.take() {
            let _it_does_not_panic = thread.join();
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Handle {
    /// Sends an order and waits until the worker has carried it out.
    fn ask(&self, order: impl FnOnce(Sender<()>) -> Order) -> Result<(), DataplaneError> {
        let (done, carried_out) = bounded(1);
        self.orders
            .send(order(done))
            .map_err(|_| DataplaneError::Stopped)?;
        let _full_means_awake = self.waker.wake();
        carried_out
            .recv_timeout(Duration::from_secs(5))
            .map_err(|_| DataplaneError::Stopped)
    }
}

/// `SO_REUSEPORT` would let a second agent share the port silently, so it is tried without first. The
/// sockets of an agent that was just killed may take the kernel a moment.
fn check_port_free(config: &DataplaneConfig) -> Result<(), DataplaneError> {
    while_in_use(|| try_port(config))
}

/// Tries again for a moment while the port is in use.
fn while_in_use<T>(
    mut attempt: impl FnMut() -> Result<T, DataplaneError>,
) -> Result<T, DataplaneError> {
    for _ in 0..PORT_TRIES {
        match attempt() {
            Err(DataplaneError::PortInUse { .. }) => std::thread::sleep(PORT_RETRY),
            outcome => return outcome,
        }
    }
    attempt()
}

const PORT_TRIES: u32 = 50;
const PORT_RETRY: Duration = Duration::from_millis(10);

fn try_port(config: &DataplaneConfig) -> Result<(), DataplaneError> {
    let options = UdpOptions {
        reuse_port: false,
        ..UdpOptions::default()
    };
    bind_port(config, &options).map(drop)
}

fn bind_port(config: &DataplaneConfig, options: &UdpOptions) -> Result<UdpSocket, DataplaneError> {
    match UdpSocket::bind(SocketAddr::new(config.vtep, config.port), options) {
        Ok(socket) => Ok(socket),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            Err(DataplaneError::PortInUse {
                vtep: config.vtep,
                port: config.port,
            })
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
            Err(DataplaneError::AddressMissing(config.vtep))
        }
        Err(error) => Err(error.into()),
    }
}

fn socket_options() -> UdpOptions {
    UdpOptions {
        rcvbuf: UDP_RECEIVE_LEN,
        sndbuf: UDP_SEND_LEN,
        path_mtu_discovery: PathMtuDiscovery::Do,
        // An ICMP error would fail the next send, whoever that is for: one VTEP that refuses would take
        // frames from the others. Path MTUs are kept by the kernel's routes all the same.
        recv_errors: false,
        ..UdpOptions::default()
    }
}

/// The receiving sockets of all workers, each with one per lane, and the program that chooses among them. They stand in
/// the group as they are bound: first all of one lane.
fn open_receivers(
    config: &DataplaneConfig,
    offloads: &UnderlayOffloads,
) -> Result<Vec<[UdpSocket; 2]>, DataplaneError> {
    let options = UdpOptions {
        reuse_port: true,
        gro: offloads.receive_coalescing.load(Ordering::Relaxed),
        recv_tos: true,
        overflow_counter: true,
        ..socket_options()
    };
    let workers = config.workers.max(1);
    // The socket that was to find the port free lives on in a program this process starts just then, until
    // that has closed what it inherits.
    let open = || while_in_use(|| bind_port(config, &options));
    let open_lane = || (0..workers).map(|_| open()).collect::<Result<Vec<_>, _>>();
    let (rest, tcp) = (open_lane()?, open_lane()?);
    rest[0]
        .steer(u16::try_from(workers).unwrap_or(u16::MAX))
        .map_err(|error| SysError::new("steer", "datagrams of the underlay", error))?;
    Ok(rest.into_iter().zip(tcp).map(<[_; 2]>::from).collect())
}

fn open_underlay(
    config: &DataplaneConfig,
    receive: [UdpSocket; 2],
    offloads: &Arc<UnderlayOffloads>,
) -> Result<LinuxUnderlay, DataplaneError> {
    let mut pool = Vec::with_capacity(config.source_ports);
    for _ in 0..config.source_ports.next_power_of_two() {
        pool.push(bind_source_port(config.vtep, &socket_options())?);
    }
    Ok(LinuxUnderlay::new(
        receive,
        pool,
        config.vtep,
        Arc::clone(offloads),
    ))
}

/// A socket on a random free port of the dynamic range.
fn bind_source_port(vtep: IpAddr, options: &UdpOptions) -> Result<UdpSocket, DataplaneError> {
    let mut last = None;
    for _ in 0..64 {
        let port = rand::random_range(flow::SOURCE_PORT_MIN..=u16::MAX);
        match UdpSocket::bind(SocketAddr::new(vtep, port), options) {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last.map_or(DataplaneError::Stopped, DataplaneError::Sys))
}

/// Requests that wait for the thread that steers.
const STEER_REQUESTS: usize = 256;

/// Fanout groups are numbered within a network's namespace. Counted from anywhere: an agent that was killed may have left
/// a group for a moment.
static NEXT_GROUP: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));

/// The sockets of all workers on an uplink. All are members of one group, which they join lane by lane.
fn open_packet_ports(
    netns: &Netns,
    ifindex: u32,
    count: usize,
    steerer: &Sender<SteerRequest>,
) -> Result<Vec<LinuxPort>, SysError> {
    // A group of its own each time: sockets that were closed may live on for a moment, in a program this process
    // starts just then, and would stand among the members.
    let fanout = Fanout {
        group: NEXT_GROUP.fetch_add(1, Ordering::Relaxed),
        kind: FanoutKind::Program,
    };
    let open = move |lane: Lane| {
        let options = PacketOptions {
            fanout: Some(fanout),
            rcvbuf: match lane {
                Lane::Tcp => UPLINK_TCP_LEN,
                Lane::Rest | Lane::Bulk => UPLINK_RECEIVE_LEN,
            },
            sndbuf: UPLINK_SEND_LEN,
            ..PacketOptions::default()
        };
        PacketSocket::open(ifindex, &options)
    };
    let lanes: Vec<Vec<PacketSocket>> = netns.run_in(move || {
        [Lane::Rest, Lane::Tcp, Lane::Bulk]
            .into_iter()
            .map(|lane| (0..count).map(|_| open(lane)).collect())
            .collect::<Result<_, _>>()
    })??;
    let steering = Steering::new(&lanes[0][0], u16::try_from(count).unwrap_or(u16::MAX))
        .map(Arc::new)
        .map_err(|error| SysError::new("steer", "frames of the uplink", error))?;
    let mut lanes = lanes.into_iter().map(Vec::into_iter);
    let lanes: [_; LANES] = std::array::from_fn(|_| lanes.next().unwrap_or_default());
    let [rest, tcp, bulk] = lanes;
    let sockets = rest.zip(tcp).zip(bulk).enumerate();
    Ok(sockets
        .map(|(worker, ((rest, tcp), bulk))| {
            let steering = Arc::clone(&steering);
            let lanes = PacketLanes::new([rest, tcp, bulk], worker, steering, steerer.clone());
            LinuxPort::Packet(lanes)
        })
        .collect())
}

fn start_worker(
    index: usize,
    config: &DataplaneConfig,
    tables: &Arc<Tables>,
    underlay: LinuxUnderlay,
    learn: Sender<LearnEvent>,
) -> Result<Handle, DataplaneError> {
    let (orders, inbox) = unbounded();
    let waker = Arc::new(Waker::new()?);
    let counters = Arc::new(CachePadded::new(Counters::default()));
    let alive = Arc::new(AtomicBool::new(true));
    let poller = Poller::new()?;
    watch(&poller, waker.as_fd(), TOKEN_WAKER)?;
    for (lane, fd) in underlay.lanes() {
        watch(&poller, fd, underlay_token(lane))?;
    }
    let worker = Worker::new(
        config.worker,
        Arc::clone(tables),
        Arc::clone(&counters),
        underlay,
        Some(learn),
    );
    let state = Loop {
        worker,
        poller,
        inbox,
        waker: Arc::clone(&waker),
        counters: Arc::clone(&counters),
        spin: config.spin,
        rotation: 0,
    };
    let mark = AliveMark(Arc::clone(&alive));
    let cpu = config.pin.then_some(index);
    let thread = std::thread::Builder::new()
        .name(format!("weft-worker-{index}"))
        .spawn(move || {
            let _mark = mark;
            if let Some(cpu) = cpu {
                let cpus = std::thread::available_parallelism().map_or(1, usize::from);
                let _best_effort = affinity::pin_this_thread(cpu % cpus);
            }
            state.run();
        })
        .map_err(|error| SysError::new("start thread", format!("weft-worker-{index}"), error))?;
    Ok(Handle {
        orders,
        waker,
        counters,
        alive,
        thread: Some(thread),
    })
}

fn watch(poller: &Poller, fd: BorrowedFd<'_>, token: u64) -> Result<(), SysError> {
    poller
        .add(fd, token)
        .map_err(|error| SysError::new("watch descriptor", token.to_string(), error))
}

/// Clears the flag when the thread ends, by return or by panic.
struct AliveMark(Arc<AtomicBool>);

impl Drop for AliveMark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
        if std::thread::panicking() {
            tracing::error!("a forwarding thread panicked; restart the agent");
        }
    }
}

struct Loop {
    worker: Worker<LinuxPort, LinuxUnderlay>,
    poller: Poller,
    inbox: Receiver<Order>,
    waker: Arc<Waker>,
    counters: Arc<CachePadded<Counters>>,
    spin: Duration,
    /// Which of TCP's lanes is served next.
    rotation: usize,
}

impl Loop {
    fn run(mut self) {
        let spin_ns = self.spin.as_nanos() as u64;
        let tick_ns = TICK.as_nanos() as u64;
        let mut worked_ns = now_ns();
        let mut ticked_ns = worked_ns;
        loop {
            let now = now_ns();
            if now - ticked_ns >= tick_ns {
                ticked_ns = now;
                self.worker.tick();
            }
            let idle = now.saturating_sub(worked_ns) > spin_ns;
            match self.round(idle, now) {
                Round::Worked => worked_ns = now_ns(),
                Round::Nothing if !idle => std::thread::yield_now(),
                Round::Nothing => {}
                Round::Stopped => return,
            }
        }
    }

    /// Waits (only when idle) and serves whatever is ready.
    fn round(&mut self, idle: bool, now: u64) -> Round {
        let timeout = if idle {
            self.sleep_until_due(now)
        } else {
            Duration::ZERO
        };
        if !timeout.is_zero() {
            self.counters.sleeps.add(1);
        }
        let ready = match self.poller.wait(Some(timeout)) {
            Ok(ready) => ready,
            Err(error) => {
                tracing::error!(%error, "waiting for packets failed");
                return Round::Stopped;
            }
        };
        let now = if idle { now_ns() } else { now };
        let mut done = 0;
        let (mut orders, mut barren) = (false, false);
        for event in ready {
            match source_of(event.token) {
                Source::Waker => orders = true,
                Source::Underlay(Lane::Rest) => {
                    self.worker.select_underlay_lane(Lane::Rest);
                    done += self.worker.decap_burst(now);
                }
                Source::Uplink(segment, Lane::Rest) => {
                    let read = self.worker.uplink_burst(segment, Lane::Rest, now);
                    barren |= read == 0;
                    done += read;
                }
                Source::Underlay(_) | Source::Uplink(..) => {}
            }
        }
        // TCP's lanes hold the most, and wait best: while there is other traffic, each round serves one of them in turn.
        let of_tcp = || ready.iter().filter(|event| is_tcp(event.token));
        let (first, count) = match of_tcp().count() {
            0 => (0, 0),
            count if self.worker.is_shared(now) => (self.rotation % count, 1),
            count => (0, count),
        };
        self.rotation = self.rotation.wrapping_add(1);
        for event in of_tcp().skip(first).take(count) {
            match source_of(event.token) {
                Source::Underlay(lane) => {
                    self.worker.select_underlay_lane(lane);
                    done += self.worker.decap_burst(now);
                }
                Source::Uplink(segment, lane) => {
                    done += self.worker.uplink_burst(segment, lane, now);
                }
                Source::Waker => {}
            }
        }
        // Not work that keeps the thread awake: between its turns the processor is the senders'.
        let bulk = self.worker.bulk_round(now);
        if orders {
            let _nothing_left = self.waker.drain();
            if self.carry_out() {
                return Round::Stopped;
            }
        }
        if done == 0 {
            if idle && barren && bulk == 0 && !orders {
                std::thread::sleep(BARREN_PAUSE);
            }
            return Round::Nothing;
        }
        self.counters.bursts.add(1);
        Round::Worked
    }

    /// How long there is nothing to do but for what arrives.
    fn sleep_until_due(&self, now: u64) -> Duration {
        self.worker.bulk_due_ns().map_or(TICK, |due| {
            Duration::from_nanos(due.saturating_sub(now)).min(TICK)
        })
    }

    /// Takes all waiting orders; true to stop.
    fn carry_out(&mut self) -> bool {
        while let Ok(order) = self.inbox.try_recv() {
            match order {
                Order::AddPort(segment, port, done) => {
                    for (lane, fd) in port.lanes() {
                        if let Err(error) = self.poller.add(fd, uplink_token(segment, lane)) {
                            tracing::error!(%error, "the uplink cannot be watched");
                        }
                    }
                    self.worker.add_port(segment, port);
                    let _nobody_waits = done.send(());
                }
                Order::RemovePort(segment, done) => {
                    if let Some(port) = self.worker.remove_port(segment) {
                        for (_, fd) in port.lanes() {
                            let _closing_removes_it_too = self.poller.remove(fd);
                        }
                    }
                    let _nobody_waits = done.send(());
                }
                Order::Stop => return true,
            }
        }
        false
    }
}

/// After a wake-up by uplinks that brought nothing: a TAP whose link is gone stays ready for ever (`EPOLLERR`), and must not
/// take a processor until its network is taken down.
const BARREN_PAUSE: Duration = Duration::from_millis(1);

enum Round {
    Worked,
    Nothing,
    Stopped,
}
