//! Local endpoints as data, and the choice of their addresses.
//!
//! Pure: what is taken comes in as an argument; nothing here touches a namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::api::{AttachRequest, Limits};
use super::error::{ApiError, ErrorCode};
use super::network::{Network, Segment, Subnet, is_edge};
use crate::tables::record::{Backing, EndpointRecord, Version};
use crate::wire::Mac;

/// One workload's attachment, owned by this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// 25 base-36 characters.
    pub id: String,
    /// Unique within the network.
    pub name: String,
    /// Id of the network.
    pub network: String,
    /// Index of the segment within the network.
    pub segment: usize,
    /// Addresses with the subnet's prefix length, IPv4 first.
    pub ips: Vec<IpNetwork>,
    /// MAC of the interface.
    pub mac: Mac,
    /// The workload's namespace as the user named it.
    pub target: String,
    /// Where that namespace is.
    pub netns: PathBuf,
    /// Inode of that namespace: a path can come to mean another one.
    pub netns_inode: u64,
    /// Interface name in the workload.
    pub ifname: String,
    /// Further names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The service it backs, empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// How it takes part in that service.
    #[serde(default, skip_serializing_if = "Backing::is_usual")]
    pub backing: Backing,
    /// What a container engine calls it, whose network plugin made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineRef>,
    /// The node itself reaches its addresses, where the network has a way out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub node_access: bool,
    /// How fast it may send and be sent to.
    #[serde(default, skip_serializing_if = "Limits::are_none")]
    pub limits: Limits,
    /// Nanoseconds since 1970.
    pub created: u64,
    /// Version of the record, given anew at each start.
    #[serde(skip)]
    pub version: Version,
}

/// An endpoint of a container engine: it moves the interface into the container and sets it up there itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineRef {
    /// The engine's id of the endpoint.
    pub endpoint: String,
    /// The engine's id of the container, once it is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub container: String,
}

impl Endpoint {
    /// The record other nodes get.
    pub fn record(&self, network: &Network, vtep: IpAddr, node: &str) -> Option<EndpointRecord> {
        Some(EndpointRecord {
            network: self.network.clone(),
            vni: network.segments.get(self.segment)?.vni,
            endpoint: self.id.clone(),
            mac: self.mac,
            ips: self.ips.iter().map(IpNetwork::ip).collect(),
            vtep,
            node: node.into(),
            name: self.name.clone(),
            aliases: self.aliases.clone(),
            service: self.service.clone(),
            backing: self.backing,
            version: self.version,
        })
    }

    /// Whether a repeated request asks for what this endpoint is.
    pub fn answers(&self, wish: &AttachRequest, netns_inode: u64) -> bool {
        self.netns_inode == netns_inode
            && wish.mac.is_none_or(|mac| mac == self.mac)
            && (wish.aliases.is_empty() || wish.aliases == self.aliases)
            && wish
                .service
                .as_ref()
                .is_none_or(|service| *service == self.service)
            && wish
                .weight
                .is_none_or(|weight| weight == self.backing.weight)
            && wish.limits.is_none_or(|limits| limits == self.limits)
            && wish
                .ifname
                .as_ref()
                .is_none_or(|ifname| *ifname == self.ifname)
            && wish
                .ips
                .iter()
                .all(|ip| self.ips.iter().any(|own| own.ip() == *ip))
    }
}

/// What is in use on a network, and by whom.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Addresses of endpoints here and elsewhere, with a word on the owner.
    pub ips: BTreeMap<IpAddr, String>,
    /// MACs of endpoints here and elsewhere.
    pub macs: BTreeSet<Mac>,
}

/// The addresses of a new endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Index of the segment.
    pub segment: usize,
    /// Addresses with prefix length, IPv4 first.
    pub ips: Vec<IpNetwork>,
    /// MAC.
    pub mac: Mac,
}

