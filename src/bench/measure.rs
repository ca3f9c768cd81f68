//! Runs one test between the two workloads of a topology and returns its samples.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::interrupt;
use super::plan::{Quantity, Sample, Test};
use super::process::{Helper, Launcher, cpu_time, tool};
use super::topology::Topology;
use super::traffic::integrity::{DatagramReport, StreamReport};
use super::traffic::round_trip::{LatencyReport, Protocol};
use super::traffic::tcp::TcpReport;
use super::traffic::udp::{UdpOffered, UdpReport};

/// Which program makes the TCP streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Tool {
    /// The bench's own.
    Own,
    /// iperf3, as a cross-check.
    Iperf3,
}

/// Settings shared by all tests.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Length of each measuring window in seconds.
    pub seconds: f64,
    /// Bytes per direction of the integrity test.
    pub integrity_len: u64,
    /// TCP program.
    pub tool: Tool,
}

/// Two workloads that can reach each other, and how to load them.
#[derive(Debug)]
pub struct Bench<'a> {
    /// The namespaces.
    pub topology: &'a Topology,
    /// Starts the traffic programs.
    pub launcher: &'a Launcher,
    /// Processes of the tunnel, per host.
    pub processes: Vec<Vec<u32>>,
    /// How long and how much.
    pub settings: Settings,
}

const PORT: u16 = 5201;
const WARMUP_SECONDS: f64 = 0.3;
/// Time for what earlier tests left to do.
const SETTLE: Duration = Duration::from_secs(1);
/// Patience beyond the planned length of a test.
const SLACK: Duration = Duration::from_secs(10);

