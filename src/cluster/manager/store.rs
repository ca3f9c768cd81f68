//! What a manager keeps on disk: vote, log and snapshot, in one redb file, each value sealed by a digest.
//!
//! ```text
//! table "log"    index    → seal (16 bytes) │ entry
//! table "meta"   name     → seal (16 bytes) │ value     format, vote, committed, purged, snapshot
//! ```
//! One thread writes, in the order of the jobs, and takes whatever waits into one transaction: under load an
//! `fsync` serves many. Reading happens once, when the file is opened; every seal is checked then. Knows bytes
//! only, not what they mean. **Invariant:** a job is answered once its bytes survive a crash, and after a failed
//! write nothing more is written.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Version of the file's form.
const FORMAT: u32 = 1;
/// Jobs that share a transaction at most.
const JOBS_PER_COMMIT_MAX: usize = 256;
/// Bytes of a seal.
const SEAL_LEN: usize = 16;

/// Named values beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The vote: durable before it is sent.
    Vote,
    /// Place in the log up to which a quorum has it.
    Committed,
    /// The last entry that a snapshot has replaced.
    Purged,
    /// The snapshot.
    Snapshot,
}

impl Slot {
    const ALL: [Slot; 4] = [Slot::Vote, Slot::Committed, Slot::Purged, Slot::Snapshot];

    fn name(self) -> &'static str {
        match self {
            Slot::Vote => "vote",
            Slot::Committed => "committed",
            Slot::Purged => "purged",
            Slot::Snapshot => "snapshot",
        }
    }
}

/// Why the file cannot be used. The content is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// What is on disk is not what was written.
    #[error("the managers' file is damaged: {0}")]
    Damaged(String),
    /// A newer weft wrote it.
    #[error("the managers' file has format version {given}, this weft reads {FORMAT}")]
    Newer {
        /// Its version.
        given: u32,
    },
    /// Another process has it open.
    #[error("another agent has the managers' file open")]
    InUse,
    /// The disk says no.
    #[error("cannot {verb} the managers' file: {reason}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// What the system says.
        reason: String,
    },
}

impl StoreError {
    /// What to do about it.
    pub fn next(&self) -> &'static str {
        match self {
            StoreError::Damaged(_) => {
                "do not start this manager on it: with a quorum of others, remove the file, and weft node rm \
                 and join this one anew; else restore a copy"
            }
            StoreError::Newer { .. } => "start the newer weft that wrote it",
            StoreError::InUse => "stop the other agent, or give this one another --state-dir",
            StoreError::Io { .. } => "make room and check permissions of the state directory",
        }
    }

    fn io(verb: &'static str, reason: impl std::fmt::Display) -> StoreError {
        StoreError::Io {
            verb,
            reason: reason.to_string(),
        }
    }
}

/// Everything that was on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Log entries by index.
    pub log: BTreeMap<u64, Vec<u8>>,
    /// Values by the name of their slot.
    slots: BTreeMap<&'static str, Vec<u8>>,
}

impl Loaded {
    /// The value of a slot.
    pub fn slot(&self, slot: Slot) -> Option<&[u8]> {
        self.slots.get(slot.name()).map(Vec::as_slice)
    }
}

/// One change to the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// Puts log entries in.
    Append(Vec<(u64, Vec<u8>)>),
    /// Takes all entries from an index on.
    Truncate(u64),
    /// Takes all entries up to an index, and sets [`Slot::Purged`].
    Purge(u64, Vec<u8>),
    /// Sets a slot.
    Put(Slot, Vec<u8>),
}

/// Called once the edit survives a crash, or has failed.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

struct Job {
    edits: Vec<Edit>,
    done: Done,
}

/// The way to the writing thread. Copies share it; the file is closed when the last one goes.
#[derive(Clone, Debug)]
pub struct Store {
    writer: Writer,
}

#[derive(Clone, Debug)]
enum Writer {
    Thread(mpsc::Sender<Job>),
    /// Writes at once and in the caller's thread: for tests in virtual time, which must not wait for another.
    #[cfg(test)]
    Inline(std::sync::Arc<std::sync::Mutex<(Database, Option<StoreError>)>>),
}

