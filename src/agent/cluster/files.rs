//! What a node keeps of its cluster: who it is there, what the managers last said, and a manager's own store.
//!
//! All of it is in one directory, for its owner only, and goes with it.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agent::disk::{self, Damage};
use crate::agent::error::{ApiError, ErrorCode};
use crate::cluster::manager::ids::{Key, NodeId, RequestId, SecretText};
use crate::cluster::manager::transport::Credentials;
use crate::cluster::manager::watch::Replica;

const DIR: &str = "cluster";
const NODE: &str = "node.json";
const JOINING: &str = "joining.json";
const REPLICA: &str = "replica.json";
const STORE: &str = "managers.redb";
const VERSION: u32 = 1;

/// Who a node is in its cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Enrolment {
    /// Id of the cluster.
    pub cluster: String,
    /// Id of the node.
    pub node: NodeId,
    /// Its number.
    pub number: u64,
    /// Its number in the Raft group, of a manager.
    pub raft_id: Option<u64>,
    /// Private key in PEM.
    pub key: SecretText,
    /// Certificate in PEM.
    pub certificate: String,
    /// Certificates of the CAs to trust, in PEM.
    pub authorities: Vec<String>,
    /// The secret half of the key that its gossip is signed with.
    pub signing_seed: Key,
    /// Where managers answered when it joined.
    pub managers: Vec<String>,
}

impl Enrolment {
    /// What it shows to others, and whom it trusts.
    pub fn credentials(&self) -> Credentials {
        Credentials::new(
            self.cluster.clone(),
            self.key.clone(),
            self.certificate.clone(),
            self.authorities.clone(),
        )
    }
}

/// A node on its way in. Kept until it is in, so that an answer that was lost can be asked for again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Joining {
    /// The same for every attempt.
    pub request: RequestId,
    /// Id of the node.
    pub node: NodeId,
    /// Private key in PEM.
    pub key: SecretText,
    /// Certificate signing request in DER.
    pub csr: Vec<u8>,
    /// The secret half of the key that its gossip will be signed with.
    pub signing_seed: Key,
    /// Digest of the token it came with: another token is another attempt.
    pub token: crate::cluster::manager::ids::Digest,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct ClusterFiles {
    dir: PathBuf,
}

impl ClusterFiles {
    /// Below the agent's state directory. Makes nothing.
    pub fn of(state_dir: &Path) -> ClusterFiles {
        ClusterFiles {
            dir: state_dir.join(DIR),
        }
    }

    /// The managers' store.
    pub fn store(&self) -> PathBuf {
        self.dir.join(STORE)
    }

    /// Who the node is; nothing if it is part of no cluster.
    ///
    /// # Errors
    /// `path_unusable`, `store_damaged`. A damaged file is left where it is: there is no other copy of the key.
    pub fn enrolment(&self) -> Result<Option<Enrolment>, ApiError> {
        self.load(NODE, "weft/node").map_err(|error| match error {
            Unreadable::Io(error) => self.unusable("read", NODE, &error),
            Unreadable::Damaged(reason) => ApiError::new(
                ErrorCode::StoreDamaged,
                format!("{} is damaged: {reason}", self.dir.join(NODE).display()),
                format!(
                    "restore it from a backup; or remove {} and the node (weft node rm, on a manager), and join anew",
                    self.dir.display()
                ),
            ),
        })
    }

