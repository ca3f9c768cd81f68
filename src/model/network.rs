//! Networks as data: names, ids, VNIs, subnets, gateways, options, and the rules they obey.
//!
//! Pure: a new network is planned against the catalog and put in by the caller once the kernel and the
//! state file agree. Knows nothing of endpoints, kernel objects or files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use super::error::{ApiError, ErrorCode};
use super::request::{
    CreateNetwork, DRIVER_OVERLAY, IpamConfigRequest, OPTION_BUM_RATE, OPTION_CARRY_VLAN,
    OPTION_INHERIT_DSCP, OPTION_INTEROP, OPTION_MTU, OPTION_STRICT_RESERVED_BITS,
    OPTION_VXLANID_LIST,
};
use super::{ident, suggest};
use crate::tables::SegmentPolicy;
use crate::wire::Vni;
use builtin::Stored;
use options::{Options, too_many_vnis};

mod builtin;
mod options;

pub use builtin::Builtin;

/// The subnet of `ingress`, kept free of other networks on every node.
pub const INGRESS_SUBNET: Ipv4Network =
    match Ipv4Network::new_checked(Ipv4Addr::new(10, 0, 0, 0), 24) {
        Some(network) => network,
        None => panic!("10.0.0.0/24 is a prefix"),
    };
/// A network has at most this many IPv4 subnets, each with its own VNI and bridge.
pub const SEGMENTS_MAX: usize = 8;
/// The smallest MTU a workload gets, in bytes (RFC 791: every host takes 576).
pub const MTU_INNER_MIN: u32 = 576;
/// The smallest MTU for IPv6, in bytes (RFC 8200 §5).
pub const MTU_INNER_MIN_IPV6: u32 = 1280;

/// One subnet with its gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The prefix, without host bits.
    pub prefix: IpNetwork,
    /// The address every node holds on the bridge.
    pub gateway: IpAddr,
    /// Endpoints' addresses come from here; the whole prefix when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<IpNetwork>,
    /// Addresses never given to an endpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub reserved: BTreeMap<String, IpAddr>,
}

/// One VXLAN segment: an IPv4 subnet, its VNI and perhaps the IPv6 subnet that shares it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Segment {
    /// The segment's VNI.
    pub vni: Vni,
    /// Its IPv4 subnet.
    pub v4: Subnet,
    /// Its IPv6 subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub v6: Option<Subnet>,
}

impl Segment {
    /// The one or two subnets, IPv4 first.
    pub fn subnets(&self) -> impl Iterator<Item = &Subnet> {
        std::iter::once(&self.v4).chain(&self.v6)
    }

    /// The subnet that holds `address`.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets()
            .find(|subnet| subnet.prefix.contains(address))
    }
}

/// One overlay network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// 25 base-36 characters.
    pub id: String,
    /// Unique name.
    pub name: String,
    /// Nanoseconds since 1970.
    pub created: u64,
    /// Whether endpoints get IPv6 addresses.
    pub ipv6: bool,
    /// No way out.
    pub internal: bool,
    /// Workloads outside of services may join.
    pub attachable: bool,
    /// The network of published ports, which every node has and nobody changes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ingress: bool,
    /// Labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The underlay MTU asked for, in bytes; the device's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu_underlay: Option<u32>,
    /// Flood and learn, to talk to VTEPs that no records describe.
    #[serde(default)]
    pub interop: bool,
    /// What its frames may be.
    #[serde(default, skip_serializing_if = "FrameRules::are_usual")]
    pub rules: FrameRules,
    /// One per IPv4 subnet, at least one.
    pub segments: Vec<Segment>,
}

/// What the frames of a network may be, as far as the user has said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrameRules {
    /// Drop frames with reserved bits of the VXLAN header set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict_reserved_bits: Option<bool>,
    /// Carry 802.1Q tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carry_vlan: Option<bool>,
    /// Copy the inner DSCP to the outer header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherit_dscp: Option<bool>,
    /// Broadcast and multicast frames per second and worker; 0 for no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bum_rate: Option<u32>,
}

impl FrameRules {
    fn are_usual(&self) -> bool {
        *self == FrameRules::default()
    }

    /// With their option keys, as text.
    fn options(&self) -> impl Iterator<Item = (&'static str, String)> {
        let switches = [
            (OPTION_STRICT_RESERVED_BITS, self.strict_reserved_bits),
            (OPTION_CARRY_VLAN, self.carry_vlan),
            (OPTION_INHERIT_DSCP, self.inherit_dscp),
        ];
        let switches = switches
            .into_iter()
            .filter_map(|(key, on)| Some((key, on?.to_string())));
        switches.chain(
            self.bum_rate
                .map(|rate| (OPTION_BUM_RATE, rate.to_string())),
        )
    }
}

