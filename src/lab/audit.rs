//! The leak audit: what there is before and after, and what the difference is.
//!
//! Impartial: it asks the kernel, not the lab's own books. Links and nft tables of the namespace it runs in
//! are all counted, since a lab has no business there; namespaces, mounts, directories and processes count
//! when they carry the mark of a lab, so that labs running beside each other do not accuse one another.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::error::{Context, LabError};
use super::links::block_on;
use super::plan::{LABS_DIR, NETNS_DIR, netns_prefix};
use super::process::{MARK_VAR, command_line, marked_any};
use super::space::{mounts_below, names_in};
use super::state::labs;
use super::text;
use crate::host::Netlink;

/// What there is at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Links of this namespace.
    pub links: BTreeSet<String>,
    /// Network namespaces below `/run/netns`.
    pub namespaces: BTreeSet<String>,
    /// Mounts below the labs' directory.
    pub mounts: BTreeSet<String>,
    /// nft tables of this namespace; `None` without the `nft` program.
    pub nft_tables: Option<BTreeSet<String>>,
    /// Labs with a directory.
    pub labs: BTreeSet<String>,
    /// Processes with a lab's mark, as `pid command`.
    pub processes: BTreeSet<String>,
    /// Open descriptors of this process; `None` when another process will compare.
    pub descriptors: Option<usize>,
}

/// Whose namespaces, mounts and processes count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Those of any lab, and every namespace there is.
    Everything,
    /// Those of one lab.
    Lab(&'a str),
}

impl Snapshot {
    /// Looks around.
    ///
    /// # Errors
    /// [`LabError`] when the kernel refuses to list links or processes.
    pub fn take(scope: Scope<'_>) -> Result<Snapshot, LabError> {
        let mut snapshot = Snapshot {
            links: block_on(link_names())?,
            namespaces: names_in(Path::new(NETNS_DIR)).into_iter().collect(),
            mounts: mounts_below(Path::new(LABS_DIR))
                .into_iter()
                .map(|path| path.display().to_string())
                .collect(),
            nft_tables: nft_tables(),
            labs: labs().into_iter().collect(),
            processes: BTreeSet::new(),
            descriptors: Some(descriptors()),
        };
        let processes = marked_any().context(|| "list processes".into())?;
        if let Scope::Lab(lab) = scope {
            let prefix = netns_prefix(lab);
            let dir = format!("{LABS_DIR}/{lab}/");
            snapshot.namespaces.retain(|name| name.starts_with(&prefix));
            snapshot.mounts.retain(|path| path.starts_with(&dir));
            snapshot.labs.retain(|name| name == lab);
        }
        let ours = |owner: &str| scope == Scope::Everything || scope == Scope::Lab(owner);
        snapshot.processes = processes
            .into_iter()
            .filter(|(_, owner)| ours(owner))
            .map(|(process, owner)| {
                format!(
                    "{} {} ({MARK_VAR}={owner})",
                    process.pid,
                    command_line(process.pid)
                )
            })
            .collect();
        Ok(snapshot)
    }

    /// The same without the descriptors, for another process to compare.
    pub fn without_descriptors(self) -> Snapshot {
        Snapshot {
            descriptors: None,
            ..self
        }
    }

    /// The same without anything of a lab: what is to be found once the labs are gone.
    pub fn without_labs(self) -> Snapshot {
        Snapshot {
            namespaces: self
                .namespaces
                .into_iter()
                .filter(|name| lab_of_netns(name).is_none())
                .collect(),
            mounts: BTreeSet::new(),
            labs: BTreeSet::new(),
            processes: BTreeSet::new(),
            ..self
        }
    }

    /// What belongs to a lab of which there is no directory: the remains of a removal that failed.
    pub fn leftovers(&self) -> Vec<String> {
        let gone = |lab: Option<&str>| lab.is_some_and(|lab| !self.labs.contains(lab));
        let namespaces = self
            .namespaces
            .iter()
            .filter(|name| gone(lab_of_netns(name)));
        let mounts = self.mounts.iter().filter(|path| gone(lab_of_path(path)));
        let processes = self
            .processes
            .iter()
            .filter(|line| gone(lab_of_process(line)));
        let named = namespaces.map(|name| format!("network namespace {name}"));
        let mounted = mounts.map(|path| format!("mount {path}"));
        let running = processes.map(|line| format!("process {line}"));
        named.chain(mounted).chain(running).collect()
    }

    fn rows<'a>(&'a self, other: &'a Snapshot) -> Vec<Row<'a>> {
        let mut rows = vec![
            Row {
                what: "links",
                before: &self.links,
                after: &other.links,
            },
            Row {
                what: "network namespaces",
                before: &self.namespaces,
                after: &other.namespaces,
            },
            Row {
                what: "mounts of labs",
                before: &self.mounts,
                after: &other.mounts,
            },
            Row {
                what: "labs",
                before: &self.labs,
                after: &other.labs,
            },
            Row {
                what: "processes of labs",
                before: &self.processes,
                after: &other.processes,
            },
        ];
        if let (Some(before), Some(after)) = (&self.nft_tables, &other.nft_tables) {
            rows.push(Row {
                what: "nft tables",
                before,
                after,
            });
        }
        rows
    }
}

struct Row<'a> {
    what: &'static str,
    before: &'a BTreeSet<String>,
    after: &'a BTreeSet<String>,
}

/// Two moments side by side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Then.
    pub before: Snapshot,
    /// Now.
    pub after: Snapshot,
}

