//! A real agent that knows ten thousand endpoints: told by gossip of nodes that this test plays, by the cluster's own
//! rules. Their endpoints are records only; the agent cannot tell.

mod lab_support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use lab_support::{Guard, can_make_labs, long, note};
use rustls::time_provider::DefaultTimeProvider;
use weft::agent::api::{AttachRequest, CreateNetwork, IpamConfigRequest, Role, TokenRequest};
use weft::cluster::directory::Directory;
use weft::cluster::gossip::SigningKey;
use weft::cluster::manager::command::{Command, NodeWish};
use weft::cluster::manager::ids::{Digest, NodeId, RequestId, VerifyKey};
use weft::cluster::manager::reply::{Granted, Reply};
use weft::cluster::manager::rpc::{Answer, JoinRequest, Link, Proposal, Request};
use weft::cluster::manager::transport::{Credentials, TlsLink, join};
use weft::cluster::manager::watch::Replica;
use weft::cluster::member::MemberConfig;
use weft::cluster::node;
use weft::cluster::pki::{self, token::JoinToken};
use weft::cluster::runtime::{Config, Runtime};
use weft::frontend::client::{Client, block_on};
use weft::lab::throughput::{End, transfer};
use weft::lab::{Lab, space};
use weft::tables::record::{Backing, EndpointRecord, Version};
use weft::wire::{Mac, Vni};

const LIMIT: Duration = Duration::from_secs(5);
const NETWORK: &str = "large";

/// A node that this test plays.
struct Player {
    runtime: Runtime,
    link: TlsLink,
    manager: String,
    id: NodeId,
    vtep: IpAddr,
}

impl Player {
    async fn enter(vtep: IpAddr, token: &str, manager: &str) -> Player {
        let token: JoinToken = token.parse().unwrap();
        let made = pki::make_node_key().unwrap();
        let seed: [u8; 32] = rand::random();
        let id = NodeId::from_bits(rand::random());
        let request = JoinRequest {
            request: RequestId::from_bits(rand::random()),
            node: NodeWish {
                id,
                name: format!("player-{}", id.to_string().split_at(8).0),
                vtep,
                control: None,
                epoch: 1,
                certificate: Digest::from_bytes([0; 32]),
                verify_key: VerifyKey::from_bytes(SigningKey::from_seed(&seed).public().0),
            },
            token: token.to_string(),
            csr: made.csr,
        };
        let clock = Arc::new(DefaultTimeProvider);
        let welcome = match join(manager, token.authority, request, clock, LIMIT)
            .await
            .unwrap()
        {
            Answer::Welcome(welcome) => welcome,
            other => panic!("{other:?}"),
        };
        let name = pki::name_of(&pki::der_of(&welcome.certificate).unwrap()).unwrap();
        let credentials = Credentials::new(
            name.cluster,
            made.key,
            welcome.certificate,
            welcome.authorities,
        );
        let link = TlsLink::new(&credentials).unwrap();
        let config = Config {
            node: node::NodeNumber(welcome.number),
            epoch: 1,
            addr: SocketAddr::new(vtep, 7378),
            signing_seed: seed,
            seed: welcome.number,
            member: MemberConfig::default(),
        };
        let (runtime, mut news) = Runtime::start(config, Arc::default()).await.unwrap();
        // Nobody here needs them.
        tokio::spawn(async move { while news.recv().await.is_some() {} });
        Player {
            runtime,
            link,
            manager: manager.into(),
            id,
            vtep,
        }
    }

    async fn ask(&self, request: Request) -> Answer {
        self.link.call(&self.manager, request, LIMIT).await.unwrap()
    }

    /// Hears what the managers say.
    async fn hear(&self) -> Replica {
        let mut replica = Replica::default();
        match self
            .ask(Request::Watch {
                after: 0,
                wait_ms: 0,
            })
            .await
        {
            Answer::Update(update) => drop(replica.take(update)),
            other => panic!("{other:?}"),
        }
        let directory = Directory::new(Arc::new(replica.clone()));
        self.runtime.set_directory(Arc::new(directory));
        replica
    }

    async fn lease(&self, network: &str, count: u32) -> Vec<Granted> {
        let command = Command::LeaseBlocks {
            node: self.id,
            epoch: 1,
            network: network.into(),
            subnet: None,
            count,
        };
        let proposal = Proposal {
            request: RequestId::from_bits(rand::random()),
            actor: weft::cluster::manager::command::Actor::Node(self.id),
            command,
        };
        match self.ask(Request::Propose(proposal)).await {
            Answer::Outcome(Ok(Reply::Blocks(granted))) => granted,
            other => panic!("{other:?}"),
        }
    }

    async fn publish(&self, network: &str, ip: Ipv4Addr, serial: u64) {
        let record = EndpointRecord {
            network: network.into(),
            vni: Vni::new(5000).unwrap(),
            endpoint: format!("{}-{serial}", self.vtep),
            mac: Mac::from_ipv4(ip),
            ips: vec![ip.into()],
            vtep: self.vtep,
            node: String::new(),
            name: format!("replica-{serial}.of-some-service"),
            aliases: Vec::new(),
            service: "some-service".into(),
            backing: Backing::default(),
            version: Version::default(),
        };
        self.runtime.publish(record).await.unwrap();
    }
}

/// Resident memory of a process in bytes: all of it, and what the program has allocated. The rest is the program itself,
/// which is larger where it is not optimised.
struct Resident {
    all: u64,
    allocated: u64,
}

fn resident(pid: i32) -> Resident {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib << 10
    };
    Resident {
        all: of("VmRSS:"),
        allocated: of("RssAnon:"),
    }
}