impl Network {
    /// Driver options as Docker shows them.
    pub fn options(&self) -> BTreeMap<String, String> {
        let vnis: Vec<String> = self.segments.iter().map(|s| s.vni.to_string()).collect();
        let mut options = BTreeMap::from([(OPTION_VXLANID_LIST.to_owned(), vnis.join(","))]);
        if let Some(mtu) = self.mtu_underlay {
            options.insert(OPTION_MTU.into(), mtu.to_string());
        }
        if self.interop {
            options.insert(OPTION_INTEROP.into(), "true".into());
        }
        let rules = self.rules.options();
        options.extend(rules.map(|(key, value)| (key.to_owned(), value)));
        options
    }

    /// What the dataplane is told of it.
    pub fn policy(&self) -> SegmentPolicy {
        let usual = match self.interop {
            true => SegmentPolicy::interop(),
            false => SegmentPolicy::default(),
        };
        let rules = &self.rules;
        SegmentPolicy {
            strict_reserved_bits: rules
                .strict_reserved_bits
                .unwrap_or(usual.strict_reserved_bits),
            carry_vlan: rules.carry_vlan.unwrap_or(usual.carry_vlan),
            inherit_dscp: rules.inherit_dscp.unwrap_or(usual.inherit_dscp),
            bum_rate: rules.bum_rate.unwrap_or(usual.bum_rate),
            client_addresses: self.ingress,
            ..usual
        }
    }

    /// The segment whose subnet holds `address`, with its index.
    pub fn segment_of(&self, address: IpAddr) -> Option<(usize, &Segment)> {
        let mut segments = self.segments.iter().enumerate();
        segments.find(|(_, segment)| segment.subnet_of(address).is_some())
    }

    /// Every subnet of every segment.
    pub fn subnets(&self) -> impl Iterator<Item = &Subnet> {
        self.segments.iter().flat_map(Segment::subnets)
    }

    /// The network of published ports: its VNI and subnet are the same everywhere, the rest follows from its id.
    fn new_ingress(id: String, created: u64) -> Network {
        let prefix = IpNetwork::V4(INGRESS_SUBNET);
        let mut subnets = Subnets {
            v4: vec![Subnet {
                prefix,
                gateway: first_address(prefix),
                range: None,
                reserved: BTreeMap::new(),
            }],
            v6: Vec::new(),
        };
        fill_ipv6(&mut subnets, &id);
        Network {
            id,
            name: INGRESS_NAME.into(),
            created,
            ipv6: true,
            internal: false,
            attachable: false,
            ingress: true,
            labels: BTreeMap::new(),
            mtu_underlay: None,
            interop: false,
            rules: FrameRules::default(),
            segments: join(subnets, &[Vni::INGRESS]),
        }
    }

    /// Whether two networks are the same wish, their times of creation aside.
    fn same_wish(&self, other: &Network) -> bool {
        Network {
            created: other.created,
            ..self.clone()
        } == *other
    }
}

/// `/v1/networks/prune` would mean a network of this name, too.
const RESERVED_NAME: &str = "prune";

/// Names of the networks every node has.
pub const BUILTIN_NAMES: [&str; 5] = ["bridge", "docker_gwbridge", "host", INGRESS_NAME, "none"];

/// Name of the network of published ports.
const INGRESS_NAME: &str = "ingress";

/// An odd number with bits all over, to make several ids of one seed (the golden ratio in 128 bits).
const SPREAD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;

/// Every network of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Catalog {
    /// Those every node has, but for `ingress`.
    pub builtins: Vec<Builtin>,
    /// Overlay networks by id. INVARIANT: one of them is `ingress`.
    pub networks: BTreeMap<String, Network>,
    /// The VNI given out last; the next one follows it, so that a freed VNI rests a long time.
    pub last_vni: u32,
}

/// Where subnets come from when none is given.
#[derive(Clone, Debug)]
pub struct Pools {
    /// The pool.
    pub pool: Ipv4Network,
    /// Length of each subnet's prefix.
    pub prefix_len: u8,
    /// Addresses whose subnets are left out: the node's VTEP.
    pub avoid: Vec<IpAddr>,
}

