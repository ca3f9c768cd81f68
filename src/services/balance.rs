//! Which backend a new connection goes to, as an expression of nftables that the kernel evaluates per connection.

use std::net::IpAddr;

use crate::model::service::Balance;

/// A backend of a service, in one address family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// Its address.
    pub ip: IpAddr,
    /// Its share of new connections, in proportion to the others'; 0 for none.
    pub share: u16,
}

/// The expression for `dnat`: a choice among the targets with a share. With a port it is `address . port`. None without any
/// such target.
///
/// `turn` shifts who is first: each client begins somewhere else, or the first backend would get all the first connections.
pub fn choice(
    balance: Balance,
    targets: &[Target],
    port: Option<u16>,
    turn: u32,
) -> Option<String> {
    let mut targets: Vec<&Target> = targets.iter().filter(|target| target.share > 0).collect();
    targets.sort();
    let value = |target: &Target| match port {
        Some(port) => format!("{} . {port}", target.ip),
        None => target.ip.to_string(),
    };
    let (key, slots) = match balance {
        Balance::RoundRobin => turns(&targets, turn),
        Balance::SourceHash => {
            let family = if targets.first()?.ip.is_ipv4() {
                "ip"
            } else {
                "ip6"
            };
            let key = format!("jhash {family} saddr mod {HASH_SLOTS} seed {HASH_SEED:#x}");
            (key, hashed(&targets))
        }
    };
    if slots.is_empty() {
        return None;
    }
    let elements: Vec<String> = runs(&slots)
        .into_iter()
        .map(|(first, last, index)| match first == last {
            true => format!("{first} : {}", value(targets[index])),
            false => format!("{first}-{last} : {}", value(targets[index])),
        })
        .collect();
    Some(format!("{key} map {{ {} }}", elements.join(", ")))
}

/// The selector and, by slot, the index of the target. Few slots are taken in turn; where the weights need many, by lot.
fn turns(targets: &[&Target], turn: u32) -> (String, Vec<usize>) {
    let divisor = targets
        .iter()
        .fold(0, |all, target| gcd(all, target.share.into()));
    let weights: Vec<u32> = targets
        .iter()
        .map(|target| u32::from(target.share) / divisor.max(1))
        .collect();
    let total: u32 = weights.iter().sum();
    if total > TURNS_MAX {
        // Shares in so many slots are exact to a thousandth, and nobody with a share goes without.
        let slots: Vec<usize> = weights
            .iter()
            .enumerate()
            .flat_map(|(index, weight)| {
                let share = u64::from(*weight) * u64::from(LOTS) / u64::from(total);
                std::iter::repeat_n(index, share.max(1) as usize)
            })
            .collect();
        return (format!("numgen random mod {}", slots.len()), slots);
    }
    // Smooth weighted round robin: heavy ones come often, not in a row.
    let mut credit = vec![0_i64; weights.len()];
    let mut slots = Vec::with_capacity(total as usize);
    for _ in 0..total {
        for (credit, weight) in credit.iter_mut().zip(&weights) {
            *credit += i64::from(*weight);
        }
        let Some(next) = (0..credit.len()).rev().max_by_key(|index| credit[*index]) else {
            break;
        };
        credit[next] -= i64::from(total);
        slots.push(next);
    }
    if !slots.is_empty() {
        let shift = turn as usize % slots.len();
        slots.rotate_left(shift);
    }
    (format!("numgen inc mod {}", slots.len()), slots)
}

/// Weighted rendezvous hashing: each slot goes to the target with the highest score there. A target that comes or goes
/// takes or leaves its own slots, and no other slot changes hands.
fn hashed(targets: &[&Target]) -> Vec<usize> {
    let score = |slot: u32, target: &Target| {
        let point = mix(u64::from(slot) ^ mix(fold(target.ip)));
        // In (0, 1]: the logarithm is finite and not positive.
        let unit = ((point >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        f64::from(target.share) / -unit.ln().min(-f64::MIN_POSITIVE)
    };
    (0..HASH_SLOTS)
        .filter_map(|slot| {
            (0..targets.len())
                .max_by(|a, b| score(slot, targets[*a]).total_cmp(&score(slot, targets[*b])))
        })
        .collect()
}

/// Slots that follow each other and belong to one target: first, last, target.
fn runs(slots: &[usize]) -> Vec<(usize, usize, usize)> {
    let mut runs: Vec<(usize, usize, usize)> = Vec::new();
    for (slot, target) in slots.iter().enumerate() {
        match runs.last_mut() {
            Some((_, last, of)) if of == target => *last = slot,
            _ => runs.push((slot, slot, *target)),
        }
    }
    runs
}

fn fold(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            (bits >> 64) as u64 ^ mix(bits as u64)
        }
    }
}

