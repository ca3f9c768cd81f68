//! Many attaches and detaches leave nothing behind. Alone in its process, since it counts descriptors.

mod host_support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use host_support::{Place, links, named, snapshot};
use weft::host::{attach, detach, ensure_network, remove_network};

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// Namespace mounts of this test's own directory.
fn mounts_below(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(dir)).count()
}

/// Closed netlink sockets go when their driver next runs.
async fn settled(count: impl Fn() -> usize, expected: usize) -> bool {
    for _ in 0..100 {
        if count() == expected {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn a_hundred_cycles_leave_equal_counts() {
    let Some(place) = Place::new() else { return };
    let stays = place.network(&[&["10.0.1.254/24"]]);
    ensure_network(&stays).await.unwrap();
    let name = place.workload();
    let endpoint = place.endpoint(&stays, &name, "10.0.1.2/24");
    let passing = place.network(&[&["10.0.2.254/24"]]);
    let second = place.endpoint(&passing, &name, "10.0.2.2/24");

    let mut times: [Vec<Duration>; 4] = Default::default();
    let mut before = None;
    for cycle in 0..101 {
        let start = Instant::now();
        ensure_network(&passing).await.unwrap();
        times[0].push(start.elapsed());
        let start = Instant::now();
        attach(&endpoint).await.unwrap();
        times[1].push(start.elapsed());
        attach(&second).await.unwrap();
        let start = Instant::now();
        detach(&stays.netns_path, &endpoint.id).await.unwrap();
        times[2].push(start.elapsed());
        let start = Instant::now();
        remove_network(&passing.netns_path, &passing.id)
            .await
            .unwrap();
        times[3].push(start.elapsed());

        if cycle == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            before = Some((
                open_files(),
                snapshot(&stays.netns_path),
                snapshot(&named(&name)),
            ));
        }
    }
    let (files, network, workload) = before.unwrap();
    assert!(
        settled(open_files, files).await,
        "{} files, {files} before",
        open_files()
    );
    host_support::assert_same(&network, &snapshot(&stays.netns_path), "the network");
    host_support::assert_same(&workload, &snapshot(&named(&name)), "the workload");
    assert_eq!(links(&stays.netns_path).await.len(), 4);
    assert_eq!(mounts_below(place.run_dir()), 1);
    assert!(threads() < 20, "{} threads", threads());
    let [ensure, attach, detach, remove] = times.map(median);
    println!("median: ensure {ensure:?}, attach {attach:?}, detach {detach:?}, remove {remove:?}");
}
