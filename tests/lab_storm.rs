//! An agent killed at random moments while everything about it changes: what it has confirmed is never lost,
//! the kernel always agrees with what it lists, and in the end nothing is left.
//!
//! Three writers change things of their own through the API, as fast as it answers, and note what was
//! confirmed; `kill -9` ends the agent under them. Every third time the next agent is killed, too, before
//! or just after it is ready. `WEFT_SEED` repeats a run's choices.

mod lab_support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use lab_support::inventory::{Inventory, links_in, netns_dir, networks};
use lab_support::{Guard, can_make_labs, eventually, long, note, pings};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft::agent::api::{
    ApiError, AttachRequest, CreateNetwork, ErrorCode, IpamConfigRequest, RecordRequest, Verdict,
    VtepChange,
};
use weft::frontend::client::{Client, block_on};
use weft::lab::audit::{Scope, Snapshot, compare};
use weft::lab::plan::netns_name;
use weft::lab::{Lab, space};
use weft::wire::Mac;

/// Something that is or is not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Network(String),
    /// A workload on a network.
    Endpoint(String, String),
    Record(Mac),
    Vtep(IpAddr),
}

/// What the API has confirmed; `None` where it was killed over the request.
type Ledger = BTreeMap<Thing, Option<bool>>;

/// One source of changes, with things no other one touches.
struct Writer {
    client: Client,
    base: String,
    rng: StdRng,
    ledger: Ledger,
}

impl Writer {
    /// Changes things until the agent is gone.
    fn run(mut self) -> Ledger {
        loop {
            let index = self.rng.random_range(0..self.ledger.len());
            let (thing, there) = self.ledger.iter().nth(index).unwrap();
            let (thing, there) = (thing.clone(), there.expect("settled before each round"));
            if !self.allowed(&thing, there) {
                continue;
            }
            let confirmed = match block_on(self.change(&thing, !there)) {
                Ok(()) => Some(!there),
                Err(error) if error.code == ErrorCode::AgentUnreachable => None,
                Err(error) => panic!("{thing:?}, was {there}: {error:?}"),
            };
            self.ledger.insert(thing, confirmed);
            if confirmed.is_none() {
                return self.ledger;
            }
        }
    }

    /// A network goes only when it is empty, and a workload comes only where there is a network.
    fn allowed(&self, thing: &Thing, there: bool) -> bool {
        match thing {
            Thing::Network(name) if there => !self.ledger.iter().any(|(other, there)| {
                matches!(other, Thing::Endpoint(network, _) if network == name)
                    && *there == Some(true)
            }),
            Thing::Endpoint(network, _) if *network != self.base => {
                self.ledger[&Thing::Network(network.clone())] == Some(true)
            }
            _ => true,
        }
    }

    async fn change(&self, thing: &Thing, come: bool) -> Result<(), ApiError> {
        let (client, base) = (&self.client, &self.base);
        match (thing, come) {
            (Thing::Network(name), true) => client.create_network(&wish(name)).await.map(drop),
            (Thing::Network(name), false) => client.remove_network(name).await.map(drop),
            (Thing::Endpoint(network, target), true) => {
                let wish = AttachRequest {
                    target: target.clone(),
                    ..AttachRequest::default()
                };
                client.attach(network, &wish).await.map(drop)
            }
            (Thing::Endpoint(network, target), false) => {
                client.detach(network, target).await.map(drop)
            }
            (Thing::Record(mac), true) => client.put_records(base, &[record(*mac)]).await.map(drop),
            (Thing::Record(mac), false) => client.remove_record(base, *mac).await.map(drop),
            (Thing::Vtep(vtep), come) => {
                let change = VtepChange { vteps: vec![*vtep] };
                match come {
                    true => client.add_vteps(base, &change).await.map(drop),
                    false => client.remove_vteps(base, &change).await.map(drop),
                }
            }
        }
    }
}

fn wish(name: &str) -> CreateNetwork {
    let number = name.trim_start_matches("gale");
    let mut wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    wish.ipam.config.push(IpamConfigRequest {
        subnet: format!("10.8.{number}.0/24"),
        ..IpamConfigRequest::default()
    });
    wish
}

fn record(mac: Mac) -> RecordRequest {
    RecordRequest {
        mac,
        ips: vec![Ipv4Addr::new(10, 0, 1, mac.0[5]).into()],
        vtep: Ipv4Addr::new(10, 99, 0, 2).into(),
        endpoint: None,
        node: "n2".into(),
        name: String::new(),
        aliases: Vec::new(),
        service: String::new(),
        version: None,
    }
}

