//! Classic BPF programs by which the kernel chooses one socket of a group (Linux `Documentation/networking/filter.rst`).
//!
//! Owns the instructions and how they are put together. Must not know who reads which socket, or why.
//!
//! Members of a group stand in lanes: first one socket per worker for all that is not TCP, then one per worker for TCP,
//! then, at an uplink, one per worker for the UDP flows that the program names. All frames of a flow go to one worker. TCP
//! means TCP over IPv4, or over IPv6 with at most a hop-by-hop or a fragment header. A frame too short to tell goes to the first member.

/// A UDP flow as a program compares it: of addresses only the last four bytes, so that another flow with the same ports
/// may pass for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeredFlow {
    /// IPv6, without extension headers.
    pub v6: bool,
    /// Last four bytes of the source address.
    pub source: u32,
    /// Last four bytes of the destination address.
    pub destination: u32,
    /// Source port, then destination port.
    pub ports: u32,
}

/// Flows one program names at most.
pub const FLOWS_MAX: usize = 8;

/// One instruction; those of `linux/bpf_common.h`.
type Instruction = libc::sock_filter;

/// A place in a program that jumps name before it is known.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Label(usize);

/// What follows an instruction when it is a jump.
#[derive(Clone, Copy)]
enum Jump {
    None,
    To { yes: Label, no: Label },
    Always(Label),
}

/// A program being written, from the first instruction to the last; jumps go forward.
#[derive(Default)]
struct Writer {
    instructions: Vec<(Instruction, Jump)>,
    /// Where each label is, once it is placed.
    labels: Vec<Option<usize>>,
}

impl Writer {
    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The next instruction is where `label` points.
    fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    fn push(&mut self, code: u32, k: u32) {
        self.instructions
            .push((instruction(code as u16, k), Jump::None));
    }

    /// Loads from the packet at a fixed place.
    fn load(&mut self, size: u32, at: u32) {
        self.push(libc::BPF_LD | size | libc::BPF_ABS, at);
    }

    fn jump(&mut self, test: u32, value: u32, yes: Label, no: Label) {
        let code = (libc::BPF_JMP | test | libc::BPF_K) as u16;
        self.instructions
            .push((instruction(code, value), Jump::To { yes, no }));
    }

    /// Goes on with the next instruction when what was loaded is `value`, else elsewhere.
    fn unless_equal(&mut self, value: u32, no: Label) {
        let next = self.label();
        self.jump(libc::BPF_JEQ, value, next, no);
        self.place(next);
    }

    /// Goes elsewhere when what was loaded is `value`.
    fn if_equal(&mut self, value: u32, yes: Label) {
        let next = self.label();
        self.jump(libc::BPF_JEQ, value, yes, next);
        self.place(next);
    }

    /// Goes elsewhere when what was loaded has one of these bits.
    fn if_any_bit(&mut self, bits: u32, yes: Label) {
        let next = self.label();
        self.jump(libc::BPF_JSET, bits, yes, next);
        self.place(next);
    }

    fn go(&mut self, to: Label) {
        let code = (libc::BPF_JMP | libc::BPF_JA) as u16;
        self.instructions
            .push((instruction(code, 0), Jump::Always(to)));
    }

    /// Fills in the jumps.
    fn finish(self) -> Vec<Instruction> {
        let place = |from: usize, to: Label| {
            let at = self.labels[to.0].expect("a label that is jumped to is placed");
            at - from - 1
        };
        let near = |from, to| u8::try_from(place(from, to)).expect("jumps are short");
        self.instructions
            .iter()
            .enumerate()
            .map(|(from, &(mut instruction, jump))| {
                match jump {
                    Jump::None => {}
                    Jump::To { yes, no } => {
                        (instruction.jt, instruction.jf) = (near(from, yes), near(from, no));
                    }
                    Jump::Always(to) => instruction.k = place(from, to) as u32,
                }
                instruction
            })
            .collect()
    }
}