impl Store {
    /// Opens or makes the file, readable by its owner only, and reads all of it.
    ///
    /// # Errors
    /// When it is damaged, newer or in use, or the disk fails. Then it was not changed.
    pub fn open(path: &Path) -> Result<(Store, Loaded), StoreError> {
        if let Some(dir) = path.parent() {
            let mut builder = fs::DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder
                .create(dir)
                .map_err(|e| StoreError::io("make a directory for", e))?;
        }
        let mut options = fs::OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).map_err(|e| StoreError::io("open", e))?;
        let owner_only = fs::Permissions::from_mode(0o600);
        file.set_permissions(owner_only)
            .map_err(|e| StoreError::io("protect", e))?;
        let (database, loaded) = open_guarded(|| {
            let backend = redb::backends::FileBackend::new(file)?;
            builder().create_with_backend(backend)
        })?;
        Ok((Store::with_thread(database)?, loaded))
    }

    /// As [`Store::open`], on something that behaves like a file.
    ///
    /// # Errors
    /// As `open`.
    pub fn open_backend(backend: impl redb::StorageBackend) -> Result<(Store, Loaded), StoreError> {
        let open = || builder().create_with_backend(backend);
        let (database, loaded) = open_guarded(open)?;
        Ok((Store::with_thread(database)?, loaded))
    }

    /// As [`Store::open_backend`], without a thread.
    #[cfg(test)]
    pub fn open_inline(backend: impl redb::StorageBackend) -> Result<(Store, Loaded), StoreError> {
        let open = || builder().create_with_backend(backend);
        let (database, loaded) = open_guarded(open)?;
        let shared = std::sync::Arc::new(std::sync::Mutex::new((database, None)));
        let writer = Writer::Inline(shared);
        Ok((Store { writer }, loaded))
    }

    fn with_thread(database: Database) -> Result<Store, StoreError> {
        let (jobs, queue) = mpsc::channel();
        thread::Builder::new()
            .name("weft-store".into())
            .spawn(move || write_jobs(&database, &queue))
            .map_err(|e| StoreError::io("start a writer for", e))?;
        let writer = Writer::Thread(jobs);
        Ok(Store { writer })
    }

    /// Has edits written, all or none, after all that were asked for before.
    pub fn submit(&self, edits: Vec<Edit>, done: Done) {
        let job = Job { edits, done };
        match &self.writer {
            Writer::Thread(jobs) => {
                if let Err(mpsc::SendError(job)) = jobs.send(job) {
                    (job.done)(Err(StoreError::io("write", "its writer has stopped")));
                }
            }
            #[cfg(test)]
            Writer::Inline(shared) => {
                let mut shared = shared.lock().unwrap();
                let (database, failed) = &mut *shared;
                write_batch(database, failed, vec![job]);
            }
        }
    }

    /// As [`Store::submit`], at once; the future waits.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self, edits: Vec<Edit>) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let (tell, told) = tokio::sync::oneshot::channel();
        let done = move |result| drop(tell.send(result));
        self.submit(edits, Box::new(done));
        async {
            told.await
                .unwrap_or_else(|_| Err(StoreError::io("write", "its writer has stopped")))
        }
    }
}

/// redb asserts on pages that make no sense: that is damage too, and no reason for the agent to die.
fn open_guarded(
    open: impl FnOnce() -> Result<Database, DatabaseError>,
) -> Result<(Database, Loaded), StoreError> {
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let database = open().map_err(open_error)?;
        let loaded = load(&database)?;
        Ok((database, loaded))
    }));
    let torn = || Err(StoreError::Damaged("its pages do not fit together".into()));
    opened.unwrap_or_else(|_| torn())
}

/// Has redb check its own pages too: our seals cover values, not the tree they hang in.
fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_check_integrity_on_open(true);
    builder
}

fn open_error(error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse,
        DatabaseError::Storage(redb::StorageError::Io(e))
            if e.kind() != io::ErrorKind::InvalidData =>
        {
            StoreError::io("open", e)
        }
        other => StoreError::Damaged(other.to_string()),
    }
}

fn load(database: &Database) -> Result<Loaded, StoreError> {
    let damaged = |e: &dyn std::fmt::Display| StoreError::Damaged(e.to_string());
    let read = database.begin_read().map_err(|e| damaged(&e))?;
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => {
            drop(read);
            return create(database).map(|()| Loaded::default());
        }
        Err(e) => return Err(damaged(&e)),
    };
    check_format(&meta)?;
    let mut loaded = Loaded::default();
    for slot in Slot::ALL {
        if let Some(value) = meta.get(slot.name()).map_err(|e| damaged(&e))? {
            let value = unseal(slot.name(), value.value())?;
            loaded.slots.insert(slot.name(), value);
        }
    }
    let log = read.open_table(LOG).map_err(|e| damaged(&e))?;
    for row in log.iter().map_err(|e| damaged(&e))? {
        let (index, value) = row.map_err(|e| damaged(&e))?;
        let index = index.value();
        loaded
            .log
            .insert(index, unseal(&entry_name(index), value.value())?);
    }
    check_no_hole(&loaded.log)?;
    Ok(loaded)
}

