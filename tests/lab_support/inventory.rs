//! What a node's agent holds and has made, counted from outside: through `/proc` and the kernel.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weft::lab::Lab;
use weft::lab::space::{mounts_below, names_in, of_lab};
use weft::sys::netns::Netns;

/// Everything of one node and of the lab's namespaces at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// Open descriptors of the agent.
    pub descriptors: usize,
    /// Its threads.
    pub threads: usize,
    /// Links by namespace, those of the networks included: bridges, uplinks, both ends of veth pairs.
    pub links: BTreeMap<String, Vec<String>>,
    /// Mounts below the lab's directory: the networks' namespaces.
    pub mounts: Vec<PathBuf>,
    /// What lies in the agent's run and state directories.
    pub files: Vec<String>,
}

impl Inventory {
    pub fn take(lab: &Lab, node: &str) -> Inventory {
        let proc = PathBuf::from(format!("/proc/{}", lab.state().agents[node].pid));
        let dir = lab.state().dir();
        let mut links = BTreeMap::new();
        for name in of_lab(lab.name()) {
            links.insert(name.clone(), links_in(&weft::lab::space::netns_path(&name)));
        }
        for name in networks(lab, node) {
            let path = netns_dir(lab, node).join(&name);
            links.insert(format!("network {name}"), links_in(&path));
        }
        let here = dir.join(node);
        let files = ["run", "state"].into_iter().flat_map(|part| {
            let names = names_in(&here.join(part)).into_iter();
            names.map(move |name| format!("{part}/{name}"))
        });
        Inventory {
            descriptors: count(&proc.join("fd")),
            threads: count(&proc.join("task")),
            links,
            mounts: mounts_below(&dir),
            files: files.collect(),
        }
    }

    /// As [`Inventory::take`], once nothing has changed for a while: an agent that has just begun is still at work.
    pub fn settled(lab: &Lab, node: &str) -> Inventory {
        let end = Instant::now() + Duration::from_secs(20);
        let mut last = Inventory::take(lab, node);
        let mut same = 0;
        while same < 10 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
            let now = Inventory::take(lab, node);
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// Looks until what there was before is there again, and no more. Idle threads of a pool end in their own
    /// time, ten seconds on, and one is used every five seconds: one that was counted before may be gone, and one or two
    /// that were not may be there.
    pub fn assert_reached_again(&self, lab: &Lab, node: &str, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let now = Inventory::take(lab, node);
            let threads = match now.threads <= self.threads + POOL {
                true => now.threads,
                false => self.threads,
            };
            let pool_aside = Inventory {
                threads,
                ..self.clone()
            };
            if now == pool_aside {
                return;
            }
            assert!(
                Instant::now() < end,
                "after {limit:?}, before: {self:#?}\nafter: {now:#?}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Threads of the pool that may be up at any time.
const POOL: usize = 2;

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors, {} threads, {} namespaces, {} links, {} mounts",
            self.descriptors,
            self.threads,
            self.links.len(),
            self.links.values().map(Vec::len).sum::<usize>(),
            self.mounts.len()
        )
    }
}

/// Names of the networks' namespaces on a node.
pub fn networks(lab: &Lab, node: &str) -> Vec<String> {
    names_in(&netns_dir(lab, node))
}

/// Where a node's agent keeps the namespaces of its networks.
pub fn netns_dir(lab: &Lab, node: &str) -> PathBuf {
    lab.state().dir().join(node).join("run/netns")
}

/// Names of the links of a namespace, sorted; none when it is gone.
pub fn links_in(netns: &Path) -> Vec<String> {
    let Ok(netns) = Netns::open(netns) else {
        return Vec::new();
    };
    let table = netns
        .run_in(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap())
        .unwrap();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    let mut names: Vec<String> = names.map(|(name, _)| name.trim().to_owned()).collect();
    names.sort();
    names
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}
