//! Join tokens, the gossip key ring and the CA, as managers keep them.

use aws_lc_rs::hkdf;
use serde::{Deserialize, Serialize};

use super::command::{Authority, NodeWish, TokenWish};
use super::ids::{Digest, Key, NodeId, Role};
use super::reply::{Outcome, Refusal, Reply};
use super::state::{Cluster, Scene};
use super::watch::Change;

/// Tokens that are kept at most.
pub const TOKENS_MAX: usize = 100;
/// Keys in the ring: one on its way out, one in use, one on its way in.
pub const KEYS_MAX: usize = 3;

/// A join token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// What it lets a node become.
    pub role: Role,
    /// SHA-256 of the secret.
    pub hash: Digest,
    /// Wall clock of the leader when it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Wall clock after which it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

/// A key of the gossip ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingKey {
    /// Counts up; written into each datagram.
    pub id: u32,
    /// The key.
    pub key: Key,
}

/// The gossip ring: all keys open, one seals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRing {
    /// From old to new, at most [`KEYS_MAX`].
    pub keys: Vec<RingKey>,
    /// Id of the key that seals.
    pub primary: u32,
    next_id: u32,
}

impl KeyRing {
    /// With one key, which seals.
    pub fn new(key: Key) -> KeyRing {
        KeyRing {
            keys: vec![RingKey { id: 1, key }],
            primary: 1,
            next_id: 2,
        }
    }

    /// Brings a key in. The one before it seals from now on: by now every node has it.
    fn rotate(&mut self, key: Key) {
        if let Some(newest) = self.keys.last() {
            self.primary = newest.id;
        }
        self.push(key);
        while self.keys.len() > KEYS_MAX {
            self.keys.remove(0);
        }
    }

    /// Only the new key is left.
    fn replace(&mut self, key: Key) {
        self.keys.clear();
        self.primary = self.push(key);
    }

    /// Ids of the keys in the order in which nodes use them: the one that seals first, then from new to old.
    pub fn order(&self) -> Vec<u32> {
        let others = self.keys.iter().rev().map(|key| key.id);
        let others = others.filter(|id| *id != self.primary);
        std::iter::once(self.primary).chain(others).collect()
    }

    /// The keys in the order of [`KeyRing::order`].
    pub fn in_order(&self) -> Vec<Key> {
        let find = |id| self.keys.iter().find(|key| key.id == id);
        let keys = self.order().into_iter().filter_map(find);
        keys.map(|key| key.key.clone()).collect()
    }

    fn push(&mut self, key: Key) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.keys.push(RingKey { id, key });
        id
    }
}

impl Cluster {
    /// The role that a token proves.
    pub fn role_of_token(&self, hash: Digest, wall_ms: u64) -> Result<Role, Refusal> {
        let mut found = None;
        for token in &self.tokens {
            // Looks at all of them, however early one fits.
            if token.hash == hash {
                found = Some(token);
            }
        }
        let token = found.ok_or(Refusal::TokenUnknown)?;
        match token.expires_ms {
            Some(end) if end <= wall_ms => Err(Refusal::TokenExpired {
                role: token.role,
                ago_s: (wall_ms - end) / 1000,
            }),
            _ => Ok(token.role),
        }
    }

    pub(super) fn join(
        &mut self,
        scene: &mut Scene<'_>,
        node: &NodeWish,
        token: Digest,
    ) -> Outcome {
        let role = self.role_of_token(token, scene.stamp.wall_ms)?;
        self.admit(scene, node, role)
    }

