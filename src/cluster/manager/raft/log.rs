//! The Raft log and vote: all of it in memory, since snapshots keep it short, and on disk before anybody is told.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeBounds;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError,
    Vote,
};

use super::Types;
use crate::cluster::manager::store::{Edit, Loaded, Slot, Store, StoreError};

/// The log of one manager. Copies share it.
#[derive(Clone, Debug)]
pub struct LogStore {
    memory: Arc<Mutex<Memory>>,
    store: Store,
}

#[derive(Debug, Default)]
struct Memory {
    entries: BTreeMap<u64, Entry<Types>>,
    purged: Option<LogId<u64>>,
    committed: Option<LogId<u64>>,
    vote: Option<Vote<u64>>,
}

impl LogStore {
    /// Over what the store had.
    ///
    /// # Errors
    /// When an entry is whole but not understood: a newer weft wrote it.
    pub fn new(store: Store, loaded: &Loaded) -> Result<LogStore, StoreError> {
        let mut memory = Memory::default();
        for (index, bytes) in &loaded.log {
            let entry = decode(&format!("entry {index}"), bytes)?;
            memory.entries.insert(*index, entry);
        }
        if let Some(bytes) = loaded.slot(Slot::Vote) {
            memory.vote = Some(decode("vote", bytes)?);
        }
        if let Some(bytes) = loaded.slot(Slot::Purged) {
            memory.purged = Some(decode("purged", bytes)?);
        }
        if let Some(bytes) = loaded.slot(Slot::Committed) {
            memory.committed = Some(decode("committed", bytes)?);
        }
        Ok(LogStore {
            memory: Arc::new(Mutex::new(memory)),
            store,
        })
    }

    /// Whoever led when it stopped does not go on leading, but stands for election like any other. openraft would
    /// let it go on in its term: on a file that lacks the end of the log, such as a copy, it would then put
    /// other entries in the places of those that it had sent before, and managers would differ without
    /// noticing. In a new term the entries that it lacks win.
    pub fn resign(&self, id: u64) {
        let mut memory = self.memory();
        let vote = memory.vote.as_mut();
        if let Some(vote) = vote.filter(|vote| vote.leader_id().voted_for() == Some(id)) {
            vote.committed = false;
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // No code under this lock panics half-way through a change.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        let memory = self.memory();
        Ok(memory
            .entries
            .range(range)
            .map(|(_, entry)| entry.clone())
            .collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let memory = self.memory();
        let last = memory
            .entries
            .last_key_value()
            .map(|(_, entry)| entry.log_id);
        Ok(LogState {
            last_purged_log_id: memory.purged,
            last_log_id: last.or(memory.purged),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        let edit = Edit::Put(
            Slot::Vote,
            encode(vote).map_err(StorageIOError::write_vote)?,
        );
        let written = self.store.write(vec![edit]).await;
        written.map_err(|e| StorageIOError::write_vote(AnyError::new(&e)))?;
        self.memory().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.memory().vote)
    }

    /// Reaches the disk with the next entries: after a crash it may be behind, which costs a moment, not truth.
    async fn save_committed(
        &mut self,
        committed: Option<LogId<u64>>,
    ) -> Result<(), StorageError<u64>> {
        self.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, StorageError<u64>> {
        Ok(self.memory().committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<Types>,
    ) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut rows = Vec::new();
        let mut edits = Vec::new();
        {
            let mut memory = self.memory();
            for entry in entries {
                rows.push((
                    entry.log_id.index,
                    encode(&entry).map_err(StorageIOError::write_logs)?,
                ));
                memory.entries.insert(entry.log_id.index, entry);
            }
            if let Some(committed) = memory.committed {
                edits.push(Edit::Put(
                    Slot::Committed,
                    encode(&committed).map_err(StorageIOError::write_logs)?,
                ));
            }
        }
        edits.push(Edit::Append(rows));
        let done = move |result: Result<(), StoreError>| {
            callback.log_io_completed(result.map_err(std::io::Error::other));
        };
        self.store.submit(edits, Box::new(done));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        drop(self.memory().entries.split_off(&log_id.index));
        let written = self.store.write(vec![Edit::Truncate(log_id.index)]).await;
        written.map_err(|e| StorageIOError::write_logs(AnyError::new(&e)))?;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<u64>) -> Result<(), StorageError<u64>> {
        {
            let mut memory = self.memory();
            let kept = memory.entries.split_off(&(log_id.index + 1));
            memory.entries = kept;
            memory.purged = Some(log_id);
        }
        let edit = Edit::Purge(
            log_id.index,
            encode(&log_id).map_err(StorageIOError::write_logs)?,
        );
        let written = self.store.write(vec![edit]).await;
        written.map_err(|e| StorageIOError::write_logs(AnyError::new(&e)))?;
        Ok(())
    }
}

fn encode(value: &impl serde::Serialize) -> Result<Vec<u8>, AnyError> {
    postcard::to_stdvec(value).map_err(|e| AnyError::new(&e))
}

fn decode<T: serde::de::DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, StoreError> {
    postcard::from_bytes(bytes).map_err(|e| {
        StoreError::Damaged(format!(
            "its {what} is whole but not understood ({e}): a newer weft may have written it"
        ))
    })
}
