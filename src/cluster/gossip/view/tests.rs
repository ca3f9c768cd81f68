//! Who wins, whatever the order of arrival; what watchers are told.

use super::*;
use crate::tables::record::Backing;
use proptest::prelude::*;

const NET: &str = "net";

fn record(endpoint: &str, ip: u8, mac: u8, counter: u64) -> Arc<EndpointRecord> {
    Arc::new(EndpointRecord {
        network: NET.into(),
        vni: Vni::FIRST_USER,
        endpoint: endpoint.into(),
        mac: Mac([2, 0, 0, 0, 0, mac]),
        ips: vec![IpAddr::from([10, 0, 0, ip])],
        vtep: IpAddr::from([192, 0, 2, 1]),
        node: String::new(),
        name: String::new(),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version { epoch: 1, counter },
    })
}

fn put(view: &mut View, owner: u64, record: &Arc<EndpointRecord>) {
    view.put(&NET.into(), NodeNumber(owner), Arc::clone(record), Ok(()));
}

fn kinds(view: &View, watch: &mut Watch) -> Vec<&'static str> {
    let kind = |event: Event| match event {
        Event::Upsert { replaced: None, .. } => "new",
        Event::Upsert { .. } => "changed",
        Event::Remove { .. } => "removed",
        Event::Suspend(_) => "suspended",
        Event::Resume(_) => "resumed",
        Event::Conflict(_) => "conflict",
        Event::ConflictOver(..) => "conflict over",
        Event::Unauthorised { .. } => "unauthorised",
        Event::EpochUsed(_) => "epoch used",
    };
    view.events(watch).unwrap().into_iter().map(kind).collect()
}

#[test]
fn an_endpoint_that_moves_ends_at_one_owner_before_it_begins_at_the_other() {
    let mut view = View::default();
    let mut watch = view.watch();
    put(&mut view, 1, &record("e", 1, 1, 5));
    put(&mut view, 2, &record("e", 1, 1, 6));
    assert_eq!(kinds(&view, &mut watch), ["new", "removed", "new"]);
    // The old owner's farewell changes nothing any more.
    view.drop(&NET.into(), NodeNumber(1), &"e".into());
    assert_eq!(kinds(&view, &mut watch), [""; 0]);
    assert_eq!(view.snapshot().0[0].owner, NodeNumber(2));
}

#[test]
fn a_suspended_owner_loses_to_one_that_is_there() {
    let mut view = View::default();
    put(&mut view, 1, &record("a", 1, 1, 9));
    put(&mut view, 2, &record("b", 1, 2, 3));
    let winner = |view: &View| view.conflicts().next().map(|c| c.winner.0);
    assert_eq!(winner(&view), Some(NodeNumber(1)));
    let mut watch = view.watch();
    view.suspend(NodeNumber(1), true);
    assert_eq!(winner(&view), Some(NodeNumber(2)));
    assert_eq!(kinds(&view, &mut watch), ["suspended", "conflict"]);
    view.suspend(NodeNumber(1), false);
    assert_eq!(winner(&view), Some(NodeNumber(1)));
    view.drop(&NET.into(), NodeNumber(2), &"b".into());
    assert_eq!(
        kinds(&view, &mut watch),
        ["resumed", "conflict", "removed", "conflict over"]
    );
}

#[test]
fn what_its_owner_may_not_publish_is_not_shown() {
    let mut view = View::default();
    let mut watch = view.watch();
    let bad = Err(Unauthorised::Address);
    view.put(&NET.into(), NodeNumber(1), record("a", 1, 1, 1), bad);
    view.put(&NET.into(), NodeNumber(1), record("a", 1, 1, 1), bad);
    assert_eq!(kinds(&view, &mut watch), ["unauthorised"]);
    assert_eq!((view.unauthorised(), view.snapshot().0.len()), (1, 0));
    view.judge(|_, _| Ok(()));
    assert_eq!(kinds(&view, &mut watch), ["new"]);
    view.judge(|_, _| bad);
    assert_eq!(kinds(&view, &mut watch), ["unauthorised", "removed"]);
}

#[test]
fn a_watcher_that_was_away_too_long_is_told_so() {
    let mut view = View::default();
    let mut watch = view.watch();
    for _ in 0..EVENTS_MAX + 7 {
        view.emit(Event::Resume(NodeNumber(1)));
    }
    assert_eq!(view.events(&mut watch), Err(Lagged(7)));
    let (_, mut watch) = view.snapshot();
    assert_eq!(view.events(&mut watch), Ok(Vec::new()));
}

proptest! {
    /// Claims in any order, with detours, lead to one view.
    #[test]
    fn the_order_of_arrival_does_not_matter(
        claims in prop::collection::btree_map((1..4_u64, 0..4_u8), (1..4_u8, 1..4_u8, 1..20_u64), 1..10),
        down in prop::collection::btree_set(1..4_u64, 0..3),
        order in any::<u64>(),
    ) {
        let name = |endpoint: u8| format!("e{endpoint}");
        let mut straight = View::default();
        for ((owner, endpoint), (ip, mac, counter)) in &claims {
            put(&mut straight, *owner, &record(&name(*endpoint), *ip, *mac, *counter));
        }
        for node in &down {
            straight.suspend(NodeNumber(*node), true);
        }
        let mut shuffled: Vec<_> = claims.iter().collect();
        crate::cluster::gossip::pace::Chance::new(order).shuffle(&mut shuffled);
        let mut other = View::default();
        for node in &down {
            other.suspend(NodeNumber(*node), true);
        }
        for ((owner, endpoint), _) in &shuffled {
            put(&mut other, *owner, &record(&name(*endpoint), 9, 9, 1));
        }
        for ((owner, endpoint), (ip, mac, counter)) in shuffled {
            put(&mut other, *owner, &record(&name(*endpoint), *ip, *mac, *counter));
        }
        prop_assert_eq!(straight.snapshot().0, other.snapshot().0);
        let conflicts = |view: &View| view.conflicts().cloned().collect::<Vec<_>>();
        prop_assert_eq!(conflicts(&straight), conflicts(&other));
    }
}
