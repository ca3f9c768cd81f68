//! An operator's usual way with networks, on two engines, and beside Docker's own overlay.

use std::net::SocketAddr;

use serde_json::Value;

use super::common::wiretap::{Ear, Outer, dissect};
use super::docker_support::{Bed, Engine, Options, PATIENCE, eventually, get, reaches};

/// Keys of `docker network inspect` whose values are another thing for a network of a plugin.
const MAY_DIFFER: [&str; 9] = [
    "Name",
    "Id",
    "Created", // of each network its own
    "Scope",   // an engine without a swarm calls a plugin's network local
    "Driver",
    "IPAM",       // the driver's name, and the subnet
    "Attachable", // said of overlays only
    "Containers",
    "Options", // what is on it; a plugin cannot add options to those of the user
];
const VXLAN_PORT: u16 = 4789;

#[test]
fn the_walk_through_works_on_two_engines() {
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    let (one, two) = (bed.one(), bed.two());
    bed.my_network("");
    for engine in &bed.engines {
        let listed = engine.done("network ls --format {{.Name}}/{{.Driver}}/{{.Scope}}");
        assert!(
            listed.lines().any(|line| line == "my-network/weft/local"),
            "{listed}"
        );
    }

    let ear = Ear::on(bed.switch(), "p1");
    let replicas = [(one, "my-web-1"), (two, "my-web-2"), (one, "my-web-3")];
    for (engine, name) in replicas {
        engine.web(name, "--network my-network --dns 10.0.1.254");
    }
    for (from, asker) in replicas {
        let netns = from.container_netns(asker);
        for (at, asked) in replicas {
            let address = SocketAddr::from((at.ip(asked, "my-network"), 80));
            eventually(&format!("{asked} for {asker} by address"), PATIENCE, || {
                get(&netns, address).is_ok_and(|body| body == asked)
            });
            eventually(&format!("{asked} for {asker} by name"), PATIENCE, || {
                let answer = from.exec(asker, &format!("wget -q -O - http://{asked}/"));
                answer.stdout.trim() == asked
            });
        }
    }
    let heard: Vec<Outer> = ear
        .drain()
        .iter()
        .filter_map(|frame| dissect(frame, VXLAN_PORT))
        .collect();
    let ours = heard.iter().filter(|outer| outer.vxlan.2 == 4097).count();
    assert!(
        ours > 10 && ours == heard.len(),
        "{ours} of {} with VNI 4097",
        heard.len()
    );

    for engine in &bed.engines {
        assert!(engine.weft_done("network ls").contains("my-network"));
        let listed = engine.weft_done("ps");
        for (_, name) in replicas {
            assert!(listed.contains(name), "{name}: {listed}");
        }
    }
    beside_docker(&bed);

    for (engine, name) in replicas {
        engine.done(&format!("rm --force {name}"));
    }
    for engine in &bed.engines {
        engine.done("network rm my-network");
    }
    eventually("the end of the network on both engines", PATIENCE, || {
        let gone = |engine: &Engine| !engine.weft_done("network ls").contains("my-network");
        bed.engines.iter().all(gone)
    });
}

/// The same questions about Docker's overlay, in the same engines.
fn beside_docker(bed: &Bed) {
    let one = bed.one();
    bed.form_swarm();
    one.done("network create --driver overlay --attachable --subnet 10.0.2.0/24 --gateway 10.0.2.254 reference");
    one.sleeper("alpha", "--network reference");
    bed.two().sleeper("beta", "--network reference");
    reaches(one, "alpha", bed.two().ip("beta", "reference"));
    // A swarm that is made beside the network leaves it alone.
    reaches(one, "my-web-1", bed.two().ip("my-web-2", "my-network"));

    let theirs = one.inspect("reference");
    let ours = one.inspect("my-network");
    let keys = |of: &Value| {
        let mut found = Vec::new();
        shape("", of, &mut found);
        found
    };
    let mut expected = keys(&theirs);
    let all = expected.clone();
    expected.retain(|key| !key.starts_with("Peers"));
    assert_eq!(keys(&ours), expected, "keys of `docker network inspect`");
    for (key, value) in theirs.as_object().unwrap() {
        let same = MAY_DIFFER.contains(&key.as_str()) || key == "Peers" || ours[key] == *value;
        assert!(same, "{key}: {} and {value}", ours[key]);
    }
    let told: Value = serde_json::from_str(&one.weft_done("network inspect my-network")).unwrap();
    let mut told_keys = keys(&told[0]);
    // Later engines have this key as well.
    told_keys.retain(|key| key != "EnableIPv4");
    assert_eq!(told_keys, all, "keys of `weft network inspect`");
    assert_eq!(
        told[0]["Options"]["com.docker.network.driver.overlay.vxlanid_list"],
        "4097"
    );
    for name in ["my-web-1", "my-web-3"] {
        let containers = told[0]["Containers"].as_object().unwrap();
        assert!(
            containers
                .values()
                .any(|container| container["Name"] == name),
            "{told:#}"
        );
    }

    let headings = |text: &str| {
        text.lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(
        headings(&one.weft_done("network ls")),
        headings(&one.done("network ls"))
    );
    for (engine, name) in [(one, "alpha"), (bed.two(), "beta")] {
        engine.done(&format!("rm --force {name}"));
    }
}

/// Every key in order. Of things that are keyed by an id, or listed, one stands for all.
fn shape(at: &str, value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) if at == "Containers" => {
            // Docker's overlay lists its own endpoint among them.
            let mut real = fields
                .values()
                .filter(|container| container["Name"] != "reference-endpoint");
            shape("Containers.*", real.next().unwrap_or(&Value::Null), found);
        }
        Value::Object(fields) if at != "Options" && at != "Labels" => {
            for (key, value) in fields {
                let path = if at.is_empty() {
                    key.clone()
                } else {
                    format!("{at}.{key}")
                };
                found.push(path.clone());
                shape(&path, value, found);
            }
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                shape(&format!("{at}[]"), first, found);
            }
        }
        _ => {}
    }
}