impl Bench<'_> {
    /// Waits until a ping from the first workload reaches the second.
    ///
    /// # Errors
    /// When none does within ten seconds.
    pub fn wait_reachable(&self) -> anyhow::Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let report = self.ping(0.02, 10);
            if report.as_ref().is_ok_and(|report| report.answers > 0) {
                return Ok(());
            }
            interrupt::check()?;
            if Instant::now() > end {
                bail!("the workloads do not reach each other: {report:?}");
            }
            interrupt::sleep(Duration::from_millis(50))?;
        }
    }

    /// Runs one test.
    ///
    /// # Errors
    /// When a program fails or gives no result in time, or when data was corrupted.
    pub fn run(&self, test: &Test) -> anyhow::Result<Vec<Sample>> {
        match test {
            Test::Tcp {
                streams,
                congestion,
            } => self.tcp(&test.to_string(), *streams, congestion.as_deref()),
            Test::Udp { len } => self.udp(&test.to_string(), *len),
            Test::RoundTrip {
                protocol,
                spacing_ms,
            } => {
                let report = self.round_trip(*protocol, *spacing_ms, self.settings.seconds)?;
                Ok(round_trip_samples(
                    &test.to_string(),
                    *protocol,
                    *spacing_ms,
                    &report,
                ))
            }
            Test::Ping { spacing_ms } => self.ping_samples(&test.to_string(), *spacing_ms),
            Test::Loaded => self.loaded(),
            Test::Idle => self.idle(),
            Test::Integrity => self.integrity(),
        }
    }

    /// Starts a receiving program in workload `index` and waits until it listens.
    fn listener(&self, index: usize, line: &str) -> anyhow::Result<Helper> {
        let bind = self.topology.inner(index);
        let mut helper = self.start(index, &format!("{line} --bind {bind} --port {PORT}"))?;
        helper.wait_ready()?;
        Ok(helper)
    }

    /// Starts a program in workload `index` that sends to the other one.
    fn sender(&self, index: usize, line: &str) -> anyhow::Result<Helper> {
        let to = self.topology.inner(1 - index);
        self.start(index, &format!("{line} --to {to} --port {PORT}"))
    }

    fn start(&self, index: usize, line: &str) -> anyhow::Result<Helper> {
        let args: Vec<String> = ["traffic"]
            .into_iter()
            .chain(line.split(' '))
            .map(str::to_owned)
            .collect();
        self.launcher
            .helper(self.topology.sides[index].workload.name(), &args)
    }

    fn limit(&self) -> Duration {
        Duration::from_secs_f64(self.settings.seconds + WARMUP_SECONDS) + SLACK
    }

    fn tcp(
        &self,
        id: &str,
        streams: usize,
        congestion: Option<&str>,
    ) -> anyhow::Result<Vec<Sample>> {
        let report = match self.settings.tool {
            Tool::Own => self.own_tcp(streams, congestion)?,
            Tool::Iperf3 => self.iperf3(streams, congestion)?,
        };
        ensure!(report.bytes > 0, "no byte arrived in the window");
        let words = format!(
            "TCP, {streams} stream{}, {}",
            if streams == 1 { "" } else { "s" },
            congestion.unwrap_or("default")
        );
        let rate = Quantity::throughput(id.to_owned(), words.clone(), "Gbit/s");
        let cpu = Quantity::cost(format!("{id}/cpu"), format!("{words}: CPU"), "s/Gbit");
        Ok(vec![
            Sample::new(rate, report.gbit_per_second()),
            Sample::new(cpu, report.cpu_seconds_per_gbit()),
        ])
    }

    fn own_tcp(&self, streams: usize, congestion: Option<&str>) -> anyhow::Result<TcpReport> {
        let seconds = self.settings.seconds;
        let mut sink = self.tcp_sink(streams, seconds)?;
        let _source = self.tcp_source(streams, congestion)?;
        sink.result(self.limit())
    }

    fn tcp_sink(&self, streams: usize, seconds: f64) -> anyhow::Result<Helper> {
        self.listener(
            1,
            &format!("tcp-sink --streams {streams} --warmup {WARMUP_SECONDS} --seconds {seconds}"),
        )
    }

    fn tcp_source(&self, streams: usize, congestion: Option<&str>) -> anyhow::Result<Helper> {
        let option = congestion.map_or_else(String::new, |name| format!(" --congestion {name}"));
        self.sender(0, &format!("tcp-source --streams {streams}{option}"))
    }

    /// iperf3's receiver-side figure; processor time is that of its whole run.
    fn iperf3(&self, streams: usize, congestion: Option<&str>) -> anyhow::Result<TcpReport> {
        let to = self.topology.inner(1);
        let (client, server) = (
            &self.topology.sides[0].workload,
            &self.topology.sides[1].workload,
        );
        let seconds = self.settings.seconds.ceil();
        let log = self.topology.scratch.path().join("iperf3.log");
        let args: Vec<String> = ["-s", "-1"].map(str::to_owned).to_vec();
        let mut daemon = self
            .launcher
            .daemon(server.name(), "iperf3", &args, &[], &log)?;
        daemon.wait_until("listening iperf3", Duration::from_secs(5), || {
            server
                .tool("ss -Hltn sport = :5201")
                .is_ok_and(|text| !text.trim().is_empty())
        })?;
        let option = congestion.map_or_else(String::new, |name| format!("-C {name}"));
        let cpu = super::machine::CpuTime::now();
        let text = tool(&format!(
            "ip netns exec {} iperf3 -c {to} -J -O 1 -t {seconds} -P {streams} {option}",
            client.name()
        ))?;
        let busy_seconds = super::machine::CpuTime::now().since(cpu).busy;
        parse_iperf3(&text, busy_seconds)
    }

    fn udp(&self, id: &str, len: usize) -> anyhow::Result<Vec<Sample>> {
        let seconds = self.settings.seconds;
        let mut sink = self.listener(
            1,
            &format!("udp-sink --warmup {WARMUP_SECONDS} --seconds {seconds}"),
        )?;
        let length = seconds + WARMUP_SECONDS + 0.5;
        let mut source = self.sender(0, &format!("udp-source --len {len} --seconds {length}"))?;
        let report: UdpReport = sink.result(self.limit())?;
        let offered: UdpOffered = source.result(self.limit())?;
        let words = format!("UDP, {len} bytes");
        let rate = Quantity::throughput(id.to_owned(), words.clone(), "Mpps");
        let mut sent = Quantity::throughput(format!("{id}/sent"), format!("{words}: sent"), "Mpps");
        sent.headline = false;
        let cpu = Quantity::cost(format!("{id}/cpu"), format!("{words}: CPU"), "us/datagram");
        Ok(vec![
            Sample::new(rate, report.mpps()),
            Sample::new(sent, offered.datagrams as f64 / offered.seconds / 1e6),
            Sample::new(
                cpu,
                report.busy_seconds * 1e6 / report.datagrams.max(1) as f64,
            ),
        ])
    }

    fn round_trip(
        &self,
        protocol: Protocol,
        spacing_ms: u64,
        seconds: f64,
    ) -> anyhow::Result<LatencyReport> {
        let name = match protocol {
            Protocol::Udp => "udp",
            Protocol::Tcp => "tcp",
        };
        let _echo = self.listener(1, &format!("echo --protocol {name}"))?;
        let mut client = self.sender(
            0,
            &format!("round-trip --protocol {name} --seconds {seconds} --spacing-ms {spacing_ms}"),
        )?;
        let report: LatencyReport = client.result(self.limit())?;
        ensure!(report.answers > 0, "no answer to {} requests", report.lost);
        Ok(report)
    }

    fn ping(&self, seconds: f64, spacing_ms: u64) -> anyhow::Result<LatencyReport> {
        let to = self.topology.inner(1);
        let line = format!("ping --to {to} --seconds {seconds} --spacing-ms {spacing_ms}");
        self.start(0, &line)?.result(self.limit())
    }

    fn ping_samples(&self, id: &str, spacing_ms: u64) -> anyhow::Result<Vec<Sample>> {
        let report = self.ping(self.settings.seconds, spacing_ms)?;
        ensure!(report.answers > 0, "no answer to {} pings", report.lost);
        let words = format!("ping every {spacing_ms} ms");
        Ok(latency_samples(id, &words, &report))
    }

    /// UDP round trips at 10 ms while four streams run.
    fn loaded(&self) -> anyhow::Result<Vec<Sample>> {
        let seconds = self.settings.seconds;
        let port = PORT + 1;
        let to = self.topology.inner(1);
        let mut sink = self.tcp_sink(4, seconds)?;
        let mut echo = self.start(1, &format!("echo --bind {to} --port {port}"))?;
        echo.wait_ready()?;
        let _source = self.tcp_source(4, Some("cubic"))?;
        interrupt::sleep(Duration::from_secs_f64(WARMUP_SECONDS))?;
        let line =
            format!("round-trip --seconds {seconds} --spacing-ms 10 --to {to} --port {port}");
        let report: LatencyReport = self.start(0, &line)?.result(self.limit())?;
        let beside: TcpReport = sink.result(self.limit())?;
        ensure!(report.answers > 0, "no answer to {} requests", report.lost);
        let words = "UDP round trip every 10 ms under 4 TCP streams";
        let mut samples = latency_samples("loaded", words, &report);
        let mut rate = Quantity::throughput(
            "loaded/tcp".into(),
            format!("{words}: TCP beside"),
            "Gbit/s",
        );
        rate.headline = false;
        samples.push(Sample::new(rate, beside.gbit_per_second()));
        Ok(samples)
    }

    /// Processor time of the tunnel's processes while the workloads are silent, on the host where it is more.
    /// No sample for a tunnel without processes.
    fn idle(&self) -> anyhow::Result<Vec<Sample>> {
        if self.processes.is_empty() {
            return Ok(Vec::new());
        }
        interrupt::sleep(SETTLE)?;
        let (start, before) = (Instant::now(), self.cpu_time_per_host()?);
        interrupt::sleep(Duration::from_secs_f64(self.settings.seconds))?;
        let (passed, after) = (start.elapsed(), self.cpu_time_per_host()?);
        let used = after.iter().zip(&before);
        let used = used.map(|(after, before)| after.saturating_sub(*before));
        let share = used.max().unwrap_or_default().as_secs_f64() / passed.as_secs_f64();
        let title = "processor time while nothing is sent, per host";
        let quantity = Quantity::cost("idle".into(), title.into(), "% of a core");
        Ok(vec![Sample::new(quantity, share * 100.0)])
    }

    fn cpu_time_per_host(&self) -> anyhow::Result<Vec<Duration>> {
        let of = |&pid: &u32| {
            cpu_time(pid).with_context(|| format!("process {pid} of the tunnel has ended"))
        };
        let hosts = self.processes.iter();
        hosts.map(|pids| pids.iter().map(of).sum()).collect()
    }

    /// Streams and datagrams of known content, both ways. Any wrong byte is an error.
    fn integrity(&self) -> anyhow::Result<Vec<Sample>> {
        let mut bytes = 0;
        let start = Instant::now();
        for from in [0, 1] {
            bytes += self.stream_integrity(from)?;
        }
        let gbit = bytes as f64 * 8.0 / 1e9;
        let rate = gbit / start.elapsed().as_secs_f64();
        let mut delivered = Vec::new();
        for from in [0, 1] {
            delivered.push(self.datagram_integrity(from)?);
        }
        let mib = (bytes >> 20) as f64;
        let mut volume =
            Quantity::throughput("integrity".into(), "data verified, both ways".into(), "MiB");
        volume.headline = false;
        let mut hashed = Quantity::throughput(
            "integrity/rate".into(),
            "rate while verifying".into(),
            "Gbit/s",
        );
        hashed.headline = false;
        let mut datagrams = Quantity::throughput(
            "integrity/udp".into(),
            "datagrams verified, both ways".into(),
            "datagrams",
        );
        datagrams.headline = false;
        Ok(vec![
            Sample::new(volume, mib),
            Sample::new(hashed, rate),
            Sample::new(datagrams, delivered.iter().sum::<u64>() as f64),
        ])
    }

    fn stream_integrity(&self, from: usize) -> anyhow::Result<u64> {
        let len = self.settings.integrity_len;
        let seed = 0x5eed + from as u64;
        // 60 Mbit/s is slow enough for anything worth measuring.
        let limit = Duration::from_secs_f64(len as f64 * 8.0 / 60e6) + SLACK;
        let mut receiver = self.listener(1 - from, &format!("stream-receive --seed {seed}"))?;
        let mut sender = self.sender(from, &format!("stream-send --seed {seed} --count {len}"))?;
        let sent: StreamReport = sender.result(limit)?;
        let received: StreamReport = receiver.result(limit)?;
        let way = format!("workload {} to {}", from + 1, 2 - from);
        compare(&sent, &received).with_context(|| way)?;
        Ok(received.bytes)
    }

    fn datagram_integrity(&self, from: usize) -> anyhow::Result<u64> {
        let (seed, count) = (0xda7a + from as u64, 20_000);
        let mut receiver = self.listener(1 - from, &format!("datagram-receive --seed {seed}"))?;
        let mut sender = self.sender(
            from,
            &format!("datagram-send --seed {seed} --count {count}"),
        )?;
        let _: DatagramReport = sender.result(Duration::from_secs(30))?;
        let report: DatagramReport = receiver.result(Duration::from_secs(90))?;
        let way = format!("workload {} to {}", from + 1, 2 - from);
        ensure!(
            report.corrupt == 0,
            "CORRUPT: {way}: {} datagrams differ",
            report.corrupt
        );
        ensure!(
            report.repeated == 0,
            "REPEATED: {way}: {} datagrams came twice",
            report.repeated
        );
        ensure!(
            report.datagrams * 2 > count,
            "LOST: {way}: only {} of {count} datagrams came",
            report.datagrams
        );
        Ok(report.datagrams)
    }
}

