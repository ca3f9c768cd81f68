//! How fast a link sends: a token bucket in front of it.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};

use super::{HostError, Netlink};

/// How fast a link may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes per second in the long run.
    pub bytes_per_second: u64,
    /// Bytes that may go at once after a silence.
    pub burst: u32,
}

impl Netlink {
    /// Puts a token bucket in front of a link, or sets the one there anew.
    pub(super) async fn put_rate(&self, index: u32, limit: RateLimit) -> Result<(), HostError> {
        let mut message = TcMessage::with_index(index.cast_signed());
        message.header.parent = TcHandle::ROOT;
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.attributes = vec![
            TcAttribute::Kind("tbf".into()),
            TcAttribute::Options(options(limit)),
        ];
        let request = RouteNetlinkMessage::NewQueueDiscipline(message);
        let operation = format!("limit link {index} to {limit:?}");
        self.change(operation, request, NLM_F_CREATE | NLM_F_REPLACE)
            .await
    }
}

fn options(limit: RateLimit) -> Vec<TcOption> {
    let option = |kind, bytes| TcOption::Other(DefaultNla::new(kind, bytes));
    let mut options = vec![
        option(TCA_TBF_PARMS, parameters(limit)),
        option(TCA_TBF_BURST, limit.burst.to_ne_bytes().to_vec()),
    ];
    if u32::try_from(limit.bytes_per_second).is_err() {
        let rate = limit.bytes_per_second.to_ne_bytes().to_vec();
        options.push(option(TCA_TBF_RATE64, rate));
    }
    options
}

/// `struct tc_tbf_qopt` of `linux/pkt_sched.h`: two `tc_ratespec` (rate, and a peak rate that is not used), then the length
/// of the queue in bytes, and two fields that `TCA_TBF_BURST` stands for.
fn parameters(limit: RateLimit) -> Vec<u8> {
    let rate = u32::try_from(limit.bytes_per_second).unwrap_or(u32::MAX);
    let queue = limit.bytes_per_second.saturating_mul(QUEUE_MS) / 1000;
    let queue = queue.saturating_add(limit.burst.into());
    let queue = u32::try_from(queue).unwrap_or(u32::MAX);
    let mut bytes = vec![0; 36];
    bytes[1] = TC_LINKLAYER_ETHERNET;
    bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
    bytes[24..28].copy_from_slice(&queue.to_ne_bytes());
    bytes
}

const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// Without it the kernel wants a table of how long packets take.
const TC_LINKLAYER_ETHERNET: u8 = 1;
/// How long a packet waits at most, as with the `bandwidth` plugin of CNI.
const QUEUE_MS: u64 = 25;
