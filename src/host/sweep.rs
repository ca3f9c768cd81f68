//! Leftovers of an agent that was killed.
//!
//! Looks at `<run-dir>/netns` alone, and there only at what carries our marks.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::endpoint::{delete_pair, endpoint_mark, is_half_made};
use super::sandbox::{network_mark, open_network};
use super::{HostError, Netlink, remove_network};

/// What a sweep found and did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Ids of networks whose namespace was removed.
    pub networks_removed: Vec<String>,
    /// Ids of endpoints whose pair was removed from a network that stays; the port's name for one
    /// that was never marked.
    pub endpoints_removed: Vec<String>,
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
            report.untouched.push(path.to_owned());
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let links = netlink.links().await?;
    let Some(mark) = network_mark(&links) else {
        report.untouched.push(path.to_owned());
        return Ok(());
    };
    if keep.contains(&mark.id) {
        return sweep_endpoints(&netlink, keep, report).await;
    }
    drop((netns, netlink));
    remove_network(path).await?;
    report.networks_removed.push(mark.id);
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
