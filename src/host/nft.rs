//! The nftables rules we own: one table per namespace, put whole, watched and asked for.
//!
//! Rules go in as text through `nft -f -`, which takes a script in one transaction: at every moment there is the table
//! before or the table after. Only our own table is ever named, so nobody else's rules are read or touched.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use futures_util::FutureExt;
use futures_util::stream::{self, TryStreamExt};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::{HostError, Netlink, faults};
use crate::sys::netns::Netns;

/// Name of our table, of family `inet`, in every namespace.
pub const TABLE: &str = "weft";

/// Puts our table into `netns`, in place of the one there. `body` is what stands between its braces. Takes about 3 ms.
///
/// # Errors
/// [`HostError::NoProgram`] without `nft`; [`HostError::Rules`] with what it said of the text.
pub async fn put_rules(netns: &Netns, body: &str) -> Result<(), HostError> {
    let script = format!("{}table inet {TABLE} {{\n{body}}}\n", absent());
    run(netns, &["-f", "-"], script).await.map(drop)
}

/// Puts our table into `netns` in place of one that was put there before, and lets counters that are in both go on. As
/// [`put_rules`], all of it is done or nothing.
///
/// # Errors
/// As [`put_rules`]; also if the table is not the one that `before` made.
pub async fn change_rules(netns: &Netns, before: &str, body: &str) -> Result<(), HostError> {
    let counters: BTreeSet<&str> = named(body, "counter ").collect();
    let mut script = format!("flush table inet {TABLE}\n");
    for chain in named(before, "chain ") {
        script += &format!("delete chain inet {TABLE} {chain}\n");
    }
    for counter in named(before, "counter ").filter(|name| !counters.contains(name)) {
        script += &format!("delete counter inet {TABLE} {counter}\n");
    }
    script += &format!("table inet {TABLE} {{\n{body}}}\n");
    run(netns, &["-f", "-"], script).await.map(drop)
}

/// The names of what is declared with this word at the beginning of a line.
fn named<'a>(body: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    let declared = body.lines().filter_map(move |line| line.strip_prefix(word));
    declared.filter_map(|rest| rest.split_whitespace().next())
}

/// Takes the namespace's `lo` up: what is led to the workload itself, or refused with a reset, travels over it.
///
/// # Errors
/// The kernel's reason.
pub async fn ensure_loopback(netns: &Netns) -> Result<(), HostError> {
    Netlink::open(netns)?.set_up("lo").await
}

/// Removes our table from `netns`; fine if it is not there.
///
/// # Errors
/// As [`put_rules`].
pub async fn remove_rules(netns: &Netns) -> Result<(), HostError> {
    run(netns, &["-f", "-"], absent()).await.map(drop)
}

