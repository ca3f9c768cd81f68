//! An agent on pretended plumbing, served on a socket in a temporary directory.
#![allow(dead_code)] // each test program uses its own part

use std::path::PathBuf;
use std::sync::Arc;

use weft::agent::api::config::{Settings, Sources, merge, settings};
use weft::agent::plumbing::fake::FakePlumbing;
use weft::frontend::client::Client;
use weft::frontend::daemon::{Server, start};

/// The agent's VTEP.
pub const VTEP: &str = "192.0.2.1";

/// A node: its directory outlives the agent, so that it can be started again.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub plumbing: Arc<FakePlumbing>,
    interval: String,
    server: Option<Server>,
}

impl Node {
    /// Starts a fresh node that compares state and kernel every second.
    pub async fn start() -> Node {
        Node::start_with("1").await
    }

    /// Starts a fresh node with this `reconcile_interval`.
    pub async fn start_with(interval: &str) -> Node {
        let plumbing = Arc::new(FakePlumbing::new(VTEP.parse().unwrap()));
        let mut node = Node {
            dir: tempfile::tempdir().unwrap(),
            plumbing,
            interval: interval.into(),
            server: None,
        };
        node.boot().await;
        node
    }

    /// Starts the agent.
    pub async fn boot(&mut self) {
        let started = start(self.settings(), self.plumbing.clone()).await;
        self.server = Some(started.unwrap());
    }

    /// Stops the agent as SIGTERM does.
    pub async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    /// What `kill -9` and a new start come to: nothing is stopped in order, kernel objects stay.
    pub async fn crash_and_boot(&mut self) {
        std::mem::forget(self.server.take());
        let _ = std::fs::remove_file(self.socket());
        self.plumbing = Arc::new(self.plumbing.survivor());
        self.boot().await;
    }

    pub fn settings(&self) -> Settings {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let flags = [
            ("node", "n1".to_owned()),
            ("vtep", VTEP.to_owned()),
            ("run_dir", path("run")),
            ("state_dir", path("state")),
            ("reconcile_interval", self.interval.clone()),
            ("metrics_listen", "127.0.0.1:0".to_owned()),
        ];
        let sources = Sources {
            flags: flags.into_iter().collect(),
            ..Sources::default()
        };
        settings(&merge(&sources).unwrap(), "host").unwrap()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("run/weft.sock")
    }

    pub fn state_file(&self) -> PathBuf {
        self.dir.path().join("state/state.json")
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    pub fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }
}