fn check_format(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<(), StoreError> {
    let value = meta.get(FORMAT_NAME);
    let value = value.map_err(|e| StoreError::Damaged(e.to_string()))?;
    let value = value.ok_or_else(|| StoreError::Damaged("it does not say its version".into()))?;
    let bytes = unseal(FORMAT_NAME, value.value())?;
    let bytes: Result<[u8; 4], _> = bytes.try_into();
    match bytes.map(u32::from_le_bytes) {
        Ok(FORMAT) => Ok(()),
        Ok(given) => Err(StoreError::Newer { given }),
        Err(_) => Err(StoreError::Damaged("its version is no number".into())),
    }
}

fn check_no_hole(log: &BTreeMap<u64, Vec<u8>>) -> Result<(), StoreError> {
    let mut indexes = log.keys();
    let Some(mut last) = indexes.next().copied() else {
        return Ok(());
    };
    for index in indexes {
        if *index != last + 1 {
            return Err(StoreError::Damaged(format!(
                "its log jumps from entry {last} to {index}"
            )));
        }
        last = *index;
    }
    Ok(())
}

const FORMAT_NAME: &str = "format";

fn create(database: &Database) -> Result<(), StoreError> {
    let made = (|| -> Result<(), redb::Error> {
        let write = database.begin_write()?;
        {
            let mut meta = write.open_table(META)?;
            let value = seal(FORMAT_NAME, &FORMAT.to_le_bytes());
            meta.insert(FORMAT_NAME, value.as_slice())?;
            write.open_table(LOG)?;
        }
        write.commit()?;
        Ok(())
    })();
    made.map_err(|e| StoreError::io("make", e))
}

fn write_jobs(database: &Database, queue: &mpsc::Receiver<Job>) {
    let mut failed: Option<StoreError> = None;
    while let Ok(first) = queue.recv() {
        let mut batch = vec![first];
        let more = std::iter::from_fn(|| queue.try_recv().ok());
        batch.extend(more.take(JOBS_PER_COMMIT_MAX - 1));
        write_batch(database, &mut failed, batch);
    }
}

/// After a failure the file is left as it is: what Raft thinks is on disk must not have holes.
fn write_batch(database: &Database, failed: &mut Option<StoreError>, batch: Vec<Job>) {
    let result = match &*failed {
        Some(error) => Err(error.clone()),
        None => commit(database, &batch),
    };
    *failed = result.clone().err();
    for job in batch {
        (job.done)(result.clone());
    }
}

fn commit(database: &Database, batch: &[Job]) -> Result<(), StoreError> {
    let written = catch_unwind(AssertUnwindSafe(|| try_commit(database, batch)));
    match written {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => Err(StoreError::io("write", e)),
        Err(_) => Err(StoreError::Damaged("its pages do not fit together".into())),
    }
}

fn try_commit(database: &Database, batch: &[Job]) -> Result<(), redb::Error> {
    let mut write = database.begin_write()?;
    write.set_durability(Durability::Immediate)?;
    {
        let mut log = write.open_table(LOG)?;
        let mut meta = write.open_table(META)?;
        for edit in batch.iter().flat_map(|job| &job.edits) {
            match edit {
                Edit::Append(entries) => {
                    for (index, entry) in entries {
                        log.insert(index, seal(&entry_name(*index), entry).as_slice())?;
                    }
                }
                Edit::Truncate(from) => log.retain_in::<u64, _>(from.., |_, _| false)?,
                Edit::Purge(upto, value) => {
                    log.retain_in::<u64, _>(..=upto, |_, _| false)?;
                    let name = Slot::Purged.name();
                    meta.insert(name, seal(name, value).as_slice())?;
                }
                Edit::Put(slot, value) => {
                    let name = slot.name();
                    meta.insert(name, seal(name, value).as_slice())?;
                }
            }
        }
    }
    write.commit()?;
    Ok(())
}

fn entry_name(index: u64) -> String {
    format!("entry {index}")
}

/// The digest covers the name too: a value in another's place is as wrong as a changed one.
fn digest(name: &str, value: &[u8]) -> [u8; SEAL_LEN] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    context.update(name.as_bytes());
    context.update(&[0]);
    context.update(value);
    let mut seal = [0; SEAL_LEN];
    seal.copy_from_slice(&context.finish().as_ref()[..SEAL_LEN]);
    seal
}

fn seal(name: &str, value: &[u8]) -> Vec<u8> {
    let mut sealed = digest(name, value).to_vec();
    sealed.extend_from_slice(value);
    sealed
}

fn unseal(name: &str, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
    let value = sealed
        .split_at_checked(SEAL_LEN)
        .filter(|(seal, value)| *seal == digest(name, value));
    match value {
        Some((_, value)) => Ok(value.to_vec()),
        None => Err(StoreError::Damaged(format!(
            "the digest of its {name} does not fit"
        ))),
    }
}

#[cfg(test)]
pub(crate) mod tests;
