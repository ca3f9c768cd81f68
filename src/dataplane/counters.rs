//! Counters of one worker: written by it alone, read by anyone.
//!
//! Packets are conserved. With every value in frames as they would be on the wire (a super-frame
//! counts as its segments):
//!
//! ```text
//! encap_frames      = forwarded + flooded + answered + drops of the encap group
//! datagrams_queued  = datagrams_sent + drops of the send group
//! decap_datagrams   = delivered + drops of the decap and delivery groups
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use super::checks;
use super::verdict::DropReason;

macro_rules! counters {
    ($($name:ident $help:literal,)*) => {
        /// The live counters of one worker.
        #[derive(Debug)]
        pub struct Counters {
            $(#[doc = $help] pub $name: Counter,)*
            drops: [Counter; DropReason::COUNT],
        }

        /// Values at one moment; those of several workers can be added.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct CounterSnapshot {
            $(#[doc = $help] pub $name: u64,)*
            /// By `DropReason as usize`.
            pub drops: [u64; DropReason::COUNT],
        }

        impl Default for Counters {
            fn default() -> Counters {
                Counters {
                    $($name: Counter::default(),)*
                    drops: [const { Counter(AtomicU64::new(0)) }; DropReason::COUNT],
                }
            }
        }

        impl Default for CounterSnapshot {
            fn default() -> CounterSnapshot {
                CounterSnapshot { $($name: 0,)* drops: [0; DropReason::COUNT] }
            }
        }

        impl Counters {
            /// Reads all values.
            pub fn snapshot(&self) -> CounterSnapshot {
                CounterSnapshot {
                    $($name: self.$name.value(),)*
                    drops: std::array::from_fn(|i| self.drops[i].value()),
                }
            }
        }

        impl CounterSnapshot {
            /// Adds another worker's values.
            pub fn add(&mut self, other: &CounterSnapshot) {
                $(self.$name += other.$name;)*
                for (mine, theirs) in self.drops.iter_mut().zip(other.drops) {
                    *mine += theirs;
                }
            }

            /// Names, helps and values, drops not included.
            pub fn fields(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name),)*]
            }
        }
    };
}

counters! {
    encap_frames "Frames read from workloads.",
    encap_bytes "Bytes of frames read from workloads.",
    encap_superframes "Super-frames among the reads from workloads.",
    forwarded "Frames sent to one VTEP.",
    flooded "Frames replicated to all VTEPs of their network.",
    answered "ARP and ND requests answered from the table.",
    datagrams_queued "VXLAN datagrams made, copies of flooded frames counted each.",
    datagrams_sent "VXLAN datagrams accepted by the kernel.",
    bytes_sent "UDP payload bytes accepted by the kernel.",
    sends "Send calls; each carries up to 128 datagrams.",
    decap_datagrams "VXLAN datagrams received.",
    decap_bytes "UDP payload bytes received.",
    receives "Receive calls that returned datagrams.",
    delivered "Frames handed to the bridge.",
    delivered_bytes "Bytes of frames handed to the bridge.",
    deliveries "Write calls to the bridge; each carries up to 132 frames.",
    icmp_too_big "Packet-too-big messages sent to workloads.",
    fragmented "Workload packets without DF that were fragmented to fit the path.",
    bulk_frames "Frames of flows of many datagrams, read in a lane of their own.",
    uplink_overflow "Frames of workloads the kernel dropped before the agent could read them.",
    underlay_overflow "Datagrams the kernel dropped before the agent could read them.",
    bursts "Rounds of the forwarding loop with work.",
    sleeps "Times the worker went to sleep.",
}

/// A counter with one writer: a relaxed load and store, no locked instruction.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; only the owning worker may.
    #[inline]
    pub fn add(&self, count: u64) {
        if !checks::ENFORCED {
            return;
        }
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(count),
            Ordering::Relaxed,
        );
    }

    /// Reads.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    /// Counts `frames` dropped for `reason`.
    #[inline]
    pub fn count_drop(&self, reason: DropReason, frames: u64) {
        self.drops[reason as usize].add(frames);
    }
}

impl CounterSnapshot {
    /// Frames dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Sum of drops in a range of reasons, both ends included.
    pub fn dropped_between(&self, first: DropReason, last: DropReason) -> u64 {
        self.drops[first as usize..=last as usize].iter().sum()
    }

    /// Whether packets are conserved; see the head of this file.
    ///
    /// # Errors
    /// A sentence naming the equation that does not hold.
    pub fn check_conservation(&self) -> Result<(), String> {
        use DropReason::*;
        let encap = self.forwarded
            + self.flooded
            + self.answered
            + self.dropped_between(FrameTruncated, TooBig);
        let sent = self.datagrams_sent + self.dropped_between(UnderlayFull, UnderlayRefused);
        let decap = self.delivered + self.dropped_between(DatagramTruncated, UplinkGone);
        let rows = [
            ("encap", self.encap_frames, encap),
            ("send", self.datagrams_queued, sent),
            ("decap", self.decap_datagrams, decap),
        ];
        match rows.iter().find(|(_, came, went)| came != went) {
            Some((name, came, went)) => Err(format!(
                "{name}: {came} frames came, {went} are accounted for"
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up_and_conservation_is_checked() {
        let counters = Counters::default();
        counters.encap_frames.add(3);
        counters.forwarded.add(2);
        let mut sum = counters.snapshot();
        assert!(
            sum.check_conservation()
                .unwrap_err()
                .starts_with("encap: 3")
        );
        counters.count_drop(DropReason::TooBig, 1);
        sum = counters.snapshot();
        assert_eq!(sum.check_conservation(), Ok(()));
        sum.add(&counters.snapshot());
        assert_eq!((sum.encap_frames, sum.dropped(DropReason::TooBig)), (6, 2));
        assert_eq!(sum.check_conservation(), Ok(()));
    }
}