/// What a plan needs from outside.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// The id if none is asked for.
    pub id: String,
    /// Nanoseconds since 1970.
    pub now: u64,
    /// The node's VTEP: its family decides the overhead.
    pub vtep: IpAddr,
}

/// Result of [`Catalog::plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The network to put in.
    pub network: Network,
    /// What works but may surprise.
    pub warnings: Vec<String>,
    /// Whether the very same network exists already: nothing is to be done.
    pub exists: bool,
    /// The VNI given out last, with this network in.
    last_vni: u32,
}

/// What a reference stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// An overlay network.
    Overlay(&'a Network),
    /// One of those every node has.
    Builtin(&'a Builtin),
}

impl Catalog {
    /// The catalog of a fresh node. The ids of the networks every node has are made from `seed`.
    pub fn new(now: u64, seed: u128) -> Catalog {
        let mut catalog = Catalog {
            builtins: Vec::new(),
            networks: BTreeMap::new(),
            last_vni: Vni::INGRESS.value(),
        };
        for (index, name) in (0_u128..).zip(BUILTIN_NAMES) {
            let bits = seed.wrapping_add(index.wrapping_mul(SPREAD));
            if name == INGRESS_NAME {
                let ingress = Network::new_ingress(ident::id_from_bits(bits), now);
                catalog.networks.insert(ingress.id.clone(), ingress);
                continue;
            }
            catalog.builtins.push(Builtin {
                name: name.into(),
                id: ident::local_id_from_bits(bits, bits.wrapping_mul(SPREAD)),
                created: now,
            });
        }
        catalog
    }

    /// The network of published ports.
    ///
    /// # Panics
    /// If it was taken out, which nothing does.
    pub fn ingress(&self) -> &Network {
        let mut all = self.networks.values();
        all.find(|network| network.ingress)
            .expect("made with the catalog, or when it was read, and never taken out")
    }

    /// The networks that users have made.
    pub fn own(&self) -> impl Iterator<Item = &Network> {
        self.networks.values().filter(|network| !network.ingress)
    }

    /// The same without any network that users have made.
    #[must_use]
    pub fn without_own(&self) -> Catalog {
        let ingress = self.ingress().clone();
        Catalog {
            builtins: self.builtins.clone(),
            networks: BTreeMap::from([(ingress.id.clone(), ingress)]),
            last_vni: Vni::INGRESS.value(),
        }
    }

    /// Takes a user's network out; every node keeps the others.
    pub fn remove(&mut self, id: &str) -> Option<Network> {
        let own = self.networks.get(id).is_some_and(|n| !n.ingress);
        own.then(|| self.networks.remove(id)).flatten()
    }

    /// Finds by full id, then by name, then by the beginning of an id, as Docker does.
    ///
    /// # Errors
    /// `network_not_found` with the closest name, `ambiguous_reference` when a beginning fits several.
    pub fn find(&self, reference: &str) -> Result<Found<'_>, ApiError> {
        let exact = self.all().find(|f| f.id() == reference);
        if let Some(found) = exact.or_else(|| self.all().find(|f| f.name() == reference)) {
            return Ok(found);
        }
        let mut by_prefix = self
            .all()
            .filter(|f| !reference.is_empty() && f.id().starts_with(reference));
        match (by_prefix.next(), by_prefix.next()) {
            (Some(found), None) => Ok(found),
            (Some(_), Some(_)) => Err(ApiError::new(
                ErrorCode::AmbiguousReference,
                format!("several networks have an id that begins with \"{reference}\""),
                "give more characters of the id, or the name: weft network ls --no-trunc",
            )),
            (None, _) => {
                let hint = suggest::hint(reference, self.all().map(Found::name));
                Err(ApiError::new(
                    ErrorCode::NetworkNotFound,
                    format!("this node knows no network \"{reference}\"{hint}"),
                    "list the networks: weft network ls",
                ))
            }
        }
    }

    /// As [`Catalog::find`], for verbs that need an overlay network of the user's.
    ///
    /// # Errors
    /// Those of `find`, and `builtin_network`.
    pub fn find_overlay(&self, reference: &str, verb: &str) -> Result<&Network, ApiError> {
        match self.find(reference)? {
            Found::Overlay(network) if !network.ingress => Ok(network),
            found => Err(ApiError::new(
                ErrorCode::BuiltinNetwork,
                format!(
                    "cannot {verb} \"{}\": every node has this network",
                    found.name()
                ),
                "use a network of your own: weft network create NAME",
            )),
        }
    }

    /// Overlay and built-in networks, by name.
    pub fn all(&self) -> impl Iterator<Item = Found<'_>> {
        let mut all: Vec<Found<'_>> = self.networks.values().map(Found::Overlay).collect();
        all.extend(self.builtins.iter().map(Found::Builtin));
        all.sort_by_key(|found| found.name());
        all.into_iter()
    }

    /// The network a VNI belongs to.
    pub fn owner_of_vni(&self, vni: Vni) -> Option<&str> {
        let owns = |network: &&Network| network.segments.iter().any(|s| s.vni == vni);
        self.networks
            .values()
            .find(owns)
            .map(|network| network.name.as_str())
    }

    /// Checks a wish against every rule and fills in what it leaves open. Changes nothing.
    ///
    /// # Errors
    /// One of the codes of creation, for the first rule broken.
    pub fn plan(
        &self,
        wish: &CreateNetwork,
        pools: &Pools,
        fresh: &Fresh,
    ) -> Result<Plan, ApiError> {
        check_kind(wish)?;
        check_free_form(&wish.name)?;
        check_labels(&wish.labels)?;
        let options = Options::parse(&wish.options, wish.enable_ipv6, fresh.vtep)?;
        let id = wish.id.clone().unwrap_or_else(|| fresh.id.clone());
        check_id(&id)?;
        let mut subnets = parse_subnets(&wish.ipam.config, wish.enable_ipv6)?;
        // A repeated wish must find the subnet and VNI it got the first time.
        let twin = self
            .networks
            .get(&id)
            .filter(|n| wish.id.is_some() && n.name == wish.name);
        if subnets.v4.is_empty() {
            subnets.v4.push(match twin {
                Some(twin) => twin.segments[0].v4.clone(),
                None => self.subnet_from_pool(pools)?,
            });
        }
        if wish.enable_ipv6 {
            fill_ipv6(&mut subnets, &id);
        }
        let mut vnis = options.vnis.clone();
        let of_twin = twin.into_iter().flat_map(|twin| &twin.segments);
        let left_open = subnets.v4.len().saturating_sub(vnis.len());
        vnis.extend(of_twin.skip(vnis.len()).take(left_open).map(|s| s.vni));
        if vnis.len() > subnets.v4.len() {
            return Err(too_many_vnis(vnis.len(), subnets.v4.len()));
        }
        let mut network = Network {
            id,
            name: wish.name.clone(),
            created: fresh.now,
            ipv6: wish.enable_ipv6,
            internal: wish.internal,
            attachable: wish.attachable,
            ingress: false,
            labels: wish.labels.clone(),
            mtu_underlay: options.mtu,
            interop: options.interop,
            rules: options.rules,
            segments: Vec::new(),
        };
        let (vnis, last_vni) = self.fill_vnis(vnis, subnets.v4.len())?;
        network.segments = join(subnets, &vnis);
        if let Some(twin) = twin
            && network.same_wish(twin)
        {
            return Ok(Plan {
                network: twin.clone(),
                warnings: Vec::new(),
                exists: true,
                last_vni: self.last_vni,
            });
        }
        self.check_conflicts(&network)?;
        let warnings = warnings(&network, fresh.vtep);
        Ok(Plan {
            network,
            warnings,
            exists: false,
            last_vni,
        })
    }

    /// Puts a planned network in.
    pub fn insert(&mut self, plan: Plan) {
        self.last_vni = plan.last_vni;
        self.networks.insert(plan.network.id.clone(), plan.network);
    }

    /// Checks that a network may take a name. Its own one is fine.
    ///
    /// # Errors
    /// `invalid_name`, `name_taken`.
    pub fn check_new_name(&self, id: &str, name: &str) -> Result<(), ApiError> {
        check_free_form(name)?;
        let mut others = self.all().filter(|found| found.id() != id);
        match others.find(|found| found.name() == name) {
            Some(found) => Err(name_taken(name, found.id())),
            None => Ok(()),
        }
    }

    fn check_conflicts(&self, network: &Network) -> Result<(), ApiError> {
        if let Some(found) = self.all().find(|f| f.name() == network.name) {
            return Err(name_taken(&network.name, found.id()));
        }
        // Kernel objects are named by the short id.
        let short = ident::short(&network.id);
        if let Some(found) = self.all().find(|f| ident::short(f.id()) == short) {
            return Err(ApiError::new(
                ErrorCode::IdTaken,
                format!(
                    "network id {} begins like that of network \"{}\": the first {} characters name its \
                     namespace",
                    network.id,
                    found.name(),
                    short.len()
                ),
                "leave --id out to get a fresh one",
            ));
        }
        for segment in &network.segments {
            if let Some(owner) = self.owner_of_vni(segment.vni) {
                return Err(ApiError::new(
                    ErrorCode::VniTaken,
                    format!("VNI {} belongs to network \"{owner}\"", segment.vni),
                    "leave --vni out to get the next free one",
                ));
            }
        }
        self.check_overlaps(network)
    }

    fn check_overlaps(&self, network: &Network) -> Result<(), ApiError> {
        let mut taken: Vec<(&str, IpNetwork)> = Vec::new();
        for other in self.networks.values() {
            taken.extend(
                other
                    .subnets()
                    .map(|subnet| (other.name.as_str(), subnet.prefix)),
            );
        }
        for subnet in network.subnets() {
            if let Some((owner, other)) = taken.iter().find(|(_, p)| overlap(*p, subnet.prefix)) {
                return Err(ApiError::new(
                    ErrorCode::SubnetOverlap,
                    format!(
                        "subnet {} overlaps {other} of network \"{owner}\"",
                        subnet.prefix
                    ),
                    "choose another subnet, or leave --subnet out to get a free one",
                ));
            }
            taken.push((network.name.as_str(), subnet.prefix));
        }
        Ok(())
    }

    fn subnet_from_pool(&self, pools: &Pools) -> Result<Subnet, ApiError> {
        let taken: Vec<Ipv4Network> = self
            .networks
            .values()
            .flat_map(Network::subnets)
            .filter_map(|s| match s.prefix {
                IpNetwork::V4(v4) => Some(v4),
                IpNetwork::V6(_) => None,
            })
            .collect();
        let free = pool_subnets(pools).find(|candidate| {
            let avoided = pools
                .avoid
                .iter()
                .any(|a| IpNetwork::V4(*candidate).contains(*a));
            !avoided && !taken.iter().any(|t| t.overlaps(*candidate))
        });
        let prefix = free.ok_or_else(|| {
            ApiError::new(
                ErrorCode::SubnetsExhausted,
                format!(
                    "every /{} of the pool {} is in use by {} networks",
                    pools.prefix_len,
                    pools.pool,
                    self.own().count()
                ),
                "give a subnet with --subnet, remove unused networks (weft network prune), \
                 or set a larger default_address_pool",
            )
        })?;
        let gateway = IpAddr::V4(first_address_v4(prefix));
        Ok(Subnet {
            prefix: IpNetwork::V4(prefix),
            gateway,
            range: None,
            reserved: BTreeMap::new(),
        })
    }

    /// Adds free VNIs up to `count`; also tells the last one given out.
    fn fill_vnis(&self, mut vnis: Vec<Vni>, count: usize) -> Result<(Vec<Vni>, u32), ApiError> {
        let mut taken: BTreeSet<u32> = vnis.iter().map(|vni| vni.value()).collect();
        let mut last = self.last_vni;
        while vnis.len() < count {
            let vni = self.next_vni_after(last, &taken).ok_or_else(|| {
                ApiError::new(
                    ErrorCode::VnisExhausted,
                    "every VNI from 4097 to 16777215 is in use",
                    "remove unused networks: weft network prune",
                )
            })?;
            last = vni.value();
            taken.insert(last);
            vnis.push(vni);
        }
        Ok((vnis, last))
    }

    /// The first free VNI after `last`, beginning again at 4097 behind the largest.
    fn next_vni_after(&self, last: u32, taken: &BTreeSet<u32>) -> Option<Vni> {
        let (first, max) = (Vni::FIRST_USER.value(), Vni::MAX.value());
        let used: BTreeSet<u32> = self
            .networks
            .values()
            .flat_map(|n| &n.segments)
            .map(|s| s.vni.value())
            .collect();
        let from = if last >= max {
            first
        } else {
            (last + 1).max(first)
        };
        let mut order = (from..=max).chain(first..from);
        let free = order.find(|vni| !used.contains(vni) && !taken.contains(vni))?;
        Vni::new(free).ok()
    }
}

