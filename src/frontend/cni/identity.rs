//! How an attachment's endpoint is named, so that it is found again by nothing but what every call carries.
//!
//! `cni-<configuration>-<container>-<attachment>`: eight characters that stand for the configuration's name, the first twelve
//! of the container's id for people, and sixteen that stand for the whole id and the interface. Two configurations on one
//! network do not take each other's endpoints for abandoned, and ids that begin alike are told apart.

use aws_lc_rs::digest::{SHA256, digest};

const PREFIX: &str = "cni-";
const CONTAINER_LEN: usize = 12;

/// Name of the endpoint of a container's interface, made by the configuration of this name.
pub fn endpoint_name(config: &str, container: &str, ifname: &str) -> String {
    let shown: String = container.chars().take(CONTAINER_LEN).collect();
    let attachment = hash(&[container, ifname], 16);
    format!("{}{shown}-{attachment}", prefix(config))
}

/// Whether the endpoint was made by the configuration of this name.
pub fn is_of(config: &str, endpoint: &str) -> bool {
    let rest = endpoint.strip_prefix(&prefix(config));
    let rest = rest.and_then(|rest| rest.rsplit_once('-'));
    rest.is_some_and(|(container, attachment)| {
        (1..=CONTAINER_LEN).contains(&container.len())
            && attachment.len() == 16
            && attachment.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn prefix(config: &str) -> String {
    format!("{PREFIX}{}-", hash(&[config], 8))
}

/// The beginning of a digest, in hexadecimal. Lengths are part of it: nothing can move from one word to the next.
fn hash(words: &[&str], len: usize) -> String {
    let mut bytes = Vec::new();
    for word in words {
        bytes.extend((word.len() as u64).to_be_bytes());
        bytes.extend(word.as_bytes());
    }
    let digest = digest(&SHA256, &bytes);
    let text: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    text[..len].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_begin_alike_and_interfaces_have_names_of_their_own() {
        let name = |container, ifname| endpoint_name("web", container, ifname);
        let one = name("cnitool-77383ca0a0715733ca6f", "eth0");
        assert!(one.contains("-cnitool-7738-"), "{one}");
        assert_ne!(one, name("cnitool-77383ca0a0715733ca60", "eth0"));
        assert_ne!(one, name("cnitool-77383ca0a0715733ca6f", "eth1"));
        assert_ne!(name("ab", "c"), name("a", "bc"));
        assert_eq!(one, name("cnitool-77383ca0a0715733ca6f", "eth0"));
    }

    #[test]
    fn a_name_is_short_enough_for_an_endpoint() {
        let name = endpoint_name(&"n".repeat(300), &"f".repeat(255), "abcdefghijklmno");
        assert!(name.len() <= 63, "{name}");
        assert!(
            name.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        );
    }

    #[test]
    fn a_configuration_knows_its_own_endpoints_only() {
        let name = endpoint_name("web", "a-b", "eth0");
        assert!(is_of("web", &name));
        assert!(!is_of("other", &name));
        assert!(!is_of("web", "cni-by-hand"));
        assert!(!is_of("web", &name[..name.len() - 1]));
        assert!(!is_of("web", ""));
    }
}
