//! Words that belong in no tracked file: notes to oneself, and the place the work was done at.
//!
//! The list is spelled in halves, or this file would be its own finding.

use super::Finding;

/// Whole words, matched as written.
const NOTES: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];

/// Anywhere in a line, in any case.
const WORKPLACE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/tmp", "/wf"),
    concat!("this ses", "sion"),
    concat!("previous ses", "sion"),
    concat!("last ses", "sion"),
    concat!("ses", "sion notes"),
    concat!("house", "-style.md"),
    concat!("shared", "/design"),
    concat!("shared", "/reference"),
    concat!("reference", "/peers"),
    concat!("reference", "/speed"),
    concat!("the br", "ief says"),
    concat!("CONT", "RACT.md"),
];

/// Followed by a number: this project's tracker is not part of it. `moby#25526` names another's.
const NUMBERED: &[&str] = &[
    concat!("iss", "ue "),
    concat!("iss", "ue #"),
    concat!("pull req", "uest #"),
    concat!("tick", "et #"),
];

/// The banned words of a file's lines.
pub fn check(path: &str, text: &str) -> Vec<Finding> {
    // A lock file holds names and digests that others chose.
    if path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let lines = text.lines().enumerate();
    lines
        .filter_map(|(index, line)| Some(format!("{path}:{}: {}", index + 1, banned(line)?)))
        .collect()
}

fn banned(line: &str) -> Option<&'static str> {
    let lower = line.to_lowercase();
    let note = NOTES.iter().find(|word| has_word(line, word));
    let workplace = || {
        WORKPLACE
            .iter()
            .find(|word| lower.contains(&word.to_lowercase()))
    };
    let numbered = || NUMBERED.iter().find(|word| has_numbered(&lower, word));
    note.or_else(workplace).or_else(numbered).copied()
}

/// `XXXXXX` of a temporary name is not the three letters.
fn has_word(line: &str, word: &str) -> bool {
    let letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !letter(before) && !letter(after)
    })
}

fn has_numbered(line: &str, word: &str) -> bool {
    let digit = |at: usize| line[at + word.len()..].starts_with(|c: char| c.is_ascii_digit());
    line.match_indices(word).any(|(at, _)| digit(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_to_oneself_are_found_as_words() {
        for word in NOTES {
            assert_eq!(
                check("a", &format!("x\n// {word}: later")).len(),
                1,
                "{word}"
            );
            assert_eq!(check("a", &format!("a{word}b")).len(), 0, "{word}");
        }
        assert_eq!(check("a", "mktemp /tmp/weft.XXXXXX").len(), 0);
    }

    #[test]
    fn the_workplace_is_found_in_any_case() {
        for word in WORKPLACE {
            assert_eq!(
                check("a", &format!("see {}", word.to_uppercase())).len(),
                1,
                "{word}"
            );
        }
        assert_eq!(check("a", "a TCP session; the framework/helper").len(), 0);
    }

    #[test]
    fn numbers_of_a_tracker_are_found_and_those_of_other_projects_are_not() {
        for word in NUMBERED {
            assert_eq!(check("a", &format!("as {word}3 asks")).len(), 1, "{word}");
        }
        assert_eq!(
            check("a", "moby#25526; an issue of trust; issue a command").len(),
            0
        );
    }
}
