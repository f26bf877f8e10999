//! The directory of a store: reads and writes that block, and may hang.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::fs::OFlags;
use tokio::sync::{Semaphore, oneshot};
use tracing::warn;

use super::snapshot::Snapshot;
use crate::meters::StoreMeter;
use crate::store::key::parse_key;
use crate::store::lease_store::StoreError;
use crate::store::limits::{MAX_CONFIG, MAX_KEYS, MAX_VALUE, Room};
use overlay_support::files;
use overlay_support::unit;

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct DirStore {
    /// Absolute, as the watcher reports paths.
    pub(super) path: PathBuf,
    /// The last listing: what a watch from there on compares with. A directory itself has no history.
    pub(super) listed: Arc<Mutex<Snapshot>>,
    /// What has been said of files that cannot be used, by their names.
    said: Arc<Mutex<BTreeMap<PathBuf, String>>>,
    /// For threads that wait for the disk: there are never many, however long it hangs.
    threads: Arc<Semaphore>,
    meter: StoreMeter,
}

impl DirStore {
    /// Opens the store at `path`; makes it and its `subnets` (0755) if they are missing. Where the disk does not
    /// answer, that is for the requests to find out.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let opened = std::path::absolute(path).and_then(|path| {
            let store = Self {
                path,
                listed: Arc::default(),
                said: Arc::default(),
                threads: Arc::new(Semaphore::new(MOST_THREADS)),
                meter: StoreMeter::default(),
            };
            let subnets = store.subnets();
            let (done, result) = mpsc::channel();
            // Who no longer waits for the result need not have it.
            in_a_thread(move || drop(done.send(files::make_directory(&subnets))))?;
            result.recv_timeout(OPENING).unwrap_or(Ok(()))?;
            Ok(store)
        });
        opened.map_err(|error| {
            let hint = unit::hint(&path.join("subnets"), &error);
            let reason =
                format!("{error}{hint} (--store=dir:PATH wants a directory that overlayd can write to)");
            StoreError::new(format!("open dir {}", path.display()), reason)
        })
    }

    /// Has requests counted on `meter`.
    #[must_use]
    pub fn measured(self, meter: StoreMeter) -> Self {
        Self { meter, ..self }
    }

    pub(super) fn config_file(&self) -> PathBuf {
        self.path.join("config")
    }

    pub(super) fn subnets(&self) -> PathBuf {
        self.path.join("subnets")
    }

    pub(super) fn file_of(&self, key: &str) -> PathBuf {
        self.subnets().join(key)
    }

    /// Runs `work`, which blocks on files and locks, in a thread of its own, and waits for it for a bounded time.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        action: String,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let request = async {
            let answer = async {
                let permit = Arc::clone(&store.threads).acquire_owned().await.map_err(io::Error::other)?;
                let (done, result) = oneshot::channel();
                in_a_thread(move || {
                    // Who no longer waits for the result need not have it.
                    let _ = done.send(work(&store));
                    drop(permit);
                })?;
                result.await.unwrap_or_else(|error| Err(io::Error::other(error)))
            };
            match tokio::time::timeout(DEADLINE, answer).await {
                Ok(result) => result.map_err(|error| StoreError::new(action.as_str(), error)),
                Err(_) => {
                    let seconds = DEADLINE.as_secs();
                    let reason = format!("no answer within {seconds} s: does a network file system hang?");
                    Err(StoreError::new(action.as_str(), reason))
                }
            }
        };
        self.meter.time(&action, request).await
    }

    /// Holds off all other writers of ours, in this process and others, until dropped.
    pub(super) fn lock(&self) -> io::Result<File> {
        let path = self.path.join(".lock");
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let file =
            File::options().create(true).append(true).custom_flags(flags).open(&path).map_err(named)?;
        if !file.metadata()?.is_file() {
            return Err(named(io::Error::other("it is not a regular file: remove it")));
        }
        let begun = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) => return Err(named(error)),
                Err(TryLockError::WouldBlock) if begun.elapsed() < LOCKING => thread::sleep(LOOK_AGAIN),
                Err(TryLockError::WouldBlock) => {
                    let seconds = LOCKING.as_secs();
                    let reason = format!("somebody has held it for {seconds} s: 'fuser -v' on it shows who");
                    return Err(named(io::Error::new(io::ErrorKind::TimedOut, reason)));
                }
            }
        }
    }

    pub(super) fn snapshot(&self) -> io::Result<Snapshot> {
        let (mut snapshot, mut keys) = (Snapshot::default(), Vec::new());
        let mut files = vec![(self.config_file(), MAX_CONFIG)];
        let names = match fs::read_dir(self.subnets()) {
            Ok(names) => Some(names),
            // As in etcd, `subnets` is there only with something in it. The directory itself must
            // be there: without it, this would be a store that has lost all its leases.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::metadata(&self.path)?;
                None
            }
            Err(error) => return Err(error),
        };
        for name in names.into_iter().flatten() {
            let name = name?.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if parse_key(name).is_err() {
                snapshot.skipped += 1;
            } else if keys.len() == MAX_KEYS {
                snapshot.beyond += 1;
            } else {
                files.push((self.file_of(name), MAX_VALUE));
                keys.push(name.to_owned());
            }
        }
        let (config, leases) = files.split_at(1);
        snapshot.config = self.find(config).remove(0).ok().flatten();
        let (mut room, mut keys) = (Room::ALL, keys.into_iter());
        for files in leases.chunks(READ_AT_ONCE) {
            for (found, key) in self.find(files).into_iter().zip(keys.by_ref()) {
                match found {
                    Ok(Some(value)) if room.take(&key, &value) => _ = snapshot.leases.insert(key, value),
                    Ok(Some(_)) => snapshot.beyond += 1,
                    Ok(None) => {}
                    Err(_) => snapshot.skipped += 1,
                }
            }
        }
        // There is no more to be said of those that are gone.
        let there: HashSet<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
        self.said().retain(|path, _| there.contains(path.as_path()));
        Ok(snapshot)
    }

    /// What is in files, as far as they are there; of those that are longer than they may be the beginning, one byte
    /// more than that. Of those that cannot be used is said why, once.
    pub(super) fn find(&self, files: &[(PathBuf, usize)]) -> Vec<io::Result<Option<Vec<u8>>>> {
        let found = read(files);
        let (mut said, mut news) = (self.said(), 0);
        for ((path, _), found) in files.iter().zip(&found) {
            let Err(error) = found else {
                said.remove(path);
                continue;
            };
            let problem = error.to_string();
            if said.get(path) != Some(&problem) {
                news += 1;
                if news <= NAMED {
                    warn!(%problem, "a file of the store cannot be used: it is passed over");
                }
                said.insert(path.clone(), problem);
            }
        }
        if news > NAMED {
            warn!(more = news - NAMED, "more files of the store cannot be used than are named");
        }
        found
    }

    fn said(&self) -> MutexGuard<'_, BTreeMap<PathBuf, String>> {
        self.said.lock()
    }
}

