//! Checks of this node's backends: what fails gets no new connections, on every node.
//!
//! A backend of a service with a check begins as failing and is asked often until it answers once.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::agent::endpoint::Endpoint;
use crate::agent::handle::Agent;
use crate::model::service::{HealthCheck, Probe};
use crate::sys::netns::Netns;
use crate::tables::record::Standing;

/// The checks that run.
#[derive(Debug, Default)]
pub struct Checks {
    running: BTreeMap<String, (Subject, JoinHandle<()>)>,
}

/// Who is asked what, and from where.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Subject {
    endpoint: String,
    netns: PathBuf,
    address: IpAddr,
    check: HealthCheck,
}

impl Checks {
    /// Ends all checks.
    pub(super) fn stop(&mut self) {
        for (_, task) in std::mem::take(&mut self.running).into_values() {
            task.abort();
        }
    }
}

/// Starts the checks that should run and ends the others.
pub(super) async fn settle(agent: &Agent) {
    let wanted: BTreeMap<String, Subject> = {
        let live = agent.live();
        let mut wanted = BTreeMap::new();
        for endpoint in live.node.endpoints.values() {
            let checked = live.node.services.values().find(|service| {
                let on = service
                    .networks
                    .iter()
                    .any(|part| part.network == endpoint.network);
                on && service.health.is_some()
                    && service.is_backed_by(&endpoint.service, &endpoint.aliases)
            });
            let check = checked.and_then(|service| service.health.clone());
            let up = live.up.get(&endpoint.network);
            if let (Some(check), Some(up), Some(ip)) = (check, up, endpoint.ips.first()) {
                let subject = Subject {
                    endpoint: endpoint.id.clone(),
                    netns: up.netns.clone(),
                    address: ip.ip(),
                    check,
                };
                wanted.insert(endpoint.id.clone(), subject);
            }
        }
        wanted
    };
    let well: Vec<String> = {
        let live = agent.live();
        let ingress = &live.node.catalog.ingress().id;
        let endpoints = live.node.endpoints.values();
        endpoints
            // What stands on the ingress network follows the workload's own endpoint.
            .filter(|e| e.backing.standing == Standing::Unhealthy && e.network != *ingress)
            .filter(|e| !wanted.contains_key(&e.id))
            .map(|e| e.id.clone())
            .collect()
    };
    for id in well {
        // Without a check, being up is enough.
        stand(agent, &id, Standing::Ready).await;
    }
    let mut checks = agent.inner.edge.health.lock().await;
    let ended: Vec<String> = checks
        .running
        .iter()
        .filter(|(id, (subject, task))| wanted.get(*id) != Some(subject) || task.is_finished())
        .map(|(id, _)| id.clone())
        .collect();
    for id in ended {
        if let Some((_, task)) = checks.running.remove(&id) {
            task.abort();
        }
    }
    for (id, subject) in wanted {
        checks.running.entry(id).or_insert_with(|| {
            let task = tokio::spawn(watch(agent.clone(), subject.clone()));
            (subject, task)
        });
    }
}

async fn watch(agent: Agent, subject: Subject) {
    let interval = Duration::from_millis(subject.check.interval_ms.max(10));
    let mut failures = subject.check.retries;
    let mut answered = false;
    stand(&agent, &subject.endpoint, Standing::Unhealthy).await;
    loop {
        let asked = subject.clone();
        let probed = tokio::task::spawn_blocking(move || ask(&asked)).await;
        match probed {
            Ok(Ok(())) => {
                failures = 0;
                answered = true;
                stand(&agent, &subject.endpoint, Standing::Ready).await;
            }
            Ok(Err(error)) => {
                failures = failures.saturating_add(1);
                if failures >= subject.check.retries {
                    tracing::debug!(endpoint = subject.endpoint, %error, "a backend does not answer");
                    stand(&agent, &subject.endpoint, Standing::Unhealthy).await;
                }
            }
            Err(_) => return,
        }
        let pause = if answered {
            interval
        } else {
            interval.min(EAGER)
        };
        tokio::time::sleep(pause).await;
    }
}

