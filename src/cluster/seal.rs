//! Datagrams sealed with the cluster's keys or a network's: nobody outside reads, alters or repeats them.
//!
//! ```text
//! 0      format, 1
//! 1..5   key id
//! 5..    sender, epoch, counter             varints, authenticated
//! ..     AES-128-GCM of the message, 16 bytes of tag
//! ```
//!
//! Each sender has a key of its own per ring key and epoch, derived by HKDF-SHA256, so the counter alone is
//! the nonce and two nodes never meet in one. An epoch is never used twice (that is what an epoch is), so
//! no counter is either. What this does *not* prove is which holder of the key sent a datagram: whatever
//! matters is signed inside.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hkdf};

use super::NodeNumber;
use super::gossip::bytes::{Reader, VARINT_LEN_MAX, Write};

const FORMAT: u8 = 1;
const TAG_LEN: usize = 16;
/// Most bytes that sealing adds.
pub const OVERHEAD_MAX: usize = 1 + 4 + 3 * VARINT_LEN_MAX + TAG_LEN;
/// A datagram that comes later than this many after it was sealed is refused.
const WINDOW: u64 = 8_192;
const WORDS: usize = WINDOW as usize / 64;
/// Most derived keys that are kept.
const DERIVED_MAX: usize = 4_096;
const SALT: &[u8] = b"weft gossip seal 1";

/// 32 secret bytes of a ring.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({:08x})", self.id())
    }
}

impl Secret {
    /// What names it on the wire; says nothing about it.
    pub fn id(&self) -> u32 {
        let hash = digest::digest(&digest::SHA256, &[SALT, b" id", &self.0].concat());
        let front = hash.as_ref().first_chunk::<4>();
        u32::from_be_bytes(*front.expect("SHA-256 has 32 bytes"))
    }
}

/// Why nothing was sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The ring is empty: encrypt or do not send.
    #[error("there is no key to seal with")]
    NoKey,
    /// 2^60 datagrams were sealed in this epoch.
    #[error("the counter is used up; the agent has to start again")]
    Exhausted,
}

/// Why a datagram was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum OpenError {
    /// Not of this format.
    #[error("malformed")]
    Malformed,
    /// Sealed with a key that is in no ring here.
    #[error("unknown key")]
    UnknownKey,
    /// From a node or an epoch that does not exist.
    #[error("unknown sender")]
    UnknownSender,
    /// Altered, or not sealed with the key it names.
    #[error("forged")]
    Forged,
    /// Of an epoch before the one its sender is in.
    #[error("of an earlier epoch")]
    OldEpoch,
    /// Seen before, or too late to tell.
    #[error("replayed or too late")]
    Replayed,
}

/// A datagram's content and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Who sealed it.
    pub node: NodeNumber,
    /// In which epoch.
    pub epoch: u64,
    /// The network whose key it is sealed with; empty for the cluster's.
    pub scope: Arc<str>,
    /// The message.
    pub payload: Vec<u8>,
}