impl<'a> Found<'a> {
    /// The network's id.
    pub fn id(self) -> &'a str {
        match self {
            Found::Overlay(network) => &network.id,
            Found::Builtin(builtin) => &builtin.id,
        }
    }

    /// The network's name.
    pub fn name(self) -> &'a str {
        match self {
            Found::Overlay(network) => &network.name,
            Found::Builtin(builtin) => &builtin.name,
        }
    }
}

/// Bytes that VXLAN adds to an inner frame's IP packet: Ethernet 14, IP 20 or 40, UDP 8, VXLAN 8.
pub fn overhead(vtep: IpAddr) -> u32 {
    if vtep.is_ipv4() { 50 } else { 70 }
}

/// Whether two prefixes share an address.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    match (a, b) {
        (IpNetwork::V4(a), IpNetwork::V4(b)) => a.overlaps(b),
        (IpNetwork::V6(a), IpNetwork::V6(b)) => a.overlaps(b),
        _ => false,
    }
}

fn name_taken(name: &str, owner: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NameTaken,
        format!(
            "network name \"{name}\" belongs to network {}",
            ident::short(owner)
        ),
        format!("choose another name, or first: weft network rm {name}"),
    )
}

/// What a network may be called, whoever else is.
fn check_free_form(name: &str) -> Result<(), ApiError> {
    check_name(name)?;
    match name {
        RESERVED_NAME => Err(ApiError::new(
            ErrorCode::InvalidName,
            format!("\"{RESERVED_NAME}\" cannot be a network's name: it is a word of the API"),
            "choose another name",
        )),
        _ => Ok(()),
    }
}

