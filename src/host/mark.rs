//! Ownership marks: the alternative name every link of ours carries.
//!
//! `weft:<id>:<what>:<owner>`, for example `weft:zmq0dp2jpu1tz4mfk8zl1p0a2:br0:node-1`. The id is that of
//! the network or endpoint, `what` the plain name of the link (of an endpoint: its name in the
//! workload), the owner a word for people. Alternative names are unique in a namespace and at most
//! 127 bytes (`ALTIFNAMSIZ`); the owner is cut to fit.

use std::fmt;

/// Who made a link, for which network or endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Network id on `lo`, bridges and uplinks; endpoint id on both ends of a workload's pair.
    pub id: String,
    /// Plain name of the link; of an endpoint, its name in the workload.
    pub what: String,
    /// The node or agent that made it.
    pub owner: String,
}

impl Mark {
    /// A mark; parts that would not survive as an alternative name are cut or replaced by `-`.
    pub fn new(id: &str, what: &str, owner: &str) -> Mark {
        let room = LEN_MAX.saturating_sub(PREFIX.len() + id.len() + what.len() + 2);
        let mut owner = clean(owner);
        owner.truncate(room);
        Mark {
            id: clean(id),
            what: clean(what),
            owner,
        }
    }

    /// Reads an alternative name; `None` if it is not a mark of ours.
    pub fn parse(altname: &str) -> Option<Mark> {
        let mut parts = altname.strip_prefix(PREFIX)?.splitn(3, ':');
        Some(Mark {
            id: parts.next()?.to_owned(),
            what: parts.next()?.to_owned(),
            owner: parts.next()?.to_owned(),
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}:{}:{}", self.id, self.what, self.owner)
    }
}

/// One ASCII byte per character, so that cutting never splits one.
fn clean(part: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    part.chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .collect()
}

const PREFIX: &str = "weft:";
const LEN_MAX: usize = 127;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_round_trip() {
        let mark = Mark::new("zmq0dp2jpu1tz4mfk8zl1p0a2", "br0", "node-1");
        assert_eq!(
            mark.to_string(),
            "weft:zmq0dp2jpu1tz4mfk8zl1p0a2:br0:node-1"
        );
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    }

    #[test]
    fn a_long_owner_is_cut_to_the_kernels_limit() {
        let mark = Mark::new(
            "zmq0dp2jpu1tz4mfk8zl1p0a2",
            "veth1a2b3c4",
            &"é:x".repeat(80),
        );
        assert_eq!(mark.to_string().len(), LEN_MAX);
        assert_eq!(Mark::parse(&mark.to_string()), Some(mark));
    }

    #[test]
    fn other_names_are_no_marks() {
        for altname in [
            "",
            "enp3s0",
            "weft",
            "weft:",
            "weft:a",
            "weft:a:b",
            "xweft:a:b:c",
        ] {
            assert_eq!(Mark::parse(altname), None, "{altname}");
        }
    }
}
