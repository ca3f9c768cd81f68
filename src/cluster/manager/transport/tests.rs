//! Tests of joining and of mutual TLS, over real sockets on the loopback.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::*;
use crate::cluster::manager::command::{
    Actor, Authority, Command, InitCluster, NodeWish, Settings, TokenWish,
};
use crate::cluster::manager::ids::{Key, NodeId, RequestId, Role, VerifyKey};
use crate::cluster::manager::raft::Timing;
use crate::cluster::manager::raft::node::Manager;
use crate::cluster::manager::reply::Reply;
use crate::cluster::manager::rpc::{Proposal, Welcome};
use crate::cluster::manager::store::Store;
use crate::cluster::manager::store::tests::Disk;
use crate::cluster::manager::watch::{Replica, Update};
use crate::cluster::pki::token::JoinToken;
use crate::cluster::pki::{Renewal, certify, make_authority, make_node_key};
use crate::model::ident;
use crate::model::request::CreateNetwork;

const LIMIT: Duration = Duration::from_secs(20);

/// The system's clock, off by some seconds.
#[derive(Debug)]
struct Off(i64);

impl TimeProvider for Off {
    fn current_time(&self) -> Option<UnixTime> {
        let now = UnixTime::now().as_secs().checked_add_signed(self.0)?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

fn clock(off_s: i64) -> Arc<dyn TimeProvider> {
    Arc::new(Off(off_s))
}

fn now_s() -> u64 {
    UnixTime::now().as_secs()
}

fn request_id() -> RequestId {
    RequestId::from_bits(rand::random())
}

/// A node with its key and certificate.
struct Member {
    credentials: Credentials,
    link: Arc<TlsLink>,
}

/// A cluster whose managers listen on the loopback.
struct Cluster {
    authority: Authority,
    managers: Vec<(Arc<Manager>, TlsServer)>,
    tokens: BTreeMap<Role, JoinToken>,
    next: AtomicU64,
    /// Index of the manager that is asked.
    entrance: AtomicUsize,
}

fn member(authority: &Authority, cluster: &str, id: u64, role: Role) -> Member {
    let key = make_node_key().unwrap();
    let name = NodeName {
        cluster: cluster.to_owned(),
        node: NodeId::from_bits(id.into()),
        role,
    };
    let issued = certify(authority, &key.csr, &name, now_s()).unwrap();
    let authorities = vec![authority.certificate.clone()];
    let credentials =
        Credentials::new(cluster.to_owned(), key.key, issued.certificate, authorities);
    let link = Arc::new(TlsLink::new(&credentials).unwrap());
    Member { credentials, link }
}

fn cluster_id() -> String {
    ident::id_from_bits(5)
}

async fn manager_at(
    listener: TcpListener,
    own: &Member,
    raft_id: u64,
) -> (Arc<Manager>, TlsServer) {
    let (store, loaded) = Store::open_inline(Disk::default()).unwrap();
    let timing = Timing {
        heartbeat_ms: 50,
        election_ms: (250, 500),
        propose_ms: 5000,
        ..Timing::default()
    };
    let manager = Manager::start(store, &loaded, raft_id, timing, own.link.clone())
        .await
        .unwrap();
    let gate = Arc::new(Gate::new(manager.clone()));
    let server = TlsServer::start(listener, &own.credentials, gate).unwrap();
    (manager, server)
}

fn wish_of(id: u64, control: SocketAddr) -> NodeWish {
    NodeWish {
        id: NodeId::from_bits(id.into()),
        name: format!("node{id}"),
        vtep: [192, 0, 2, id as u8].into(),
        control: Some(control),
        epoch: 1,
        certificate: Digest::from_bytes([id as u8; 32]),
        verify_key: VerifyKey::from_bytes([id as u8; 32]),
    }
}

impl Cluster {
    async fn founded() -> Cluster {
        let authority = make_authority(&cluster_id(), now_s()).unwrap();
        let own = member(&authority, &cluster_id(), 1, Role::Manager);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let first = manager_at(listener, &own, 1).await;
        let token = |secret| JoinToken::new(authority.digest, secret);
        let tokens = BTreeMap::from([(Role::Worker, token(11)), (Role::Manager, token(22))]);
        let wish = |(role, token): (&Role, &JoinToken)| TokenWish {
            role: *role,
            hash: token.hash(),
            life_ms: None,
        };
        let init = InitCluster {
            cluster: cluster_id(),
            seed: 1,
            settings: Settings::default(),
            authority: authority.clone(),
            key: Key::from_bytes([7; 32]),
            tokens: tokens.iter().map(wish).collect(),
            node: wish_of(1, address),
        };
        first.0.found(request_id(), init).await.unwrap().unwrap();
        Cluster {
            authority,
            managers: vec![first],
            tokens,
            next: AtomicU64::new(2),
            entrance: AtomicUsize::new(0),
        }
    }

    fn address(&self) -> String {
        let entrance = self.entrance.load(Ordering::SeqCst);
        self.managers[entrance].1.address().to_string()
    }

    async fn propose(&self, command: Command) -> Reply {
        let proposal = Proposal {
            request: request_id(),
            actor: Actor::Leader,
            command,
        };
        self.managers[0].0.propose(proposal).await.unwrap().unwrap()
    }

    /// Joins the next node by a token.
    async fn join(
        &self,
        token: &JoinToken,
        control: SocketAddr,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<(u64, SecretText, Answer), LinkError> {
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        let key = make_node_key().unwrap();
        let request = JoinRequest {
            request: request_id(),
            node: wish_of(id, control),
            token: token.to_string(),
            csr: key.csr,
        };
        let answer = join(&self.address(), token.authority, request, clock, LIMIT).await?;
        Ok((id, key.key, answer))
    }

    async fn refusal(&self, token: &JoinToken) -> ApiError {
        let (.., answer) = self.join(token, free_address(9), clock(0)).await.unwrap();
        match answer {
            Answer::Refused(error) => error,
            other => panic!("{other:?}"),
        }
    }

    fn nodes(&self) -> usize {
        self.managers[0]
            .0
            .look(|state| state.cluster().unwrap().nodes.len())
    }

    /// A worker that has joined.
    async fn worker(&self) -> (u64, Member) {
        let token = &self.tokens[&Role::Worker];
        let control = free_address(1000 + self.next.load(Ordering::SeqCst) as u16);
        let (id, key, answer) = self.join(token, control, clock(0)).await.unwrap();
        (id, joined(key, answer))
    }
}

fn free_address(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 99], port))
}