fn compare(sent: &StreamReport, received: &StreamReport) -> anyhow::Result<()> {
    if let Some(offset) = received.first_wrong {
        bail!("CORRUPT: first wrong byte at {offset} of {}", sent.bytes);
    }
    ensure!(
        sent.bytes == received.bytes && sent.hash == received.hash,
        "CORRUPT: sent {} bytes with hash {}, received {} with {}",
        sent.bytes,
        sent.hash,
        received.bytes,
        received.hash
    );
    Ok(())
}

fn latency_samples(id: &str, words: &str, report: &LatencyReport) -> Vec<Sample> {
    let part = |name: &str, value: f64| {
        let quantity = Quantity::cost(format!("{id}/{name}"), format!("{words}: {name}"), "us");
        Sample::new(quantity, value)
    };
    let mut middle = part("p50", report.p50_us);
    middle.quantity = middle.quantity.headline();
    let lost = Quantity::cost(format!("{id}/lost"), format!("{words}: lost"), "requests");
    vec![
        middle,
        part("p99", report.p99_us),
        part("p99.9", report.p999_us),
        Sample::new(lost, report.lost as f64),
    ]
}

fn round_trip_samples(
    id: &str,
    protocol: Protocol,
    spacing_ms: u64,
    report: &LatencyReport,
) -> Vec<Sample> {
    let transport = match protocol {
        Protocol::Udp => "UDP",
        Protocol::Tcp => "TCP",
    };
    let pace = match spacing_ms {
        0 => "back to back".to_owned(),
        ms => format!("every {ms} ms"),
    };
    latency_samples(id, &format!("{transport} round trip {pace}"), report)
}

