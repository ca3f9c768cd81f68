//! Tests of the gate: who may ask for what. What a token is good for is tested over real TLS.

use openraft::Vote;
use openraft::raft::VoteRequest;

use super::*;
use crate::cluster::manager::command::{
    Authority, BlockRef, COMMAND_VERSION, Envelope, InitCluster, NodeStatus, NodeWish, Settings,
    Stamp, TokenWish,
};
use crate::cluster::manager::ids::{Key, SecretText, VerifyKey};
use crate::model::ident;
use crate::model::request::CreateNetwork;

const TOKEN: Digest = Digest::from_bytes([0x33; 32]);

fn wish_of(n: u8) -> NodeWish {
    NodeWish {
        id: NodeId::from_bits(n.into()),
        name: format!("node{n}"),
        vtep: [192, 0, 2, n].into(),
        control: Some(([192, 0, 2, n], 2377).into()),
        epoch: 1,
        certificate: Digest::from_bytes([n; 32]),
        verify_key: VerifyKey::from_bytes([n; 32]),
    }
}

/// Manager 1, workers 2 and 3.
fn state() -> State {
    let mut state = State::default();
    let init = InitCluster {
        cluster: ident::id_from_bits(5),
        seed: 1,
        settings: Settings::default(),
        authority: Authority {
            certificate: "pem".into(),
            key: SecretText::new("key".into()),
            digest: TOKEN,
        },
        key: Key::from_bytes([7; 32]),
        tokens: vec![TokenWish {
            role: Role::Worker,
            hash: TOKEN,
            life_ms: None,
        }],
        node: wish_of(1),
    };
    run(&mut state, Command::Init(Box::new(init)));
    for n in 2..=3 {
        let node = wish_of(n);
        run(&mut state, Command::Join { node, token: TOKEN });
    }
    state
}

fn run(state: &mut State, command: Command) {
    let revision = state.revision() + 1;
    let envelope = Envelope {
        version: COMMAND_VERSION,
        request: RequestId::from_bits(revision.into()),
        actor: Actor::Leader,
        stamp: Stamp::default(),
        command,
    };
    state.apply(revision, &envelope).unwrap().outcome.unwrap();
}

fn peer(n: u8, role: Role) -> Peer {
    Peer::Node {
        name: NodeName {
            cluster: ident::id_from_bits(5),
            node: NodeId::from_bits(n.into()),
            role,
        },
        certificate: Digest::from_bytes([n; 32]),
    }
}

fn propose(command: Command) -> Request {
    Request::Propose(Proposal {
        request: RequestId::from_bits(9),
        actor: Actor::Leader,
        command,
    })
}

fn vote() -> Request {
    Request::Vote(VoteRequest::new(Vote::new(1, 1), None))
}

fn release(n: u8) -> Request {
    propose(Command::ReleaseBlocks {
        node: NodeId::from_bits(n.into()),
        epoch: 1,
        blocks: Vec::<BlockRef>::new(),
        rested: true,
        fence: u64::MAX,
    })
}

fn code(state: &State, peer: &Peer, request: &Request) -> Option<ErrorCode> {
    permit(state, peer, request).err().map(|error| error.code)
}

#[test]
fn without_a_certificate_a_node_may_join_and_nothing_else() {
    let state = state();
    let stranger = Peer::Joiner([192, 0, 2, 9].into());
    let join = Request::Join(Box::new(JoinRequest {
        request: RequestId::from_bits(1),
        node: wish_of(9),
        token: "x".into(),
        csr: Vec::new(),
    }));
    assert_eq!(code(&state, &stranger, &join), None);
    let watch = Request::Watch {
        after: 0,
        wait_ms: 0,
    };
    for request in [
        vote(),
        watch,
        release(2),
        Request::Renew { csr: Vec::new() },
    ] {
        assert_eq!(
            code(&state, &stranger, &request),
            Some(ErrorCode::PermissionDenied)
        );
    }
    assert_eq!(
        code(&state, &peer(2, Role::Worker), &join),
        Some(ErrorCode::ClusterExists)
    );
}