/// The finaliser of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A cycle longer than this is drawn by lot instead.
const TURNS_MAX: u32 = 128;
const LOTS: u32 = 4096;
/// A prime, so that the hash's low bits do not decide alone.
const HASH_SLOTS: u32 = 1021;
/// The same on every node: a client keeps its backend, whichever node it comes through.
const HASH_SEED: u32 = 0x7765_6674;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn targets(shares: &[u16]) -> Vec<Target> {
        (1..)
            .zip(shares)
            .map(|(last, share)| Target {
                ip: [10, 0, 1, last].into(),
                share: *share,
            })
            .collect()
    }

    fn refs(targets: &[Target]) -> Vec<&Target> {
        targets.iter().collect()
    }

    #[test]
    fn equal_backends_take_turns_from_anywhere() {
        let round = |turn| choice(Balance::RoundRobin, &targets(&[1, 1, 1]), None, turn).unwrap();
        assert_eq!(
            round(0),
            "numgen inc mod 3 map { 0 : 10.0.1.1, 1 : 10.0.1.2, 2 : 10.0.1.3 }"
        );
        assert_eq!(
            round(4),
            "numgen inc mod 3 map { 0 : 10.0.1.2, 1 : 10.0.1.3, 2 : 10.0.1.1 }"
        );
    }

    #[test]
    fn a_heavy_backend_comes_often_but_not_in_a_row() {
        let targets = targets(&[20, 10, 10, 0]);
        let (_, slots) = turns(&refs(&targets[..3]), 0);
        assert_eq!(slots, [0, 1, 2, 0]);
        let port = choice(Balance::RoundRobin, &targets, Some(80), 0).unwrap();
        assert!(port.contains("10.0.1.1 . 80"), "{port}");
        assert!(!port.contains("10.0.1.4"), "{port}");
    }

    #[test]
    fn nobody_to_answer_is_no_choice() {
        for balance in [Balance::RoundRobin, Balance::SourceHash] {
            assert_eq!(choice(balance, &targets(&[0, 0]), None, 3), None);
            assert_eq!(choice(balance, &[], None, 3), None);
        }
    }

    #[test]
    fn weights_that_need_many_slots_are_drawn_by_lot() {
        let targets = targets(&[1000, 1, 333]);
        let (key, slots) = turns(&refs(&targets), 0);
        assert!(key.starts_with("numgen random"), "{key}");
        let of = |index| slots.iter().filter(|slot| **slot == index).count() as f64;
        assert!((of(0) / slots.len() as f64 - 1000.0 / 1334.0).abs() < 0.001);
        assert!(of(1) >= 1.0);
    }

    #[test]
    fn hashing_spreads_by_weight() {
        let targets = targets(&[1, 1, 2]);
        let slots = hashed(&refs(&targets));
        assert_eq!(slots.len(), HASH_SLOTS as usize);
        let of = |index| slots.iter().filter(|slot| **slot == index).count() as f64 / 1021.0;
        for (index, share) in [(0, 0.25), (1, 0.25), (2, 0.5)] {
            assert!((of(index) - share).abs() < 0.05, "{index}: {}", of(index));
        }
    }

    proptest! {
        #[test]
        fn a_backend_that_goes_takes_only_its_own_slots_along(
            shares in prop::collection::vec(1_u16..10, 2..9),
            gone in any::<prop::sample::Index>(),
        ) {
            let all = targets(&shares);
            let gone = gone.index(all.len());
            let mut rest = refs(&all);
            rest.remove(gone);
            for (before, after) in hashed(&refs(&all)).iter().zip(hashed(&rest)) {
                if *before != gone {
                    prop_assert_eq!(&all[*before].ip, &rest[after].ip);
                }
            }
        }

        #[test]
        fn turns_are_exactly_by_weight(shares in prop::collection::vec(1_u16..16, 1..8), turn in any::<u32>()) {
            let all = targets(&shares);
            let (_, slots) = turns(&refs(&all), turn);
            for (index, share) in shares.iter().enumerate() {
                let count = slots.iter().filter(|slot| **slot == index).count();
                prop_assert_eq!(count * shares.iter().map(|s| usize::from(*s)).sum::<usize>(),
                    usize::from(*share) * slots.len());
            }
        }
    }
}