/// Says how a backend stands; one that is draining stays so.
async fn stand(agent: &Agent, endpoint: &str, standing: Standing) {
    let stands = |endpoint: &Endpoint| {
        let stays = [standing, Standing::Draining].contains(&endpoint.backing.standing);
        (!stays).then(|| {
            let mut after = endpoint.clone();
            after.backing.standing = standing;
            after
        })
    };
    let found = agent.live().node.endpoints.get(endpoint).cloned();
    if found.as_ref().and_then(&stands).is_none() {
        return;
    }
    let led = agent.lead_endpoint(endpoint, |_, endpoint| stands(endpoint));
    if let Err(error) = led.await {
        tracing::warn!(endpoint, %error, "what its check says was not told");
    }
}

/// Asks once, from the network's namespace, as a client on the network would.
fn ask(subject: &Subject) -> io::Result<()> {
    let netns = Netns::open(&subject.netns).map_err(io::Error::other)?;
    let asked = netns.run_in(|| probe(subject));
    asked.map_err(io::Error::other)?
}

fn probe(subject: &Subject) -> io::Result<()> {
    let address = SocketAddr::new(subject.address, subject.check.port);
    let limit = Duration::from_millis(subject.check.timeout_ms.max(1));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    let Probe::Http(path) = &subject.check.probe else {
        return Ok(());
    };
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: weft-health\r\nConnection: close\r\n\r\n"
    )?;
    // `HTTP/1.1 200` is all that counts; how the connection then ends does not.
    let mut head = [0; STATUS_LEN];
    stream.read_exact(&mut head)?;
    match status(&head) {
        Some(200..400) => Ok(()),
        Some(status) => Err(io::Error::other(format!("answered with status {status}"))),
        None => Err(io::Error::other("no HTTP answer")),
    }
}

/// The status code of an HTTP answer's first line.
fn status(head: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(head.get(..STATUS_LEN)?).ok()?;
    let (version, code) = text.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| code.parse().ok())?
}

/// How often a backend is asked that has never answered.
const EAGER: Duration = Duration::from_millis(200);
const STATUS_LEN: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read_from_the_first_line() {
        assert_eq!(status(b"HTTP/1.1 200"), Some(200));
        assert_eq!(status(b"HTTP/1.0 503"), Some(503));
        for bad in [&b"HTTP/1.1"[..], b"SSH-2.0-OpenSSH_9", b"HTTP/1.1 2x0", b""] {
            assert_eq!(status(bad), None);
        }
    }

    #[test]
    fn what_answers_is_healthy_and_what_does_not_is_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let subject = |probe| Subject {
            endpoint: "e".into(),
            netns: PathBuf::new(),
            address: IpAddr::from([127, 0, 0, 1]),
            check: HealthCheck {
                probe,
                port,
                interval_ms: 100,
                timeout_ms: 500,
                retries: 3,
            },
        };
        let server = std::thread::spawn(move || {
            drop(listener.accept().unwrap());
            for answer in [
                "HTTP/1.1 204 No Content\r\n\r\n",
                "HTTP/1.1 500 Oops\r\n\r\n",
            ] {
                let (mut client, _) = listener.accept().unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") {
                    client.read_exact(&mut byte).unwrap();
                    head.extend(byte);
                }
                assert!(head.starts_with(b"GET /ok HTTP/1.1\r\n"));
                client.write_all(answer.as_bytes()).unwrap();
            }
        });
        probe(&subject(Probe::Tcp)).unwrap();
        probe(&subject(Probe::Http("/ok".into()))).unwrap();
        let error = probe(&subject(Probe::Http("/ok".into()))).unwrap_err();
        assert!(error.to_string().contains("500"), "{error}");
        server.join().unwrap();
        assert!(
            probe(&subject(Probe::Tcp)).is_err(),
            "nobody listens any more"
        );
    }
}
