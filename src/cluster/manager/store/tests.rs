//! Tests of the store: what is read is what was written, after a crash at every write and with every byte flipped.

use std::sync::{Arc, Mutex};

use super::*;

/// A file in memory that remembers how it came to be.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    /// Every operation, if they are to be remembered.
    history: Option<Vec<Op>>,
    /// Operations that still succeed; all when absent.
    budget: Option<usize>,
}

#[derive(Clone, Debug)]
enum Op {
    Write(u64, Vec<u8>),
    Resize(u64),
    Sync,
}

impl Op {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Op::Write(at, data) => {
                let at = *at as usize;
                bytes[at..at + data.len()].copy_from_slice(data);
            }
            Op::Resize(len) => bytes.resize(*len as usize, 0),
            Op::Sync => {}
        }
    }
}

impl Disk {
    /// With this content.
    pub fn of(bytes: Vec<u8>) -> Disk {
        let disk = Disk::default();
        disk.inner.lock().unwrap().bytes = bytes;
        disk
    }

    fn recording() -> Disk {
        let disk = Disk::default();
        disk.inner.lock().unwrap().history = Some(Vec::new());
        disk
    }

    /// What is on it now.
    pub fn bytes(&self) -> Vec<u8> {
        self.inner.lock().unwrap().bytes.clone()
    }

    /// As [`Disk::bytes`], and the kill itself: whoever still runs writes nothing more.
    pub fn cut(&self) -> Vec<u8> {
        let mut inner = self.inner.lock().unwrap();
        inner.budget = Some(0);
        inner.bytes.clone()
    }

    fn history_len(&self) -> usize {
        self.inner
            .lock()
            .unwrap()
            .history
            .as_ref()
            .map_or(0, Vec::len)
    }

    fn run(&self, op: Op) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if let Some(budget) = &mut inner.budget {
            if *budget == 0 {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            *budget -= 1;
        }
        op.apply(&mut inner.bytes);
        if let Some(history) = &mut inner.history {
            history.push(op);
        }
        Ok(())
    }
}

impl redb::StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner.lock().unwrap().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.inner.lock().unwrap();
        let range = offset as usize..offset as usize + out.len();
        let bytes = inner.bytes.get(range);
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.run(Op::Resize(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.run(Op::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.run(Op::Write(offset, data.to_vec()))
    }
}

fn entry(index: u64) -> (u64, Vec<u8>) {
    (
        index,
        format!("entry {index} {}", "x".repeat(index as usize % 50)).into_bytes(),
    )
}

/// Writes and waits; the test's store is inline.
fn write(store: &Store, edits: Vec<Edit>) -> Result<(), StoreError> {
    let result = Arc::new(Mutex::new(None));
    let told = result.clone();
    store.submit(edits, Box::new(move |r| *told.lock().unwrap() = Some(r)));
    let result = result.lock().unwrap().clone();
    result.expect("an inline store answers at once")
}

/// A history of edits with every kind in it, and what the file holds after each.
fn script() -> Vec<(Vec<Edit>, Loaded)> {
    let mut model = Loaded::default();
    let mut script = Vec::new();
    let mut step = |edits: Vec<Edit>| {
        for edit in &edits {
            match edit {
                Edit::Append(rows) => model.log.extend(rows.iter().cloned()),
                Edit::Truncate(from) => drop(model.log.split_off(from)),
                Edit::Purge(upto, value) => {
                    model.log = model.log.split_off(&(upto + 1));
                    model.slots.insert(Slot::Purged.name(), value.clone());
                }
                Edit::Put(slot, value) => drop(model.slots.insert(slot.name(), value.clone())),
            }
        }
        script.push((edits, model.clone()));
    };
    step(vec![Edit::Put(Slot::Vote, b"vote 1".to_vec())]);
    for index in 0..6 {
        step(vec![Edit::Append(vec![entry(index)])]);
    }
    step(vec![Edit::Append((6..30).map(entry).collect())]);
    step(vec![Edit::Truncate(20)]);
    step(vec![Edit::Put(Slot::Vote, b"vote 2".to_vec())]);
    step(vec![
        Edit::Put(Slot::Committed, b"19".to_vec()),
        Edit::Append(vec![(20, b"another".to_vec())]),
    ]);
    step(vec![Edit::Put(Slot::Snapshot, vec![7; 9000])]);
    step(vec![Edit::Purge(10, b"purged 10".to_vec())]);
    for index in 21..26 {
        step(vec![Edit::Append(vec![entry(index)])]);
    }
    step(vec![Edit::Put(Slot::Snapshot, vec![8; 20_000])]);
    step(vec![Edit::Purge(24, b"purged 24".to_vec())]);
    script
}

#[test]
fn what_is_written_is_read_in_a_file_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("managers").join("raft.redb");
    let (store, loaded) = Store::open(&path).unwrap();
    assert_eq!(loaded, Loaded::default());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(Store::open(&path).unwrap_err(), StoreError::InUse);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let script = script();
    for (edits, _) in &script {
        runtime.block_on(store.write(edits.clone())).unwrap();
    }
    drop(store);
    // The writing thread closes the file a moment later.
    let reopened = std::iter::repeat_with(|| {
        thread::sleep(std::time::Duration::from_millis(1));
        Store::open(&path)
    });
    let (_, loaded) = reopened.take(2000).find_map(Result::ok).unwrap();
    assert_eq!(loaded, script.last().unwrap().1);
}

