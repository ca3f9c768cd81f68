//! Whose word counts: signatures, and what the managers' state says about nodes.

use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::cluster::NodeNumber;
use crate::tables::record::EndpointRecord;

/// Length of a signature, bytes (Ed25519, RFC 8032).
pub const SIGNATURE_LEN: usize = 64;

/// Why a record is not shown although its owner signed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum Unauthorised {
    /// An address that is not leased to the owner in its present epoch.
    #[error("an address is not leased to the node")]
    Address,
    /// A VTEP that is not the owner's.
    #[error("the VTEP is not the node's")]
    Vtep,
    /// A VNI that is not the network's.
    #[error("the VNI is not the network's")]
    Vni,
    /// A MAC that no station may have.
    #[error("the MAC is no station's")]
    Mac,
}

/// What the managers' state says. A node keeps the last state it saw, so this never waits and never fails;
/// when it changes, [`authority_changed`](super::Gossip::authority_changed) judges everything anew.
pub trait Authority {
    /// A node's name; none for a node that does not exist, or does not any longer.
    fn node_name(&self, node: NodeNumber) -> Option<Arc<str>>;

    /// Whether a node may hold the entries of a network and have endpoints in it.
    fn takes_part(&self, node: NodeNumber, network: &str) -> bool;

    /// Whether `owner` may publish `record` in `epoch`: its VTEP, VNI and addresses are its own.
    ///
    /// # Errors
    /// What is wrong with it. The record is kept, and judged again later: leases and records travel
    /// different ways, and either may be first.
    fn judge(
        &self,
        owner: NodeNumber,
        epoch: u64,
        record: &EndpointRecord,
    ) -> Result<(), Unauthorised>;

    /// Whether `signature` over `message` is that of `node`.
    fn verify(&self, node: NodeNumber, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool;
}

/// Signs for this node.
pub trait Signer {
    /// The signature over `message`.
    fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN];
}

/// The node's Ed25519 key.
pub struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// The key of a seed of 32 secret bytes.
    pub fn from_seed(seed: &[u8; 32]) -> SigningKey {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        SigningKey(pair.expect("any 32 bytes are a seed"))
    }

    /// The half that others verify with.
    pub fn public(&self) -> PublicKey {
        let bytes = self.0.public_key().as_ref();
        PublicKey(bytes.try_into().expect("public keys have 32 bytes"))
    }
}

impl Signer for SigningKey {
    fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let signature = self.0.sign(message);
        let bytes = signature.as_ref().try_into();
        bytes.expect("Ed25519 signatures have 64 bytes")
    }
}

/// The key that a node's signatures are verified with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// Whether `signature` over `message` was made by this key's other half.
    pub fn verify(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_fits_its_message_and_key_alone() {
        let (key, other) = (
            SigningKey::from_seed(&[1; 32]),
            SigningKey::from_seed(&[2; 32]),
        );
        let signature = key.sign(b"a");
        assert!(key.public().verify(b"a", &signature));
        assert!(!key.public().verify(b"b", &signature));
        assert!(!other.public().verify(b"a", &signature));
        let mut bent = signature;
        bent[63] ^= 1;
        assert!(!key.public().verify(b"a", &bent));
    }
}
