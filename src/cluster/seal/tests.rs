//! Sealing: who can open what, once.

use super::*;
use proptest::prelude::*;

fn pair(keys: &[u8]) -> (Seal, Seal) {
    let keys: Vec<_> = keys.iter().map(|k| Secret([*k; 32])).collect();
    let (mut a, mut b) = (Seal::new(NodeNumber(1), 1), Seal::new(NodeNumber(2), 1));
    a.set_keys("", &keys);
    b.set_keys("", &keys);
    (a, b)
}

fn anyone(_: NodeNumber, _: u64) -> bool {
    true
}

#[test]
fn what_was_sealed_opens_once() {
    let (mut a, mut b) = pair(&[1]);
    let sealed = a.seal("", b"hello").unwrap();
    assert!(sealed.len() <= 5 + OVERHEAD_MAX);
    let opened = b.open(&sealed, anyone).unwrap();
    assert_eq!(
        (opened.node, opened.epoch, &*opened.scope),
        (NodeNumber(1), 1, "")
    );
    assert_eq!(opened.payload, b"hello");
    assert_eq!(b.open(&sealed, anyone), Err(OpenError::Replayed));
}

#[test]
fn every_changed_bit_is_noticed() {
    let (mut a, mut b) = pair(&[1]);
    let sealed = a.seal("", b"hello").unwrap();
    for bit in 0..sealed.len() * 8 {
        let mut bent = sealed.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        assert!(b.open(&bent, anyone).is_err(), "bit {bit}");
    }
    for len in 0..sealed.len() {
        assert!(b.open(&sealed[..len], anyone).is_err());
    }
    b.open(&sealed, anyone).unwrap();
}

#[test]
fn the_text_is_not_in_the_datagram() {
    let (mut a, _) = pair(&[1]);
    let text = b"my-web.1 10.0.1.2 my-network";
    let sealed = a.seal("", text).unwrap();
    assert!(
        !sealed
            .windows(4)
            .any(|part| text.windows(4).any(|t| t == part))
    );
}

#[test]
fn a_network_has_keys_of_its_own() {
    let (mut a, mut b) = pair(&[1]);
    a.set_keys("net", &[Secret([9; 32])]);
    let sealed = a.seal("net", b"hello").unwrap();
    assert_eq!(b.open(&sealed, anyone), Err(OpenError::UnknownKey));
    b.set_keys("net", &[Secret([9; 32])]);
    assert_eq!(&*b.open(&sealed, anyone).unwrap().scope, "net");
}

/// Keys change between two datagrams and never within one, and no datagram is lost while they do.
#[test]
fn key_update_atomic() {
    let (old, new) = (Secret([1; 32]), Secret([2; 32]));
    let (mut a, mut b) = pair(&[1]);
    let in_flight = a.seal("", b"0").unwrap();
    // Both learn of the new key, at different times; then both use it, at different times.
    b.set_keys("", &[old.clone(), new.clone()]);
    b.open(&in_flight, anyone).unwrap();
    b.open(&a.seal("", b"1").unwrap(), anyone).unwrap();
    a.set_keys("", &[old.clone(), new.clone()]);
    a.set_keys("", &[new.clone(), old.clone()]);
    let late = a.seal("", b"2").unwrap();
    assert_eq!(late[1..5], new.id().to_be_bytes());
    b.open(&late, anyone).unwrap();
    a.open(&b.seal("", b"3").unwrap(), anyone).unwrap();
    b.set_keys("", &[new.clone(), old.clone()]);
    // The old one is dropped when nobody seals with it any more.
    let last = b.seal("", b"4").unwrap();
    a.set_keys("", std::slice::from_ref(&new));
    a.open(&last, anyone).unwrap();
    b.set_keys("", &[new]);
    // Whoever still has only the old key is out.
    let (mut stolen, _) = pair(&[1]);
    let sealed = stolen.seal("", b"5").unwrap();
    assert_eq!(b.open(&sealed, anyone), Err(OpenError::UnknownKey));
}

#[test]
fn without_a_key_nothing_is_sealed() {
    let (mut a, _) = pair(&[1]);
    a.set_keys("", &[]);
    assert_eq!(a.seal("", b"x"), Err(SealError::NoKey));
    assert_eq!(a.seal("net", b"x"), Err(SealError::NoKey));
}

#[test]
fn a_node_that_does_not_exist_is_not_listened_to() {
    let (mut a, mut b) = pair(&[1]);
    let sealed = a.seal("", b"x").unwrap();
    let refused = b.open(&sealed, |node, _| node != NodeNumber(1));
    assert_eq!(refused, Err(OpenError::UnknownSender));
}

#[test]
fn an_earlier_epoch_is_over() {
    let (mut a, mut b) = pair(&[1]);
    let before = a.seal("", b"before").unwrap();
    let mut restarted = Seal::new(NodeNumber(1), 2);
    restarted.set_keys("", &[Secret([1; 32])]);
    b.open(&restarted.seal("", b"after").unwrap(), anyone)
        .unwrap();
    assert_eq!(b.open(&before, anyone), Err(OpenError::OldEpoch));
}

proptest! {
    /// Against a model that remembers everything.
    #[test]
    fn the_window_tells_new_from_old(steps in prop::collection::vec(0..20_000_u64, 1..300)) {
        let mut window = Window::default();
        let mut seen = std::collections::BTreeSet::new();
        for counter in steps {
            let last = seen.last().copied().unwrap_or(0);
            let fresh = !seen.contains(&counter) && counter + WINDOW > last && counter > 0;
            prop_assert_eq!(counter == 0 || window.check(1, counter).is_ok() == fresh, true);
            if fresh {
                window.note(1, counter);
                seen.insert(counter);
            }
        }
    }

    #[test]
    fn any_bytes_are_opened_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let (_, mut b) = pair(&[1]);
        prop_assert!(b.open(&bytes, anyone).is_err());
    }
}
