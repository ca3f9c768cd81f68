//! The state file: what a node must remember over a restart, written so that a crash leaves the old or the
//! new content and a damaged file is noticed.
//!
//! How it lies on disk is in [`super::disk`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{self, Damage};
use super::edge::state::EdgeState;
use super::endpoint::Endpoint;
use super::engine::EngineState;
use super::error::{ApiError, ErrorCode};
use super::ident;
use super::network::Catalog;
use super::records::RemoteTable;
use crate::cluster::ipam::Ipam;
use crate::model::service::Service;

/// Name of the file in the state directory.
pub const FILE_NAME: &str = "state.json";
/// Of a damaged one that was moved aside, before the time.
const DAMAGED_PREFIX: &str = "state.json.corrupt-";
const FORMAT: &str = "weft/state";
const FORMAT_VERSION: u32 = 1;

/// Everything a node remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeState {
    /// How often an agent has started with this file; the high part of record versions.
    pub epoch: u64,
    /// Networks.
    pub catalog: Catalog,
    /// The cluster's services by id; none without a cluster.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, Service>,
    /// Local endpoints by id.
    pub endpoints: BTreeMap<String, Endpoint>,
    /// What is known of other nodes.
    pub remote: RemoteTable,
    /// The addresses leased to this node, while it is part of a cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// The gateway bridge and the legs on it.
    #[serde(default)]
    pub edge: EdgeState,
    /// The networks of container engines.
    #[serde(default, skip_serializing_if = "EngineState::is_empty")]
    pub engine: EngineState,
}

impl NodeState {
    /// Of a node that has never run.
    pub fn new(now: u64) -> NodeState {
        NodeState {
            epoch: 0,
            catalog: Catalog::new(now, rand::random()),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            remote: RemoteTable::default(),
            ipam: None,
            edge: EdgeState::default(),
            engine: EngineState::default(),
        }
    }

    /// Takes out what refers to nothing, and tells what that was. Only a defect or an edited file brings
    /// such a thing about.
    pub fn prune_dangling(&mut self) -> Vec<String> {
        let networks = &self.catalog.networks;
        let mut dropped = Vec::new();
        self.endpoints.retain(|id, endpoint| {
            let network = networks.get(&endpoint.network);
            let fits =
                *id == endpoint.id && network.is_some_and(|n| endpoint.segment < n.segments.len());
            if !fits {
                dropped.push(format!(
                    "endpoint {} of unknown network {}",
                    endpoint.name, endpoint.network
                ));
            }
            fits
        });
        dropped
    }
}

/// The file and the directory it lives in.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
}

/// Result of [`StateFile::load`].
#[derive(Debug)]
pub enum Loaded {
    /// There is no file: a fresh node.
    Fresh,
    /// The state.
    State(Box<NodeState>),
    /// The file was damaged and is now beside its place, under the given path.
    Corrupt {
        /// What is wrong with it.
        reason: String,
        /// Where it is now.
        moved_to: PathBuf,
    },
}

impl StateFile {
    /// Makes the directory (mode 0700) if need be.
    ///
    /// # Errors
    /// `path_unusable`.
    pub fn open(dir: &Path) -> Result<StateFile, ApiError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(dir)
            .map_err(|e| unusable("create", dir, &e))?;
        Ok(StateFile { dir: dir.into() })
    }

    /// Path of the file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE_NAME)
    }

    /// Reads the file. A damaged one is moved aside.
    ///
    /// # Errors
    /// `path_unusable` when it cannot be read or moved, or when a newer weft wrote it.
    pub fn load(&self) -> Result<Loaded, ApiError> {
        let path = self.path();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Fresh),
            Err(e) => return Err(unusable("read", &path, &e)),
        };
        match decode(&bytes) {
            Ok(state) => Ok(Loaded::State(Box::new(state))),
            Err(Damage::Newer(version)) => Err(ApiError::new(
                ErrorCode::PathUnusable,
                format!(
                    "{} has format version {version}, this weft reads {FORMAT_VERSION}",
                    path.display()
                ),
                "start the newer weft that wrote it, or choose another --state-dir",
            )),
            Err(Damage::Corrupt(reason)) => {
                let moved_to = self
                    .dir
                    .join(format!("{DAMAGED_PREFIX}{}", ident::unix_nanos()));
                fs::rename(&path, &moved_to).map_err(|e| unusable("move aside", &path, &e))?;
                Ok(Loaded::Corrupt { reason, moved_to })
            }
        }
    }

    /// Whether a damaged file was moved aside here once.
    pub fn was_damaged(&self) -> bool {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut names = entries.map(|entry| entry.file_name());
        names.any(|name| name.to_string_lossy().starts_with(DAMAGED_PREFIX))
    }

    /// Replaces the file. When this returns, the new content survives a crash.
    ///
    /// # Errors
    /// `state_not_saved`; the old content is then still in place.
    pub fn save(&self, state: &NodeState) -> Result<(), ApiError> {
        self.write(state).map_err(|e| {
            ApiError::new(
                ErrorCode::StateNotSaved,
                format!("cannot write {}: {e}", self.path().display()),
                format!(
                    "make room and check permissions: df -h {0}; ls -ld {0}",
                    self.dir.display()
                ),
            )
        })
    }

    /// Removes the file.
    ///
    /// # Errors
    /// `path_unusable`.
    pub fn remove(&self) -> Result<(), ApiError> {
        match fs::remove_file(self.path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(unusable("remove", &self.path(), &e))
            }
            _ => Ok(()),
        }
    }

    fn write(&self, state: &NodeState) -> io::Result<()> {
        disk::replace(&self.dir, FILE_NAME, &encode(state)?)
    }
}

