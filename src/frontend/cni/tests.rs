//! Calls as runtimes make them, good and hostile, without an agent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::call::{Call, Environment, NEWEST, STDIN_MAX, Wish};
use super::{VERSIONS, answer, is_called};

/// The variables of an ADD, with some changed; an empty value takes one away.
fn environment(changes: &[(&str, &str)]) -> Environment {
    let mut all: BTreeMap<&str, OsString> = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "4f2a9c81d3e0b7"),
        ("CNI_NETNS", "/nonexistent/netns"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
    .map(|(name, value)| (name, value.into()))
    .into();
    all.extend(changes.iter().map(|(name, value)| (*name, value.into())));
    Environment::new(|name| all.get(name).cloned())
}

fn config(more: Value) -> Vec<u8> {
    let mut config = json!({
        "cniVersion": "1.1.0", "name": "web", "type": "weft-cni", "network": "red",
        "socket": "/nonexistent/weft.sock",
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    serde_json::to_vec(&config).unwrap()
}

fn call(changes: &[(&str, &str)], input: &[u8]) -> Result<Call, (u64, String)> {
    let mut version = NEWEST.to_owned();
    let called = environment(changes).call(input, &mut version);
    called.map_err(|failure| (failure.code as u64, failure.message))
}

fn wish(changes: &[(&str, &str)], more: Value) -> Wish {
    match call(changes, &config(more)) {
        Ok(Call::Add(_, wish)) => *wish,
        other => panic!("{other:?}"),
    }
}

/// The code and message of a call that fails, as a runtime reads them.
fn refusal(changes: &[(&str, &str)], input: &[u8]) -> (u64, String) {
    let (text, code) = answer(&environment(changes), input);
    assert_eq!(code, 1, "{text}");
    let error: Value = serde_json::from_str(&text).expect("an error object");
    assert!(VERSIONS.contains(&error["cniVersion"].as_str().unwrap()));
    let message = error["msg"].as_str().unwrap();
    assert!(!message.is_empty() && message.len() < 1000, "{message}");
    (error["code"].as_u64().unwrap(), message.to_owned())
}

#[test]
fn the_program_is_the_plugin_by_its_name_only() {
    assert!(is_called(Some(&"/opt/cni/bin/weft-cni".into())));
    assert!(is_called(Some(&"weft-cni".into())));
    for other in ["weft", "/opt/weft-cni/weft", "weft-cni/", ""] {
        let plugin = is_called(Some(&other.into()));
        assert_eq!(plugin, other == "weft-cni/", "{other}");
    }
    assert!(!is_called(None));
}

#[test]
fn missing_and_wrong_variables_are_named() {
    let cases = [
        ("CNI_COMMAND", "", "CNI_COMMAND is not set"),
        ("CNI_COMMAND", "add", "CNI_COMMAND"),
        ("CNI_CONTAINERID", "", "CNI_CONTAINERID is not set"),
        ("CNI_CONTAINERID", "../../etc/passwd", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "a/b", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "-rf", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "a b", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "a\nb", "CNI_CONTAINERID"),
        ("CNI_CONTAINERID", "ä", "CNI_CONTAINERID"),
        ("CNI_NETNS", "", "CNI_NETNS is not set"),
        ("CNI_NETNS", "netns/a", "CNI_NETNS"),
        ("CNI_NETNS", "../a", "CNI_NETNS"),
        ("CNI_NETNS", "/nonexistent/netns", "CNI_NETNS"),
        ("CNI_NETNS", "/etc/passwd", "CNI_NETNS"),
        ("CNI_IFNAME", "", "CNI_IFNAME is not set"),
        ("CNI_IFNAME", "..", "CNI_IFNAME"),
        ("CNI_IFNAME", "../eth0", "CNI_IFNAME"),
        ("CNI_IFNAME", "abcdefghijklmnop", "CNI_IFNAME"),
        ("CNI_IFNAME", "eth 0", "CNI_IFNAME"),
        ("CNI_ARGS", "IP", "CNI_ARGS"),
        ("CNI_ARGS", "COLOUR=red", "CNI_ARGS"),
        ("CNI_ARGS", "IgnoreUnknown=no;COLOUR=red", "CNI_ARGS"),
    ];
    for (name, value, says) in cases {
        let (code, message) = refusal(&[(name, value)], &config(json!({})));
        assert_eq!(code, 4, "{name}={value}: {message}");
        assert!(message.contains(says), "{name}={value}: {message}");
    }
    let long = "a".repeat(100_000);
    for name in ["CNI_CONTAINERID", "CNI_IFNAME"] {
        assert_eq!(refusal(&[(name, &long)], &config(json!({}))).0, 4);
    }
    let bytes = OsString::from_vec(vec![b'a', 0xff]);
    let broken = Environment::new(|name| match name {
        "CNI_COMMAND" => Some("ADD".into()),
        _ => Some(bytes.clone()),
    });
    let (text, _) = answer(&broken, &config(json!({}))[..]);
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(error["code"], 4, "{text}");
}

#[test]
fn what_is_no_configuration_cannot_be_decoded() {
    let deep = "[".repeat(1_000_000);
    let inside = format!("{{\"cniVersion\":\"1.1.0\",\"x\":{deep}");
    let hostile: [&[u8]; 15] = [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"\"a\"",
        b"\xff\xfe",
        deep.as_bytes(),
        inside.as_bytes(),
        b"{\"cniVersion\":7}",
        b"{\"cniVersion\":\"1.1.0\",\"name\":7}",
        b"{\"cniVersion\":\"1.1.0\",\"name\":\"a\",\"network\":[]}",
        b"{\"cniVersion\":\"1.1.0\",\"name\":\"a\",\"network\":\"b\",\"ipam\":\"dhcp\"}",
        b"{\"cniVersion\":\"1.1.0\",\"name\":\"a\",\"network\":\"b\",\"prevResult\":7}",
        b"{\"cniVersion\":\"1.1.0\",\"name\":\"a\",\"network\":\"b\",\"prevResult\":{\"ips\":[{\"address\":\"x\"}]}}",
    ];
    for input in hostile {
        let shown = String::from_utf8_lossy(&input[..input.len().min(80)]).into_owned();
        for verb in ["ADD", "DEL"] {
            assert_eq!(refusal(&[("CNI_COMMAND", verb)], input).0, 6, "{shown}");
        }
    }
}

#[test]
fn messages_stay_short_whatever_is_handed_in() {
    let long = "ä".repeat(1_000_000);
    for more in [
        json!({"ipam": {"type": long}}),
        json!({"runtimeConfig": {"ips": [long]}}),
        json!({"runtimeConfig": {"ips": long}}),
        json!({"socket": long}),
        json!({"name": long}),
        json!({"cniVersion": long}),
    ] {
        refusal(&[], &config(more));
    }
    refusal(&[("CNI_ARGS", &long)], &config(json!({})));
    refusal(&[("CNI_NETNS", &long)], &config(json!({})));
    refusal(&[("CNI_COMMAND", &long)], &config(json!({})));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn whatever_is_handed_in_is_answered_by_an_error_object(
        at in 0_usize..400,
        bytes in prop::collection::vec(any::<u8>(), 0..12),
        args in "[ -~]{0,20}",
    ) {
        let mut input = config(json!({
            "runtimeConfig": {"ips": ["10.0.1.7/24"], "aliases": {"web": ["a"]}},
            "prevResult": {"ips": [{"address": "10.0.1.7/24", "interface": 0}], "dns": null},
            "cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}],
        }));
        let at = at.min(input.len());
        let end = (at + bytes.len()).min(input.len());
        input.splice(at..end, bytes);
        // Changed or not, there is no such namespace.
        refusal(&[("CNI_ARGS", &args)], &input);
        for verb in ["DEL", "CHECK", "GC", "STATUS", "VERSION", &args] {
            let _only_read = call(&[("CNI_COMMAND", verb)], &input);
        }
    }
}

#[test]
fn the_example_is_a_configuration() {
    let text = include_str!("../../../deploy/cni/10-weft.conflist");
    let list: Value = serde_json::from_str(text).unwrap();
    let mut first = list["plugins"][0].clone();
    assert_eq!(first["type"], super::PROGRAM);
    for key in ["cniVersion", "name"] {
        first[key] = list[key].clone();
    }
    let called = call(&[], &serde_json::to_vec(&first).unwrap());
    let Ok(Call::Add(task, _)) = called else {
        panic!("{called:?}");
    };
    assert_eq!(task.config.network, "my-network");
}

#[test]
fn a_configuration_without_end_is_not_read_to_it() {
    let endless = std::io::repeat(b' ');
    let (text, code) = answer(&environment(&[]), endless);
    assert_eq!(code, 1);
    assert!(
        text.contains(&format!("larger than {STDIN_MAX} bytes")),
        "{text}"
    );
}

#[test]
fn a_configuration_that_cannot_be_right_says_what_is_wrong() {
    let cases = [
        (json!({"network": ""}), 7, "`network`"),
        (json!({"network": null}), 7, "`network`"),
        (json!({"name": ""}), 7, "`name`"),
        (json!({"name": "../a"}), 7, "`name`"),
        (json!({"socket": "weft.sock"}), 7, "`socket`"),
        (json!({"ipam": {"type": "host-local"}}), 2, "ipam.type"),
        (json!({"runtimeConfig": {"ips": ["ten"]}}), 7, "\"ten\""),
        (json!({"runtimeConfig": {"mac": "02:42"}}), 7, "MAC"),
        (json!({"args": {"cni": {"ips": ["::/200"]}}}), 7, "::/200"),
        (json!({"runtimeConfig": {"aliases": 7}}), 6, "aliases"),
        (
            json!({"runtimeConfig": {"bandwidth": {"egressRate": -1}}}),
            6,
            "",
        ),
    ];
    for (more, code, says) in cases {
        let (got, message) = refusal(&[], &config(more.clone()));
        assert_eq!(got, code, "{more}: {message}");
        if code != 6 {
            assert!(message.contains(says), "{more}: {message}");
        }
    }
    // What is to be taken away goes, whatever is asked for beside it.
    for more in [
        json!({"ipam": {"type": "dhcp"}}),
        json!({"runtimeConfig": 7}),
    ] {
        let called = call(&[("CNI_COMMAND", "DEL")], &config(more));
        assert!(matches!(called, Ok(Call::Del(_))), "{called:?}");
    }
}

#[test]
fn versions_are_checked_against_the_verb() {
    for version in [
        "0.1.0", "0.2.0", "0.5.0", "1.2.0", "2.0.0", "", "1.1", "\u{0}",
    ] {
        let input = config(json!({ "cniVersion": version }));
        assert_eq!(refusal(&[], &input).0, 1, "{version:?}");
    }
    let without = br#"{"name":"web","network":"red"}"#;
    assert_eq!(refusal(&[], without).0, 1);
    for (verb, since) in [("CHECK", "0.4.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")] {
        for version in VERSIONS {
            let more = json!({ "cniVersion": version, "cni.dev/valid-attachments": null });
            let called = call(&[("CNI_COMMAND", verb)], &config(more));
            let serves = *version >= since;
            assert_eq!(called.is_ok(), serves, "{verb} {version}: {called:?}");
        }
    }
    for version in VERSIONS {
        let called = call(&[], &config(json!({ "cniVersion": version })));
        assert!(called.is_ok(), "{version}: {called:?}");
    }
}

#[test]
fn version_answers_whatever_it_is_asked_with() {
    let ask = |input: &[u8]| -> Value {
        let (text, code) = answer(&environment(&[("CNI_COMMAND", "VERSION")]), input);
        assert_eq!(code, 0, "{text}");
        serde_json::from_str(&text).unwrap()
    };
    for (input, version) in [
        (&b""[..], NEWEST),
        (b"{}", NEWEST),
        (b"{\"cniVersion\":\"0.4.0\"}", "0.4.0"),
        (b"{\"cniVersion\":\"9.9.9\"}", NEWEST),
    ] {
        let answer = ask(input);
        assert_eq!(answer["cniVersion"], version);
        assert_eq!(answer["supportedVersions"], json!(VERSIONS));
    }
}

#[test]
fn addresses_come_from_three_places_in_order() {
    let of_environment = [("CNI_ARGS", "IP=10.0.1.7/24,fd00::7;MAC=02:42:0a:00:01:07")];
    let plain = wish(&of_environment, json!({}));
    let ips = |wish: &Wish| wish.ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ips(&plain), ["10.0.1.7", "fd00::7"]);
    assert_eq!(plain.mac.unwrap().to_string(), "02:42:0a:00:01:07");
    let args = json!({"args": {"cni": {"ips": ["10.0.1.8/24"]}}});
    assert_eq!(ips(&wish(&of_environment, args)), ["10.0.1.8"]);
    let both = json!({
        "args": {"cni": {"ips": ["10.0.1.8/24"]}},
        "runtimeConfig": {"ips": ["10.0.1.9"], "mac": "02:42:0a:00:01:09"},
    });
    let first = wish(&of_environment, both);
    assert_eq!(ips(&first), ["10.0.1.9"]);
    assert_eq!(first.mac.unwrap().to_string(), "02:42:0a:00:01:09");
    let empty = json!({"runtimeConfig": {"ips": null, "mac": null}, "args": null, "ipam": {}});
    assert_eq!(wish(&[], empty), Wish::default());
}

#[test]
fn a_limit_of_zero_is_none() {
    let limits =
        |bandwidth: Value| wish(&[], json!({"runtimeConfig": {"bandwidth": bandwidth}})).limits;
    assert_eq!(limits(json!({})), None);
    assert_eq!(limits(Value::Null), None);
    assert_eq!(limits(json!({"ingressRate": 0, "egressBurst": 9})), None);
    let one = limits(json!({"ingressRate": 8_000_000, "ingressBurst": 0, "other": 1})).unwrap();
    assert_eq!(one.outgoing, None);
    let rate = one.incoming.unwrap();
    assert_eq!(
        (rate.bits_per_second, rate.burst_bits()),
        (8_000_000, 400_000)
    );
    let huge = limits(json!({"egressRate": u64::MAX, "egressBurst": u64::MAX})).unwrap();
    assert_eq!(huge.outgoing.unwrap().burst_bits(), u64::MAX);
}

#[test]
fn names_come_from_aliases_and_the_pod() {
    let names = |args: &str, more: Value| wish(&[("CNI_ARGS", args)], more).aliases;
    let pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=db-0;OTHER=x";
    assert_eq!(names(pod, json!({})), ["db-0.shop"]);
    assert_eq!(names("K8S_POD_NAME=db", json!({})), ["db"]);
    let list = json!({"runtimeConfig": {"aliases": ["a", "db", "a"]}});
    assert_eq!(names("K8S_POD_NAME=db", list), ["a", "db"]);
    let per_network =
        json!({"runtimeConfig": {"aliases": {"web": ["a"], "other": ["b"], "c": null}}});
    assert_eq!(names("", per_network), ["a"]);
    // A name that cannot be one on a network is no reason to have no network.
    let long = format!("K8S_POD_NAME={}", "x".repeat(64));
    for args in [&long, "K8S_POD_NAME=a/b", "K8S_POD_NAME="] {
        assert!(names(args, json!({})).is_empty(), "{args}");
    }
}

#[test]
fn collecting_needs_a_list_and_takes_an_empty_one() {
    let gc = [
        ("CNI_COMMAND", "GC"),
        ("CNI_CONTAINERID", ""),
        ("CNI_IFNAME", ""),
    ];
    let valid = |more: Value| match call(&gc, &config(more)) {
        Ok(Call::Gc(_, valid)) => Ok(valid.len()),
        Ok(other) => panic!("{other:?}"),
        Err((code, _)) => Err(code),
    };
    assert_eq!(valid(json!({})), Err(7));
    assert_eq!(valid(json!({"cni.dev/valid-attachments": null})), Ok(0));
    assert_eq!(valid(json!({"cni.dev/valid-attachments": []})), Ok(0));
    let one = json!([{"containerID": "a", "ifname": "eth0"}]);
    assert_eq!(valid(json!({"cni.dev/valid-attachments": one})), Ok(1));
    assert_eq!(valid(json!({"cni.dev/attachments": one})), Ok(1));
    assert_eq!(valid(json!({"cni.dev/valid-attachments": [{}]})), Err(6));
    assert_eq!(valid(json!({"cni.dev/valid-attachments": "all"})), Err(6));
}

#[test]
fn without_an_agent_the_runtime_is_to_try_again() {
    let status = [("CNI_COMMAND", "STATUS")];
    assert_eq!(refusal(&status, &config(json!({}))).0, 50);
    let gc = json!({"cni.dev/valid-attachments": []});
    assert_eq!(refusal(&[("CNI_COMMAND", "GC")], &config(gc)).0, 11);
    // The agent will find by itself that this namespace is gone.
    for netns in ["", "/nonexistent/netns", "/etc/passwd"] {
        let del = environment(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", netns)]);
        assert_eq!(
            answer(&del, &config(json!({}))[..]),
            (String::new(), 0),
            "{netns}"
        );
    }
    let del = [("CNI_COMMAND", "DEL"), ("CNI_NETNS", "/proc/self/ns/net")];
    assert_eq!(refusal(&del, &config(json!({}))).0, 11);
    // Nobody attaches the node to itself.
    let (code, message) = refusal(&[("CNI_NETNS", "/proc/self/ns/net")], &config(json!({})));
    assert_eq!(code, 4);
    assert!(message.contains("the node's own namespace"), "{message}");
    let check = [("CNI_COMMAND", "CHECK")];
    assert_eq!(refusal(&check, &config(json!({}))).0, 7, "no prevResult");
}