fn check_kind(wish: &CreateNetwork) -> Result<(), ApiError> {
    let driver = wish.driver.as_deref().unwrap_or(DRIVER_OVERLAY);
    if driver != DRIVER_OVERLAY {
        let hint = suggest::hint(driver, [DRIVER_OVERLAY]);
        return Err(ApiError::new(
            ErrorCode::InvalidDriver,
            format!("driver \"{driver}\" is not one of weft's{hint}"),
            "use --driver overlay, which is the default; Docker itself makes networks of other drivers",
        ));
    }
    if !matches!(wish.scope.as_deref(), None | Some("" | "swarm")) {
        return Err(unsupported(
            "an overlay network of another scope than swarm",
            "leave the scope out",
        ));
    }
    if wish.ingress {
        return Err(unsupported(
            "a second ingress network",
            "every node has one already; leave --ingress out",
        ));
    }
    if wish.enable_ipv4 == Some(false) {
        return Err(unsupported(
            "an overlay network without IPv4",
            "leave IPv4 on; IPv6 is added with --ipv6",
        ));
    }
    let ipam = &wish.ipam;
    if !matches!(ipam.driver.as_deref(), None | Some("" | "default")) {
        return Err(unsupported(
            "another IPAM driver than default",
            "leave the IPAM driver out",
        ));
    }
    if let Some(name) = ipam.options.iter().flatten().map(|(name, _)| name).next() {
        return Err(ApiError::new(
            ErrorCode::InvalidOption,
            format!("IPAM option \"{name}\" is unknown: the default IPAM driver has no options"),
            "leave the IPAM options out",
        ));
    }
    Ok(())
}