/// Seals what this node sends and opens what it receives.
pub struct Seal {
    node: NodeNumber,
    epoch: u64,
    counter: u64,
    /// By scope: ids in the order given, the first one seals.
    rings: BTreeMap<Arc<str>, Vec<u32>>,
    secrets: BTreeMap<u32, (Arc<str>, Secret)>,
    derived: BTreeMap<(u32, NodeNumber, u64), LessSafeKey>,
    windows: BTreeMap<NodeNumber, Window>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seal")
            .field("node", &self.node)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl Seal {
    /// Without keys.
    pub fn new(node: NodeNumber, epoch: u64) -> Seal {
        Seal {
            node,
            epoch,
            counter: 0,
            rings: BTreeMap::new(),
            secrets: BTreeMap::new(),
            derived: BTreeMap::new(),
            windows: BTreeMap::new(),
        }
    }

    /// Replaces the ring of a scope (empty for the cluster) as a whole. The first key seals, all of them
    /// open. To rotate: add the new key last on every node, then move it to the front, then drop the old one.
    pub fn set_keys(&mut self, scope: &str, keys: &[Secret]) {
        let scope: Arc<str> = scope.into();
        self.secrets.retain(|_, (other, _)| *other != scope);
        let ids: Vec<u32> = keys.iter().map(Secret::id).collect();
        for (id, key) in ids.iter().zip(keys) {
            self.secrets.insert(*id, (Arc::clone(&scope), key.clone()));
        }
        if ids.is_empty() {
            self.rings.remove(&scope);
        } else {
            self.rings.insert(scope, ids);
        }
        let secrets = &self.secrets;
        self.derived.retain(|(id, ..), _| secrets.contains_key(id));
    }

    /// Whether a scope has keys.
    pub fn has_keys(&self, scope: &str) -> bool {
        self.rings.contains_key(scope)
    }

    /// Seals a message.
    ///
    /// # Errors
    /// [`SealError`]: nothing may be sent then.
    pub fn seal(&mut self, scope: &str, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        let ring = self.rings.get(scope).ok_or(SealError::NoKey)?;
        let id = *ring.first().ok_or(SealError::NoKey)?;
        if self.counter >= 1 << 60 {
            return Err(SealError::Exhausted);
        }
        self.counter += 1;
        let (node, epoch, counter) = (self.node, self.epoch, self.counter);
        let mut out = Vec::with_capacity(payload.len() + OVERHEAD_MAX);
        out.push(FORMAT);
        out.extend(id.to_be_bytes());
        out.varint(node.0);
        out.varint(epoch);
        out.varint(counter);
        let header_len = out.len();
        let mut body = payload.to_vec();
        let key = self.derive(id, node, epoch).ok_or(SealError::NoKey)?;
        let aad = Aad::from(&out[..header_len]);
        key.seal_in_place_append_tag(nonce(counter), aad, &mut body)
            .map_err(|_| SealError::Exhausted)?;
        out.extend(body);
        Ok(out)
    }

    /// Opens a datagram of a node and epoch that `known` takes for possible. A holder of the ring key can
    /// speak under any number: an epoch that the managers have not heard of is better not believed, or the
    /// node's own datagrams would be refused as those of an earlier one.
    ///
    /// # Errors
    /// [`OpenError`]; the sender's window is as it was.
    pub fn open(
        &mut self,
        datagram: &[u8],
        known: impl Fn(NodeNumber, u64) -> bool,
    ) -> Result<Opened, OpenError> {
        let malformed = |_| OpenError::Malformed;
        let mut reader = Reader::new(datagram);
        if reader.u8().map_err(malformed)? != FORMAT {
            return Err(OpenError::Malformed);
        }
        let id = reader.u32().map_err(malformed)?;
        let node = NodeNumber(reader.varint().map_err(malformed)?);
        let epoch = reader.varint().map_err(malformed)?;
        let counter = reader.varint().map_err(malformed)?;
        let scope = match self.secrets.get(&id) {
            Some((scope, _)) => Arc::clone(scope),
            None => return Err(OpenError::UnknownKey),
        };
        if !known(node, epoch) {
            return Err(OpenError::UnknownSender);
        }
        // What the window refuses is not worth the cipher; what it lets through is not believed yet.
        if let Some(window) = self.windows.get(&node) {
            window.check(epoch, counter)?;
        }
        let mut body = reader.rest().to_vec();
        let header = &datagram[..datagram.len() - body.len()];
        let key = self.derive(id, node, epoch).ok_or(OpenError::UnknownKey)?;
        let opened = key.open_in_place(nonce(counter), Aad::from(header), &mut body);
        let len = opened.map_err(|_| OpenError::Forged)?.len();
        body.truncate(len);
        self.windows.entry(node).or_default().note(epoch, counter);
        Ok(Opened {
            node,
            epoch,
            scope,
            payload: body,
        })
    }

    /// Forgets a node that is gone for good.
    pub fn forget(&mut self, node: NodeNumber) {
        self.windows.remove(&node);
        self.derived.retain(|(_, other, _), _| *other != node);
    }

    fn derive(&mut self, id: u32, node: NodeNumber, epoch: u64) -> Option<&LessSafeKey> {
        let place = (id, node, epoch);
        if !self.derived.contains_key(&place) {
            let (_, secret) = self.secrets.get(&id)?;
            let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT);
            let (node, epoch) = (node.0.to_be_bytes(), epoch.to_be_bytes());
            let info = [&node[..], &epoch[..]];
            let key = salt.extract(&secret.0);
            let key = key.expand(&info, &AES_128_GCM).ok()?;
            if self.derived.len() >= DERIVED_MAX {
                self.derived.clear();
            }
            self.derived
                .insert(place, LessSafeKey::new(UnboundKey::from(key)));
        }
        self.derived.get(&place)
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[NONCE_LEN - 8..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Which of the last [`WINDOW`] datagrams of a sender came.
#[derive(Clone, Debug)]
struct Window {
    epoch: u64,
    /// The highest counter.
    last: u64,
    /// Bit `counter % WINDOW` is set for those that came.
    seen: Box<[u64; WORDS]>,
}

impl Default for Window {
    fn default() -> Window {
        Window {
            epoch: 0,
            last: 0,
            seen: Box::new([0; WORDS]),
        }
    }
}

impl Window {
    fn check(&self, epoch: u64, counter: u64) -> Result<(), OpenError> {
        if epoch < self.epoch {
            return Err(OpenError::OldEpoch);
        }
        if epoch > self.epoch || counter > self.last {
            return Ok(());
        }
        let (word, bit) = place(counter);
        if self.last - counter >= WINDOW || self.seen[word] & bit != 0 {
            return Err(OpenError::Replayed);
        }
        Ok(())
    }

    fn note(&mut self, epoch: u64, counter: u64) {
        if epoch > self.epoch {
            *self = Window {
                epoch,
                ..Window::default()
            };
        }
        if counter > self.last {
            // What is stepped over has not come.
            if counter - self.last >= WINDOW {
                self.seen.fill(0);
            } else {
                for skipped in self.last + 1..counter {
                    let (word, bit) = place(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.last = counter;
        }
        let (word, bit) = place(counter);
        self.seen[word] |= bit;
    }
}

fn place(counter: u64) -> (usize, u64) {
    let index = (counter % WINDOW) as usize;
    (index / 64, 1 << (index % 64))
}

#[cfg(test)]
mod tests;