fn unusable(verb: &str, path: &Path, error: &io::Error) -> ApiError {
    ApiError::new(
        ErrorCode::PathUnusable,
        format!("cannot {verb} {}: {error}", path.display()),
        "run the agent as root or choose a directory it may write: --state-dir, --run-dir",
    )
}

fn encode(state: &NodeState) -> io::Result<Vec<u8>> {
    disk::encode(FORMAT, FORMAT_VERSION, &serde_json::to_vec(state)?)
}

fn decode(bytes: &[u8]) -> Result<NodeState, Damage> {
    let body = disk::decode(FORMAT, FORMAT_VERSION, bytes)?;
    serde_json::from_slice(body)
        .map_err(|e| Damage::Corrupt(format!("its content cannot be read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> NodeState {
        let mut state = NodeState::new(7);
        state.epoch = 3;
        state
            .remote
            .add_members("net", &["192.0.2.1".parse().unwrap()]);
        state
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(&dir.path().join("deep/er")).unwrap();
        assert!(matches!(file.load().unwrap(), Loaded::Fresh));
        let saved = sample();
        file.save(&saved).unwrap();
        match file.load().unwrap() {
            Loaded::State(state) => assert_eq!(*state, saved),
            other => panic!("{other:?}"),
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(file.path()).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        file.remove().unwrap();
        file.remove().unwrap();
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_noticed() {
        let saved = sample();
        let bytes = encode(&saved).unwrap();
        // Without the last newline the content is complete.
        for len in 0..bytes.len() - 1 {
            assert!(decode(&bytes[..len]).is_err(), "{len} of {}", bytes.len());
        }
        for at in 0..bytes.len() - 1 {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << bit;
                if let Ok(state) = decode(&damaged) {
                    assert_eq!(state, saved, "flip of bit {bit} at {at} went unnoticed");
                }
            }
        }
    }

    #[test]
    fn a_damaged_file_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        fs::write(file.path(), b"{\"format\":\"weft/state\"").unwrap();
        match file.load().unwrap() {
            Loaded::Corrupt { reason, moved_to } => {
                assert_eq!(reason, "it has no header line");
                assert!(moved_to.exists() && !file.path().exists());
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_of_a_newer_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        let header = r#"{"format":"weft/state","version":2,"len":0,"crc32":"00000000"}"#;
        fs::write(file.path(), format!("{header}\n")).unwrap();
        assert_eq!(file.load().unwrap_err().code, ErrorCode::PathUnusable);
        assert!(file.path().exists());
    }

    #[test]
    fn a_torn_temporary_file_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        file.save(&sample()).unwrap();
        fs::write(dir.path().join("state.json.tmp"), b"torn").unwrap();
        assert!(matches!(file.load().unwrap(), Loaded::State(_)));
        file.save(&sample()).unwrap();
        assert!(matches!(file.load().unwrap(), Loaded::State(_)));
    }

    #[test]
    fn a_failed_write_says_what_to_look_at() {
        let file = StateFile {
            dir: "/proc/nowhere".into(),
        };
        let error = file.save(&sample()).unwrap_err();
        assert_eq!(error.code, ErrorCode::StateNotSaved);
        assert!(error.next.contains("df -h"), "{error:?}");
    }

    #[test]
    fn a_link_in_the_place_of_the_temporary_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        let temporary = dir.path().join(format!("{FILE_NAME}.tmp"));
        std::os::unix::fs::symlink(&precious, temporary).unwrap();
        let file = StateFile::open(dir.path()).unwrap();
        let error = file.save(&NodeState::new(1)).unwrap_err();
        assert_eq!(error.code, ErrorCode::StateNotSaved);
        assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
    }
}