/// The things of each writer, none of them there yet.
fn ledgers(base: &str, guests: &[String]) -> [Ledger; 3] {
    let absent = |things: Vec<Thing>| things.into_iter().map(|t| (t, Some(false))).collect();
    let on = |network: &str, guest: &String| Thing::Endpoint(network.into(), guest.clone());
    let gales = ["gale1", "gale2", "gale3"];
    let mut elsewhere: Vec<Thing> = gales.map(|name| Thing::Network(name.into())).into();
    elsewhere.extend(
        gales
            .iter()
            .flat_map(|n| guests[2..].iter().map(move |g| on(n, g))),
    );
    let records = (101..109).map(|last| Thing::Record(Mac([2, 0x99, 0, 0, 0, last])));
    let vteps = (51..55).map(|last| Thing::Vtep(Ipv4Addr::new(10, 99, 0, last).into()));
    [
        absent(guests[..2].iter().map(|guest| on(base, guest)).collect()),
        absent(elsewhere),
        absent(records.chain(vteps).collect()),
    ]
}

/// What the agent says there is, of the things in the ledgers.
fn listed(client: &Client, base: &str) -> BTreeSet<Thing> {
    let networks = block_on(client.networks()).unwrap().into_iter();
    let endpoints = block_on(client.endpoints()).unwrap().endpoints.into_iter();
    let records = block_on(client.records(base)).unwrap().into_iter();
    let vteps = block_on(client.vteps(base)).unwrap().vteps.into_iter();
    networks
        .map(|network| Thing::Network(network.name))
        .chain(endpoints.filter_map(|e| Some(Thing::Endpoint(e.network, e.target?))))
        .chain(records.map(|record| Thing::Record(record.mac)))
        .chain(vteps.filter(|v| v.member).map(|v| Thing::Vtep(v.vtep)))
        .collect()
}

/// Compares what was confirmed with what there is, and learns what was not confirmed.
fn settle(ledgers: &mut [Ledger], there: &BTreeSet<Thing>, when: &str) {
    for (thing, confirmed) in ledgers.iter_mut().flatten() {
        let is = there.contains(thing);
        let was = confirmed.replace(is).unwrap_or(is);
        assert_eq!(is, was, "{when}: {thing:?} was confirmed otherwise");
    }
}

/// Kernel objects of exactly those endpoints and networks that are listed.
fn assert_kernel_agrees(lab: &Lab, client: &Client, guests: &[String], when: &str) {
    let local = block_on(client.endpoints()).unwrap().endpoints;
    let local: Vec<_> = local.into_iter().filter(|e| e.local).collect();
    for guest in guests {
        let here = local.iter().filter(|e| e.target.as_ref() == Some(guest));
        let mut want: Vec<String> = here.map(|e| e.ifname.clone().unwrap()).collect();
        want.push("lo".into());
        // A workload on any network has a way out, too, in time.
        let what = format!("{when}: {guest} has {want:?} and a way out");
        eventually(&what, Duration::from_secs(10), || {
            let links = links_in(&space::netns_path(guest));
            let more = links.iter().filter(|link| !want.contains(link)).count();
            want.iter().all(|link| links.contains(link)) && more == usize::from(want.len() > 1)
        });
    }
    let short = |id: &str| id[..12].to_owned();
    let used: BTreeSet<String> = local.iter().map(|e| short(&e.network_id)).collect();
    let present: BTreeSet<String> = networks(lab, "n1").into_iter().collect();
    assert_eq!(present, used, "{when}: namespaces of networks");
    for network in used {
        let links = links_in(&netns_dir(lab, "n1").join(&network));
        let ends = links.iter().filter(|name| name.starts_with("veth")).count();
        let endpoints = local.iter().filter(|e| short(&e.network_id) == network);
        assert_eq!(ends, endpoints.count(), "{when}: {network} has {links:?}");
        assert_eq!(links.len(), ends + 4, "{when}: {network} has {links:?}");
    }
    let status = block_on(client.status()).unwrap();
    assert_eq!(status.verdict, Verdict::Ok, "{when}: {:?}", status.health);
}