/// Chooses segment, addresses and MAC: what the wish fixes is checked, the rest is the lowest free.
///
/// # Errors
/// `invalid_address`, `address_in_use`, `addresses_exhausted`, `invalid_mac`, `mac_in_use`.
pub fn choose(network: &Network, wish: &AttachRequest, taken: &Taken) -> Result<Choice, ApiError> {
    let fixed = check_fixed(network, &wish.ips, taken)?;
    // Without a wish the MAC is made from the IPv4 address: one that makes somebody's MAC will not do.
    let unfit: BTreeSet<IpAddr> = match wish.mac {
        Some(_) => BTreeSet::new(),
        None => taken.macs.iter().filter_map(made_from).collect(),
    };
    let candidates: Vec<usize> = match fixed.segment {
        Some(index) => vec![index],
        None => (0..network.segments.len()).collect(),
    };
    let mut refusal = None;
    for index in candidates {
        match fill(&network.segments[index], &fixed, taken, &unfit) {
            Ok(ips) => {
                let mac = choose_mac(network, wish.mac, &ips, taken)?;
                return Ok(Choice {
                    segment: index,
                    ips,
                    mac,
                });
            }
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.unwrap_or_else(|| ApiError::internal("a network without a segment")))
}

/// The addresses a wish fixes, checked.
#[derive(Debug, Default)]
pub struct Fixed {
    /// Index of the segment they lie in.
    pub segment: Option<usize>,
    /// IPv4.
    pub v4: Option<IpAddr>,
    /// IPv6.
    pub v6: Option<IpAddr>,
}

/// Checks the addresses that a wish fixes.
///
/// # Errors
/// `invalid_address`, `address_in_use`.
pub fn check_fixed(network: &Network, ips: &[IpAddr], taken: &Taken) -> Result<Fixed, ApiError> {
    let mut fixed = Fixed::default();
    for &ip in ips {
        let (index, segment) = network.segment_of(ip).ok_or_else(|| outside(network, ip))?;
        let subnet = segment.subnet_of(ip).ok_or_else(|| outside(network, ip))?;
        check_usable(subnet, ip)?;
        if let Some((name, _)) = subnet.reserved.iter().find(|(_, own)| **own == ip) {
            return Err(invalid_address(
                format!(
                    "address {ip} is reserved on network \"{}\" as \"{name}\"",
                    network.name
                ),
                "choose another address, or leave --ip out to get a free one",
            ));
        }
        if let Some(owner) = taken.ips.get(&ip) {
            return Err(ApiError::new(
                ErrorCode::AddressInUse,
                format!("address {ip} belongs to endpoint {owner}"),
                "choose another address, or leave --ip out to get a free one",
            ));
        }
        if fixed.segment.is_some_and(|other| other != index) {
            return Err(invalid_address(
                format!("address {ip} lies in another subnet pair than the one before it"),
                "give one IPv4 address and one IPv6 address of the same segment",
            ));
        }
        fixed.segment = Some(index);
        let slot = if ip.is_ipv4() {
            &mut fixed.v4
        } else {
            &mut fixed.v6
        };
        if slot.replace(ip).is_some() {
            return Err(invalid_address(
                format!(
                    "two {} addresses are given",
                    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
                ),
                "an endpoint has one address of each family",
            ));
        }
    }
    Ok(fixed)
}

fn outside(network: &Network, ip: IpAddr) -> ApiError {
    let subnets: Vec<String> = network.subnets().map(|s| s.prefix.to_string()).collect();
    invalid_address(
        format!(
            "address {ip} is in no subnet of network \"{}\" ({})",
            network.name,
            subnets.join(", ")
        ),
        "choose an address of one of them, or leave --ip out to get a free one",
    )
}

fn check_usable(subnet: &Subnet, ip: IpAddr) -> Result<(), ApiError> {
    let why = if ip == subnet.gateway {
        "is the gateway"
    } else if is_edge(subnet.prefix, ip) {
        "is the network or broadcast address"
    } else {
        return Ok(());
    };
    Err(invalid_address(
        format!("address {ip} {why} of {}", subnet.prefix),
        "choose another address, or leave --ip out to get a free one",
    ))
}

/// Checks that a remote endpoint may have this address on the network.
///
/// # Errors
/// `invalid_address`.
pub fn check_remote_address(network: &Network, ip: IpAddr) -> Result<usize, ApiError> {
    let (index, segment) = network.segment_of(ip).ok_or_else(|| outside(network, ip))?;
    segment
        .subnet_of(ip)
        .map_or(Ok(()), |subnet| check_usable(subnet, ip))?;
    Ok(index)
}

/// The address that [`Mac::from_ipv4`] makes this MAC from.
pub fn made_from(mac: &Mac) -> Option<IpAddr> {
    let [_, _, a, b, c, d] = mac.0;
    let ip = std::net::Ipv4Addr::new(a, b, c, d);
    (Mac::from_ipv4(ip) == *mac).then_some(IpAddr::V4(ip))
}

fn fill(
    segment: &Segment,
    fixed: &Fixed,
    taken: &Taken,
    unfit: &BTreeSet<IpAddr>,
) -> Result<Vec<IpNetwork>, ApiError> {
    let mut ips = Vec::with_capacity(2);
    for subnet in segment.subnets() {
        let wanted = if subnet.prefix.is_ipv4() {
            fixed.v4
        } else {
            fixed.v6
        };
        let ip = match wanted {
            Some(ip) => ip,
            None => lowest_free(subnet, taken, unfit).ok_or_else(|| exhausted(subnet, taken))?,
        };
        let with_prefix = IpNetwork::new(ip, subnet.prefix.prefix());
        ips.push(with_prefix.map_err(|e| ApiError::internal(e.to_string()))?);
    }
    Ok(ips)
}

/// The lowest address of a subnet that nobody has, and whose MAC nobody has.
///
/// # Errors
/// `addresses_exhausted`.
pub fn free_address(subnet: &Subnet, taken: &Taken) -> Result<IpAddr, ApiError> {
    let unfit = taken.macs.iter().filter_map(made_from).collect();
    lowest_free(subnet, taken, &unfit).ok_or_else(|| exhausted(subnet, taken))
}

/// The lowest address of the subnet's range that nobody has: not gateway, network, broadcast, reserved or
/// unfit.
fn lowest_free(subnet: &Subnet, taken: &Taken, unfit: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let range = subnet.range.unwrap_or(subnet.prefix);
    let (first, last) = (to_bits(range.network()), to_bits(range.broadcast()));
    let v4 = range.is_ipv4();
    let mut used: BTreeSet<u128> = taken
        .ips
        .keys()
        .chain(unfit)
        .filter(|ip| ip.is_ipv4() == v4)
        .map(|ip| to_bits(*ip))
        .collect();
    used.extend(subnet.reserved.values().map(|ip| to_bits(*ip)));
    used.insert(to_bits(subnet.gateway));
    used.insert(to_bits(subnet.prefix.network()));
    if v4 {
        used.insert(to_bits(subnet.prefix.broadcast()));
    }
    let mut candidate = first;
    for &address in used.range(first..=last) {
        if address != candidate {
            break;
        }
        candidate += 1;
    }
    (candidate <= last).then(|| from_bits(candidate, v4))
}

fn to_bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn from_bits(bits: u128, v4: bool) -> IpAddr {
    // The cast cannot cut: bits of an IPv4 address came from 32 bits.
    if v4 {
        IpAddr::V4((bits as u32).into())
    } else {
        IpAddr::V6(bits.into())
    }
}

fn exhausted(subnet: &Subnet, taken: &Taken) -> ApiError {
    let range = subnet.range.unwrap_or(subnet.prefix);
    let used = taken.ips.keys().filter(|ip| range.contains(**ip)).count();
    ApiError::new(
        ErrorCode::AddressesExhausted,
        format!("{range} has no free address: {used} belong to endpoints, the rest is reserved"),
        "detach endpoints that are no longer needed (weft ps), or create a network with a larger subnet",
    )
}

/// The MAC that was asked for, or the one made from the IPv4 address.
///
/// # Errors
/// `invalid_mac`, `mac_in_use`.
pub fn choose_mac(
    network: &Network,
    wanted: Option<Mac>,
    ips: &[IpNetwork],
    taken: &Taken,
) -> Result<Mac, ApiError> {
    let from_ip = ips.iter().find_map(|ip| match ip.ip() {
        IpAddr::V4(v4) => Some(Mac::from_ipv4(v4)),
        IpAddr::V6(_) => None,
    });
    let mac = wanted
        .or(from_ip)
        .ok_or_else(|| ApiError::internal("an endpoint without IPv4"))?;
    check_mac(network, mac)?;
    if taken.macs.contains(&mac) {
        return Err(ApiError::new(
            ErrorCode::MacInUse,
            format!(
                "MAC {mac} belongs to another endpoint of network \"{}\"",
                network.name
            ),
            "choose another MAC with --mac, or leave it out",
        ));
    }
    Ok(mac)
}

/// Checks that a station of the network may have this MAC.
///
/// # Errors
/// `invalid_mac`.
pub fn check_mac(network: &Network, mac: Mac) -> Result<(), ApiError> {
    let of_gateway = network
        .subnets()
        .any(|s| matches!(s.gateway, IpAddr::V4(v4) if Mac::from_ipv4(v4) == mac));
    let why = if !mac.is_station() {
        "is a group address or all zero"
    } else if of_gateway {
        "is the gateway's"
    } else {
        return Ok(());
    };
    Err(ApiError::new(
        ErrorCode::InvalidMac,
        format!("MAC {mac} {why}"),
        "choose another MAC, or leave it out: it is then made from the IPv4 address",
    ))
}

/// Checks a name for an interface in a workload.
///
/// # Errors
/// `invalid_ifname`: the kernel takes 1 to 15 bytes without `/`, `:` or white space (dev_valid_name).
pub fn check_ifname(ifname: &str) -> Result<(), ApiError> {
    let fine = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':' && b != b'%';
    if (1..=15).contains(&ifname.len())
        && ifname.bytes().all(fine)
        && !matches!(ifname, "." | ".." | "lo")
    {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidIfname,
        format!("\"{ifname}\" cannot be an interface name"),
        "give 1 to 15 characters without `/`, `:`, `%` and spaces, such as eth0",
    ))
}

