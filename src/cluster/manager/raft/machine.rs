//! The state machine behind the log, its snapshots, and what watchers are told.

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot,
    SnapshotMeta, StorageError, StorageIOError, StoredMembership,
};
use tokio::sync::watch;

use super::{Applied, Types};
use crate::cluster::manager::state::{State, Unreadable};
use crate::cluster::manager::store::{Edit, Loaded, Slot, Store, StoreError};
use crate::cluster::manager::watch::{History, Update};

type Meta = SnapshotMeta<u64, openraft::BasicNode>;

/// The state of one manager. Copies share it.
#[derive(Clone, Debug)]
pub struct Machine {
    shared: Arc<Mutex<Shared>>,
    revision: Arc<watch::Sender<u64>>,
    store: Store,
}

#[derive(Debug, Default)]
struct Shared {
    state: State,
    history: History,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, openraft::BasicNode>,
    snapshot: Option<(Meta, Vec<u8>)>,
    /// The last snapshot that went to the store, perhaps not there yet.
    submitted: Option<LogId<u64>>,
}

impl Machine {
    /// Over the snapshot the store had, if it had one.
    ///
    /// # Errors
    /// When the snapshot is of a newer version.
    pub fn new(store: Store, loaded: &Loaded) -> Result<Machine, StoreError> {
        let mut shared = Shared::default();
        if let Some(bytes) = loaded.slot(Slot::Snapshot) {
            let stored: (Meta, Vec<u8>) = postcard::from_bytes(bytes).map_err(|e| {
                StoreError::Damaged(format!("its snapshot is whole but not understood ({e})"))
            })?;
            let state = State::from_snapshot(&stored.1);
            let state = state.map_err(|e| StoreError::Damaged(e.to_string()))?;
            shared.restore(stored.0.clone(), state);
            shared.submitted = stored.0.last_log_id;
            shared.snapshot = Some(stored);
        }
        let (revision, _) = watch::channel(shared.state.revision());
        Ok(Machine {
            shared: Arc::new(Mutex::new(shared)),
            revision: Arc::new(revision),
            store,
        })
    }

    /// Looks at the state. Nothing is applied meanwhile, so be short.
    pub fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.shared().state)
    }

    /// What came after `revision`: deltas if they are still known, else everything.
    pub fn updates_after(&self, revision: u64) -> Update {
        let shared = self.shared();
        match shared.history.after(revision, DELTAS_PER_UPDATE_MAX) {
            Some(deltas) if revision > 0 => Update::Deltas(deltas),
            _ => Update::Snapshot(shared.state.view()),
        }
    }

    /// Tells the revision, and each later one.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        // No code under this lock panics half-way through a change.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        let revision = self.shared().state.revision();
        self.revision.send_replace(revision);
    }

    /// Has a snapshot written, and remembers it: unless there is a newer one, as when a leader sends one while
    /// one is built here. The log before the newer one is gone, so the older would be of no use.
    async fn keep(&self, meta: &Meta, bytes: &[u8]) -> Result<(), StorageError<u64>> {
        let failed = |e: AnyError| StorageIOError::write_snapshot(Some(meta.signature()), e);
        let value = postcard::to_stdvec(&(meta, bytes)).map_err(|e| failed(AnyError::new(&e)))?;
        let written = {
            // Under the lock, so that they are written in the order in which they are checked.
            let mut shared = self.shared();
            if meta.last_log_id < shared.submitted {
                return Ok(());
            }
            shared.submitted = meta.last_log_id;
            self.store.write(vec![Edit::Put(Slot::Snapshot, value)])
        };
        written.await.map_err(|e| failed(AnyError::new(&e)))?;
        let mut shared = self.shared();
        if meta.last_log_id == shared.submitted {
            shared.snapshot = Some((meta.clone(), bytes.to_vec()));
        }
        Ok(())
    }
}

/// Revisions in one answer to a watcher.
const DELTAS_PER_UPDATE_MAX: usize = 256;

impl Shared {
    fn restore(&mut self, meta: Meta, state: State) {
        self.history = History::starting_at(state.revision());
        self.state = state;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership;
    }

    fn apply(&mut self, entry: Entry<Types>) -> Result<Applied, Unreadable> {
        let index = entry.log_id.index;
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => self.state.skip_to(index),
            EntryPayload::Membership(membership) => {
                self.state.skip_to(index);
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            EntryPayload::Normal(envelope) => {
                let applied = self.state.apply(index, &envelope)?;
                self.history.push(index, applied.changes);
                return Ok(Applied(Some(applied.outcome)));
            }
        }
        Ok(Applied(None))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Machine;

    async fn applied_state(
        &mut self,
    ) -> Result<
        (
            Option<LogId<u64>>,
            StoredMembership<u64, openraft::BasicNode>,
        ),
        StorageError<u64>,
    > {
        let shared = self.shared();
        Ok((shared.applied, shared.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Applied>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut applied = Vec::new();
        {
            let mut shared = self.shared();
            for entry in entries {
                let at = entry.log_id;
                let one = shared.apply(entry);
                applied.push(one.map_err(|e| StorageIOError::apply(at, AnyError::new(&e)))?);
            }
        }
        self.announce();
        Ok(applied)
    }

    async fn get_snapshot_builder(&mut self) -> Machine {
        self.clone()
    }

    async fn begin_receiving_snapshot(
        &mut self,
    ) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &Meta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        let bytes = snapshot.into_inner();
        let state = State::from_snapshot(&bytes).map_err(|e| {
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&e))
        })?;
        self.keep(meta, &bytes).await?;
        {
            let mut shared = self.shared();
            shared.restore(meta.clone(), state);
        }
        self.announce();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        let kept = self.shared().snapshot.clone();
        Ok(kept.map(|(meta, bytes)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        }))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let (meta, bytes) = {
            let shared = self.shared();
            let last = shared.applied;
            let place = last.map_or_else(
                || "none".into(),
                |id| format!("{}-{}", id.leader_id, id.index),
            );
            let meta = SnapshotMeta {
                last_log_id: last,
                last_membership: shared.membership.clone(),
                snapshot_id: place,
            };
            (meta, shared.state.to_snapshot())
        };
        self.keep(&meta, &bytes).await?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(bytes)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::manager::store::tests::Disk;

    fn meta(index: u64) -> Meta {
        SnapshotMeta {
            last_log_id: Some(LogId::new(openraft::CommittedLeaderId::new(1, 1), index)),
            last_membership: StoredMembership::default(),
            snapshot_id: index.to_string(),
        }
    }

    #[tokio::test]
    async fn an_older_snapshot_never_replaces_a_newer_one() {
        let disk = Disk::default();
        let (store, loaded) = Store::open_inline(disk.clone()).unwrap();
        let machine = Machine::new(store, &loaded).unwrap();
        let bytes = State::default().to_snapshot();
        for index in [7, 9, 8] {
            machine.keep(&meta(index), &bytes).await.unwrap();
        }
        let kept = |machine: &Machine| machine.shared().snapshot.clone().unwrap().0;
        assert_eq!(kept(&machine), meta(9));
        let (store, loaded) = Store::open_inline(Disk::of(disk.bytes())).unwrap();
        assert_eq!(kept(&Machine::new(store, &loaded).unwrap()), meta(9));
    }
}