    /// Remembers who the node is, and that it is no longer on its way in.
    ///
    /// # Errors
    /// `state_not_saved`.
    pub fn save_enrolment(&self, enrolment: &Enrolment) -> Result<(), ApiError> {
        self.save(NODE, "weft/node", enrolment)?;
        match fs::remove_file(self.dir.join(JOINING)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "what the node joined with could not be removed");
            }
            _ => {}
        }
        Ok(())
    }

    /// What the node last tried to join with.
    pub fn joining(&self) -> Option<Joining> {
        // Whatever is wrong with it, a new attempt does as well.
        self.load(JOINING, "weft/joining").ok().flatten()
    }

    /// Remembers what the node joins with.
    ///
    /// # Errors
    /// `state_not_saved`.
    pub fn save_joining(&self, joining: &Joining) -> Result<(), ApiError> {
        self.save(JOINING, "weft/joining", joining)
    }

    /// What the managers last said. A damaged file is as good as none: they say it again.
    pub fn replica(&self) -> Replica {
        match self.load(REPLICA, "weft/replica") {
            Ok(replica) => replica.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(
                    ?error,
                    "what the managers last said is lost; they will be asked"
                );
                Replica::default()
            }
        }
    }

    /// Remembers what the managers said.
    ///
    /// # Errors
    /// `state_not_saved`.
    pub fn save_replica(&self, replica: &Replica) -> Result<(), ApiError> {
        self.save(REPLICA, "weft/replica", replica)
    }

    /// Forgets the store of a manager that is none any more.
    pub fn remove_store(&self) {
        if let Err(error) = fs::remove_file(self.store())
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the managers' store could not be removed");
        }
    }

    /// Forgets everything.
    ///
    /// # Errors
    /// `path_unusable`.
    pub fn remove(&self) -> Result<(), ApiError> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.unusable("remove", "", &error))
            }
            _ => Ok(()),
        }
    }

    /// Forgets everything with no word to the managers; returns as what the node was part of a cluster.
    ///
    /// # Errors
    /// `path_unusable`.
    pub fn give_up(&self) -> Result<Option<String>, ApiError> {
        let member = match self.enrolment() {
            Ok(enrolment) => enrolment.map(|e| format!("node {} of cluster {}", e.node, e.cluster)),
            Err(_) => Some("a node of a cluster that its damaged files do not name".into()),
        };
        self.remove()?;
        Ok(member)
    }

    fn load<T: DeserializeOwned>(&self, name: &str, format: &str) -> Result<Option<T>, Unreadable> {
        let bytes = match fs::read(self.dir.join(name)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unreadable::Io(error)),
        };
        let body = disk::decode(format, VERSION, &bytes).map_err(|damage| match damage {
            Damage::Corrupt(reason) => Unreadable::Damaged(reason),
            Damage::Newer(version) => {
                Unreadable::Damaged(format!("a newer weft wrote it, in version {version}"))
            }
        })?;
        let value = serde_json::from_slice(body);
        value.map_err(|error| Unreadable::Damaged(error.to_string()))
    }

    fn save(&self, name: &str, format: &str, value: &impl Serialize) -> Result<(), ApiError> {
        let write = || {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700).create(&self.dir)?;
            let body = serde_json::to_vec(value)?;
            disk::replace(&self.dir, name, &disk::encode(format, VERSION, &body)?)
        };
        write().map_err(|error: io::Error| {
            ApiError::new(
                ErrorCode::StateNotSaved,
                format!("cannot write {}: {error}", self.dir.join(name).display()),
                format!(
                    "make room and check permissions: df -h {0}; ls -ld {0}",
                    self.dir.display()
                ),
            )
        })
    }

    fn unusable(&self, verb: &str, name: &str, error: &io::Error) -> ApiError {
        ApiError::new(
            ErrorCode::PathUnusable,
            format!("cannot {verb} {}: {error}", self.dir.join(name).display()),
            "run the agent as root, or look at the permissions of its state directory",
        )
    }
}

#[derive(Debug)]
enum Unreadable {
    Io(io::Error),
    Damaged(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manager::ids::Digest;

    fn enrolment() -> Enrolment {
        Enrolment {
            cluster: "c".into(),
            node: NodeId::from_bits(7),
            number: 3,
            raft_id: None,
            key: SecretText::new("key".into()),
            certificate: "certificate".into(),
            authorities: vec!["ca".into()],
            signing_seed: Key::from_bytes([5; 32]),
            managers: vec!["192.0.2.1:7377".into()],
        }
    }

    #[test]
    fn what_is_saved_is_loaded_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let files = ClusterFiles::of(dir.path());
        assert!(files.enrolment().unwrap().is_none());
        let joining = Joining {
            request: RequestId::from_bits(1),
            node: NodeId::from_bits(7),
            key: SecretText::new("key".into()),
            csr: vec![1, 2],
            signing_seed: Key::from_bytes([5; 32]),
            token: Digest::from_bytes([1; 32]),
        };
        files.save_joining(&joining).unwrap();
        assert_eq!(files.joining().unwrap().node, joining.node);
        files.save_enrolment(&enrolment()).unwrap();
        assert!(files.joining().is_none(), "it is in");
        let loaded = files.enrolment().unwrap().unwrap();
        assert_eq!((loaded.node, loaded.number), (NodeId::from_bits(7), 3));
        let replica = Replica {
            revision: 9,
            ..Replica::default()
        };
        files.save_replica(&replica).unwrap();
        assert_eq!(files.replica(), replica);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(dir.path().join("cluster/node.json"))
                .unwrap()
                .permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
        files.remove().unwrap();
        files.remove().unwrap();
        assert!(files.enrolment().unwrap().is_none());
    }

    #[test]
    fn damage_of_the_key_is_told_and_of_the_replica_is_made_good() {
        let dir = tempfile::tempdir().unwrap();
        let files = ClusterFiles::of(dir.path());
        files.save_enrolment(&enrolment()).unwrap();
        files.save_replica(&Replica::default()).unwrap();
        for name in [NODE, REPLICA] {
            let path = dir.path().join(DIR).join(name);
            let mut bytes = fs::read(&path).unwrap();
            let last = bytes.len() - 3;
            bytes[last] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
        let error = files.enrolment().unwrap_err();
        assert_eq!(error.code, ErrorCode::StoreDamaged, "{error}");
        assert_eq!(files.replica(), Replica::default());
    }

    #[test]
    fn a_part_that_is_given_up_leaves_nothing_and_says_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let files = ClusterFiles::of(dir.path());
        assert_eq!(files.give_up().unwrap(), None);
        files.save_enrolment(&enrolment()).unwrap();
        fs::write(files.store(), "the managers' log").unwrap();
        let said = files.give_up().unwrap().unwrap();
        assert_eq!(said, format!("node {} of cluster c", enrolment().node));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        files.save_enrolment(&enrolment()).unwrap();
        fs::write(dir.path().join(DIR).join(NODE), "nonsense").unwrap();
        let said = files.give_up().unwrap().unwrap();
        assert!(said.contains("damaged"), "{said}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
