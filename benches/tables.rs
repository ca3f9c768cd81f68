//! Costs of the tables: `cargo bench --bench tables`.
//!
//! Lookups walk the keys in an order no prefetcher guesses, so at a million entries they pay for
//! the cache misses a busy node would. **Bar: an FDB lookup takes at most 20 ns at 1 M entries**,
//! checked before the benches and told on stderr. The bar is about many lookups in flight, as a
//! worker does for a batch of frames (`lookup/fdb`); `lookup/fdb_dependent` shows one at a time, where
//! each waits for the one before.
//!
//! What a large cluster costs is told there too ([`scale`]), with bars for updates, for new snapshots and for
//! forwarding while 10,000 endpoints change per second: alone by `cargo bench --bench tables -- --scale`.

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "tables/scale.rs"]
mod scale;

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use divan::Bencher;
use divan::counter::ItemsCount;
use weft::tables::fdb::{Fdb, Station};
use weft::tables::neigh::{Neighbour, NeighbourTable};
use weft::tables::record::{Backing, Version};
use weft::tables::{
    EndpointRecord, SegmentConfig, SegmentIndex, SegmentPolicy, TableWriter, Tables,
};
use weft::wire::{Mac, Vni};

const SIZES: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Lookups per timed call.
const BATCH_LEN: usize = 1024;
const LOOKUP_LIMIT_NS: f64 = 20.0;
const SEGMENT: SegmentIndex = SegmentIndex(0);

fn main() {
    scale::tell();
    if std::env::args().any(|arg| arg == "--scale") {
        return;
    }
    tell_lookup_bar();
    tell_memory();
    divan::main();
}

/// Address of endpoint `number`; unique below 2^24.
fn ip(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 | number as u32)
}

/// A full-period walk over `0..size`, far from sequential.
fn scattered(size: usize) -> impl FnMut() -> usize {
    let (mut position, step) = (0, (size as f64 * 0.618) as usize | 1);
    move || {
        position = (position + step) % size;
        position
    }
}

fn fdb(size: usize) -> &'static Fdb {
    static TABLES: [OnceLock<Fdb>; 3] = [const { OnceLock::new() }; 3];
    TABLES[index_of(size)].get_or_init(|| {
        let fdb = Fdb::new(0x5eed);
        for number in 0..size {
            fdb.insert(
                SEGMENT,
                Mac::from_ipv4(ip(number)),
                Station::Remote(number as u32 % 64),
            );
        }
        fdb
    })
}

fn neighbours(size: usize) -> &'static NeighbourTable {
    static TABLES: [OnceLock<NeighbourTable>; 3] = [const { OnceLock::new() }; 3];
    TABLES[index_of(size)].get_or_init(|| {
        let table = NeighbourTable::new(0x5eed);
        for number in 0..size {
            let neighbour = Neighbour {
                mac: Mac::from_ipv4(ip(number)),
                local: false,
            };
            table.insert(SEGMENT, ip(number).into(), neighbour);
        }
        table
    })
}

fn index_of(size: usize) -> usize {
    SIZES
        .iter()
        .position(|&known| known == size)
        .expect("a size of SIZES")
}

/// Every entry once, so that a large table is really walked and not a cached corner of it.
fn keys(size: usize) -> Vec<Mac> {
    let mut next = scattered(size);
    (0..size.next_multiple_of(BATCH_LEN))
        .map(|_| Mac::from_ipv4(ip(next())))
        .collect()
}

mod lookup {
    use super::*;

    #[divan::bench(args = SIZES)]
    fn fdb(bencher: Bencher, size: usize) {
        let (view, keys) = (super::fdb(size).view(), keys(size));
        let mut batches = keys.chunks(BATCH_LEN).cycle();
        bencher.counter(ItemsCount::new(BATCH_LEN)).bench_local(|| {
            for &mac in batches.next().into_iter().flatten() {
                black_box(view.find(SEGMENT, mac));
            }
        });
    }

    #[divan::bench(args = SIZES)]
    fn fdb_dependent(bencher: Bencher, size: usize) {
        let view = super::fdb(size).view();
        let (mut position, step) = (0, (size as f64 * 0.618) as usize | 1);
        bencher.counter(ItemsCount::new(BATCH_LEN)).bench_local(|| {
            for _ in 0..BATCH_LEN {
                let found = view.find(SEGMENT, Mac::from_ipv4(ip(position)));
                let vtep = found.and_then(Station::vtep).unwrap_or(0) as usize;
                // Indices stay below 64: the next key is not changed by the answer, yet needs it.
                position = (position + step + vtep / 64) % size;
            }
            position
        });
    }

    #[divan::bench(args = SIZES)]
    fn fdb_miss(bencher: Bencher, size: usize) {
        let view = super::fdb(size).view();
        let mut next = scattered(1 << 23);
        bencher.counter(ItemsCount::new(BATCH_LEN)).bench_local(|| {
            for _ in 0..BATCH_LEN {
                black_box(view.find(SEGMENT, Mac::from_ipv4(ip((1 << 23) + next()))));
            }
        });
    }

