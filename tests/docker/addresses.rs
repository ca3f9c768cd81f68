//! Addresses and options: what `docker network create` and `docker run` can ask for, each once.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use super::common::cases::Cases;
use super::docker_support::{Bed, Engine, Options, PATIENCE, eventually, get, reaches};

#[test]
fn containers_started_on_both_engines_at_once_have_addresses_of_their_own() {
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    let before = bed.used_inventory();
    bed.my_network("");
    bed.on_both(10, |engine, number| {
        engine.sleeper(
            &format!("box-{}-{number}", engine.number),
            "--network my-network",
        );
    });
    all_distinct(&bed, 20);
    // And they are not only names on paper.
    let to = bed.two().ip("box-2-9", "my-network");
    reaches(bed.one(), "box-1-0", to);
    bed.on_both(10, |engine, number| {
        engine.done(&format!("rm --force box-{}-{number}", engine.number));
    });
    for engine in &bed.engines {
        engine.done("network rm my-network");
    }
    before.assert_reached_again(&bed, PATIENCE);
}

/// No two containers of the engines have the same address on `my-network`; there are `count` of them.
pub fn all_distinct(bed: &Bed, count: usize) {
    let mut owners: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    for engine in &bed.engines {
        for name in engine.done("ps --format {{.Names}}").lines() {
            let ip = engine.ip(name, "my-network");
            assert!(
                ip != Ipv4Addr::new(10, 0, 1, 254) && ip.octets()[..3] == [10, 0, 1],
                "{name} has {ip}"
            );
            let other = owners.insert(ip, name.to_owned());
            assert_eq!(other, None, "{ip} is also the address of {name}");
        }
    }
    assert_eq!(owners.len(), count);
}

#[test]
fn options_of_run_are_heeded() {
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    let (one, two) = (bed.one(), bed.two());
    bed.my_network("");
    two.sleeper("asker", "--network my-network --dns 10.0.1.254");
    let asker = two.container_netns("asker");
    let mut cases = Cases::new("docker run");
    cases.run("--ip", || {
        one.sleeper("fixed", "--network my-network --ip 10.0.1.77");
        let ip = one.ip("fixed", "my-network");
        assert_eq!(ip, Ipv4Addr::new(10, 0, 1, 77));
        reaches(two, "asker", ip);
    });
    cases.run("--ip that another engine's container has", || {
        let refused = two.docker(
            "run --detach --name twin --network my-network --ip 10.0.1.77 box:latest sleep 9",
        );
        assert!(!refused.ok);
        assert!(refused.stderr.contains("10.0.1.77"), "{refused}");
        two.done("rm --force twin");
        reaches(two, "asker", Ipv4Addr::new(10, 0, 1, 77));
    });
    cases.run("--ip outside of the subnet", || {
        let refused = two.docker(
            "run --detach --name stray --network my-network --ip 10.0.9.9 box:latest sleep 9",
        );
        assert!(!refused.ok);
        two.done("rm --force stray");
    });
    cases.run("--mac-address", || {
        let mac = "02:aa:bb:cc:dd:01";
        one.sleeper(
            "marked",
            &format!("--network my-network --mac-address {mac}"),
        );
        let shown = one.exec("marked", "ip link show eth0").stdout;
        assert!(shown.contains(mac), "{shown}");
        reaches(two, "asker", one.ip("marked", "my-network"));
    });
    cases.run("--network-alias", || {
        one.web("database", "--network my-network --network-alias db");
        for name in ["database", "db"] {
            eventually(name, PATIENCE, || {
                let answer = two.exec("asker", &format!("wget -q -O - http://{name}/"));
                answer.stdout.trim() == "database"
            });
        }
        one.done("rm --force database");
        // A name goes with its container.
        eventually("the end of a name", PATIENCE, || {
            !two.exec("asker", "nslookup db 10.0.1.254").ok
        });
    });
    cases.run("--publish", || {
        one.web("shown", "--network my-network --publish 8080:80");
        let outside = bed.outside();
        let at = SocketAddr::from((one.address(), 8080));
        eventually("the published port from outside", PATIENCE, || {
            get(&outside, at).is_ok_and(|body| body == "shown")
        });
        let second = two.docker("port shown");
        assert!(!second.ok, "engine 2 knows nothing of it");
        let inside = SocketAddr::from((one.ip("shown", "my-network"), 80));
        eventually("the port itself over the network", PATIENCE, || {
            get(&asker, inside).is_ok_and(|body| body == "shown")
        });
        one.done("rm --force shown");
        eventually("the end of the published port", PATIENCE, || {
            get(&outside, at).is_err()
        });
    });
    cases.run("a way out of the network", || {
        // The switch is a host beyond the engines.
        reaches(
            two,
            "asker",
            super::docker_support::OUTSIDE.parse().unwrap(),
        );
    });
    cases.run("network connect and disconnect", || {
        one.sleeper("late", "");
        one.done("network connect my-network late");
        let ip = one.ip("late", "my-network");
        reaches(two, "asker", ip);
        one.done("network disconnect my-network late");
        one.done("rm --force late");
    });
}