fn unsupported(what: &str, next: &str) -> ApiError {
    ApiError::new(
        ErrorCode::Unsupported,
        format!("{what} is not available"),
        next,
    )
}

/// Docker Swarm's rule for names: letters and digits first, then also `_`, `.` and `-`; 63 at most.
///
/// # Errors
/// `invalid_name`.
pub fn check_name(name: &str) -> Result<(), ApiError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.len() <= 63 && name.bytes().all(fine) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidName,
        format!("\"{name}\" cannot be a name"),
        "begin with a letter or digit, go on with letters, digits, `_`, `.` or `-`, 63 characters at most",
    ))
}

fn check_id(id: &str) -> Result<(), ApiError> {
    if ident::is_id(id) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidId,
        format!("\"{id}\" is not a network id"),
        "give 25 characters of 0-9 and a-z, or leave --id out",
    ))
}

/// A label needs a name.
///
/// # Errors
/// `invalid_request`.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ApiError> {
    if labels.keys().all(|key| !key.trim().is_empty()) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::InvalidRequest,
        "a label has no name",
        "give labels as NAME=VALUE",
    ))
}

/// Subnets by family, in the order given.
#[derive(Debug, Default)]
struct Subnets {
    v4: Vec<Subnet>,
    v6: Vec<Subnet>,
}