/// Our table as the kernel has it, in `nft`'s words; `None` if it is not there.
///
/// # Errors
/// As [`put_rules`].
pub async fn rules(netns: &Netns) -> Result<Option<String>, HostError> {
    // Without the state of counters and other things that change by themselves.
    let asked = run(
        netns,
        &["-s", "list", "table", "inet", TABLE],
        String::new(),
    );
    match asked.await {
        Ok(text) => Ok(Some(text)),
        Err(HostError::Rules { said, .. }) if said.contains("No such file or directory") => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Forgets flows to backends that get no more of them: those of UDP, whose next datagram then goes to another one, and
/// connections of TCP that were reset. The kernel keeps these for ten seconds and leads a new connection from the same
/// port after them; those that were refused it forgets at once, and after those that ended in peace it begins anew. `gone` also lose connections that
/// never came to be: their next attempt goes to another, too. Both are backends' addresses.
///
/// # Errors
/// [`HostError::NoProgram`] without `conntrack`; [`HostError::Rules`] with what it said.
pub async fn forget_flows(
    netns: &Netns,
    left: &[IpAddr],
    gone: &[IpAddr],
) -> Result<(), HostError> {
    const DATAGRAMS: &[&str] = &["-p", "udp"];
    const RESET: &[&str] = &["-p", "tcp", "--state", "CLOSE"];
    const ATTEMPTS: &[&str] = &["-p", "tcp", "--state", "SYN_SENT"];
    let mut kinds: Vec<(IpAddr, &[&str])> = Vec::new();
    for source in left {
        kinds.extend([(*source, DATAGRAMS), (*source, RESET)]);
    }
    for source in gone {
        kinds.push((*source, ATTEMPTS));
    }
    stream::iter(kinds.into_iter().map(Ok))
        .try_for_each_concurrent(FORGETTING_MAX, |(source, kind)| {
            forget_kind(netns, source, kind)
        })
        .await
}

/// Forgets flows of one kind to a backend.
async fn forget_kind(netns: &Netns, source: IpAddr, kind: &[&str]) -> Result<(), HostError> {
    let source = source.to_string();
    let mut arguments = vec!["-D"];
    arguments.extend(kind);
    arguments.extend(["-r", &source]);
    match run_program(netns, "conntrack", &arguments, String::new()).await {
        // Its way to say that there was none.
        Err(HostError::Rules { said, .. }) if said.contains("0 flow entries") => Ok(()),
        other => other.map(drop),
    }
}

/// Programs at the same time that forget flows.
const FORGETTING_MAX: usize = 4;

/// `delete` alone fails where there is no table, and 1.0.6 has no `destroy`.
fn absent() -> String {
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// Where a program of administrators is: a service's search path may lack their directories.
fn located(program: &str) -> PathBuf {
    let places = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
    let paths = places.iter().map(|place| Path::new(place).join(program));
    let mut there = paths.filter(|path| path.exists());
    // Elsewhere, and the search path may know.
    there.next().unwrap_or_else(|| program.into())
}

async fn run(netns: &Netns, arguments: &[&str], input: String) -> Result<String, HostError> {
    run_program(netns, "nft", arguments, input).await
}

pub(super) async fn run_program(
    netns: &Netns,
    program: &'static str,
    arguments: &[&str],
    input: String,
) -> Result<String, HostError> {
    faults::check().map_err(|errno| HostError::io(format!("run {program}"), errno.into()))?;
    let mut command = netns.command(located(program))?;
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let ended = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take();
        // It may end before it has read all: what it says tells why.
        if let Some(stdin) = stdin.as_mut() {
            let _said_below = stdin.write_all(input.as_bytes());
        }
        drop(stdin);
        child.wait_with_output()
    });
    let ended = ended
        .await
        .map_err(|stopped| HostError::io(format!("run {program}"), io::Error::other(stopped)))?;
    let output = match ended {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(HostError::NoProgram { program });
        }
        Err(error) => return Err(HostError::io(format!("run {program}"), error)),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(HostError::Rules {
        program,
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Tells when anybody changes nftables rules in a namespace.
pub struct RuleWatch {
    socket: TokioSocket,
}

impl RuleWatch {
    /// Begins to listen in `netns`. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`HostError::Sys`] if the namespace cannot be entered, [`HostError::Io`] for the socket.
    pub fn open(netns: &Netns) -> Result<RuleWatch, HostError> {
        let runtime = tokio::runtime::Handle::current();
        let opened = netns.run_in(|| {
            let _inside = runtime.enter();
            let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            socket.socket_mut().add_membership(NFNLGRP_NFTABLES)?;
            Ok(socket)
        })?;
        match opened {
            Ok(socket) => Ok(RuleWatch { socket }),
            Err(error) => Err(watch_failed(error)),
        }
    }

    /// Waits for a change and takes in all that has been told of it.
    ///
    /// # Errors
    /// [`HostError::Io`] when the socket is of no use any more.
    pub async fn changed(&mut self) -> Result<(), HostError> {
        let mut room = Vec::with_capacity(ROOM);
        self.told(&mut room).await?;
        while let Some(more) = self.told(&mut room).now_or_never() {
            more?;
        }
        Ok(())
    }

    async fn told(&mut self, room: &mut Vec<u8>) -> Result<(), HostError> {
        room.clear();
        match self.socket.recv(room).await {
            // Some were missed: there was a change.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            other => other.map_err(watch_failed),
        }
    }
}

impl std::fmt::Debug for RuleWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RuleWatch").finish_non_exhaustive()
    }
}

fn watch_failed(error: io::Error) -> HostError {
    HostError::io("listen for changes of rules", error)
}

/// What one announcement takes; a longer one is cut, and says as much.
const ROOM: usize = 4096;
/// `linux/netfilter/nfnetlink.h`: the group that is told of nftables changes.
const NFNLGRP_NFTABLES: u32 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> bool {
        nix::unistd::geteuid().is_root()
    }

    #[tokio::test]
    async fn a_table_is_put_whole_read_back_and_removed() {
        if !root() {
            return eprintln!("SKIP: needs root");
        }
        let netns = Netns::create_unnamed().unwrap();
        assert_eq!(rules(&netns).await.unwrap(), None);
        let mut watch = RuleWatch::open(&netns).unwrap();
        put_rules(&netns, "chain one {\n}\n").await.unwrap();
        watch.changed().await.unwrap();
        put_rules(&netns, "chain two {\n}\n").await.unwrap();
        let text = rules(&netns).await.unwrap().unwrap();
        assert!(
            text.contains("chain two") && !text.contains("chain one"),
            "{text}"
        );
        let error = put_rules(&netns, "chain three { nonsense }\n")
            .await
            .unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
        assert_eq!(
            rules(&netns).await.unwrap(),
            Some(text),
            "a refused text changes nothing"
        );
        remove_rules(&netns).await.unwrap();
        remove_rules(&netns).await.unwrap();
        assert_eq!(rules(&netns).await.unwrap(), None);
        let backends = ["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        forget_flows(&netns, &backends, &backends).await.unwrap();
    }
}