fn parse_iperf3(text: &str, busy_seconds: f64) -> anyhow::Result<TcpReport> {
    let value: Value = serde_json::from_str(text).context("iperf3's JSON")?;
    let received = &value["end"]["sum_received"];
    let (Some(bytes), Some(seconds)) = (received["bytes"].as_u64(), received["seconds"].as_f64())
    else {
        bail!("iperf3 gave no result: {}", value["error"]);
    };
    // Processor time includes the omitted second, so it is scaled to the counted ones.
    let counted = seconds / (seconds + 1.0);
    Ok(TcpReport {
        bytes,
        seconds,
        busy_seconds: busy_seconds * counted,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(bytes: u64, hash: &str, first_wrong: Option<u64>) -> StreamReport {
        StreamReport {
            bytes,
            hash: hash.into(),
            first_wrong,
        }
    }

    #[test]
    fn only_equal_streams_pass() {
        let sent = stream(10, "aa", None);
        assert!(compare(&sent, &stream(10, "aa", None)).is_ok());
        assert!(compare(&sent, &stream(9, "aa", None)).is_err());
        assert!(compare(&sent, &stream(10, "ab", None)).is_err());
        let error = compare(&sent, &stream(10, "aa", Some(4))).unwrap_err();
        assert!(error.to_string().contains("first wrong byte at 4"));
    }

    #[test]
    fn the_receivers_side_of_iperf3_is_taken() {
        let text = r#"{"end":{"sum_sent":{"bytes":9,"seconds":1.0},"sum_received":{"bytes":2500,"seconds":2.0}}}"#;
        let report = parse_iperf3(text, 3.0).unwrap();
        assert_eq!(
            (report.bytes, report.seconds, report.busy_seconds),
            (2500, 2.0, 2.0)
        );
        assert!(
            parse_iperf3(r#"{"error":"no route"}"#, 0.0)
                .unwrap_err()
                .to_string()
                .contains("no route")
        );
    }
}
