//! What happens to networks and containers over their lives, and what either side may do to the other's.

use super::common::cases::Cases;
use super::docker_support::{Bed, Options, PATIENCE, eventually, reaches};

#[test]
fn networks_and_containers_live_through_what_users_do() {
    let Some(bed) = Bed::new(Options::default()) else {
        return;
    };
    let (one, two) = (bed.one(), bed.two());
    bed.used_inventory();
    bed.my_network("");
    two.sleeper("asker", "--network my-network --dns 10.0.1.254");
    let before = bed.inventory();
    let known = |name: &str| two.exec("asker", &format!("ping -c1 -W2 {name}")).ok;
    let mut cases = Cases::new("life");
    cases.run("a container is renamed", || {
        one.sleeper("first-name", "--network my-network");
        eventually("its name", PATIENCE, || known("first-name"));
        one.done("rename first-name second-name");
        eventually("its new name", PATIENCE, || known("second-name"));
        eventually("the end of its old name", PATIENCE, || !known("first-name"));
        assert!(one.weft_done("ps").contains("second-name"));
        one.done("rm --force second-name");
    });
    cases.run("a container is stopped and started", || {
        one.sleeper("again", "--network my-network --stop-signal KILL");
        for _ in 0..3 {
            one.done("stop again");
            eventually("the end of its name", PATIENCE, || !known("again"));
            one.done("start again");
            reaches(two, "asker", one.ip("again", "my-network"));
            one.done("restart again");
            eventually("its name", PATIENCE, || known("again"));
        }
        one.done("rm --force again");
    });
    cases.run("a fixed address is that of the next start as well", || {
        one.sleeper(
            "fixed",
            "--network my-network --ip 10.0.1.61 --stop-signal KILL",
        );
        one.done("restart fixed");
        assert_eq!(one.ip("fixed", "my-network").octets(), [10, 0, 1, 61]);
        reaches(two, "asker", one.ip("fixed", "my-network"));
        one.done("rm --force fixed");
        // Others may still have it in mind: another engine's container has to wait.
        let answer = two.docker(
            "run --detach --name heir --network my-network --ip 10.0.1.61 box:latest sleep 9",
        );
        assert!(
            !answer.ok && answer.stderr.contains("10.0.1.61 rests"),
            "{answer}"
        );
        two.done("rm --force heir");
        one.sleeper("fixed", "--network my-network --ip 10.0.1.61");
        one.done("rm --force fixed");
    });
    cases.run("one engine gives the network up", || {
        one.done("network rm my-network");
        assert!(two.weft_done("network ls").contains("my-network"));
        one.done("network create --driver weft --ipam-driver weft --subnet 10.0.1.0/24 --gateway 10.0.1.254 my-network");
        one.sleeper("back", "--network my-network");
        reaches(two, "asker", one.ip("back", "my-network"));
        one.done("rm --force back");
    });
    cases.run("another gateway for the same subnet", || {
        one.done("network rm my-network");
        let answer = one.docker("network create --driver weft --ipam-driver weft --subnet 10.0.1.0/24 --gateway 10.0.1.1 my-network");
        assert!(!answer.ok && answer.stderr.contains("10.0.1.254"), "{answer}");
        one.done("network create --driver weft --ipam-driver weft --subnet 10.0.1.0/24 my-network");
    });
    cases.run("weft removes what engines use", || {
        let answer = one.weft("network rm my-network");
        assert!(!answer.ok, "a container is on it: {answer}");
        reaches(two, "asker", "10.0.1.254".parse().unwrap());
    });
    cases.run(
        "weft attaches beside engines, and sees their containers",
        || {
            let netns = format!("{}x", bed.name);
            let mut command = one.command("sh");
            let make = format!("ip netns add {netns} && ip -n {netns} link set lo up");
            super::docker_support::run(command.args(["-c", &make]));
            let answer = one.weft(&format!("attach my-network {netns} --name plain"));
            assert!(answer.ok, "{answer}");
            eventually("a workload of weft by name", PATIENCE, || known("plain"));
            one.weft_done("detach my-network plain");
            super::docker_support::run(one.command("ip").args(["netns", "del", &netns]));
        },
    );
    cases.run("two networks at once", || {
        bed.network("second", "--subnet 10.0.7.0/24");
        one.sleeper("both", "--network my-network");
        one.done("network connect second both");
        two.sleeper("inner", "--network second");
        reaches(two, "asker", one.ip("both", "my-network"));
        reaches(one, "both", two.ip("inner", "second"));
        one.done("rm --force both");
        two.done("rm --force inner");
        for engine in &bed.engines {
            engine.done("network rm second");
        }
    });
    cases.run("nothing is left", || {
        before.assert_reached_again(&bed, PATIENCE)
    });
}

#[test]
fn an_agent_in_no_cluster_serves_its_engine() {
    let bed = Bed::new(Options {
        no_cluster: true,
        ..Options::default()
    });
    let Some(bed) = bed else { return };
    let one = bed.one();
    one.done("network create --driver weft --ipam-driver weft --subnet 10.0.1.0/24 --gateway 10.0.1.254 my-network");
    let before = bed.inventory();
    one.sleeper("alpha", "--network my-network --dns 10.0.1.254");
    one.sleeper("beta", "--network my-network --dns 10.0.1.254");
    reaches(one, "alpha", one.ip("beta", "my-network"));
    assert!(one.exec("alpha", "ping -c1 -W2 beta").ok);
    one.done("rm --force alpha beta");
    let gone = |bed: &Bed| !bed.one().weft_done("ps").contains("alpha");
    eventually("the end of the endpoints", PATIENCE, || gone(&bed));
    assert!(
        bed.inventory()
            .beyond(&before)
            .iter()
            .all(|line| !line.contains("veth"))
    );
    one.done("network rm my-network");
    assert!(!one.weft_done("network ls").contains("my-network"));
}
