//! The cluster's certificates: the CA, nodes' certificates with id and role in their names, and when to renew.
//!
//! ```text
//! subject alternative names of a node's certificate
//!   <node id>.node.<cluster id>.weft          who it is
//!   manager.<cluster id>.weft                 what it may do; or worker.<cluster id>.weft
//! ```
//! A client asks for `manager.<cluster id>.weft`, so that TLS itself refuses a worker in a manager's place. Only
//! managers' certificates may serve. Time is an argument; chance is where keys are made.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::manager::command::Authority;
use super::manager::ids::{Digest, NodeId, Role, SecretText};

pub mod token;

/// How long a node's certificate is good for, in seconds: 90 days, as in Docker Swarm.
pub const NODE_LIFE_S: u64 = 90 * DAY_S;
/// How long the CA is good for, in seconds: ten years.
pub const AUTHORITY_LIFE_S: u64 = 3650 * DAY_S;
/// How far back a certificate's life begins, in seconds: a node whose clock is an hour behind can use it.
pub const BACKDATE_S: u64 = 65 * 60;
const DAY_S: u64 = 24 * 60 * 60;
/// Bytes of a certificate signing request at most; ours have some 200.
const CSR_LEN_MAX: usize = 4096;

/// What is wrong with a key, certificate or request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PkiError {
    /// It cannot be made.
    #[error("cannot make {what}: {reason}")]
    Make {
        /// A certificate, for one.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// It is not what it should be.
    #[error("{what} cannot be read: {reason}")]
    Read {
        /// A certificate, for one.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// A certificate without the names that ours have.
    #[error("the certificate names no node of a weft cluster")]
    NotANode,
}

fn make(what: &'static str) -> impl Fn(rcgen::Error) -> PkiError {
    move |e| PkiError::Make {
        what,
        reason: e.to_string(),
    }
}

fn read(what: &'static str, reason: impl ToString) -> PkiError {
    PkiError::Read {
        what,
        reason: reason.to_string(),
    }
}

/// Makes the CA of a cluster.
///
/// # Errors
/// When the system has no randomness.
pub fn make_authority(cluster: &str, now_s: u64) -> Result<Authority, PkiError> {
    let make = make("the CA");
    let key = KeyPair::generate().map_err(&make)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, cluster);
    params
        .distinguished_name
        .push(DnType::CommonName, "weft CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_life(&mut params, now_s, AUTHORITY_LIFE_S);
    let certificate = params.self_signed(&key).map_err(&make)?;
    Ok(Authority {
        certificate: certificate.pem(),
        key: SecretText::new(key.serialize_pem()),
        digest: digest(certificate.der()),
    })
}

/// A node's private key, and the request to certify it.
#[derive(Debug)]
pub struct NodeKey {
    /// Private key in PEM. It never leaves the node.
    pub key: SecretText,
    /// Certificate signing request in DER.
    pub csr: Vec<u8>,
}

/// Makes a node's key. The request proves that the node has it, and asks for no name: the CA decides.
///
/// # Errors
/// When the system has no randomness.
pub fn make_node_key() -> Result<NodeKey, PkiError> {
    let make = make("a key");
    let key = KeyPair::generate().map_err(&make)?;
    let params = CertificateParams::default();
    let csr = params.serialize_request(&key).map_err(&make)?;
    Ok(NodeKey {
        key: SecretText::new(key.serialize_pem()),
        csr: csr.der().to_vec(),
    })
}

/// What a node's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeName {
    /// Id of the cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
}

impl NodeName {
    /// The name that clients ask a manager of this cluster for.
    pub fn manager_of(cluster: &str) -> String {
        format!("{}.{cluster}.{SUFFIX}", Role::Manager)
    }

    fn names(&self) -> Vec<String> {
        let NodeName {
            cluster,
            node,
            role,
        } = self;
        vec![
            format!("{node}.node.{cluster}.{SUFFIX}"),
            format!("{role}.{cluster}.{SUFFIX}"),
        ]
    }
}

const SUFFIX: &str = "weft";

/// A certificate and its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// In PEM.
    pub certificate: String,
    /// SHA-256 of its DER form.
    pub digest: Digest,
}