#[test]
fn a_stolen_worker_reaches_its_own_addresses_only() {
    let state = state();
    let worker = peer(2, Role::Worker);
    assert_eq!(code(&state, &worker, &release(2)), None);
    let denied = Some(ErrorCode::PermissionDenied);
    assert_eq!(code(&state, &worker, &release(3)), denied);
    assert_eq!(code(&state, &worker, &vote()), denied);
    let node = NodeId::from_bits(3);
    for command in [
        Command::NodePromote(NodeId::from_bits(2)),
        Command::NodeRemove { node, force: true },
        Command::NodeStatus {
            node,
            epoch: 1,
            status: NodeStatus::Down,
        },
        Command::KeyReplace {
            key: Key::from_bytes([1; 32]),
        },
        Command::TokenRotate(TokenWish {
            role: Role::Manager,
            hash: TOKEN,
            life_ms: None,
        }),
        Command::NodeCertificate {
            node: NodeId::from_bits(2),
            certificate: TOKEN,
        },
        Command::Join {
            node: wish_of(9),
            token: TOKEN,
        },
        Command::Tick,
    ] {
        assert_eq!(
            code(&state, &worker, &propose(command.clone())),
            denied,
            "{command:?}"
        );
    }
    let create = Command::NetworkCreate {
        wish: Box::new(CreateNetwork::default()),
        id: String::new(),
        created: 0,
        vtep: [192, 0, 2, 2].into(),
    };
    assert_eq!(code(&state, &worker, &propose(create)), None);
}

#[test]
fn a_role_counts_as_long_as_certificate_and_state_agree() {
    let mut state = state();
    let manager = peer(1, Role::Manager);
    assert_eq!(code(&state, &manager, &vote()), None);
    let join = propose(Command::Join {
        node: wish_of(9),
        token: TOKEN,
    });
    assert_eq!(
        code(&state, &manager, &join),
        None,
        "it passes a join on to the leader"
    );
    // A worker that was made a manager has to renew first; one that claims the role is none.
    let claimed = peer(2, Role::Manager);
    assert_eq!(
        code(&state, &claimed, &vote()),
        Some(ErrorCode::PermissionDenied)
    );
    run(&mut state, Command::NodePromote(NodeId::from_bits(2)));
    let before = peer(2, Role::Worker);
    assert_eq!(
        code(&state, &before, &vote()),
        Some(ErrorCode::PermissionDenied)
    );
    assert_eq!(code(&state, &claimed, &vote()), None);
    run(&mut state, Command::NodeDemote(NodeId::from_bits(2)));
    assert_eq!(
        code(&state, &claimed, &vote()),
        Some(ErrorCode::PermissionDenied)
    );
    // A new manager whose log is empty lets others in by their certificates.
    assert_eq!(code(&State::default(), &manager, &vote()), None);
    assert_eq!(
        code(&State::default(), &peer(3, Role::Worker), &vote()),
        Some(ErrorCode::PermissionDenied)
    );
}

#[test]
fn a_removed_node_and_one_of_another_cluster_are_refused() {
    let mut state = state();
    run(
        &mut state,
        Command::NodeRemove {
            node: NodeId::from_bits(3),
            force: true,
        },
    );
    let refused = Some(ErrorCode::CertificateRefused);
    let watch = Request::Watch {
        after: 0,
        wait_ms: 0,
    };
    assert_eq!(code(&state, &peer(3, Role::Worker), &watch), refused);
    assert_eq!(code(&state, &peer(7, Role::Worker), &watch), refused);
    let mut other = peer(2, Role::Worker);
    if let Peer::Node { name, .. } = &mut other {
        name.cluster = ident::id_from_bits(6);
    }
    assert_eq!(code(&state, &other, &watch), refused);
}

#[test]
fn a_worker_cannot_act_in_anothers_name_and_a_manager_passes_on() {
    let (me, other) = (NodeId::from_bits(2), NodeId::from_bits(3));
    let name = |role| match peer(2, role) {
        Peer::Node { name, .. } => name,
        Peer::Joiner(_) => panic!("a node has a name"),
    };
    let operator = |node| Actor::Operator { node, uid: 1000 };
    let worker = name(Role::Worker);
    assert_eq!(as_from(operator(other), &worker), operator(me));
    for actor in [
        Actor::Node(other),
        Actor::Leader,
        Actor::Joiner([192, 0, 2, 1].into()),
    ] {
        assert_eq!(as_from(actor.clone(), &worker), Actor::Node(me));
        assert_eq!(as_from(actor.clone(), &name(Role::Manager)), actor);
    }
}
