//! Leftovers of an agent that was killed.
//!
//! Looks at `<run-dir>/netns` alone, and there only at what carries our marks, or what a creation or
//! removal leaves that was killed half-way: an empty file of a network's name, or a namespace of such a
//! name with nothing but `lo` in it.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::endpoint::{delete_pair, endpoint_mark, is_half_made};
use super::sandbox::{network_mark, open_network};
use super::undo::delete_netns;
use super::{HostError, Netlink, remove_network};

/// What a sweep found and did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Ids of networks whose namespace was removed.
    pub networks_removed: Vec<String>,
    /// Ids of endpoints whose pair was removed from a network that stays; the port's name for one
    /// that was never marked.
    pub endpoints_removed: Vec<String>,
    /// Namespaces without a mark, and empty files, that a killed creation or removal left: gone now.
    pub half_made_removed: Vec<PathBuf>,
    /// Files that are no namespace of ours, left alone.
    pub untouched: Vec<PathBuf>,
    /// What could not be removed; the sweep went on.
    pub errors: Vec<HostError>,
}

/// Removes networks and endpoints whose ids are not in `keep`. To be called when nothing is being
/// attached, since a pair that is just being made looks like a leftover.
///
/// # Errors
/// [`HostError::Io`] if `<run-dir>/netns` cannot be read; a missing one is an empty one. Errors of single
/// objects are in the report.
pub async fn sweep(run_dir: &Path, keep: &HashSet<String>) -> Result<SweepReport, HostError> {
    let dir = run_dir.join("netns");
    let mut report = SweepReport::default();
    for path in files(&dir).map_err(|e| HostError::io(format!("list {}", dir.display()), e))? {
        if let Err(error) = sweep_netns(&path, keep, &mut report).await {
            report.errors.push(error);
        }
    }
    Ok(report)
}

/// Ids of the networks under a run directory, found by their marks.
///
/// # Errors
/// As [`sweep`], and the kernel's reason.
pub async fn list_networks(run_dir: &Path) -> Result<Vec<String>, HostError> {
    let dir = run_dir.join("netns");
    let mut ids = Vec::new();
    for path in files(&dir).map_err(|e| HostError::io(format!("list {}", dir.display()), e))? {
        match open_network(&path) {
            Ok((_netns, netlink)) => {
                ids.extend(network_mark(&netlink.links().await?).map(|mark| mark.id));
            }
            Err(HostError::NoNetwork(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ids)
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<PathBuf>>>()?;
    paths.sort();
    Ok(paths)
}

async fn sweep_netns(
    path: &Path,
    keep: &HashSet<String>,
    report: &mut SweepReport,
) -> Result<(), HostError> {
    let (netns, netlink) = match open_network(path) {
        Ok(opened) => opened,
        Err(HostError::NoNetwork(_)) => {
            let empty =
                fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.len() == 0);
            return sweep_half_made(path, empty, report).await;
        }
        Err(error) => return Err(error),
    };
    let links = netlink.links().await?;
    let Some(mark) = network_mark(&links) else {
        drop((netns, netlink));
        let bare = links.iter().all(|link| link.loopback);
        return sweep_half_made(path, bare, report).await;
    };
    if keep.contains(&mark.id) {
        return sweep_endpoints(&netlink, keep, report).await;
    }
    drop((netns, netlink));
    remove_network(path, &mark.id).await?;
    report.networks_removed.push(mark.id);
    Ok(())
}

/// Removes what was never marked, if it holds nothing and has a network's name.
async fn sweep_half_made(
    path: &Path,
    holds_nothing: bool,
    report: &mut SweepReport,
) -> Result<(), HostError> {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let of_a_network = name.len() == SHORT_ID_LEN
        && name
            .bytes()
            .all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
    if !(holds_nothing && of_a_network) {
        report.untouched.push(path.to_owned());
        return Ok(());
    }
    delete_netns(path.to_owned()).await?;
    report.half_made_removed.push(path.to_owned());
    Ok(())
}

async fn sweep_endpoints(
    netlink: &Netlink,
    keep: &HashSet<String>,
    report: &mut SweepReport,
) -> Result<(), HostError> {
    for link in netlink.links().await? {
        let id = match endpoint_mark(&link) {
            Some(mark) if !keep.contains(&mark.id) => mark.id,
            None if is_half_made(&link) => link.name.clone(),
            _ => continue,
        };
        match delete_pair(netlink, &link).await {
            Ok(()) => report.endpoints_removed.push(id),
            Err(error) => report.errors.push(error),
        }
    }
    Ok(())
}

/// Of the network's id, in the name of its namespace file.
const SHORT_ID_LEN: usize = 12;
