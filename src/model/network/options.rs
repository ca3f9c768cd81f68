//! The driver options of a network: names, values, and what is said of those that will not do.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{FrameRules, MTU_INNER_MIN, MTU_INNER_MIN_IPV6, overhead, unsupported};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::request::{
    OPTION_BUM_RATE, OPTION_CARRY_VLAN, OPTION_ENCRYPTED, OPTION_INHERIT_DSCP, OPTION_INTEROP,
    OPTION_MTU, OPTION_STRICT_RESERVED_BITS, OPTION_VXLANID_LIST,
};
use crate::model::suggest;
use crate::wire::Vni;

/// Options a network may have; the last is known only to be refused.
const OPTIONS: [&str; 8] = [
    OPTION_MTU,
    OPTION_VXLANID_LIST,
    OPTION_INTEROP,
    OPTION_STRICT_RESERVED_BITS,
    OPTION_CARRY_VLAN,
    OPTION_INHERIT_DSCP,
    OPTION_BUM_RATE,
    OPTION_ENCRYPTED,
];

/// Parsed driver options.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub(super) vnis: Vec<Vni>,
    pub(super) mtu: Option<u32>,
    pub(super) interop: bool,
    pub(super) rules: FrameRules,
}

impl Options {
    pub(super) fn parse(
        options: &BTreeMap<String, String>,
        ipv6: bool,
        vtep: IpAddr,
    ) -> Result<Options, ApiError> {
        let mut parsed = Options::default();
        for (name, value) in options {
            match name.as_str() {
                OPTION_VXLANID_LIST => parsed.vnis = parse_vnis(value)?,
                OPTION_MTU => parsed.mtu = Some(parse_mtu(value, ipv6, vtep)?),
                OPTION_INTEROP => parsed.interop = parse_switch(name, value)?,
                OPTION_STRICT_RESERVED_BITS => {
                    parsed.rules.strict_reserved_bits = Some(parse_switch(name, value)?);
                }
                OPTION_CARRY_VLAN => parsed.rules.carry_vlan = Some(parse_switch(name, value)?),
                OPTION_INHERIT_DSCP => parsed.rules.inherit_dscp = Some(parse_switch(name, value)?),
                OPTION_BUM_RATE => parsed.rules.bum_rate = Some(parse_rate(value)?),
                OPTION_ENCRYPTED => {
                    return Err(unsupported(
                        "encryption on the wire (option \"encrypted\", whatever its value)",
                        "leave the option out, and keep the underlay trusted or inside WireGuard or IPsec",
                    ));
                }
                _ => {
                    let hint = suggest::hint(name, OPTIONS);
                    return Err(ApiError::new(
                        ErrorCode::InvalidOption,
                        format!("option \"{name}\" is unknown{hint}"),
                        format!("known options: {}", OPTIONS[..OPTIONS.len() - 1].join(", ")),
                    ));
                }
            }
        }
        Ok(parsed)
    }
}

fn parse_switch(name: &str, value: &str) -> Result<bool, ApiError> {
    match value {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(ApiError::new(
            ErrorCode::InvalidOption,
            format!("option {name} = \"{value}\" is neither true nor false"),
            format!("write {name}=true or {name}=false, or leave it out"),
        )),
    }
}

fn parse_rate(text: &str) -> Result<u32, ApiError> {
    text.parse().map_err(|_| {
        ApiError::new(
            ErrorCode::InvalidOption,
            format!("option {OPTION_BUM_RATE} = \"{text}\" is not a number of frames per second"),
            "give a number, 0 for no limit, or leave it out to get 1000 per worker",
        )
    })
}

fn parse_vnis(text: &str) -> Result<Vec<Vni>, ApiError> {
    let invalid = |message: String| {
        ApiError::new(
            ErrorCode::InvalidVni,
            message,
            "give one number from 1 to 16777215 per IPv4 subnet, or none to get the next free ones",
        )
    };
    let mut vnis: Vec<Vni> = Vec::new();
    for part in text.split(',').map(str::trim) {
        let number: u32 = part
            .parse()
            .map_err(|_| invalid(format!("\"{part}\" is not a VNI")))?;
        let vni = Vni::new(number).map_err(|e| invalid(e.to_string()))?;
        if vnis.contains(&vni) {
            return Err(invalid(format!("VNI {vni} is given twice")));
        }
        vnis.push(vni);
    }
    Ok(vnis)
}

pub(super) fn too_many_vnis(vnis: usize, subnets: usize) -> ApiError {
    ApiError::new(
        ErrorCode::InvalidVni,
        format!("{vnis} VNIs for {subnets} IPv4 subnets: each subnet takes one"),
        "give at most one VNI per IPv4 subnet",
    )
}

fn parse_mtu(text: &str, ipv6: bool, vtep: IpAddr) -> Result<u32, ApiError> {
    let least = overhead(vtep)
        + if ipv6 {
            MTU_INNER_MIN_IPV6
        } else {
            MTU_INNER_MIN
        };
    match text.parse::<u32>() {
        Ok(mtu) if (least..=65_535).contains(&mtu) => Ok(mtu),
        _ => Err(ApiError::new(
            ErrorCode::InvalidMtu,
            format!("{OPTION_MTU} = \"{text}\" is not an underlay MTU from {least} to 65535"),
            "leave the option out: the MTU is then the underlay device's own minus the encapsulation",
        )),
    }
}
