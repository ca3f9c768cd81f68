//! What an engine and its agent have made, counted from outside: the measure of leaks.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use weft::lab::space::names_in;
use weft::sys::netns::Netns;

use super::Bed;
use super::engine::{Engine, sh_in};

/// How often there is what could be left over. What has a name by chance is counted by its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeMap<String, usize>);

impl Inventory {
    pub fn take(bed: &Bed) -> Inventory {
        let mut found = Inventory::default();
        for engine in &bed.engines {
            for thing in things(engine) {
                *found
                    .0
                    .entry(format!("engine {}: {thing}", engine.number))
                    .or_default() += 1;
            }
        }
        found
    }

    /// What there is more of than in `other`.
    pub fn beyond(&self, other: &Inventory) -> Vec<String> {
        let count = |of: &Inventory, thing: &str| of.0.get(thing).copied().unwrap_or_default();
        let more = self
            .0
            .iter()
            .filter(|(thing, mine)| **mine > count(other, thing));
        more.map(|(thing, mine)| format!("{thing}: {mine}, not {}", count(other, thing)))
            .collect()
    }

    /// Looks until there is what was there before, and no more.
    pub fn assert_reached_again(&self, bed: &Bed, limit: Duration) {
        self.reached_again_but(&[], bed, limit);
    }

    /// As [`Inventory::assert_reached_again`]; there may be more of what is named.
    pub fn reached_again_but(&self, but: &[&str], bed: &Bed, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let now = Inventory::take(bed);
            let (mut more, less) = (now.beyond(self), self.beyond(&now));
            more.retain(|line| !but.iter().any(|word| line.contains(word)));
            if more.is_empty() && less.is_empty() {
                return;
            }
            if Instant::now() >= end {
                for engine in &bed.engines {
                    println!(
                        "{}",
                        sh_in(&engine.netns_path(), "ip -d link show type veth")
                    );
                }
                panic!("after {limit:?}, left over: {more:#?}\nmissing: {less:#?}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// How many things there are.
    pub fn total(&self) -> usize {
        self.0.values().sum()
    }
}

fn things(engine: &Engine) -> Vec<String> {
    let mut found = Vec::new();
    let path = engine.netns_path();
    found.extend(host_links(&sh_in(&path, "ip -o link show")));
    for (what, dir) in [("Docker", "/run/docker/netns"), ("weft", "/run/weft/netns")] {
        let dir = engine.file(dir);
        for name in names_in(&dir) {
            // One that has just gone is none.
            let Ok(netns) = Netns::open(dir.join(name)) else {
                continue;
            };
            found.push(format!("namespace of {what}"));
            found.extend(
                links(&netns)
                    .into_iter()
                    .map(|link| format!("link {link} in one of {what}")),
            );
        }
    }
    let tables = sh_in(&path, "nft list tables");
    found.extend(tables.lines().map(|line| format!("nft {line}")));
    let rules = sh_in(&path, "iptables-save; ip6tables-save");
    let rules = rules.lines().filter(|line| line.starts_with("-A"));
    found.extend(rules.map(|rule| format!("rule {rule}")));
    let routes = sh_in(&path, "ip -4 route; ip -6 route; ip -4 rule; ip -6 rule");
    // Docker's bridge has a link-local address since its first container.
    let routes = routes.lines().filter(|line| !line.starts_with("fe80::"));
    let routes = routes.map(|line| line.replace(" linkdown", ""));
    found.extend(routes.map(|route| format!("route {}", route.trim())));
    for what in [
        "ps --all --format {{.Names}}",
        "network ls --format {{.Name}}",
    ] {
        let names = engine.done(what);
        found.extend(names.lines().map(|name| format!("of Docker: {name}")));
    }
    let groups = names_in(&engine.groups())
        .into_iter()
        .filter(|name| name.len() == 64);
    found.extend(groups.map(|_| "control group".to_owned()));
    found
}

/// The links of an engine's own namespace. Ends of pairs say whose they are: by their bridge, or by that of the other
/// end, or by the group that weft puts its links in. A pair on no bridge that is in no group was just being made.
fn host_links(listed: &str) -> Vec<String> {
    let lines = listed.lines().filter_map(|line| {
        let name = line.split(": ").nth(1)?;
        let (name, other) = name.split_once('@').unwrap_or((name, ""));
        let master = line.split(" master ").nth(1);
        let master = master.and_then(|rest| rest.split(' ').next());
        Some((name, other, master, line.contains(" group default ")))
    });
    let lines: Vec<_> = lines.collect();
    let master_of = |wanted: &str| {
        let mut found = lines.iter().filter(|(name, ..)| *name == wanted);
        found
            .next()
            .map(|(_, _, master, _)| master.unwrap_or("nobody"))
    };
    let told = lines.iter().map(|(name, other, master, no_group)| {
        let mark = (!no_group).then_some("weft");
        let of = mark.or(*master).or_else(|| master_of(other));
        let of = of.map(|of| format!(" of {of}")).unwrap_or_default();
        format!("link {}{of}", kind(name))
    });
    told.collect()
}

/// The links of a namespace; of those that are named by chance, the kind.
fn links(netns: &Netns) -> Vec<String> {
    let table = netns
        .run_in(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap())
        .unwrap();
    let names = table.lines().filter_map(|line| line.split_once(':'));
    let names = names.map(|(name, _)| name.trim());
    names.map(kind).collect()
}

/// `veth1a2b3c4` is any `veth`.
fn kind(name: &str) -> String {
    for prefix in ["veth", "ov-", "vx-", "br-"] {
        if name.strip_prefix(prefix).is_some_and(|rest| rest.len() > 4) {
            return format!("{prefix}*");
        }
    }
    name.to_owned()
}