#[test]
fn options_of_network_create_are_heeded_or_refused() {
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    let (one, two) = (bed.one(), bed.two());
    let before = bed.used_inventory();
    let mut cases = Cases::new("docker network create");
    cases.run("--internal", || {
        bed.network("inner", "--internal --subnet 10.0.2.0/24");
        one.sleeper("in-one", "--network inner");
        two.sleeper("in-two", "--network inner");
        reaches(one, "in-one", two.ip("in-two", "inner"));
        let routes = one.exec("in-one", "ip route").stdout;
        assert!(!routes.contains("default"), "{routes}");
    });
    cases.run("--ipv6", || {
        bed.network("six", "--ipv6 --subnet 10.0.3.0/24 --subnet fd00:3::/64");
        one.sleeper("six-one", "--network six");
        two.sleeper("six-two", "--network six");
        let found = two.inspect("six-two");
        let address = found["NetworkSettings"]["Networks"]["six"]["GlobalIPv6Address"]
            .as_str()
            .unwrap_or_default();
        assert!(address.starts_with("fd00:3::"), "{address:?}");
        eventually("an answer over IPv6", PATIENCE, || {
            one.exec("six-one", &format!("ping -6 -c1 -W2 {address}"))
                .ok
        });
    });
    cases.run("-o com.docker.network.driver.mtu", || {
        one.done("network create --driver weft --ipam-driver weft --subnet 10.0.4.0/24 -o com.docker.network.driver.mtu=1300 narrow");
        one.sleeper("thin", "--network narrow");
        let link = one.exec("thin", "ip link show eth0").stdout;
        assert!(link.contains("mtu 1250"), "{link}");
    });
    let refused = |engine: &Engine, words: &str, told: &str| {
        let answer = engine.docker(&format!(
            "network create --driver weft --ipam-driver weft {words} nothing"
        ));
        assert!(!answer.ok, "{words} is taken");
        assert!(
            answer.stderr.to_lowercase().contains(told),
            "{words}: {answer}"
        );
        assert!(!engine.weft_done("network ls").contains("nothing"));
    };
    cases.run("-o encrypted", || {
        refused(one, "--subnet 10.0.5.0/24 -o encrypted", "encrypt")
    });
    cases.run("an option nobody knows", || {
        refused(one, "--subnet 10.0.5.0/24 -o colour=blue", "colour")
    });
    cases.run("a gateway beside the subnet", || {
        refused(one, "--subnet 10.0.5.0/24 --gateway 10.0.6.1", "gateway")
    });
    cases.run("a subnet that overlaps", || {
        refused(one, "--subnet 10.0.2.128/25", "10.0.2")
    });
    cases.run("without --subnet", || {
        one.done("network create --driver weft --ipam-driver weft anywhere");
        one.sleeper("somewhere", "--network anywhere");
        let found = one.inspect("anywhere");
        let subnet = found["IPAM"]["Config"][0]["Subnet"]
            .as_str()
            .unwrap_or_default();
        assert!(subnet.ends_with("/24"), "{subnet:?}");
    });
    cases.run("nothing is left", || {
        for (engine, names) in [
            (one, "in-one six-one thin somewhere"),
            (two, "in-two six-two"),
        ] {
            engine.docker(&format!("rm --force {names}"));
        }
        for (engine, names) in [(one, "inner six narrow anywhere"), (two, "inner six")] {
            engine.done(&format!("network rm {names}"));
        }
        before.assert_reached_again(&bed, PATIENCE);
    });
}