#[test]
fn a_crash_at_any_write_loses_nothing_that_was_acknowledged() {
    let disk = Disk::recording();
    let (store, _) = Store::open_inline(disk.clone()).unwrap();
    let script = script();
    // Operations on disk when each step was acknowledged; step 0 is the empty file.
    let mut acknowledged = vec![disk.history_len()];
    for (edits, _) in &script {
        write(&store, edits.clone()).unwrap();
        acknowledged.push(disk.history_len());
    }
    let history = disk.inner.lock().unwrap().history.clone().unwrap();
    let after = |step: usize| match step {
        0 => Loaded::default(),
        step => script[step - 1].1.clone(),
    };
    let mut opened = 0;
    let mut check = |bytes: Vec<u8>, ops: usize, what: &str| {
        let done = acknowledged.iter().rposition(|at| *at <= ops);
        match Store::open_inline(Disk::of(bytes)) {
            Ok((_, loaded)) => {
                let done = done.unwrap_or(0);
                let fits = loaded == after(done)
                    || done + 1 < acknowledged.len() && loaded == after(done + 1);
                assert!(
                    fits,
                    "{what}: step {done} was acknowledged, the file holds another"
                );
                opened += 1;
            }
            // Before the empty file was complete nothing had been promised.
            Err(error) => assert_eq!(done, None, "{what}: {error}"),
        }
    };
    let mut bytes = Vec::new();
    let mut synced = (Vec::new(), 0);
    for (index, op) in history.iter().enumerate() {
        // A write torn in the middle.
        if let Op::Write(at, data) = op {
            let mut torn = bytes.clone();
            Op::Write(*at, data[..data.len() / 2].to_vec()).apply(&mut torn);
            check(torn, index, &format!("torn write {index}"));
        }
        op.apply(&mut bytes);
        check(
            bytes.clone(),
            index + 1,
            &format!("killed after write {index}"),
        );
        if matches!(op, Op::Sync) {
            synced = (bytes.clone(), index + 1);
        }
        // Power is lost: of what was not synced, every other write is on disk.
        for parity in 0..2 {
            let mut lost = synced.0.clone();
            for (n, op) in history[synced.1..=index].iter().enumerate() {
                if n % 2 == parity || matches!(op, Op::Resize(_)) {
                    op.apply(&mut lost);
                }
            }
            check(
                lost,
                synced.1,
                &format!("power lost after write {index}, parity {parity}"),
            );
        }
    }
    assert!(
        opened > history.len(),
        "{opened} of {} points opened",
        history.len()
    );
}

#[test]
fn after_a_failed_write_nothing_more_is_written_and_the_file_is_whole() {
    let script = script();
    for budget in 0..60 {
        let disk = Disk::default();
        let (store, _) = Store::open_inline(disk.clone()).unwrap();
        disk.inner.lock().unwrap().budget = Some(budget);
        let mut done = 0;
        let mut failed = false;
        for (edits, _) in &script {
            match write(&store, edits.clone()) {
                Ok(()) => {
                    assert!(!failed, "a write after a failed one was acknowledged");
                    done += 1;
                }
                Err(_) => failed = true,
            }
        }
        let (_, loaded) = Store::open_inline(Disk::of(disk.bytes())).unwrap();
        let fits = |step: usize| match step {
            0 => loaded == Loaded::default(),
            step => loaded == script[step - 1].1,
        };
        assert!(
            fits(done) || done < script.len() && fits(done + 1),
            "budget {budget}"
        );
    }
}

#[test]
fn a_flipped_byte_is_noticed_or_does_no_harm() {
    let disk = Disk::default();
    let (store, _) = Store::open_inline(disk.clone()).unwrap();
    let script = script();
    for (edits, _) in &script {
        write(&store, edits.clone()).unwrap();
    }
    drop(store);
    let expected = &script.last().unwrap().1;
    let whole = disk.bytes();
    let (_, loaded) = Store::open_inline(Disk::of(whole.clone())).unwrap();
    assert_eq!(loaded, *expected);
    // Every byte of what is used; the rest of the file is empty.
    let used: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let step = if std::env::var_os("WEFT_LONG").is_some() {
        1
    } else {
        23
    };
    let (mut noticed, mut harmless) = (0, 0);
    let mut wrong = Vec::new();
    for at in used.iter().step_by(step) {
        let mut flipped = whole.clone();
        flipped[*at] ^= 1 << (at % 8);
        match Store::open_inline(Disk::of(flipped)) {
            Err(_) => noticed += 1,
            Ok((_, loaded)) if loaded == *expected => harmless += 1,
            Ok((_, loaded)) => {
                let len = |l: &Loaded| (l.log.len(), l.slots.len());
                wrong.push((*at, len(&loaded), len(expected)));
            }
        }
    }
    std::panic::set_hook(quiet);
    assert_eq!(wrong, [], "flips at these places went unnoticed");
    assert!(noticed > 0, "{noticed} noticed, {harmless} harmless");
}

#[test]
fn a_newer_form_and_a_strange_file_are_refused() {
    let disk = Disk::default();
    {
        let database = redb::Builder::new()
            .create_with_backend(disk.clone())
            .unwrap();
        let write = database.begin_write().unwrap();
        {
            let mut meta = write.open_table(META).unwrap();
            let value = seal(FORMAT_NAME, &(FORMAT + 1).to_le_bytes());
            meta.insert(FORMAT_NAME, value.as_slice()).unwrap();
        }
        write.commit().unwrap();
    }
    let newer = Store::open_inline(Disk::of(disk.bytes())).unwrap_err();
    assert_eq!(newer, StoreError::Newer { given: FORMAT + 1 });
    let strange = Store::open_inline(Disk::of(b"no database at all".repeat(100))).unwrap_err();
    assert!(matches!(strange, StoreError::Damaged(_)), "{strange}");
    assert!(!strange.next().is_empty());
}