    pub(super) fn token_add(&mut self, scene: &Scene<'_>, wish: &TokenWish) -> Outcome {
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::TooMany {
                what: "join tokens".into(),
                count: self.tokens.len() as u64 + 1,
                max: TOKENS_MAX as u64,
            });
        }
        let now = scene.stamp.wall_ms;
        self.tokens.push(Token {
            role: wish.role,
            hash: wish.hash,
            created_ms: now,
            expires_ms: wish.life_ms.map(|life| now.saturating_add(life)),
        });
        Ok(Reply::Done)
    }

    pub(super) fn token_rotate(&mut self, scene: &Scene<'_>, wish: &TokenWish) -> Outcome {
        self.tokens.retain(|token| token.role != wish.role);
        self.token_add(scene, wish)
    }

    pub(super) fn key_rotate(&mut self, scene: &mut Scene<'_>, key: &Key) -> Outcome {
        self.keys.rotate(key.clone());
        self.tell_keys(scene);
        Ok(Reply::Done)
    }

    pub(super) fn key_replace(&mut self, scene: &mut Scene<'_>, key: &Key) -> Outcome {
        self.keys.replace(key.clone());
        self.tell_keys(scene);
        Ok(Reply::Done)
    }

    fn tell_keys(&self, scene: &mut Scene<'_>) {
        scene.changes.push(Change::Keys(self.keys.clone()));
        scene.changes.extend(self.network_key_views());
    }

    /// The keys of a network, for a node that takes part in it. They follow the ring: a key that comes in there
    /// comes in here. They are derived from what only managers know, so that whoever has the ring, and
    /// takes no part in the network, does not have them.
    pub(super) fn network_keys(&self, node: NodeId, network: &str) -> Change {
        let keys = self.keys.order().into_iter();
        let keys = keys.map(|id| derive(self.authority.key.reveal(), network, id));
        Change::NetworkKeys {
            node,
            network: network.to_owned(),
            keys: keys.collect(),
        }
    }

    /// The keys of every network, for every node that takes part in it.
    pub(super) fn network_key_views(&self) -> Vec<Change> {
        let parts = self.parts().into_iter();
        parts
            .map(|(network, node)| self.network_keys(node, &network))
            .collect()
    }

    /// Puts the next CA beside the one in use. Nodes trust both from then on; certificates still come from
    /// the one in use.
    pub(super) fn authority_rotate(&mut self, scene: &mut Scene<'_>, next: &Authority) -> Outcome {
        self.next_authority = Some(next.clone());
        scene.changes.push(self.identity());
        Ok(Reply::Done)
    }

    /// Forgets tokens whose time is over.
    pub(super) fn drop_dead_tokens(&mut self, wall_ms: u64) {
        // A day later, so that whoever comes with one is told what is wrong.
        let dead = |token: &Token| {
            token
                .expires_ms
                .is_some_and(|end| end.saturating_add(DAY_MS) <= wall_ms)
        };
        self.tokens.retain(|token| !dead(token));
    }
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A key of a network (HKDF-SHA256, RFC 5869), from the CA's private key.
fn derive(secret: &str, network: &str, id: u32) -> Key {
    const LABEL: &[u8] = b"weft network key 1";
    let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, LABEL);
    let key = salt.extract(secret.as_bytes());
    let id = id.to_be_bytes();
    let info = [&id[..], network.as_bytes()];
    let mut bytes = [0; 32];
    let filled = key
        .expand(&info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut bytes));
    // 32 bytes are as many as SHA-256 yields at once.
    filled.expect("the length fits");
    Key::from_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::from_bytes([n; 32])
    }

    #[test]
    fn a_new_key_seals_only_once_the_next_one_has_come() {
        let mut ring = KeyRing::new(key(1));
        ring.rotate(key(2));
        assert_eq!((ring.primary, ring.keys.len()), (1, 2));
        ring.rotate(key(3));
        assert_eq!((ring.primary, ring.keys.len()), (2, 3));
        ring.rotate(key(4));
        assert_eq!((ring.primary, ring.keys.len()), (3, 3));
        assert!(ring.keys.iter().all(|k| k.key != key(1)));
        assert_eq!(ring.order(), [3, 4, 2]);
        assert_eq!(ring.in_order(), [key(3), key(4), key(2)]);
        ring.replace(key(5));
        assert_eq!((ring.primary, ring.keys.len()), (5, 1));
    }

    #[test]
    fn keys_of_networks_depend_on_secret_network_and_ring() {
        let one = derive("secret", "a", 1);
        assert_eq!(one, derive("secret", "a", 1));
        for other in [
            derive("other", "a", 1),
            derive("secret", "b", 1),
            derive("secret", "a", 2),
        ] {
            assert_ne!(one, other);
        }
    }
}
