//! Names of things that managers agree on: nodes, requests, roles, digests; and secrets that do not print.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::model::ident;

/// A text that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not {wanted}")]
pub struct BadText {
    text: String,
    wanted: &'static str,
}

impl BadText {
    fn new(text: &str, wanted: &'static str) -> BadText {
        BadText {
            text: text.chars().take(80).collect(),
            wanted,
        }
    }
}

/// Serialises as the `Display` text in every format, so that ids can be keys of JSON objects.
macro_rules! as_text {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

/// A node of the cluster: 128 bits, written as 25 base-36 characters. It outlives restarts of the node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u128);

impl NodeId {
    /// From random bits.
    pub fn from_bits(bits: u128) -> NodeId {
        NodeId(bits)
    }

    /// The bits.
    pub fn bits(self) -> u128 {
        self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&ident::id_from_bits(self.0))
    }
}

impl FromStr for NodeId {
    type Err = BadText;

    fn from_str(text: &str) -> Result<NodeId, BadText> {
        let bits = ident::bits_from_id(text);
        bits.map(NodeId)
            .ok_or_else(|| BadText::new(text, "a node id of 25 characters 0-9 and a-z"))
    }
}

as_text!(NodeId);

/// One wish of one proposer, however often it is sent. Random, so that nobody can guess another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u128);

impl RequestId {
    /// From random bits.
    pub fn from_bits(bits: u128) -> RequestId {
        RequestId(bits)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for RequestId {
    type Err = BadText;

    fn from_str(text: &str) -> Result<RequestId, BadText> {
        let bits = u128::from_str_radix(text, 16).ok();
        bits.filter(|_| text.len() == 32)
            .map(RequestId)
            .ok_or_else(|| BadText::new(text, "a request id of 32 hexadecimal digits"))
    }
}

as_text!(RequestId);

/// What a node may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Runs workloads.
    Worker,
    /// Takes part in the Raft log, and runs workloads.
    Manager,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Worker => "worker",
            Role::Manager => "manager",
        })
    }
}

impl FromStr for Role {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Role, BadText> {
        match text {
            "worker" => Ok(Role::Worker),
            "manager" => Ok(Role::Manager),
            _ => Err(BadText::new(text, "a role: worker or manager")),
        }
    }
}

/// A SHA-256 digest: of a certificate, a CA or a token's secret. Compared in constant time.
#[derive(Clone, Copy, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::derived_hash_with_manual_eq)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Digest {
    /// Looks at every byte, whatever the first ones say.
    fn eq(&self, other: &Digest) -> bool {
        let pairs = self.0.iter().zip(&other.0);
        std::hint::black_box(pairs.fold(0, |sum, (a, b)| sum | (a ^ b))) == 0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Digest {
    type Err = BadText;

    fn from_str(text: &str) -> Result<Digest, BadText> {
        let bad = || BadText::new(text, "a digest of 64 hexadecimal digits");
        unhex(text).map(Digest).ok_or_else(bad)
    }
}

as_text!(Digest);

/// The public half of the key that a node signs its gossip with (Ed25519).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VerifyKey([u8; 32]);

impl VerifyKey {
    /// From its bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> VerifyKey {
        VerifyKey(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Digest(self.0), f)
    }
}

impl FromStr for VerifyKey {
    type Err = BadText;

    fn from_str(text: &str) -> Result<VerifyKey, BadText> {
        let bad = || BadText::new(text, "a public key of 64 hexadecimal digits");
        unhex(text).map(VerifyKey).ok_or_else(bad)
    }
}

as_text!(VerifyKey);

/// A key of 32 bytes. It serialises, for it has to reach the log, but does not print.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// From its bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&Digest(self.0))
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Key, D::Error> {
        let text = String::deserialize(d)?;
        let bad = || de::Error::custom("a key is not 64 hexadecimal digits");
        unhex(&text).map(Key).ok_or_else(bad)
    }
}

/// A text that must not show up in logs, such as a private key in PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SecretText(String);

impl SecretText {
    /// Hides `text`.
    pub fn new(text: String) -> SecretText {
        SecretText(text)
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(…)")
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip_and_others_are_refused() {
        let node = NodeId::from_bits(u128::MAX);
        assert_eq!(node.to_string().parse(), Ok(node));
        let request = RequestId::from_bits(7);
        assert_eq!(request.to_string().parse(), Ok(request));
        let digest = Digest::from_bytes([0xa5; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for text in ["", "x", "é", &"g".repeat(64), &"é".repeat(32)] {
            assert!(text.parse::<NodeId>().is_err(), "{text}");
            assert!(text.parse::<RequestId>().is_err(), "{text}");
            assert!(text.parse::<Digest>().is_err(), "{text}");
            assert!(text.parse::<Role>().is_err(), "{text}");
        }
        let error = "manger".parse::<Role>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"manger\" is not a role: worker or manager"
        );
    }

    #[test]
    fn secrets_do_not_print() {
        let key = Key::from_bytes([0x5a; 32]);
        let text = SecretText::new("hush".into());
        let printed = format!("{key:?} {text:?}");
        assert!(
            !printed.contains("5a") && !printed.contains("hush"),
            "{printed}"
        );
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), key);
    }

    #[test]
    fn digests_differ_by_any_byte() {
        let digest = Digest::from_bytes([1; 32]);
        for at in 0..32 {
            let mut other = [1; 32];
            other[at] = 2;
            assert_ne!(digest, Digest::from_bytes(other));
        }
    }
}
