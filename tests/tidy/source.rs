//! One Rust file, with views in which comments, literals or tests are blank.
//!
//! Blanking keeps every byte's place, so a position in any view is a position in the file. This is
//! no parser: it knows the tokens in which code-like text can hide, and which item follows an
//! attribute.

/// A Rust file.
pub struct Source {
    /// From the top of the repository.
    pub path: String,
    /// As it is.
    pub text: String,
    /// Without comments and the contents of literals.
    pub code: String,
    /// And without what is compiled for tests only.
    pub shipped: String,
}

impl Source {
    /// Reads `text` as the file at `path`.
    pub fn new(path: &str, text: &str) -> Source {
        let code = blank_literals(text);
        let test_file = path.starts_with("tests/")
            || path.ends_with("/tests.rs")
            || path.contains("/tests/")
            || code.contains("#![cfg(test)]");
        let shipped = if test_file {
            code.bytes()
                .map(|b| if b == b'\n' { '\n' } else { ' ' })
                .collect()
        } else {
            blank_tests(&code)
        };
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
            shipped,
        }
    }

    /// `path:line` of a position.
    pub fn place(&self, at: usize) -> String {
        let line = self.text.as_bytes()[..at]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        format!("{}:{line}", self.path)
    }
}

/// Where `word` stands in `text` with no letter, digit or underscore on either side. A word that ends
/// in something else, such as `rand::`, is bounded by that.
pub fn find_word(text: &str, word: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let own = |at: usize| word.as_bytes().get(at).copied().is_some_and(is_ident);
    let joined = |at: Option<&u8>| at.copied().is_some_and(is_ident);
    let bounded = |at: &usize| {
        let end = at + word.len();
        let before = at.checked_sub(1).and_then(|i| bytes.get(i));
        !(own(0) && joined(before)) && !(own(word.len() - 1) && joined(bytes.get(end)))
    };
    text.match_indices(word)
        .map(|(at, _)| at)
        .filter(bounded)
        .collect()
}

pub fn is_ident(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// Comments and the insides of string and character literals become spaces.
fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = match bytes[at] {
            b'/' if rest.starts_with(b"//") => at + line_len(rest),
            b'/' if rest.starts_with(b"/*") => at + block_comment_len(rest),
            b'"' => at + string_len(rest),
            b'r' if raw_hashes(rest).is_some() => at + raw_string_len(rest),
            b'\'' => at + char_len(&text[at..]),
            _ => {
                at += 1;
                continue;
            }
        };
        let end = end.min(bytes.len());
        blank(&mut out[at..end]);
        at = end.max(at + 1);
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn blank(bytes: &mut [u8]) {
    bytes
        .iter_mut()
        .filter(|b| **b != b'\n')
        .for_each(|b| *b = b' ');
}

fn line_len(rest: &[u8]) -> usize {
    rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
}

/// Block comments nest.
fn block_comment_len(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string_len(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

/// How many `#` open a raw string here, if one does.
fn raw_hashes(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    (rest.get(1 + hashes) == Some(&b'"')).then_some(hashes)
}

fn raw_string_len(rest: &[u8]) -> usize {
    let hashes = raw_hashes(rest).unwrap_or(0);
    let close = format!("\"{}", "#".repeat(hashes));
    let inside = hashes + 2;
    let found = rest[inside..]
        .windows(close.len())
        .position(|w| w == close.as_bytes());
    found.map_or(rest.len(), |at| inside + at + close.len())
}

/// The length of a character literal; 1 for a lifetime's quote.
fn char_len(rest: &str) -> usize {
    let mut chars = rest.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((escaped, _))) => {
            let close = rest[escaped + 1..].find('\'');
            close.map_or(1, |at| escaped + 1 + at + 1)
        }
        (Some(_), Some((end, '\''))) => end + 1,
        _ => 1,
    }
}

/// Items behind `#[cfg(test)]` become spaces.
fn blank_tests(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    for (at, attribute) in code.match_indices("#[cfg(test)]") {
        let end = item_end(code.as_bytes(), at + attribute.len());
        blank(&mut out[at..end]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Where the item that starts at `at` ends: at its `;`, or at the brace that closes its first one.
fn item_end(code: &[u8], at: usize) -> usize {
    let mut depth = 0_usize;
    for (index, byte) in code.iter().enumerate().skip(at) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth <= 1 => return index + 1,
            b'}' => depth -= 1,
            b';' if depth == 0 => return index + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shipped(text: &str) -> String {
        let source = Source::new("src/x.rs", text);
        assert_eq!(source.shipped.len(), text.len());
        source
            .shipped
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn comments_and_literals_are_blank() {
        assert_eq!(shipped("a // unsafe\nb /* x /* y */ z */ c"), "a b c");
        assert_eq!(shipped(r#"a("un\"safe"); b"#), "a( ); b");
        assert_eq!(shipped("a(r#\"un\"safe\"#); b(br\"x\")"), "a( ); b(b )");
        assert_eq!(shipped("'\"' + '\\'' + '\\u{7f}' + 'é' + x"), "+ + + + x");
    }

    #[test]
    fn lifetimes_are_code() {
        assert_eq!(
            shipped("fn f<'a>(x: &'a str) -> &'a str"),
            "fn f< a>(x: & a str) -> & a str"
        );
    }

    #[test]
    fn test_items_are_blank_and_the_rest_stays() {
        assert_eq!(
            shipped("a; #[cfg(test)] mod tests { fn f() { {} } } b"),
            "a; b"
        );
        assert_eq!(shipped("#[cfg(test)]\nmod tests;\nb"), "b");
        assert_eq!(shipped("#[cfg(test)] use crate::x; b"), "b");
        assert_eq!(Source::new("src/a/tests.rs", "x").shipped, " ");
    }

    #[test]
    fn words_have_boundaries() {
        assert_eq!(find_word("unsafe_code unsafe my_unsafe", "unsafe"), [12]);
        assert_eq!(find_word("strand::x rand::x", "rand::"), [10]);
        assert_eq!(find_word("a::tokio;", "tokio"), [3]);
    }

    #[test]
    fn places_count_lines_from_one() {
        let source = Source::new("src/x.rs", "a\nb");
        assert_eq!(
            (source.place(0), source.place(2)),
            ("src/x.rs:1".into(), "src/x.rs:2".into())
        );
    }
}
