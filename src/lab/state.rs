//! What is remembered of a lab between commands: `/run/weft-lab/<name>/lab.json`.
//!
//! The plan is written before anything is made, so that `down` knows what to look for even after a
//! kill in the middle of `up`. Processes are added as they start.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::error::{Context, LabError};
use super::impair::LinkImpairment;
use super::plan::{LABS_DIR, Plan, check_name, lab_dir};
use super::process::ProcessId;
use super::space::names_in;

/// Contents of `lab.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabState {
    /// `weft/lab/1`.
    pub schema: String,
    /// When it was made, seconds since 1970.
    pub created_unix: u64,
    /// Whether it was finished; a lab that is not was cut off in the middle.
    pub ready: bool,
    /// From the start until the first ping through the tunnel was answered, milliseconds.
    pub first_ping_ms: Option<u64>,
    /// What it consists of.
    pub plan: Plan,
    /// The agent of each node.
    pub agents: BTreeMap<String, ProcessId>,
    /// The impaired links, by node.
    pub relays: BTreeMap<String, RelayState>,
}

/// A node's link that leads through a relay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RelayState {
    /// The relay's process.
    pub process: ProcessId,
    /// What it does to frames.
    pub impairment: LinkImpairment,
    /// Offloads of the node's link that were switched for it, as they were before: end of the link,
    /// feature, state.
    pub offloads: Vec<(String, String, bool)>,
}

impl LabState {
    /// The state of a lab of which nothing exists yet.
    pub fn new(plan: Plan) -> LabState {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        LabState {
            schema: SCHEMA.into(),
            created_unix: now.as_secs(),
            ready: false,
            first_ping_ms: None,
            plan,
            agents: BTreeMap::new(),
            relays: BTreeMap::new(),
        }
    }

    /// Reads a lab's state.
    ///
    /// # Errors
    /// [`LabError::NoLab`] when there is none of that name; [`LabError::Io`] when it does not read.
    pub fn load(lab: &str) -> Result<LabState, LabError> {
        check_name(lab)?;
        let path = state_path(lab);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(LabError::NoLab(lab.into()));
            }
            other => other.context(|| format!("read {}", path.display()))?,
        };
        serde_json::from_str(&text).context(|| {
            format!(
                "read {} (`weft lab down {lab}` removes the lab all the same)",
                path.display()
            )
        })
    }

    /// Writes the state, so that a reader sees the old or the new one and nothing in between.
    ///
    /// # Errors
    /// [`LabError::Io`].
    pub fn save(&self) -> Result<(), LabError> {
        let path = state_path(self.name());
        let partial = path.with_extension("json.partial");
        let text = serde_json::to_string_pretty(self).map_err(io::Error::from);
        let write = |text: String| {
            let mut file = File::create(&partial)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&partial, &path)
        };
        text.and_then(write)
            .context(|| format!("write {}", path.display()))
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.plan.options.name
    }

    /// Directory of the lab.
    pub fn dir(&self) -> PathBuf {
        lab_dir(self.name())
    }
}

/// Names of the labs there are, half-made ones included.
pub fn labs() -> Vec<String> {
    let mut names = names_in(Path::new(LABS_DIR));
    names.retain(|name| check_name(name).is_ok() && lab_dir(name).is_dir());
    names
}

/// Makes the lab's directory.
///
/// # Errors
/// [`LabError::Exists`] if there is one; [`LabError::Io`].
pub fn claim(lab: &str) -> Result<(), LabError> {
    let dir = lab_dir(lab);
    loop {
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(LabError::Exists(lab.into()));
            }
            // The last lab there was took the directory of labs with it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(LABS_DIR).context(|| format!("make {LABS_DIR}"))?;
            }
            other => return other.context(|| format!("make {}", dir.display())),
        }
    }
}

/// Keeps other commands from changing the lab until the result is dropped.
///
/// # Errors
/// [`LabError::NoLab`] when there is no such lab; [`LabError::Io`].
pub fn lock(lab: &str) -> Result<Flock<File>, LabError> {
    check_name(lab)?;
    let dir = lab_dir(lab);
    loop {
        let file = File::open(&dir).map_err(|_| LabError::NoLab(lab.into()))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .context(|| format!("lock lab {lab}"))?;
        // While this one waited, the lab may have been removed, and made again.
        if is_at(&lock, &dir) {
            return Ok(lock);
        }
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |found: io::Result<fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
    id(file.metadata()) == id(fs::metadata(path))
}

fn state_path(lab: &str) -> PathBuf {
    lab_dir(lab).join("lab.json")
}

const SCHEMA: &str = "weft/lab/1";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::LabOptions;

    #[test]
    fn state_round_trips_through_json() {
        let mut state = LabState::new(Plan::new(LabOptions::default()).unwrap());
        state
            .agents
            .insert("n1".into(), ProcessId { pid: 7, started: 9 });
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<LabState>(&text).unwrap(), state);
    }

    #[test]
    fn a_directory_that_was_replaced_is_not_the_one_that_was_locked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab");
        fs::create_dir(&path).unwrap();
        let file = File::open(&path).unwrap();
        assert!(is_at(&file, &path));
        fs::remove_dir(&path).unwrap();
        assert!(!is_at(&file, &path));
        fs::create_dir(&path).unwrap();
        assert!(!is_at(&file, &path));
    }

    #[test]
    fn a_lab_that_is_not_there_is_named() {
        let error = LabState::load("nosuchlab").unwrap_err();
        assert!(error.to_string().contains("nosuchlab"), "{error}");
        assert!(lock("nosuchlab").is_err());
        assert!(LabState::load("../etc").is_err());
    }
}