    #[divan::bench(args = SIZES)]
    fn neighbour(bencher: Bencher, size: usize) {
        let view = super::neighbours(size).view();
        let mut next = scattered(size);
        bencher.counter(ItemsCount::new(BATCH_LEN)).bench_local(|| {
            for _ in 0..BATCH_LEN {
                black_box(view.find(SEGMENT, IpAddr::V4(ip(next()))));
            }
        });
    }

    /// What a worker does once per batch before any lookup: take a view of everything.
    #[divan::bench]
    fn view(bencher: Bencher) {
        let (_writer, tables) = filled(1_000);
        bencher.bench_local(|| black_box(tables.view()));
    }
}

fn record(number: usize, counter: u64) -> EndpointRecord {
    EndpointRecord {
        network: "bench".into(),
        vni: vni(),
        endpoint: format!("endpoint{number}"),
        mac: Mac::from_ipv4(ip(number)),
        ips: vec![ip(number).into()],
        vtep: IpAddr::from([192, 0, 2, (number % 64) as u8 + 1]),
        node: String::new(),
        name: format!("web-{number}"),
        aliases: Vec::new(),
        service: String::new(),
        backing: Backing::default(),
        version: Version { epoch: 1, counter },
    }
}

fn vni() -> Vni {
    Vni::new(4097).expect("24 bits")
}

/// Tables with one network of `size` remote endpoints on 64 VTEPs.
fn filled(size: usize) -> (TableWriter, Arc<Tables>) {
    let (mut writer, tables) = TableWriter::new(4789, 0x5eed);
    let gateway = Ipv4Addr::new(10, 255, 255, 254);
    let config = SegmentConfig {
        vni: vni(),
        network: "bench".into(),
        mtu: 1450,
        subnets: vec!["10.0.0.0/8".parse().expect("a prefix")],
        gateways: vec![gateway.into()],
        gateway_mac: Mac::from_ipv4(gateway),
        policy: SegmentPolicy::default(),
    };
    writer.add_segment(config).expect("the first segment");
    for number in 0..size {
        writer
            .upsert_remote(&record(number, 1))
            .expect("a valid record");
    }
    (writer, tables)
}

mod update {
    use super::*;

    /// One changed record: FDB and neighbour entries in place.
    #[divan::bench(args = [1_000, 100_000], sample_count = 50)]
    fn record_again(bencher: Bencher, size: usize) {
        let (mut writer, _tables) = filled(size);
        let (mut next, mut counter) = (scattered(size), 1);
        bencher
            .counter(ItemsCount::new(1_usize))
            .with_inputs(|| {
                counter += 1;
                record(next(), counter)
            })
            .bench_local_values(|record| writer.upsert_remote(&record));
    }

    /// A changed member list: the whole snapshot is made anew and swapped.
    #[divan::bench(args = [1_000, 100_000], sample_count = 50)]
    fn snapshot_swap(bencher: Bencher, size: usize) {
        let (mut writer, _tables) = filled(size);
        let mut count = 0;
        bencher.counter(ItemsCount::new(1_usize)).bench_local(|| {
            count = (count + 1) % 32;
            let members: Vec<IpAddr> = (0..32 + count)
                .map(|last| IpAddr::from([198, 51, 100, last]))
                .collect();
            writer.set_vteps(vni(), &members)
        });
    }

    /// A node that starts and learns everything at once.
    #[divan::bench(args = [1_000, 100_000], sample_count = 5, sample_size = 1)]
    fn fill(bencher: Bencher, size: usize) {
        bencher
            .counter(ItemsCount::new(size))
            .bench_local(|| filled(size));
    }
}

/// The bar: the median batch of a walk over all entries, so that losing the processor now and then
/// does not decide.
fn tell_lookup_bar() {
    let size = SIZES[2];
    let (view, keys) = (fdb(size).view(), keys(size));
    let batch_ns = |batch: &[Mac]| {
        let start = Instant::now();
        for &mac in batch {
            black_box(view.find(SEGMENT, mac));
        }
        start.elapsed().as_nanos() as f64 / batch.len() as f64
    };
    let passes = || (0..3).flat_map(|_| keys.chunks(BATCH_LEN));
    let mut costs: Vec<f64> = passes().map(batch_ns).collect();
    costs.sort_by(f64::total_cmp);
    let median = costs[costs.len() / 2];
    let verdict = if median <= LOOKUP_LIMIT_NS {
        "met"
    } else {
        "MISSED"
    };
    eprintln!("FDB lookup at {size} entries: {median:.1} ns (bar {LOOKUP_LIMIT_NS} ns: {verdict})");
}

/// Bytes of the lock-free tables per endpoint; the records themselves come on top.
fn tell_memory() {
    for size in SIZES {
        let (fdb, neighbours) = (fdb(size).memory_len(), neighbours(size).memory_len());
        let each = (fdb + neighbours) as f64 / size as f64;
        eprintln!(
            "{size} endpoints: FDB {fdb} B, neighbours {neighbours} B, {each:.0} B per endpoint"
        );
    }
}