/// The content of files; `None` if there is none. A directory is no file, whatever its name. Others may write to
/// the store, so each is read under its own name only.
fn read(files: &[(PathBuf, usize)]) -> Vec<io::Result<Option<Vec<u8>>>> {
    let contents = files::read_own(files.iter().map(|(path, most)| (path.as_path(), *most)));
    let named = |((path, _), content): (&(PathBuf, usize), io::Result<Vec<u8>>)| match content {
        Ok(content) => Ok(Some(content)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            Ok(None)
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    };
    files.iter().zip(contents).map(named).collect()
}

pub(super) fn read_one(path: PathBuf, most: usize) -> io::Result<Option<Vec<u8>>> {
    read(&[(path, most)]).remove(0)
}

/// A thread that is left behind when it does not end: the process does not wait for it.
fn in_a_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("store".to_owned()).spawn(work).map(drop)
}

/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// How long it waits for the lock, which others hold for as long as a write takes.
const LOCKING: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long a start waits for the directory to be made.
const OPENING: Duration = Duration::from_secs(1);
/// Of many files about which there is the same to say, the first few.
const NAMED: usize = 10;
/// So many files are in memory beside what is kept of them.
const READ_AT_ONCE: usize = 10_000;
/// Requests at a time, those that hang among them.
const MOST_THREADS: usize = 4;
