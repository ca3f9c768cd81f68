//! Fuzz target `api`: bodies as the HTTP front end gets them, read and checked, and what they leave behind.
//!
//! An input is a few requests with a zero byte between them; the first byte of each says what it is.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::fuzzing::Model;
use crate::frontend::http;

/// More requests than this find nothing new.
const REQUESTS_MAX: usize = 16;

/// Any bytes as requests to a fresh node.
///
/// # Panics
/// When an accepted request broke a rule of the node, or its body reads differently once written again.
pub fn run(data: &[u8]) {
    let mut model = Model::default();
    for request in data.split(|byte| *byte == 0).take(REQUESTS_MAX) {
        let Some((kind, body)) = request.split_first() else {
            continue;
        };
        model.request(body.len(), |model| match kind {
            b'n' => model.create_network(parse(body)?),
            b'v' => model.change_vteps(&parse(body)?, true),
            b'w' => model.change_vteps(&parse(body)?, false),
            b'r' => model.put_records(&http::parse_records(body)?.into_vec()),
            b'd' => model.remove_record(&parse(body)?),
            b'a' => model.attach(&parse(body)?),
            b'c' => std::str::from_utf8(body).map_or(Ok(()), |text| model.configure(text)),
            _ => Ok(()),
        });
    }
}

/// Reads as the server does, and checks that what a client would write of it says the same.
fn parse<T>(body: &[u8]) -> Result<T, crate::agent::api::ApiError>
where
    T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug,
{
    let read: T = http::parse(body)?;
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    assert_eq!(http::parse::<T>(&written).ok().as_ref(), Some(&read));
    Ok(read)
}

/// Requests that are granted, and some that are not.
pub fn seeds() -> Vec<Vec<u8>> {
    let plain = r#"n{"Name":"web"}"#;
    let full = r#"n{"Name":"web","Id":"0123456789abcdefghijklmno","Driver":"overlay","Scope":"swarm",
        "EnableIPv4":true,"EnableIPv6":true,"IPAM":{"Driver":"default","Config":[
        {"Subnet":"10.1.0.0/16","IPRange":"10.1.2.0/24","Gateway":"10.1.0.254","AuxiliaryAddresses":{"a":"10.1.2.3"}},
        {"Subnet":"10.2.0.0/24"},{"Subnet":"fd00:1::/64"}]},"Internal":true,"Attachable":true,"Ingress":false,
        "Options":{"com.docker.network.driver.overlay.vxlanid_list":"5000","com.docker.network.driver.mtu":"1400",
        "weft.interop":"true","weft.bum-rate":"50","weft.carry-vlan":"false","weft.inherit-dscp":"true",
        "weft.strict-reserved-bits":"false"},"Labels":{"team":"a"}}"#;
    let attach = r#"a{"target":"c1","name":"one","ips":["10.0.1.9"],"mac":"02:42:0a:00:01:09","ifname":"eth1"}"#;
    let one = r#"r{"mac":"02:42:0a:00:01:05","ips":["10.0.1.5"],"vtep":"192.0.2.2"}"#;
    let many = r#"r[{"mac":"02:42:0a:00:01:06","ips":["10.0.1.6"],"vtep":"192.0.2.2","endpoint":"e","node":"n2",
        "name":"db","aliases":["x"],"service":"s","version":{"epoch":1,"counter":2}}]"#;
    let gone = r#"d{"mac":"02:42:0a:00:01:05","ips":[],"vtep":"192.0.2.2","version":{"epoch":0,"counter":7}}"#;
    let vteps = r#"v{"vteps":["192.0.2.2","192.0.2.3"]}"#;
    let fewer = r#"w{"vteps":["192.0.2.3"]}"#;
    let config = "cnode = \"n1\"\nworkers = 2\nuplink = \"tap\"\ndisable_offloads = [\"big\", \"udp_gso\"]\n\
        default_address_pool = \"172.16.0.0/12\"\ndefault_address_pool_mask_length = 26\n\
        metrics_listen = \"127.0.0.1:9472\"\ncleanup_on_exit = true\n";
    let wrong = r#"n{"Name":"web","IPAM":{"Config":[{"Subnet":"10.0.0.0/24"}]},"Options":{"weft.interop":"maybe"}}"#;
    let inputs: &[&[&str]] = &[
        &[plain],
        &[full, r#"a{"target":"/proc/7/ns/net"}"#],
        &[plain, vteps, fewer],
        &[plain, attach, r#"a{"target":"c2"}"#],
        &[plain, one, many, one, gone, one],
        &[config, plain, r#"a{"target":"c1"}"#],
        &[wrong, "n[", "cworker = 1", r#"r[{"mac":"#],
    ];
    inputs
        .iter()
        .map(|list| list.join("\0").into_bytes())
        .collect()
}
