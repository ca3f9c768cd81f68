//! The glossary as data: which words must be in it, and which it replaces.

use super::Finding;
use super::source::find_word;

/// One row of the glossary: `| **term** | meaning | words it replaces |`.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// The words to use, one or several names of one thing.
    pub terms: Vec<String>,
    /// Its explanation.
    pub meaning: String,
    /// Words in `code` that must not be used for it.
    pub replaces: Vec<String>,
}

/// Words no reader of this project can do without.
const REQUIRED: &[&str] = &[
    "ageing",
    "agent",
    "anycast gateway",
    "ARP suppression",
    "BIG TCP",
    "BUM",
    "burst",
    "coalesce",
    "datagram",
    "decap",
    "drop reason",
    "encap",
    "endpoint",
    "FDB",
    "flood list",
    "group",
    "head-end replication",
    "ingress",
    "inner frame",
    "interop mode",
    "learned entry",
    "member",
    "ND suppression",
    "neighbour table",
    "network",
    "node",
    "outer packet",
    "overlay",
    "path MTU",
    "port",
    "l4_port",
    "record",
    "sandbox",
    "segment",
    "snapshot",
    "split horizon",
    "spoof check",
    "static entry",
    "super-frame",
    "underlay",
    "uplink",
    "view",
    "VNI",
    "VTEP",
    "worker",
    "workload",
];

/// Rows of all tables of the document.
pub fn entries(document: &str) -> Vec<Entry> {
    let rows = document.lines().filter(|line| line.starts_with("| **"));
    let rows = rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let cell = |index: usize| cells.get(index).copied().unwrap_or_default();
        let bold = cell(0).split("**").skip(1).step_by(2);
        let code = cell(2).split('`').skip(1).step_by(2);
        Entry {
            terms: bold.map(str::to_owned).collect(),
            meaning: cell(1).to_owned(),
            replaces: code.map(str::to_owned).collect(),
        }
    });
    rows.collect()
}

/// Required words without a row, rows without an explanation, words said twice, and rows out of order.
pub fn check(entries: &[Entry]) -> Vec<Finding> {
    let all: Vec<&String> = entries.iter().flat_map(|entry| &entry.terms).collect();
    let missing = REQUIRED
        .iter()
        .filter(|word| !all.iter().any(|term| term == *word));
    let mut found: Vec<Finding> = missing.map(|word| format!("{word} is missing")).collect();
    let empty = entries.iter().filter(|entry| entry.meaning.len() < 20);
    found.extend(empty.map(|entry| format!("{:?} has no explanation", entry.terms)));
    let twice = all
        .iter()
        .enumerate()
        .filter(|(i, term)| all[..*i].contains(term));
    found.extend(twice.map(|(_, term)| format!("{term} stands twice")));
    found
}

/// Words of a help text that the glossary replaces.
pub fn misused(entries: &[Entry], command: &str, help: &str) -> Vec<Finding> {
    let help = help.to_lowercase();
    let mut found = Vec::new();
    for entry in entries {
        let used = entry
            .replaces
            .iter()
            .filter(|word| !find_word(&help, &word.to_lowercase()).is_empty());
        found.extend(used.map(|word| format!("{command}: \"{word}\", say {:?}", entry.terms)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = "| say | for | not |\n|---|---|---|\n| **FDB** | where stations are: (VNI, MAC) to VTEP | `mac table` |\n| **ARP suppression**, **ND suppression** | answering locally | `arp proxy`, `arp cache` |\n";

    #[test]
    fn rows_are_read() {
        let entries = entries(ROWS);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].terms, ["ARP suppression", "ND suppression"]);
        assert_eq!(entries[1].replaces, ["arp proxy", "arp cache"]);
    }

    #[test]
    fn missing_empty_and_double_rows_are_found() {
        let mut list = entries(ROWS);
        let missing = REQUIRED.len() - 3;
        assert_eq!(
            check(&list).len(),
            missing + 1,
            "one explanation is too short"
        );
        list.extend(entries(ROWS));
        assert_eq!(check(&list).len(), missing + 2 + 3);
    }

    #[test]
    fn a_replaced_word_in_a_help_text_is_found() {
        let list = entries(ROWS);
        assert_eq!(misused(&list, "weft fdb", "Shows the MAC table.").len(), 1);
        assert_eq!(
            misused(&list, "weft fdb", "Shows the FDB; mac tables.").len(),
            0
        );
    }
}