/// Certifies the key of a request under a name of our choice. What the request asks for beside is ignored.
///
/// # Errors
/// When the request is not signed by its key, or the CA cannot be used.
pub fn certify(
    authority: &Authority,
    csr: &[u8],
    name: &NodeName,
    now_s: u64,
) -> Result<Issued, PkiError> {
    if csr.len() > CSR_LEN_MAX {
        return Err(read("the signing request", "it is too long"));
    }
    let request = CertificateSigningRequestDer::from(csr);
    let request = CertificateSigningRequestParams::from_der(&request)
        .map_err(|e| read("the signing request", e))?;
    let key = KeyPair::from_pem(authority.key.reveal()).map_err(|e| read("the CA's key", e))?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, key)
        .map_err(|e| read("the CA's certificate", e))?;
    let make = make("a certificate");
    let mut params = CertificateParams::new(name.names()).map_err(&make)?;
    params
        .distinguished_name
        .push(DnType::OrganizationName, name.cluster.as_str());
    let role = name.role.to_string();
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, role);
    params
        .distinguished_name
        .push(DnType::CommonName, name.node.to_string());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if name.role == Role::Manager {
        params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
    }
    set_life(&mut params, now_s, NODE_LIFE_S);
    let certificate = params
        .signed_by(&request.public_key, &issuer)
        .map_err(&make)?;
    Ok(Issued {
        certificate: certificate.pem(),
        digest: digest(certificate.der()),
    })
}

fn set_life(params: &mut CertificateParams, now_s: u64, life_s: u64) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let at = |s: u64| epoch + Duration::from_secs(s.min(LATEST_S));
    params.not_before = at(now_s.saturating_sub(BACKDATE_S));
    params.not_after = at(now_s.saturating_add(life_s));
}

/// The end of the year 9998: certificates can name no later one (RFC 5280 §4.1.2.5).
const LATEST_S: u64 = 253_370_764_800;

/// SHA-256 of a certificate in DER.
pub fn digest(der: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    Digest::from_bytes(bytes)
}

/// The first certificate of a text in PEM.
///
/// # Errors
/// When there is none.
pub fn der_of(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|e| read("the certificate", format!("{e:?}")))
}

/// What a certificate says, without asking who signed it: TLS has done that before.
///
/// # Errors
/// When it is no certificate of a node.
pub fn name_of(der: &[u8]) -> Result<NodeName, PkiError> {
    let (_, certificate) =
        X509Certificate::from_der(der).map_err(|e| read("the certificate", e))?;
    let names = certificate.subject_alternative_name();
    let names = names
        .map_err(|e| read("the certificate", e))?
        .ok_or(PkiError::NotANode)?;
    let names = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(text) => Some(*text),
            _ => None,
        });
    let (mut node, mut role) = (None, None);
    for name in names {
        let labels: Vec<&str> = name.split('.').collect();
        match labels[..] {
            [id, "node", cluster, SUFFIX] => {
                node = id.parse().ok().map(|id: NodeId| (id, cluster.to_owned()));
            }
            [text, cluster, SUFFIX] => {
                role = text
                    .parse()
                    .ok()
                    .map(|role: Role| (role, cluster.to_owned()));
            }
            _ => return Err(PkiError::NotANode),
        }
    }
    match (node, role) {
        (Some((node, cluster)), Some((role, same))) if cluster == same => Ok(NodeName {
            cluster,
            node,
            role,
        }),
        _ => Err(PkiError::NotANode),
    }
}

/// From when until when a certificate is good, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// The first second.
    pub from_s: u64,
    /// The last second.
    pub until_s: u64,
}

/// What a node does about its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Nothing before then.
    NotBefore {
        /// In seconds since 1970.
        at_s: u64,
    },
    /// Ask for a new one now.
    Due,
    /// It is too late to ask with this one: the node has to join anew.
    Expired,
    /// By this node's clock its life has not begun: the clock is wrong.
    ClockBehind {
        /// By how many seconds at least.
        by_s: u64,
    },
}

