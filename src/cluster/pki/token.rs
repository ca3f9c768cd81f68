//! Join tokens: `WEFTTKN-1-<digest of the CA>-<secret>`, after Docker's `SWMTKN`.
//!
//! ```text
//! WEFTTKN-1-3sn6d0y8…(50 characters)-0ix2k…(25 characters)
//!         │ │                        └ 128 bits by chance: managers keep its SHA-256 only
//!         │ └ SHA-256 of the CA: a joining node trusts no other
//!         └ version of the form
//! ```

use std::fmt;
use std::str::FromStr;

use crate::cluster::manager::ids::Digest;
use crate::model::ident;

const PREFIX: &str = "WEFTTKN";
const VERSION: &str = "1";
/// Characters of 256 bits in base 36: 36^50 is larger than 2^256.
const DIGEST_LEN: usize = 50;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A join token. It prints only where it is meant to: `Debug` hides the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Digest of the CA it pins.
    pub authority: Digest,
    secret: u128,
}

/// Why a text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// Another kind of text.
    #[error("this is no join token: it does not have the form WEFTTKN-1-…-…")]
    Form,
    /// Docker's.
    #[error("this is a join token of Docker Swarm, not of weft")]
    Docker,
    /// Of a later version.
    #[error("this join token was made by a newer weft")]
    Newer,
    /// A part is too short, too long, or has strange characters.
    #[error("this join token is incomplete or mistyped")]
    Damaged,
}

impl JoinToken {
    /// For a CA, with a secret drawn by chance.
    pub fn new(authority: Digest, secret: u128) -> JoinToken {
        JoinToken { authority, secret }
    }

    /// What managers keep, and compare.
    pub fn hash(&self) -> Digest {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        context.update(b"weft join token 1\0");
        context.update(&self.secret.to_be_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        Digest::from_bytes(bytes)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = ident::id_from_bits(self.secret);
        write!(
            f,
            "{PREFIX}-{VERSION}-{}-{secret}",
            base36(*self.authority.bytes())
        )
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{PREFIX}-{VERSION}-{}-…",
            base36(*self.authority.bytes())
        )
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<JoinToken, BadToken> {
        let mut parts = text.trim().split('-');
        match parts.next() {
            Some(PREFIX) => {}
            Some("SWMTKN") => return Err(BadToken::Docker),
            _ => return Err(BadToken::Form),
        }
        match parts.next() {
            Some(VERSION) => {}
            Some(other) if other.parse::<u32>().is_ok() => return Err(BadToken::Newer),
            _ => return Err(BadToken::Form),
        }
        let (Some(digest), Some(secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(BadToken::Damaged);
        };
        let authority = bytes_of(digest).ok_or(BadToken::Damaged)?;
        let secret = ident::bits_from_id(secret).ok_or(BadToken::Damaged)?;
        Ok(JoinToken {
            authority: Digest::from_bytes(authority),
            secret,
        })
    }
}

/// 256 bits in base 36, by long division.
fn base36(mut bytes: [u8; 32]) -> String {
    let mut text = [b'0'; DIGEST_LEN];
    for place in text.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut bytes {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            rest = value % 36;
        }
        *place = ALPHABET[rest as usize];
    }
    text.iter().map(|b| char::from(*b)).collect()
}

fn bytes_of(text: &str) -> Option<[u8; 32]> {
    if text.len() != DIGEST_LEN {
        return None;
    }
    let mut bytes = [0_u8; 32];
    for letter in text.bytes() {
        let mut carry = ALPHABET.iter().position(|b| *b == letter)? as u32;
        for byte in bytes.iter_mut().rev() {
            let value = u32::from(*byte) * 36 + carry;
            *byte = value as u8;
            carry = value >> 8;
        }
        if carry != 0 {
            return None;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tokens_look_like_dockers_and_read_back() {
        let token = JoinToken::new(Digest::from_bytes([0xab; 32]), 36);
        let text = token.to_string();
        assert!(text.starts_with("WEFTTKN-1-"), "{text}");
        assert!(text.ends_with("-0000000000000000000000010"), "{text}");
        assert_eq!(text.len(), "WEFTTKN-1-".len() + 50 + 1 + 25);
        assert_eq!(text.parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("0000000000000000000000010"));
    }

    #[test]
    fn what_is_no_token_says_why() {
        let good = JoinToken::new(Digest::from_bytes([1; 32]), 7).to_string();
        let cut = &good[..good.len() - 1];
        for (text, why) in [
            ("", BadToken::Form),
            ("hello", BadToken::Form),
            ("WEFTTKN", BadToken::Form),
            ("SWMTKN-1-abc-def", BadToken::Docker),
            ("WEFTTKN-2-abc-def", BadToken::Newer),
            (cut, BadToken::Damaged),
            (&good.to_uppercase(), BadToken::Damaged),
            (&format!("{good}-x"), BadToken::Damaged),
            (&good.replacen('-', "-é", 3), BadToken::Form),
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(why), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_token_reads_back(digest: [u8; 32], secret: u128) {
            let token = JoinToken::new(Digest::from_bytes(digest), secret);
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_panics(text in "(WEFTTKN-1-)?[0-9a-z-é]{0,80}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