/// Median of a few transfers between the lab's own workloads, Gbit/s.
fn throughput(lab: &Lab) -> f64 {
    let (from, to) = (
        lab.workload("my-web.1").unwrap(),
        lab.workload("my-web.2").unwrap(),
    );
    let (here, there) = (lab.netns(&from.name).unwrap(), lab.netns(&to.name).unwrap());
    let (rounds, time) = if long() { (3, 2) } else { (3, 1) };
    let mut rates: Vec<f64> = (0..rounds)
        .map(|_| {
            let (from, to) = (
                End {
                    netns: &here,
                    ip: from.ip,
                },
                End {
                    netns: &there,
                    ip: to.ip,
                },
            );
            let stop = AtomicBool::new(false);
            let done = transfer(&from, &to, Duration::from_secs(time), &stop).unwrap();
            done.gbit_per_second()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

#[test]
fn an_agent_that_knows_ten_thousand_endpoints_stays_small() {
    if !can_make_labs() {
        return;
    }
    let (players, each) = if long() { (10, 1000) } else { (10, 200) };
    let guard = Guard::new();
    let lab = guard
        .up(|options| (options.nodes, options.managers) = (2, 1))
        .unwrap();
    let client = Client::new(lab.socket("n1"));
    let mut wish = CreateNetwork {
        name: NETWORK.into(),
        ..CreateNetwork::default()
    };
    wish.ipam.config.push(IpamConfigRequest {
        subnet: "10.60.0.0/16".into(),
        ..IpamConfigRequest::default()
    });
    wish.options
        .insert(weft::agent::api::OPTION_VXLANID_LIST.into(), "5000".into());
    let network = block_on(client.create_network(&wish)).unwrap().id;
    let netns = format!("weft-{}-large", lab.name());
    space::create(&netns).unwrap();
    let attach = AttachRequest {
        target: netns,
        ..AttachRequest::default()
    };
    block_on(client.attach(NETWORK, &attach)).unwrap();
    let pid = i32::try_from(lab.state().agents["n1"].pid).unwrap();
    let (before, rate_before) = (resident(pid), throughput(&lab));
    let token = TokenRequest {
        role: Role::Worker,
        life_s: None,
        rotate: false,
    };
    let token = block_on(client.create_token(&token)).unwrap().token;

    // The players live on the second node's link, with addresses of their own.
    let home = lab.netns("n2").unwrap();
    for n in 0..players {
        let address = format!("10.99.0.{}/24", 100 + n);
        let done = home
            .run_in(|| {
                std::process::Command::new("ip")
                    .args(["address", "add", &address, "dev", "eth0"])
                    .status()
            })
            .unwrap();
        assert!(done.unwrap().success());
    }
    let expected = players * each;
    let (took, rate) = std::thread::scope(|scope| {
        let playing = scope.spawn(|| {
            home.enter_this_thread().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let (took, all) = play(&client, &token, &network, players, each, expected).await;
                // The players talk on while traffic is measured.
                let rate = tokio::task::spawn_blocking({
                    let lab = lab.clone();
                    move || throughput(&lab)
                });
                let rate = rate.await.unwrap();
                drop(all);
                (took, rate)
            })
        });
        playing.join().unwrap()
    });
    let after = resident(pid);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    note(&format!(
        "{expected} endpoints of {players} nodes: known to the agent {} ms after the first was told; resident {:.1} MiB, \
         {:.1} of them allocated; {:.1} and {:.1} MiB before; TCP {rate:.2} Gbit/s, {rate_before:.2} before",
        took.as_millis(),
        mib(after.all),
        mib(after.allocated),
        mib(before.all),
        mib(before.allocated),
    ));
    // Other programs may run beside a test: the figure itself is read from the note above.
    assert!(
        rate >= 0.7 * rate_before,
        "{rate} after {rate_before} Gbit/s"
    );
    assert!(
        after.allocated <= 48 << 20,
        "{:.1} MiB",
        mib(after.allocated)
    );
    if std::env::var_os("WEFT_PROGRAM").is_some() {
        assert!(after.all <= 64 << 20, "{:.1} MiB", mib(after.all));
    }
}

async fn play(
    client: &Client,
    token: &str,
    network: &str,
    players: usize,
    each: usize,
    expected: usize,
) -> (Duration, Vec<Player>) {
    let mut all = Vec::new();
    for n in 0..players {
        let vtep = IpAddr::from([10, 99, 0, 100 + n as u8]);
        all.push(Player::enter(vtep, token, "10.99.0.1:7377").await);
    }
    let mut leases = Vec::new();
    for player in &all {
        leases.push(player.lease(network, 16).await);
    }
    for player in &all {
        player.hear().await;
        player.runtime.join(network);
    }
    let begun = Instant::now();
    for (player, granted) in all.iter().zip(&leases) {
        let addresses = granted.iter().flat_map(|one| {
            let IpAddr::V4(first) = one.block.first else {
                panic!("{one:?}");
            };
            (0..one.len).map(move |n| Ipv4Addr::from(u32::from(first) + n))
        });
        for (serial, ip) in addresses.take(each).enumerate() {
            player.publish(network, ip, serial as u64).await;
        }
    }
    let end = begun + Duration::from_secs(60);
    loop {
        let status = client.status().await.unwrap();
        let known = status.networks.iter().find(|n| n.name == NETWORK).unwrap();
        if known.remote_endpoints == expected {
            return (begun.elapsed(), all);
        }
        assert!(
            Instant::now() < end,
            "{} of {expected}",
            known.remote_endpoints
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