fn parse_subnets(config: &[IpamConfigRequest], ipv6: bool) -> Result<Subnets, ApiError> {
    let mut subnets = Subnets::default();
    for entry in config {
        let subnet = parse_subnet(entry)?;
        match subnet.prefix {
            IpNetwork::V4(_) => subnets.v4.push(subnet),
            IpNetwork::V6(_) if ipv6 => subnets.v6.push(subnet),
            IpNetwork::V6(prefix) => {
                return Err(ApiError::new(
                    ErrorCode::InvalidSubnet,
                    format!("subnet {prefix} is IPv6, but the network is IPv4 only"),
                    "add --ipv6",
                ));
            }
        }
    }
    if subnets.v6.len() > subnets.v4.len().max(1) {
        return Err(ApiError::new(
            ErrorCode::InvalidSubnet,
            format!(
                "{} IPv6 subnets for {} IPv4 subnets",
                subnets.v6.len(),
                subnets.v4.len().max(1)
            ),
            "an IPv6 subnet shares the VNI of an IPv4 subnet, in order: give as many --subnet of IPv4",
        ));
    }
    if subnets.v4.len() > SEGMENTS_MAX {
        return Err(ApiError::new(
            ErrorCode::InvalidSubnet,
            format!(
                "{} IPv4 subnets are more than the {SEGMENTS_MAX} a network can have",
                subnets.v4.len()
            ),
            "spread them over several networks, or use fewer, larger subnets",
        ));
    }
    Ok(subnets)
}

fn parse_subnet(entry: &IpamConfigRequest) -> Result<Subnet, ApiError> {
    let invalid =
        |message: String, next: &str| ApiError::new(ErrorCode::InvalidSubnet, message, next);
    if entry.subnet.is_empty() {
        return Err(invalid(
            "a gateway, range or reserved address belongs to no subnet".into(),
            "give the subnet too, such as --subnet 10.0.1.0/24",
        ));
    }
    let prefix: IpNetwork = entry
        .subnet
        .parse()
        .ok()
        .filter(|_| entry.subnet.contains('/'))
        .ok_or_else(|| {
            invalid(
                format!("\"{}\" is not a subnet", entry.subnet),
                "write it as ADDRESS/LENGTH, such as 10.0.1.0/24",
            )
        })?;
    check_prefix(prefix)?;
    let gateway = parse_gateway(&entry.gateway, prefix)?;
    let range = match entry.ip_range.as_str() {
        "" => None,
        text => Some(parse_range(text, prefix)?),
    };
    let mut reserved = BTreeMap::new();
    for (name, text) in &entry.auxiliary_addresses {
        let address = text
            .parse()
            .ok()
            .filter(|a| prefix.contains(*a))
            .ok_or_else(|| {
                invalid(
                    format!("reserved address {name}={text} is not in subnet {prefix}"),
                    "give an address of the subnet, or leave it out",
                )
            })?;
        reserved.insert(name.clone(), address);
    }
    Ok(Subnet {
        prefix,
        gateway,
        range,
        reserved,
    })
}

fn check_prefix(prefix: IpNetwork) -> Result<(), ApiError> {
    let invalid = |why: String, next: &str| {
        Err(ApiError::new(
            ErrorCode::InvalidSubnet,
            format!("subnet {prefix} {why}"),
            next,
        ))
    };
    if prefix.ip() != prefix.network() {
        return invalid(
            "has bits set beyond its length".into(),
            &format!("did you mean {}/{}?", prefix.network(), prefix.prefix()),
        );
    }
    let (shortest, longest) = if prefix.is_ipv4() { (4, 30) } else { (16, 126) };
    if !(shortest..=longest).contains(&prefix.prefix()) {
        return invalid(
            format!("has a prefix length outside of {shortest} to {longest}"),
            "it must hold a gateway and at least one endpoint; /24 is usual",
        );
    }
    if special(prefix) {
        return invalid(
            "holds addresses that are never a host's (loopback, multicast, link-local or reserved)"
                .into(),
            "use a private prefix such as 10.0.1.0/24, or fd00:1::/64 for IPv6",
        );
    }
    Ok(())
}

/// Whether the prefix touches addresses that cannot be given to workloads (RFC 6890).
pub fn special(prefix: IpNetwork) -> bool {
    let v4 = |a, b, c, d, len| Ipv4Network::new(Ipv4Addr::new(a, b, c, d), len).map(IpNetwork::V4);
    let v6 = |first, len| {
        Ipv6Network::new(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0), len).map(IpNetwork::V6)
    };
    let never = [
        v4(0, 0, 0, 0, 8),
        v4(127, 0, 0, 0, 8),
        v4(169, 254, 0, 0, 16),
        v4(224, 0, 0, 0, 3),
        v6(0, 16),
        v6(0xfe80, 10),
        v6(0xff00, 8),
    ];
    never
        .into_iter()
        .flatten()
        .any(|other| overlap(other, prefix))
}

