//! Which module may import which: the walls that separate crates would give, inside one package.

use super::Finding;
use super::source::{Source, find_word, is_ident};

/// A module at the top of the crate and what it may import. `agent::api` allows that part alone.
struct Layer {
    name: &'static str,
    may: &'static [&'static str],
    /// Files that may import more, and why.
    also: &'static [(&'static str, &'static [&'static str], &'static str)],
}

const fn layer(name: &'static str, may: &'static [&'static str]) -> Layer {
    Layer {
        name,
        may,
        also: &[],
    }
}

/// From the ground up.
const LAYERS: &[Layer] = &[
    layer("wire", &[]),
    layer("sys", &[]),
    Layer {
        name: "tables",
        may: &["wire"],
        also: &[(
            "src/tables/atomic_map",
            &["sys::memory"],
            "a large table is slow without huge pages",
        )],
    },
    layer("model", &["wire", "tables"]),
    Layer {
        name: "dataplane",
        may: &["wire", "tables"],
        also: &[
            ("src/dataplane/linux", &["sys"], "the real ends are sockets"),
            (
                "src/dataplane/runtime",
                &["sys"],
                "workers are threads that wait on descriptors",
            ),
        ],
    },
    layer("host", &["wire", "sys"]),
    layer("cluster", &["wire", "tables", "model"]),
    Layer {
        name: "services",
        may: &["wire", "tables", "model"],
        also: &[(
            "src/services/dns/server",
            &["sys"],
            "sockets are opened inside a network's namespace",
        )],
    },
    layer(
        "agent",
        &[
            "wire",
            "sys",
            "tables",
            "model",
            "dataplane",
            "host",
            "cluster",
            "services",
        ],
    ),
    Layer {
        name: "frontend",
        may: &["agent::api"],
        also: &[
            (
                "src/frontend/daemon",
                &["agent"],
                "puts the agent together and starts it",
            ),
            (
                "src/frontend/cni/kernel",
                &["host", "sys"],
                "a CNI plugin looks into the workload's namespace itself",
            ),
        ],
    },
    layer("lab", &["wire", "sys", "host", "agent::api", "frontend"]),
    layer("bench", &["wire", "sys", "host", "agent::api", "frontend"]),
    layer(
        "fuzzing",
        &[
            "wire",
            "sys",
            "tables",
            "model",
            "dataplane",
            "host",
            "cluster",
            "services",
            "agent",
            "frontend",
        ],
    ),
    layer("bin", &["agent::api", "frontend", "lab", "bench"]),
];

/// Imports of one file that its layer does not allow.
pub fn check(source: &Source) -> Vec<Finding> {
    let Some(name) = layer_of(&source.path) else {
        return Vec::new();
    };
    let Some(layer) = LAYERS.iter().find(|layer| layer.name == name) else {
        return vec![format!("{}: layer {name} is not in the table", source.path)];
    };
    let forbidden = imports(source, name)
        .into_iter()
        .filter(|import| !layer.allows(&source.path, import));
    forbidden
        .map(|import| {
            let place = source.place(import.at);
            format!(
                "{place}: {name} imports {}, it may import {:?}",
                import.path.join("::"),
                layer.may
            )
        })
        .collect()
}

/// Rows of the table that no file stands for, and exceptions for files that are gone.
pub fn check_table(sources: &[Source]) -> Vec<Finding> {
    let exists = |prefix: &str| sources.iter().any(|s| s.path.starts_with(prefix));
    let mut found = Vec::new();
    for layer in LAYERS {
        if !exists(&format!("src/{}", layer.name)) {
            found.push(format!("layer {} has no file", layer.name));
        }
        for (file, _, _) in layer.also.iter().filter(|(file, ..)| !exists(file)) {
            found.push(format!("exception for {file}, which does not exist"));
        }
    }
    found
}

impl Layer {
    fn allows(&self, path: &str, import: &Import) -> bool {
        let extra = self.also.iter().filter(|(file, ..)| {
            let rest = path.strip_prefix(file);
            rest.is_some_and(|rest| rest.starts_with('.') || rest.starts_with('/'))
        });
        let mut allowed = self
            .may
            .iter()
            .chain(extra.flat_map(|(_, more, _)| more.iter()));
        import.path[0] == self.name || allowed.any(|rule| import.is_within(rule))
    }
}

/// A path into another top-level module.
#[derive(Debug)]
struct Import {
    path: Vec<String>,
    at: usize,
}

impl Import {
    /// `agent::api` covers itself and what is below it; `agent` covers all of the layer.
    fn is_within(&self, rule: &str) -> bool {
        let mut mine = self.path.iter();
        rule.split("::")
            .all(|part| mine.next().is_some_and(|own| own == part))
    }
}

/// The first directory or file below `src`; `lib.rs` is no layer, it only names them.
fn layer_of(path: &str) -> Option<&str> {
    let below = path.strip_prefix("src/")?;
    let first = below.split('/').next()?;
    (first != "lib.rs").then(|| first.trim_end_matches(".rs"))
}

/// How deep a file's module is: 0 for the crate root.
fn depth(path: &str) -> usize {
    let below = path.trim_start_matches("src/").trim_end_matches(".rs");
    below.trim_end_matches("/mod").split('/').count()
}

/// Every path of a file that leads to a top-level module: `crate::…`, `super::…` far enough, and in a
/// program `weft::…`.
fn imports(source: &Source, name: &str) -> Vec<Import> {
    let text = source.shipped.as_bytes();
    let mut found = Vec::new();
    let mut add = |at: usize, from: usize| {
        let mut paths = Vec::new();
        path_tree(text, from, &[], &mut paths);
        found.extend(paths.into_iter().map(|path| Import { path, at }));
    };
    let root = if name == "bin" { "weft" } else { "crate" };
    for at in find_word(&source.shipped, root) {
        if let Some(from) = after_colons(text, at + root.len()) {
            add(at, from);
        }
    }
    for at in find_word(&source.shipped, "super") {
        let (steps, from) = supers(text, at);
        if steps >= depth(&source.path) && !preceded_by_colons(text, at) {
            add(at, from);
        }
    }
    let known = |import: &Import| LAYERS.iter().any(|layer| layer.name == import.path[0]);
    found.retain(|import| import.path[0] != name && (known(import) || is_module(&import.path[0])));
    found
}

/// A lower-case word that is no layer we know is taken for one that is missing in the table; types,
/// macros and functions of the root do not exist.
fn is_module(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_lowercase()) && word != "self"
}

