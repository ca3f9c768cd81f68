//! What the machine is and how busy it is: facts printed above every result, processor time, and
//! the check whether other programs run beside.

use std::fs::read_to_string;
use std::time::Duration;

use serde::Serialize;

/// Processor time of the whole machine, from the first line of `/proc/stat`, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CpuTime {
    /// Everything that ran: user, nice, system, irq, softirq.
    pub busy: f64,
    /// Idle, including waiting for disks.
    pub idle: f64,
    /// Taken by the hypervisor for other guests.
    pub steal: f64,
}

/// Ticks per second of `/proc/stat`; USER_HZ is 100 on every Linux architecture weft runs on.
const USER_HZ: f64 = 100.0;

impl CpuTime {
    /// Reads the counters now. Zero when `/proc` cannot be read.
    pub fn now() -> Self {
        Self::parse(&read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(stat: &str) -> Self {
        let ticks: Vec<f64> = stat
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        let seconds = |index: usize| ticks.get(index).copied().unwrap_or(0.0) / USER_HZ;
        // Order: user nice system idle iowait irq softirq steal (proc(5)).
        Self {
            busy: seconds(0) + seconds(1) + seconds(2) + seconds(5) + seconds(6),
            idle: seconds(3) + seconds(4),
            steal: seconds(7),
        }
    }

    /// Time passed since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy - earlier.busy,
            idle: self.idle - earlier.idle,
            steal: self.steal - earlier.steal,
        }
    }

    /// Share of all processors that was busy or stolen, 0 to 1.
    pub fn share_busy(self) -> f64 {
        let all = self.busy + self.idle + self.steal;
        if all > 0.0 {
            (self.busy + self.steal) / all
        } else {
            0.0
        }
    }
}

/// Facts about the machine, as printed and as written to JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// Version of this program.
    pub weft: String,
    /// True for an optimised build; figures of a debug build mean nothing.
    pub optimised: bool,
    /// Kernel release.
    pub kernel: String,
    /// Processor model.
    pub cpu: String,
    /// Processors this process may use.
    pub cpus: usize,
    /// True when the processor says it runs under a hypervisor.
    pub virtual_machine: bool,
    /// Load averages before the first measurement.
    pub load: String,
    /// Default TCP congestion control.
    pub congestion_default: String,
    /// Congestion controls the kernel offers.
    pub congestion_available: Vec<String>,
    /// Kernel clock source.
    pub clocksource: String,
    /// Frequency governor of the first processor, if there is one.
    pub governor: String,
}

impl Facts {
    /// Reads them now.
    pub fn read() -> Self {
        let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
        let line = |key: &str| cpuinfo.lines().find(|line| line.starts_with(key));
        let value = |key| line(key).and_then(|line| line.split_once(':'));
        Self {
            weft: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
            kernel: trimmed("/proc/sys/kernel/osrelease"),
            cpu: value("model name").map_or_else(String::new, |(_, name)| name.trim().to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            virtual_machine: value("flags").is_some_and(|(_, flags)| {
                flags.split_whitespace().any(|flag| flag == "hypervisor")
            }),
            load: trimmed("/proc/loadavg"),
            congestion_default: trimmed("/proc/sys/net/ipv4/tcp_congestion_control"),
            congestion_available: trimmed("/proc/sys/net/ipv4/tcp_available_congestion_control")
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            clocksource: trimmed(
                "/sys/devices/system/clocksource/clocksource0/current_clocksource",
            ),
            governor: trimmed("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        }
    }

    /// One line per fact, `name: value`.
    pub fn lines(&self) -> Vec<String> {
        let build = if self.optimised {
            "optimised build"
        } else {
            "DEBUG BUILD: figures mean nothing"
        };
        let place = if self.virtual_machine {
            ", virtual machine"
        } else {
            ""
        };
        let governor = if self.governor.is_empty() {
            "none"
        } else {
            &self.governor
        };
        vec![
            format!("weft: {} ({build})", self.weft),
            format!("kernel: {}", self.kernel),
            format!("processors: {} x {}{place}", self.cpus, self.cpu),
            format!("load before: {}", self.load),
            format!(
                "TCP congestion control: {} (available: {})",
                self.congestion_default,
                self.congestion_available.join(" ")
            ),
            format!("clock: {}, governor: {governor}", self.clocksource),
        ]
    }
}

fn trimmed(path: &str) -> String {
    read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Share of the machine that others use right now, watched for half a second, 0 to 1.
///
/// # Errors
/// When interrupted.
pub fn background_share() -> Result<f64, super::interrupt::Interrupted> {
    let before = CpuTime::now();
    super::interrupt::sleep(Duration::from_millis(500))?;
    Ok(CpuTime::now().since(before).share_busy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_in_the_order_of_proc() {
        let time = CpuTime::parse("cpu  100 200 300 4000 500 60 70 80 0 0\ncpu0 1 2 3 4\n");
        assert_eq!(time.busy, 7.3);
        assert_eq!(time.idle, 45.0);
        assert_eq!(time.steal, 0.8);
    }

    #[test]
    fn busy_share_counts_stolen_time_as_not_ours() {
        let share = CpuTime {
            busy: 1.0,
            idle: 2.0,
            steal: 1.0,
        }
        .share_busy();
        assert_eq!(share, 0.5);
        assert_eq!(CpuTime::default().share_busy(), 0.0);
    }

    #[test]
    fn facts_of_this_machine_are_not_empty() {
        let facts = Facts::read();
        assert!(!facts.kernel.is_empty());
        assert!(facts.cpus > 0);
        assert!(facts.lines().len() >= 6);
    }
}