fn parse_gateway(text: &str, prefix: IpNetwork) -> Result<IpAddr, ApiError> {
    if text.is_empty() {
        return Ok(first_address(prefix));
    }
    let invalid = |message: String| {
        ApiError::new(
            ErrorCode::InvalidGateway,
            message,
            format!(
                "give an address of {prefix}, or leave it out to get {}",
                first_address(prefix)
            ),
        )
    };
    let gateway: IpAddr = text
        .parse()
        .map_err(|_| invalid(format!("\"{text}\" is not an IP address")))?;
    if !prefix.contains(gateway) {
        return Err(invalid(format!(
            "gateway {gateway} is outside of subnet {prefix}"
        )));
    }
    if is_edge(prefix, gateway) {
        return Err(invalid(format!(
            "gateway {gateway} is the network or broadcast address of {prefix}"
        )));
    }
    Ok(gateway)
}

fn parse_range(text: &str, prefix: IpNetwork) -> Result<IpNetwork, ApiError> {
    let range: Option<IpNetwork> = text.parse().ok().filter(|_| text.contains('/'));
    let inside = |r: &IpNetwork| {
        r.ip() == r.network() && prefix.contains(r.network()) && r.prefix() >= prefix.prefix()
    };
    range.filter(inside).ok_or_else(|| {
        ApiError::new(
            ErrorCode::InvalidSubnet,
            format!("range \"{text}\" is not a part of subnet {prefix}"),
            "write a prefix inside the subnet, such as 10.0.1.128/25 in 10.0.1.0/24",
        )
    })
}

/// The network address, and for IPv4 the broadcast address too.
pub fn is_edge(prefix: IpNetwork, address: IpAddr) -> bool {
    address == prefix.network() || (prefix.is_ipv4() && address == prefix.broadcast())
}

/// The first address behind the network address.
pub fn first_address(prefix: IpNetwork) -> IpAddr {
    match prefix {
        IpNetwork::V4(v4) => first_address_v4(v4).into(),
        IpNetwork::V6(v6) => Ipv6Addr::from(u128::from(v6.network()) | 1).into(),
    }
}

fn first_address_v4(prefix: Ipv4Network) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(prefix.network()) | 1)
}

fn pool_subnets(pools: &Pools) -> impl Iterator<Item = Ipv4Network> {
    let step = 1u64 << (32 - u32::from(pools.prefix_len));
    let first = u64::from(u32::from(pools.pool.network()));
    let last = u64::from(u32::from(pools.pool.broadcast()));
    let len = pools.prefix_len;
    (first..=last)
        .step_by(step as usize)
        .filter_map(move |start| {
            let start = u32::try_from(start).ok()?;
            Ipv4Network::new(Ipv4Addr::from(start), len).ok()
        })
}

/// Gives each IPv4 subnet an IPv6 one: a unique local /64 made from the network's id (RFC 4193 §3.2),
/// so that every node that is told the same id gets the same prefix.
fn fill_ipv6(subnets: &mut Subnets, id: &str) {
    let global = fnv1a(id.as_bytes()) & 0xff_ffff_ffff;
    for index in subnets.v6.len()..subnets.v4.len() {
        let high = 0xfd << 56 | global << 16 | index as u64;
        let address = Ipv6Addr::from(u128::from(high) << 64);
        if let Ok(prefix) = Ipv6Network::new(address, 64) {
            let prefix = IpNetwork::V6(prefix);
            let gateway = first_address(prefix);
            subnets.v6.push(Subnet {
                prefix,
                gateway,
                range: None,
                reserved: BTreeMap::new(),
            });
        }
    }
}

fn fnv1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

fn join(subnets: Subnets, vnis: &[Vni]) -> Vec<Segment> {
    let mut v6 = subnets.v6.into_iter();
    let pairs = subnets.v4.into_iter().zip(vnis);
    pairs
        .map(|(v4, vni)| Segment {
            vni: *vni,
            v4,
            v6: v6.next(),
        })
        .collect()
}

fn warnings(network: &Network, vtep: IpAddr) -> Vec<String> {
    let covers = network
        .subnets()
        .find(|subnet| subnet.prefix.contains(vtep));
    let text = covers.map(|subnet| {
        format!(
            "subnet {} covers this node's own VTEP {vtep}: workloads will not reach that host",
            subnet.prefix
        )
    });
    text.into_iter().collect()
}

#[cfg(test)]
#[path = "network/tests.rs"]
mod tests;