/// Counts `super::super::…` from `at`; returns the count and where the rest starts.
fn supers(text: &[u8], mut at: usize) -> (usize, usize) {
    let mut steps = 0;
    while text[at..].starts_with(b"super") {
        let Some(next) = after_colons(text, at + 5) else {
            break;
        };
        (steps, at) = (steps + 1, next);
    }
    (steps, at)
}

fn preceded_by_colons(text: &[u8], at: usize) -> bool {
    text[..at].trim_ascii_end().ends_with(b"::")
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while text.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

fn after_colons(text: &[u8], at: usize) -> Option<usize> {
    let at = skip_space(text, at);
    text[at..]
        .starts_with(b"::")
        .then(|| skip_space(text, at + 2))
}

fn word_at(text: &[u8], at: usize) -> String {
    let word = text[at..].iter().take_while(|b| is_ident(**b));
    word.map(|b| char::from(*b)).collect()
}

/// Collects the paths of a use tree or of a path in an expression; returns where it ends.
fn path_tree(text: &[u8], at: usize, prefix: &[String], out: &mut Vec<Vec<String>>) -> usize {
    let mut at = skip_space(text, at);
    if text.get(at) == Some(&b'{') {
        at += 1;
        loop {
            at = skip_space(text, at);
            match text.get(at) {
                None => return at,
                Some(b'}') => return at + 1,
                Some(b',') => at += 1,
                Some(_) => at = path_tree(text, at, prefix, out).max(at + 1),
            }
        }
    }
    let word = word_at(text, at);
    let mut path = prefix.to_vec();
    if word.is_empty() {
        if !path.is_empty() {
            out.push(path);
        }
        return at;
    }
    at += word.len();
    path.push(word);
    if let Some(next) = after_colons(text, at) {
        return path_tree(text, next, &path, out);
    }
    out.push(path);
    let alias = skip_space(text, at);
    if word_at(text, alias) == "as" {
        at = skip_space(text, alias + 2);
        at += word_at(text, at).len();
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, text: &str) -> usize {
        check(&Source::new(path, text)).len()
    }

    #[test]
    fn an_import_down_the_page_is_found_in_every_spelling() {
        for text in [
            "use crate::agent::Agent;",
            "use crate::{wire::Mac, agent};",
            "use crate::{wire::{Mac, Vni}, agent::{self, api}};",
            "fn f() { crate :: agent :: run() }",
            "fn f() -> super::super::agent::Agent {}",
            "use super::super::agent;",
            "use crate::agent as boss;",
            "macro_rules! m { () => { $crate::agent::run() } }",
        ] {
            assert_ne!(findings("src/tables/fdb.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn imports_up_the_page_and_of_the_own_layer_pass() {
        for text in [
            "use crate::wire::{Mac, Vni};",
            "use crate::tables::Segment;",
            "use super::neigh::Neighbour;",
            "// use crate::agent;\nconst X: &str = \"crate::agent\";",
            "#[cfg(test)]\nmod tests { use crate::agent::Agent; }",
            "pub(crate) fn f() {}",
        ] {
            assert_eq!(findings("src/tables/fdb.rs", text), 0, "{text}");
        }
    }

    #[test]
    fn only_the_named_files_of_the_dataplane_know_the_kernel() {
        let text = "use crate::sys::udp::UdpSocket;";
        assert_eq!(findings("src/dataplane/linux.rs", text), 0);
        assert_eq!(findings("src/dataplane/runtime/orders.rs", text), 0);
        assert_eq!(findings("src/dataplane/forwarder.rs", text), 1);
        assert_eq!(findings("src/dataplane/linux_like.rs", text), 1);
    }

    #[test]
    fn front_ends_enter_by_the_api_alone() {
        assert_eq!(
            findings("src/frontend/cli.rs", "use crate::agent::api::Agent;"),
            0
        );
        assert_eq!(
            findings("src/frontend/cli.rs", "use crate::agent::{api, state};"),
            1
        );
        assert_eq!(
            findings("src/frontend/cli.rs", "use crate::tables::Segment;"),
            1
        );
        assert_eq!(
            findings(
                "src/bin/weft.rs",
                "use weft::dataplane::runtime::Dataplane;"
            ),
            1
        );
        assert_eq!(
            findings(
                "src/bin/weft.rs",
                "fn main() { weft::frontend::cli::main() }"
            ),
            0
        );
    }

    #[test]
    fn a_supers_chain_from_a_mod_file_reaches_the_root_sooner() {
        assert_eq!(findings("src/tables/mod.rs", "use super::agent::Agent;"), 1);
        assert_eq!(
            findings("src/tables/store/tests/mod.rs", "use super::agent::Agent;"),
            0
        );
    }

    #[test]
    fn a_layer_nobody_has_ordered_is_a_finding() {
        assert_eq!(findings("src/nobody/member.rs", ""), 1);
        assert_eq!(findings("src/wire/mac.rs", "use crate::nobody::Member;"), 1);
        assert!(check_table(&[]).len() >= LAYERS.len());
    }
}
