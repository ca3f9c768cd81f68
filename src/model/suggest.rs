//! "Did you mean …": the closest of a list of known words.

/// The known word closest to `word`, if it is close enough to be a slip of the finger.
///
/// Case and the difference between `-` and `_` count for nothing. A candidate qualifies when at most a
/// third of the word (and at least one letter) differs, or when one contains the other's last part after a dot.
pub fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = normalise(word);
    if wanted.is_empty() {
        return None;
    }
    let mut best: Option<(usize, &'a str)> = None;
    for candidate in known {
        let plain = normalise(candidate);
        let mut distance = edit_distance(&wanted, &plain);
        let tail = plain.rsplit('.').next().unwrap_or_default();
        if tail != plain {
            distance = distance.min(edit_distance(&wanted, tail) + 1);
        }
        let limit = (wanted.chars().count() / 3).max(1);
        if distance <= limit && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// `, did you mean "x"?` or nothing, to be appended to a message.
pub fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    closest(word, known).map_or_else(String::new, |found| format!("; did you mean \"{found}\"?"))
}

fn normalise(word: &str) -> String {
    word.to_ascii_lowercase().replace('-', "_")
}

/// Levenshtein distance in characters, with one row of memory.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["vxlan_port", "workers", "com.docker.network.driver.mtu"];
        assert_eq!(closest("vxlan-port", known), Some("vxlan_port"));
        assert_eq!(closest("worker", known), Some("workers"));
        assert_eq!(closest("mtu", known), Some("com.docker.network.driver.mtu"));
        assert_eq!(closest("colour", known), None);
        assert_eq!(closest("", known), None);
    }

    #[test]
    fn distance_counts_single_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("abc", "abc"), 0);
    }
}