impl Comparison {
    /// Whether nothing came and nothing went.
    pub fn clean(&self) -> bool {
        self.differences().is_empty()
    }

    /// What came (`+`) and went (`-`), one line each.
    pub fn differences(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for row in self.before.rows(&self.after) {
            let came = row
                .after
                .difference(row.before)
                .map(|item| format!("+ {}: {item}", row.what));
            let went = row
                .before
                .difference(row.after)
                .map(|item| format!("- {}: {item}", row.what));
            lines.extend(came.chain(went));
        }
        if let (Some(before), Some(after)) = (self.before.descriptors, self.after.descriptors)
            && before != after
        {
            lines.push(format!(
                "~ open descriptors: {before} before, {after} after"
            ));
        }
        lines
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = text::columns(["LEAK AUDIT", "BEFORE", "AFTER"]);
        for row in self.before.rows(&self.after) {
            table.add_row([
                row.what.into(),
                row.before.len().to_string(),
                row.after.len().to_string(),
            ]);
        }
        if self.before.nft_tables.is_none() || self.after.nft_tables.is_none() {
            table.add_row(["nft tables", "no nft program", "no nft program"]);
        }
        if let (Some(before), Some(after)) = (self.before.descriptors, self.after.descriptors) {
            table.add_row([
                "open descriptors".into(),
                before.to_string(),
                after.to_string(),
            ]);
        }
        writeln!(f, "{}", text::lines(&table))?;
        let differences = self.differences();
        for line in &differences {
            writeln!(f, "  {line}")?;
        }
        match differences.is_empty() {
            true => write!(f, "nothing left behind"),
            false => write!(f, "DIFFERENT: {} things", differences.len()),
        }
    }
}

/// Looks until `before` is reached again or `patience` is over: the kernel takes a closed namespace apart in
/// its own time.
///
/// # Errors
/// As [`Snapshot::take`].
pub fn compare(
    before: &Snapshot,
    scope: Scope<'_>,
    patience: Duration,
) -> Result<Comparison, LabError> {
    let end = Instant::now() + patience;
    loop {
        let comparison = Comparison {
            before: before.clone(),
            after: Snapshot::take(scope)?,
        };
        if comparison.clean() || Instant::now() >= end {
            return Ok(comparison);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

async fn link_names() -> Result<BTreeSet<String>, LabError> {
    let links = Netlink::current()?.links().await?;
    Ok(links.into_iter().map(|link| link.name).collect())
}

fn nft_tables() -> Option<BTreeSet<String>> {
    let output = Command::new("nft").args(["list", "tables"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.lines().map(str::to_owned).collect())
}

fn lab_of_netns(name: &str) -> Option<&str> {
    let (lab, _) = name.strip_prefix("weft-")?.split_once('-')?;
    Some(lab)
}

fn lab_of_path(path: &str) -> Option<&str> {
    path.strip_prefix(LABS_DIR)?.split('/').nth(1)
}

fn lab_of_process(line: &str) -> Option<&str> {
    let (_, mark) = line.rsplit_once(&format!("({MARK_VAR}="))?;
    mark.strip_suffix(')')
}

/// The directory itself is open while it is read.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_came_and_went_is_named() {
        let before = Snapshot {
            links: names(&["lo", "eth0"]),
            descriptors: Some(5),
            ..Snapshot::default()
        };
        let after = Snapshot {
            links: names(&["lo", "veth7"]),
            namespaces: names(&["weft-a-n1"]),
            descriptors: Some(6),
            ..Snapshot::default()
        };
        let comparison = Comparison { before, after };
        assert_eq!(
            comparison.differences(),
            [
                "+ links: veth7",
                "- links: eth0",
                "+ network namespaces: weft-a-n1",
                "~ open descriptors: 5 before, 6 after",
            ]
        );
        assert!(!comparison.clean());
        let text = comparison.to_string();
        assert!(text.contains("DIFFERENT: 4"), "{text}");
    }

    #[test]
    fn equal_moments_are_clean() {
        let moment = Snapshot {
            nft_tables: Some(names(&["table inet a"])),
            ..Snapshot::default()
        };
        let comparison = Comparison {
            before: moment.clone(),
            after: moment,
        };
        assert!(comparison.clean());
        assert!(comparison.to_string().ends_with("nothing left behind"));
    }

    #[test]
    fn what_belongs_to_no_lab_is_a_leftover() {
        let moment = Snapshot {
            namespaces: names(&["weft-a-n1", "weft-b-n1", "blue"]),
            mounts: names(&["/run/weft-lab/b/n1/run/netns/x"]),
            processes: names(&["7 weft agent (WEFTLAB=a)", "8 weft agent (WEFTLAB=b)"]),
            labs: names(&["a"]),
            ..Snapshot::default()
        };
        assert_eq!(
            moment.leftovers(),
            [
                "network namespace weft-b-n1",
                "mount /run/weft-lab/b/n1/run/netns/x",
                "process 8 weft agent (WEFTLAB=b)",
            ]
        );
        let without = moment.without_labs();
        assert_eq!(without.namespaces, names(&["blue"]));
        assert!(without.leftovers().is_empty());
    }

    #[test]
    fn the_loopback_is_always_there() {
        let snapshot = Snapshot::take(Scope::Lab("nosuchlab")).unwrap();
        assert!(snapshot.links.contains("lo"));
        assert!(snapshot.namespaces.is_empty());
        assert!(snapshot.descriptors >= Some(3));
    }
}