fn instruction(code: u16, k: u32) -> Instruction {
    Instruction {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

/// Offsets from the network header, whatever the program's data begins with (`SKF_NET_OFF`).
const NETWORK: u32 = libc::SKF_NET_OFF as u32;
/// The EtherType the kernel has read (`SKF_AD_PROTOCOL`).
const ETHERTYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
/// More fragments follow, or an offset: ports are in the first one alone.
const FRAGMENT: u32 = 0x3fff;
/// An odd constant whose product spreads what differs into the upper half (Knuth's, 2^32 over the golden ratio).
const SPREAD: u32 = 0x9e37_79b1;
/// Scratch words of a program.
const HASH: u32 = 0;
const PORTS: u32 = 1;

/// The program of an uplink's fanout group: worker by flow, lane by protocol and by the flows named in `bulk`, of which
/// those beyond [`FLOWS_MAX`] are left out.
pub(super) fn uplink_program(workers: u16, bulk: &[SteeredFlow]) -> Vec<Instruction> {
    let bulk = &bulk[..bulk.len().min(FLOWS_MAX)];
    let mut w = Writer::default();
    let (ipv6, rest) = (w.label(), w.label());
    let leaves = [rest, w.label(), w.label()];
    // The kernel takes no program that may read a scratch word before it is written.
    w.push(libc::BPF_LD | libc::BPF_IMM, 0);
    w.push(libc::BPF_ST, HASH);
    w.load(libc::BPF_W, ETHERTYPE);
    w.if_equal(libc::ETH_P_IPV6 as u32, ipv6);
    w.unless_equal(libc::ETH_P_IP as u32, rest);
    family(&mut w, false, bulk, leaves);
    w.place(ipv6);
    family(&mut w, true, bulk, leaves);
    for (lane, leaf) in leaves.into_iter().enumerate() {
        w.place(leaf);
        choose_worker(&mut w, workers, lane as u32);
    }
    w.finish()
}

/// One family's half of [`uplink_program`]: ends at one of the leaves, the flow's hash in its scratch word.
fn family(w: &mut Writer, v6: bool, bulk: &[SteeredFlow], leaves: [Label; 3]) {
    let [rest, leaf_tcp, leaf_bulk] = leaves;
    let (source, destination) = if v6 { (20, 36) } else { (12, 16) };
    w.load(libc::BPF_W, NETWORK + source);
    w.push(libc::BPF_MISC | libc::BPF_TAX, 0);
    w.load(libc::BPF_W, NETWORK + destination);
    w.push(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0);
    w.push(libc::BPF_ST, HASH);
    let (tcp, udp) = (w.label(), w.label());
    w.load(libc::BPF_B, NETWORK + if v6 { 6 } else { 9 });
    w.if_equal(libc::IPPROTO_TCP as u32, tcp);
    w.if_equal(libc::IPPROTO_UDP as u32, udp);
    if v6 {
        // A fragment of TCP stays with the whole frames of its flow. Both headers name at the start what follows them.
        let (fragment, not_one) = (w.label(), w.label());
        w.jump(
            libc::BPF_JEQ,
            libc::IPPROTO_FRAGMENT as u32,
            fragment,
            not_one,
        );
        w.place(fragment);
        w.load(libc::BPF_B, NETWORK + 40);
        w.if_equal(libc::IPPROTO_TCP as u32, leaf_tcp);
        w.go(rest);
        w.place(not_one);
        // Linux before 7.0 puts a hop-by-hop header into TCP's super-frames beyond 64 KiB.
        w.unless_equal(libc::IPPROTO_HOPOPTS as u32, rest);
        w.load(libc::BPF_B, NETWORK + 40);
        w.unless_equal(libc::IPPROTO_TCP as u32, rest);
        // Its length is in units of 8 bytes, the first not counted.
        w.load(libc::BPF_B, NETWORK + 41);
        w.push(libc::BPF_ALU | libc::BPF_LSH | libc::BPF_K, 3);
        w.push(libc::BPF_MISC | libc::BPF_TAX, 0);
        w.push(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, NETWORK + 48);
        add_to_hash(w);
        w.go(leaf_tcp);
    } else {
        w.go(rest);
    }
    w.place(tcp);
    load_ports(w, v6, leaf_tcp);
    add_to_hash(w);
    w.go(leaf_tcp);
    w.place(udp);
    load_ports(w, v6, rest);
    w.push(libc::BPF_ST, PORTS);
    add_to_hash(w);
    for flow in bulk.iter().filter(|flow| flow.v6 == v6) {
        let other = w.label();
        w.push(libc::BPF_LD | libc::BPF_MEM, PORTS);
        w.unless_equal(flow.ports, other);
        w.load(libc::BPF_W, NETWORK + source);
        w.unless_equal(flow.source, other);
        w.load(libc::BPF_W, NETWORK + destination);
        w.unless_equal(flow.destination, other);
        w.go(leaf_bulk);
        w.place(other);
    }
    w.go(rest);
}

/// Loads both ports, or goes to `without` for a fragment.
fn load_ports(w: &mut Writer, v6: bool, without: Label) {
    if v6 {
        w.load(libc::BPF_W, NETWORK + 40);
    } else {
        w.load(libc::BPF_H, NETWORK + 6);
        w.if_any_bit(FRAGMENT, without);
        w.push(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, NETWORK);
        w.push(libc::BPF_LD | libc::BPF_W | libc::BPF_IND, NETWORK);
    }
}

/// Mixes what was loaded into the flow's hash.
fn add_to_hash(w: &mut Writer) {
    w.push(libc::BPF_LDX | libc::BPF_MEM, HASH);
    w.push(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0);
    w.push(libc::BPF_ST, HASH);
}

/// Ends the program with a worker's socket of a lane. What is not IP has hash 0.
fn choose_worker(w: &mut Writer, workers: u16, lane: u32) {
    if workers > 1 {
        w.push(libc::BPF_LD | libc::BPF_MEM, HASH);
        w.push(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, SPREAD);
        w.push(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 16);
        let alu = libc::BPF_ALU | libc::BPF_K;
        w.push(alu | libc::BPF_MOD, workers.into());
        w.push(alu | libc::BPF_ADD, lane * u32::from(workers));
        w.push(libc::BPF_RET | libc::BPF_A, 0);
    } else {
        w.push(libc::BPF_RET | libc::BPF_K, lane);
    }
}

/// The program of the underlay's reuseport group: worker by the sender's port, lane by the protocol of the frame that
/// the first VXLAN datagram carries. It sees the datagram from the UDP payload on, and the port through the network
/// header. IPv6 extension headers are not skipped: VXLAN has none, and a wrong worker is no harm. What is too short
/// for an inner header goes to the first member.
pub(super) fn underlay_program(v6: bool, workers: u16) -> Vec<Instruction> {
    /// The inner frame's EtherType: behind VXLAN header and both addresses.
    const INNER_ETHERTYPE: u32 = 8 + 12;
    const INNER_NETWORK: u32 = 8 + 14;
    let mut w = Writer::default();
    let (ipv6, rest, tcp) = (w.label(), w.label(), w.label());
    w.load(libc::BPF_H, INNER_ETHERTYPE);
    w.if_equal(libc::ETH_P_IPV6 as u32, ipv6);
    w.unless_equal(libc::ETH_P_IP as u32, rest);
    w.load(libc::BPF_B, INNER_NETWORK + 9);
    w.if_equal(libc::IPPROTO_TCP as u32, tcp);
    w.go(rest);
    w.place(ipv6);
    w.load(libc::BPF_B, INNER_NETWORK + 6);
    w.if_equal(libc::IPPROTO_TCP as u32, tcp);
    let behind = w.label();
    w.if_equal(libc::IPPROTO_FRAGMENT as u32, behind);
    w.unless_equal(libc::IPPROTO_HOPOPTS as u32, rest);
    w.place(behind);
    w.load(libc::BPF_B, INNER_NETWORK + 40);
    w.if_equal(libc::IPPROTO_TCP as u32, tcp);
    for (lane, leaf) in [rest, tcp].into_iter().enumerate() {
        w.place(leaf);
        steer_by_port(&mut w, v6, workers, lane as u32);
    }
    w.finish()
}

/// Ends the program with the sender's port modulo the workers, in a lane.
fn steer_by_port(w: &mut Writer, v6: bool, workers: u16, lane: u32) {
    if v6 {
        w.load(libc::BPF_H, NETWORK + 40);
    } else {
        w.push(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, NETWORK);
        w.push(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, NETWORK);
    }
    let alu = libc::BPF_ALU | libc::BPF_K;
    w.push(alu | libc::BPF_MOD, workers.into());
    w.push(alu | libc::BPF_ADD, lane * u32::from(workers));
    w.push(libc::BPF_RET | libc::BPF_A, 0);
}