fn invalid_address(message: String, next: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidAddress, message, next)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::wire::Vni;

    fn subnet(prefix: &str, gateway: &str) -> Subnet {
        Subnet {
            prefix: prefix.parse().unwrap(),
            gateway: gateway.parse().unwrap(),
            range: None,
            reserved: BTreeMap::new(),
        }
    }

    fn network(segments: Vec<(Subnet, Option<Subnet>)>) -> Network {
        let segments = segments
            .into_iter()
            .zip(4097..)
            .map(|((v4, v6), vni)| Segment {
                vni: Vni::new(vni).unwrap(),
                v4,
                v6,
            });
        Network {
            id: "0".repeat(25),
            name: "net".into(),
            created: 0,
            ipv6: false,
            internal: false,
            attachable: false,
            ingress: false,
            labels: BTreeMap::new(),
            mtu_underlay: None,
            interop: false,
            rules: Default::default(),
            segments: segments.collect(),
        }
    }

    fn taken(ips: &[&str]) -> Taken {
        let ips = ips.iter().map(|ip| (ip.parse().unwrap(), "x".to_owned()));
        Taken {
            ips: ips.collect(),
            macs: BTreeSet::new(),
        }
    }

    fn wish(ips: &[&str]) -> AttachRequest {
        AttachRequest {
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn lowest_free_address_skips_gateway_and_endpoints() {
        let net = network(vec![(subnet("10.0.1.0/24", "10.0.1.1"), None)]);
        let choice = choose(&net, &wish(&[]), &taken(&["10.0.1.2", "10.0.1.4"])).unwrap();
        assert_eq!(choice.ips, ["10.0.1.3/24".parse().unwrap()]);
        assert_eq!(choice.mac.to_string(), "02:42:0a:00:01:03");
    }

    #[test]
    fn a_mac_given_by_hand_does_not_block_the_address_it_looks_made_from() {
        let net = network(vec![(subnet("10.0.1.0/24", "10.0.1.1"), None)]);
        let mut taken = taken(&["10.0.1.9"]);
        taken.macs.insert(Mac([0x02, 0x42, 10, 0, 1, 2]));
        taken.macs.insert(Mac([0x02, 0x43, 10, 0, 1, 3]));
        let choice = choose(&net, &wish(&[]), &taken).unwrap();
        assert_eq!(choice.ips, ["10.0.1.3/24".parse().unwrap()]);
        let by_hand = AttachRequest {
            mac: Some(Mac([0x02, 0, 0, 0, 0, 7])),
            ..wish(&[])
        };
        let choice = choose(&net, &by_hand, &taken).unwrap();
        assert_eq!(choice.ips, ["10.0.1.2/24".parse().unwrap()]);
        let error = choose(&net, &wish(&["10.0.1.2"]), &taken).unwrap_err();
        assert_eq!(error.code, ErrorCode::MacInUse);
    }

    #[test]
    fn a_reserved_address_is_not_given_on_request_either() {
        let mut reserving = subnet("10.0.1.0/24", "10.0.1.1");
        let router = ("router".into(), "10.0.1.5".parse().unwrap());
        reserving.reserved.extend([router]);
        let net = network(vec![(reserving, None)]);
        let error = choose(&net, &wish(&["10.0.1.5"]), &taken(&[])).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidAddress);
        assert!(error.message.contains("router"), "{error}");
        assert!(
            check_remote_address(&net, "10.0.1.5".parse().unwrap()).is_ok(),
            "it may be an endpoint of another node"
        );
    }

    #[test]
    fn ranges_and_reserved_addresses_are_kept() {
        let mut v4 = subnet("10.0.1.0/24", "10.0.1.1");
        v4.range = Some("10.0.1.128/30".parse().unwrap());
        v4.reserved
            .insert("printer".into(), "10.0.1.128".parse().unwrap());
        assert_eq!(
            lowest_free(&v4, &taken(&[]), &BTreeSet::new()),
            Some("10.0.1.129".parse().unwrap())
        );
        assert_eq!(
            lowest_free(
                &v4,
                &taken(&["10.0.1.129", "10.0.1.130", "10.0.1.131"]),
                &BTreeSet::new()
            ),
            None
        );
    }

    #[test]
    fn a_full_segment_leads_to_the_next_and_then_to_a_clear_error() {
        let net = network(vec![
            (subnet("10.0.1.0/30", "10.0.1.1"), None),
            (subnet("10.0.2.0/30", "10.0.2.2"), None),
        ]);
        let second = choose(&net, &wish(&[]), &taken(&["10.0.1.2"])).unwrap();
        assert_eq!(
            (second.segment, second.ips[0].to_string()),
            (1, "10.0.2.1/30".into())
        );
        let error = choose(&net, &wish(&[]), &taken(&["10.0.1.2", "10.0.2.1"])).unwrap_err();
        assert_eq!(error.code, ErrorCode::AddressesExhausted);
        assert!(
            error
                .message
                .starts_with("10.0.2.0/30 has no free address: 1 belong"),
            "{error}"
        );
    }

    #[test]
    fn fixed_addresses_are_checked() {
        let net = network(vec![
            (
                subnet("10.0.1.0/24", "10.0.1.254"),
                Some(subnet("fd00:1::/64", "fd00:1::1")),
            ),
            (
                subnet("10.0.2.0/24", "10.0.2.1"),
                Some(subnet("fd00:2::/64", "fd00:2::1")),
            ),
        ]);
        let code = |ips: &[&str]| {
            choose(&net, &wish(ips), &taken(&["10.0.1.9"]))
                .unwrap_err()
                .code
        };
        assert_eq!(code(&["10.0.3.1"]), ErrorCode::InvalidAddress);
        assert_eq!(code(&["10.0.1.0"]), ErrorCode::InvalidAddress);
        assert_eq!(code(&["10.0.1.255"]), ErrorCode::InvalidAddress);
        assert_eq!(code(&["10.0.1.254"]), ErrorCode::InvalidAddress);
        assert_eq!(code(&["10.0.1.9"]), ErrorCode::AddressInUse);
        assert_eq!(code(&["10.0.1.3", "10.0.1.4"]), ErrorCode::InvalidAddress);
        assert_eq!(code(&["10.0.1.3", "fd00:2::5"]), ErrorCode::InvalidAddress);
        let choice = choose(&net, &wish(&["fd00:2::5"]), &taken(&[])).unwrap();
        let ips: Vec<String> = choice.ips.iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.2.2/24", "fd00:2::5/64"]);
    }

    #[test]
    fn macs_of_groups_gateways_and_others_are_refused() {
        let net = network(vec![(subnet("10.0.1.0/24", "10.0.1.1"), None)]);
        let mut busy = taken(&[]);
        busy.macs.insert("02:00:00:00:00:01".parse().unwrap());
        for (mac, expect) in [
            ("01:00:5e:00:00:01", ErrorCode::InvalidMac),
            ("00:00:00:00:00:00", ErrorCode::InvalidMac),
            ("02:42:0a:00:01:01", ErrorCode::InvalidMac),
            ("02:00:00:00:00:01", ErrorCode::MacInUse),
        ] {
            let wish = AttachRequest {
                mac: Some(mac.parse().unwrap()),
                ..Default::default()
            };
            assert_eq!(
                choose(&net, &wish, &busy).unwrap_err().code,
                expect,
                "{mac}"
            );
        }
    }

    #[test]
    fn interface_names_follow_the_kernels_rule() {
        for good in ["eth0", "a", "fifteen-letters"] {
            assert!(check_ifname(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "sixteen-letters-",
            "a/b",
            "a:b",
            "a b",
            ".",
            "lo",
            "eth%d",
            "é",
        ] {
            assert!(check_ifname(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn addresses_are_unique_usable_and_all_get_used(len in 24u8..=30, gateway_at: prop::sample::Index) {
            let prefix: IpNetwork = format!("10.9.8.0/{len}").parse().unwrap();
            let hosts: Vec<IpAddr> = prefix.iter().filter(|ip| !is_edge(prefix, *ip)).collect();
            let gateway = *gateway_at.get(&hosts);
            let net = network(vec![(subnet(&prefix.to_string(), &gateway.to_string()), None)]);
            let mut busy = taken(&[]);
            for _ in 1..hosts.len() {
                let choice = choose(&net, &wish(&[]), &busy).unwrap();
                let ip = choice.ips[0].ip();
                prop_assert!(ip != gateway && hosts.contains(&ip));
                prop_assert!(busy.ips.insert(ip, "x".into()).is_none());
                prop_assert!(busy.macs.insert(choice.mac));
            }
            let error = choose(&net, &wish(&[]), &busy).unwrap_err();
            prop_assert_eq!(error.code, ErrorCode::AddressesExhausted);
        }
    }
}