impl Life {
    /// Of a certificate.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(der: &[u8]) -> Result<Life, PkiError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|e| read("the certificate", e))?;
        let second = |t: i64| u64::try_from(t).unwrap_or(0);
        Ok(Life {
            from_s: second(certificate.validity().not_before.timestamp()),
            until_s: second(certificate.validity().not_after.timestamp()),
        })
    }

    /// Whether to renew. Nodes spread over a tenth of the life, from its half on, by `spread` of 0 to 255, so
    /// that a cluster made in one day does not renew in one minute.
    pub fn renewal(&self, now_s: u64, spread: u8) -> Renewal {
        if now_s < self.from_s {
            return Renewal::ClockBehind {
                by_s: self.from_s - now_s,
            };
        }
        if now_s > self.until_s {
            return Renewal::Expired;
        }
        let life_s = self.until_s - self.from_s;
        let at_s = self.from_s + life_s / 2 + life_s / 10 * u64::from(spread) / 255;
        match now_s >= at_s {
            true => Renewal::Due,
            false => Renewal::NotBefore { at_s },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 1_800_000_000;

    fn name(role: Role) -> NodeName {
        NodeName {
            cluster: crate::model::ident::id_from_bits(7),
            node: NodeId::from_bits(u128::MAX),
            role,
        }
    }

    #[test]
    fn a_nodes_certificate_says_who_it_is() {
        let authority = make_authority("c", NOW_S).unwrap();
        for role in [Role::Worker, Role::Manager] {
            let key = make_node_key().unwrap();
            let issued = certify(&authority, &key.csr, &name(role), NOW_S).unwrap();
            let der = der_of(&issued.certificate).unwrap();
            assert_eq!(name_of(&der), Ok(name(role)));
            assert_eq!(digest(&der), issued.digest);
            let life = Life::of(&der).unwrap();
            assert_eq!(life.from_s, NOW_S - BACKDATE_S);
            assert_eq!(life.until_s, NOW_S + NODE_LIFE_S);
        }
        let ca = der_of(&authority.certificate).unwrap();
        assert_eq!(name_of(&ca), Err(PkiError::NotANode));
        assert_eq!(digest(&ca), authority.digest);
    }

    #[test]
    fn a_request_must_be_signed_by_its_key_and_gets_no_name_it_asks_for() {
        let authority = make_authority("c", NOW_S).unwrap();
        let mut key = make_node_key().unwrap();
        let last = key.csr.len() - 1;
        key.csr[last] ^= 1;
        assert!(certify(&authority, &key.csr, &name(Role::Worker), NOW_S).is_err());
        for csr in [&[][..], &[0x30, 0x80], &[0; 5000]] {
            assert!(certify(&authority, csr, &name(Role::Worker), NOW_S).is_err());
        }
        let pair = KeyPair::generate().unwrap();
        let greedy = CertificateParams::new(name(Role::Manager).names()).unwrap();
        let csr = greedy.serialize_request(&pair).unwrap();
        let issued = certify(&authority, csr.der(), &name(Role::Worker), NOW_S).unwrap();
        let der = der_of(&issued.certificate).unwrap();
        assert_eq!(name_of(&der).unwrap().role, Role::Worker);
    }

    #[test]
    fn renewal_is_due_from_the_middle_of_life_on_and_spread() {
        let life = Life {
            from_s: 1000,
            until_s: 2000,
        };
        assert_eq!(life.renewal(999, 0), Renewal::ClockBehind { by_s: 1 });
        assert_eq!(life.renewal(1000, 0), Renewal::NotBefore { at_s: 1500 });
        assert_eq!(life.renewal(1500, 0), Renewal::Due);
        assert_eq!(life.renewal(1500, 255), Renewal::NotBefore { at_s: 1600 });
        assert_eq!(life.renewal(2000, 255), Renewal::Due);
        assert_eq!(life.renewal(2001, 0), Renewal::Expired);
    }

    #[test]
    fn a_clock_an_hour_off_does_no_harm() {
        let authority = make_authority("c", NOW_S).unwrap();
        let key = make_node_key().unwrap();
        let issued = certify(&authority, &key.csr, &name(Role::Worker), NOW_S).unwrap();
        let life = Life::of(&der_of(&issued.certificate).unwrap()).unwrap();
        for now_s in [NOW_S - 3600, NOW_S + 3600] {
            assert!(matches!(life.renewal(now_s, 0), Renewal::NotBefore { .. }));
        }
        let far = life.renewal(NOW_S - 2 * 3600, 0);
        assert_eq!(far, Renewal::ClockBehind { by_s: 3300 });
    }

    #[test]
    fn dates_beyond_what_certificates_can_say_do_no_harm() {
        assert!(make_authority("c", u64::MAX).is_ok());
        assert!(make_authority("c", 0).is_ok());
    }
}