/// Starts the agent and kills it in the middle of that.
fn kill_at_birth(lab: &mut Lab, delay: Duration) {
    let before = lab.state().agents["n1"];
    let mut starting = lab.clone();
    std::thread::scope(|scope| {
        // It may well have answered before it was killed.
        let starter = scope.spawn(move || starting.start_agent_untold("n1").is_ok());
        eventually("the next agent", Duration::from_secs(5), || {
            *lab = Lab::open(lab.name()).unwrap();
            lab.state().agents["n1"] != before
        });
        std::thread::sleep(delay);
        lab.kill_agent("n1", Signal::SIGKILL).unwrap();
        starter.join().unwrap();
    });
}

/// The seed of the random choices.
fn seed() -> u64 {
    let given = std::env::var("WEFT_SEED").ok();
    given.map_or_else(rand::random, |text| {
        text.parse().expect("WEFT_SEED is a number")
    })
}

#[test]
fn kills_at_random_moments_lose_nothing_and_leave_nothing() {
    if !can_make_labs() {
        return;
    }
    let seed = seed();
    note(&format!("storm: WEFT_SEED={seed}"));
    let mut rng = StdRng::seed_from_u64(seed);
    let guard = Guard::new();
    let nothing = Snapshot::take(Scope::Lab(&guard.0)).unwrap();
    let mut lab = guard.up(|_| {}).unwrap();
    let base = lab.plan().options.network.clone();
    let guests: Vec<String> = (1..=4)
        .map(|number| netns_name(lab.name(), &format!("guest.{number}")))
        .collect();
    for guest in &guests {
        space::create(guest).unwrap();
    }
    let client = Client::new(lab.socket("n1"));
    let before = Inventory::settled(&lab, "n1");
    let mut ledgers = ledgers(&base, &guests);
    let (kills, begin) = (if long() { 60 } else { 20 }, Instant::now());
    let (mut killed, mut slowest) = (0, Duration::ZERO);
    let mut in_doubt = 0;
    while killed < kills {
        let writers = ledgers.clone().map(|ledger| Writer {
            client: client.clone(),
            base: base.clone(),
            rng: StdRng::seed_from_u64(rng.random()),
            ledger,
        });
        let delay = Duration::from_micros(rng.random_range(0..150_000));
        std::thread::scope(|scope| {
            let running = writers.map(|writer| scope.spawn(move || writer.run()));
            std::thread::sleep(delay);
            lab.kill_agent("n1", Signal::SIGKILL).unwrap();
            ledgers = running.map(|writer| writer.join().unwrap());
        });
        killed += 1;
        in_doubt += ledgers
            .iter()
            .flatten()
            .filter(|(_, c)| c.is_none())
            .count();
        if killed % 4 == 3 {
            kill_at_birth(&mut lab, Duration::from_micros(rng.random_range(0..60_000)));
            killed += 1;
        }
        let start = Instant::now();
        lab.start_agent_untold("n1").unwrap();
        slowest = slowest.max(start.elapsed());
        let when = format!("WEFT_SEED={seed}, after {killed} kills");
        settle(&mut ledgers, &listed(&client, &base), &when);
        assert_kernel_agrees(&lab, &client, &guests, &when);
        assert!(
            pings(&lab, "my-web.1", "my-web.2", 3) > 0,
            "{when}: no traffic"
        );
    }
    remove_all(&client, &base, ledgers);
    before.assert_reached_again(&lab, "n1", Duration::from_secs(15));
    note(&format!(
        "storm: {killed} kills in {:.1} s, {in_doubt} changes in doubt, slowest start {} ms; {before}, before \
         and after",
        begin.elapsed().as_secs_f64(),
        slowest.as_millis()
    ));
    Lab::down(lab.name()).unwrap();
    let audit = compare(&nothing, Scope::Lab(&guard.0), Duration::from_secs(5)).unwrap();
    assert!(audit.clean(), "{audit}");
}

/// Takes back everything the writers made, endpoints before their networks.
fn remove_all(client: &Client, base: &str, ledgers: [Ledger; 3]) {
    let last = Writer {
        client: client.clone(),
        base: base.into(),
        rng: StdRng::seed_from_u64(0),
        ledger: Ledger::new(),
    };
    let there = ledgers
        .into_iter()
        .flatten()
        .filter(|(_, is)| *is == Some(true));
    let (networks, others): (Vec<Thing>, Vec<Thing>) = there
        .map(|(thing, _)| thing)
        .partition(|thing| matches!(thing, Thing::Network(_)));
    for thing in others.into_iter().chain(networks) {
        block_on(last.change(&thing, false)).unwrap();
    }
}