fn welcome(answer: Answer) -> Welcome {
    match answer {
        Answer::Welcome(welcome) => *welcome,
        other => panic!("{other:?}"),
    }
}

fn joined(key: SecretText, answer: Answer) -> Member {
    let welcome = welcome(answer);
    let credentials = Credentials::new(cluster_id(), key, welcome.certificate, welcome.authorities);
    let link = Arc::new(TlsLink::new(&credentials).unwrap());
    Member { credentials, link }
}

fn watch() -> Request {
    Request::Watch {
        after: 0,
        wait_ms: 0,
    }
}

fn create(name: &str) -> Request {
    let wish = CreateNetwork {
        name: name.into(),
        ..CreateNetwork::default()
    };
    Request::Propose(Proposal {
        request: request_id(),
        actor: Actor::Operator {
            node: NodeId::from_bits(1),
            uid: 0,
        },
        command: Command::NetworkCreate {
            wish: Box::new(wish),
            id: ident::id_from_bits(rand::random()),
            created: 1,
            vtep: [192, 0, 2, 2].into(),
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_joins_follows_and_makes_a_network() {
    let cluster = Cluster::founded().await;
    let (id, worker) = cluster.worker().await;
    let address = cluster.address();
    let answer = worker
        .link
        .call(&address, create("web"), LIMIT)
        .await
        .unwrap();
    assert!(
        matches!(answer, Answer::Outcome(Ok(Reply::Network { .. }))),
        "{answer:?}"
    );
    let mut replica = Replica::default();
    match worker.link.call(&address, watch(), LIMIT).await.unwrap() {
        Answer::Update(update @ Update::Snapshot(_)) => drop(replica.take(update)),
        other => panic!("{other:?}"),
    }
    assert!(replica.catalog.as_ref().unwrap().find("web").is_ok());
    assert_eq!(replica.nodes.len(), 2);
    // The next change comes by itself.
    let next = Request::Watch {
        after: replica.revision,
        wait_ms: 10_000,
    };
    let waiting = worker.link.call(&address, next, LIMIT);
    let (update, made) = tokio::join!(waiting, worker.link.call(&address, create("db"), LIMIT));
    assert!(matches!(made, Ok(Answer::Outcome(Ok(_)))), "{made:?}");
    match update.unwrap() {
        Answer::Update(update @ Update::Deltas(_)) => drop(replica.take(update)),
        other => panic!("{other:?}"),
    }
    assert!(replica.catalog.as_ref().unwrap().find("db").is_ok());
    // Whatever the node says of itself, its certificate counts.
    let actor = cluster.managers[0]
        .0
        .look(|state| state.audit().last().unwrap().actor.clone());
    let expected = Actor::Operator {
        node: NodeId::from_bits(id.into()),
        uid: 0,
    };
    assert_eq!(actor, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_agree_over_tls() {
    let mut cluster = Cluster::founded().await;
    for raft_id in 2..=3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let token = cluster.tokens[&Role::Manager].clone();
        let (_, key, answer) = cluster.join(&token, address, clock(0)).await.unwrap();
        let welcome = welcome(answer);
        assert_eq!(welcome.raft_id, Some(raft_id));
        assert!(!welcome.managers.is_empty());
        let credentials =
            Credentials::new(cluster_id(), key, welcome.certificate, welcome.authorities);
        let link = Arc::new(TlsLink::new(&credentials).unwrap());
        let own = Member { credentials, link };
        cluster
            .managers
            .push(manager_at(listener, &own, raft_id).await);
        let first = cluster.managers[0].0.clone();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while !first.voters().contains(&raft_id) {
            assert!(
                std::time::Instant::now() < end,
                "manager {raft_id} is no voter"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // Any of them lets nodes in and renews certificates, wherever the leader is.
    for entrance in 0..3 {
        cluster.entrance.store(entrance, Ordering::SeqCst);
        let (_, worker) = cluster.worker().await;
        let key = make_node_key().unwrap();
        let renew = Request::Renew { csr: key.csr };
        let answer = worker
            .link
            .call(&cluster.address(), renew, LIMIT)
            .await
            .unwrap();
        assert!(matches!(answer, Answer::Certificate(_)), "{answer:?}");
    }
    // Any of them takes a change, or says who does.
    let (_, worker) = cluster.worker().await;
    for (n, (_, server)) in cluster.managers.iter().enumerate() {
        let address = server.address().to_string();
        let mut answer = worker
            .link
            .call(&address, create(&format!("n{n}")), LIMIT)
            .await
            .unwrap();
        if let Answer::NotLeader { leader } = answer {
            let leader = leader.unwrap();
            answer = worker
                .link
                .call(&leader, create(&format!("n{n}")), LIMIT)
                .await
                .unwrap();
        }
        assert!(matches!(answer, Answer::Outcome(Ok(_))), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_not_good_lets_nobody_in() {
    let cluster = Cluster::founded().await;
    let authority = cluster.authority.digest;
    let wrong = cluster.refusal(&JoinToken::new(authority, 4711)).await;
    assert_eq!(wrong.code, ErrorCode::TokenRefused);
    let rotated = cluster.tokens[&Role::Worker].clone();
    let fresh = JoinToken::new(authority, 33);
    let rotate = Command::TokenRotate(TokenWish {
        role: Role::Worker,
        hash: fresh.hash(),
        life_ms: Some(1),
    });
    cluster.propose(rotate).await;
    let refused = cluster.refusal(&rotated).await;
    assert!(refused.message.contains("no longer"), "{refused}");
    tokio::time::sleep(Duration::from_millis(5)).await;
    let expired = cluster.refusal(&fresh).await;
    assert!(expired.message.contains("expired"), "{expired}");
    assert!(
        expired.next.contains("weft token create worker"),
        "{expired:?}"
    );
    // Of another cluster: this manager's CA is not the one that it pins.
    let other = JoinToken::new(Digest::from_bytes([3; 32]), 11);
    let error = cluster
        .join(&other, free_address(9), clock(0))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("wrong host or wrong token"),
        "{error}"
    );
    assert_eq!(cluster.nodes(), 1, "nothing is half joined");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_no_manager_however_it_asks() {
    let cluster = Cluster::founded().await;
    let (id, worker) = cluster.worker().await;
    let vote = Request::Vote(openraft::raft::VoteRequest::new(
        openraft::Vote::new(99, 99),
        None,
    ));
    let answer = worker
        .link
        .call(&cluster.address(), vote, LIMIT)
        .await
        .unwrap();
    assert!(
        matches!(&answer, Answer::Refused(e) if e.code == ErrorCode::PermissionDenied),
        "{answer:?}"
    );
    // In a manager's place it is not believed: its certificate is not for that.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gate = Arc::new(Gate::new(cluster.managers[0].0.clone()));
    let false_one = TlsServer::start(listener, &worker.credentials, gate).unwrap();
    let (_, other) = cluster.worker().await;
    let error = other
        .link
        .call(&false_one.address().to_string(), watch(), LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(error, LinkError::Untrusted { .. }), "{error}");
    // A promoted one renews, and then it may.
    cluster
        .propose(Command::NodePromote(NodeId::from_bits(id.into())))
        .await;
    let key = make_node_key().unwrap();
    let renew = Request::Renew { csr: key.csr };
    match worker
        .link
        .call(&cluster.address(), renew, LIMIT)
        .await
        .unwrap()
    {
        Answer::Certificate(pem) => {
            let der = pki::der_of(&pem).unwrap();
            assert_eq!(pki::name_of(&der).unwrap().role, Role::Manager);
            let credentials = Credentials {
                key: key.key,
                certificate: pem,
                ..worker.credentials
            };
            worker.link.renew(&credentials).unwrap();
        }
        other => panic!("{other:?}"),
    }
    let answer = worker
        .link
        .call(&cluster.address(), watch(), LIMIT)
        .await
        .unwrap();
    assert!(matches!(answer, Answer::Update(_)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_ca_is_refused_on_both_sides() {
    let cluster = Cluster::founded().await;
    let foreign = make_authority(&cluster_id(), now_s()).unwrap();
    // Of a foreign CA that even has the cluster's name; it trusts ours, so that the server has to refuse.
    let mut stranger = member(&foreign, &cluster_id(), 2, Role::Manager);
    let refused = stranger
        .link
        .call(&cluster.address(), watch(), LIMIT)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("another cluster"), "{refused}");
    stranger.credentials.authorities = vec![cluster.authority.certificate.clone()];
    stranger.link.renew(&stranger.credentials).unwrap();
    let refused = stranger
        .link
        .call(&cluster.address(), watch(), LIMIT)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            LinkError::Untrusted { .. } | LinkError::Unreachable { .. }
        ),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_an_hour_off_does_no_harm_and_a_day_off_is_named() {
    let cluster = Cluster::founded().await;
    let token = cluster.tokens[&Role::Worker].clone();
    for (n, off_s) in [(0, -3600), (1, 3600)] {
        let control = free_address(500 + n);
        let (_, key, answer) = cluster.join(&token, control, clock(off_s)).await.unwrap();
        let mut worker = joined(key, answer);
        worker.credentials.clock = clock(off_s);
        worker.link.renew(&worker.credentials).unwrap();
        let answer = worker.link.call(&cluster.address(), watch(), LIMIT).await;
        assert!(
            matches!(answer, Ok(Answer::Update(_))),
            "{off_s}: {answer:?}"
        );
        let der = pki::der_of(&worker.credentials.certificate).unwrap();
        let at_s = now_s().checked_add_signed(off_s).unwrap();
        let renewal = pki::Life::of(&der).unwrap().renewal(at_s, 0);
        assert!(matches!(renewal, Renewal::NotBefore { .. }), "{renewal:?}");
    }
    let nodes = cluster.nodes();
    let behind = cluster
        .join(&token, free_address(9), clock(-86_400))
        .await
        .unwrap_err();
    assert!(
        behind.to_string().contains("set the clock right"),
        "{behind}"
    );
    let years = 11 * 365 * 86_400;
    let ahead = cluster
        .join(&token, free_address(9), clock(years))
        .await
        .unwrap_err();
    assert!(
        ahead.to_string().contains("expired by this node's clock"),
        "{ahead}"
    );
    assert_eq!(cluster.nodes(), nodes, "nothing is half joined");
}

/// A connection with a certificate, or without, to send anything over.
async fn raw(cluster: &Cluster, own: Option<&Member>) -> ClientStream {
    let own = own.map(|member| member.credentials.client_config().unwrap());
    let config = own.unwrap_or_else(|| {
        let pinned = Arc::new(Pinned {
            authority: cluster.authority.digest,
            provider: provider(),
        });
        let builder = ClientConfig::builder_with_provider(provider());
        let builder = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap();
        let builder = builder.dangerous().with_custom_certificate_verifier(pinned);
        builder.with_no_client_auth()
    });
    let name = ServerName::try_from(NodeName::manager_of(&cluster_id())).unwrap();
    connect(&cluster.address(), Arc::new(config), name)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_beyond_the_limit_and_garbage_end_the_connection_with_a_word() {
    let cluster = Cluster::founded().await;
    let (_, worker) = cluster.worker().await;
    let too_long = |len: usize| ((len + 1) as u32).to_be_bytes().to_vec();
    let garbage = [&5_u32.to_be_bytes()[..], &[99; 5]].concat();
    let cases = [
        (Some(&worker), too_long(FRAME_LEN_MAX), "are allowed"),
        (None, too_long(FRAME_LEN_MAX_JOINER), "are allowed"),
        (Some(&worker), vec![0xff; 4], "are allowed"),
        (Some(&worker), garbage.clone(), "no question"),
        (None, garbage, "no question"),
        (Some(&worker), vec![0; 4], "no question"),
    ];
    for (own, bytes, words) in cases {
        let mut stream = raw(&cluster, own).await;
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        let answer: Answer = timeout(LIMIT, read_frame(&mut stream, FRAME_LEN_MAX))
            .await
            .unwrap()
            .unwrap();
        match answer {
            Answer::Refused(error) => assert!(error.message.contains(words), "{error}"),
            other => panic!("{other:?}"),
        }
        let mut rest = Vec::new();
        let ended = timeout(LIMIT, stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok() && rest.is_empty());
    }
    // The manager goes on.
    let answer = worker.link.call(&cluster.address(), watch(), LIMIT).await;
    assert!(matches!(answer, Ok(Answer::Update(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_and_nobody_answering_are_told_apart() {
    let cluster = Cluster::founded().await;
    let (_, worker) = cluster.worker().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let short = Duration::from_millis(200);
    let silent = worker
        .link
        .call(&address, watch(), short)
        .await
        .unwrap_err();
    assert!(
        matches!(silent, LinkError::Timeout { ms: 200, .. }),
        "{silent}"
    );
    drop(listener);
    let gone = worker
        .link
        .call(&address, watch(), LIMIT)
        .await
        .unwrap_err();
    assert!(matches!(gone, LinkError::Unreachable { .. }), "{gone}");
}
