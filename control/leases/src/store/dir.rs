//! A directory as the store: `config` and `subnets/<key>`, the names and contents that etcd would hold.
//!
//! Anybody may put files there: several daemons of one machine, a configuration tool, an operator's
//! shell. Writers of ours hold a lock and replace files as a whole. Nothing expires: a file stays
//! until it is removed. Files whose name begins with a dot are nobody's lease. Who writes a file in
//! place rather than renaming it risks that a listing shows it half done; a watch waits for its end.
//!
//! A revision is a fingerprint: that of an entry stands for its content, that of a listing for the
//! whole directory, `config` included. It needs no memory and no agreement among the writers, and a
//! directory that is as it was has lost nobody any change. Events carry what is in the files when
//! they are looked at: of several changes in a row to one file, only the last may be seen.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use ipnet::Ipv4Net;
use rustix::fs::OFlags;
use tokio::sync::{Semaphore, oneshot};
use tracing::warn;

use super::{
    Entry, EventStream, LeaseStore, Listing, MAX_CONFIG, MAX_KEYS, MAX_VALUE, Revision, Room, StoreError,
    Written, config_text,
};
use crate::meters::StoreMeter;
use crate::store::{key_of, parse_key};
use overlay_support::files;
use overlay_support::unit;

mod watch;

use watch::Watch;

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct DirStore {
    /// Absolute, as the watcher reports paths.
    path: PathBuf,
    /// The last listing: what a watch from there on compares with. A directory itself has no history.
    listed: Arc<Mutex<Snapshot>>,
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

    fn config_file(&self) -> PathBuf {
        self.path.join("config")
    }

    fn subnets(&self) -> PathBuf {
        self.path.join("subnets")
    }

    fn file_of(&self, key: &str) -> PathBuf {
        self.subnets().join(key)
    }

    /// Runs `work`, which blocks on files and locks, in a thread of its own, and waits for it for a bounded time.
    async fn blocking<T: Send + 'static>(
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
    fn lock(&self) -> io::Result<File> {
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

    fn snapshot(&self) -> io::Result<Snapshot> {
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
    fn find(&self, files: &[(PathBuf, usize)]) -> Vec<io::Result<Option<Vec<u8>>>> {
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
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl LeaseStore for DirStore {
    fn describe(&self) -> String {
        format!("dir {}", self.path.display())
    }

    fn how_to_configure(&self, config: &str) -> String {
        format!("echo '{config}' > {}", self.config_file().display())
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        let action = format!("read {}", self.config_file().display());
        let config = self.blocking(action, |store| {
            fs::metadata(&store.path)?;
            read_one(store.config_file(), MAX_CONFIG)
        });
        Ok(config.await?.map(|text| config_text(&text)))
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let action = format!("list {}", self.subnets().display());
        self.blocking(action, |store| {
            let snapshot = store.snapshot()?;
            *store.listed.lock().unwrap_or_else(PoisonError::into_inner) = snapshot.clone();
            Ok(snapshot.listing())
        })
        .await
    }

    async fn create(&self, subnet: Ipv4Net, value: &[u8], _ttl: Duration) -> Result<Written, StoreError> {
        let key = key_of(subnet);
        let file = self.file_of(&key);
        let value = value.to_vec();
        self.blocking(format!("create {}", file.display()), move |store| {
            let _lock = store.lock()?;
            match files::create(&file, &value, FILE_MODE) {
                Ok(()) => Ok(Written::Done(entry(key, subnet, value))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Written::Conflict),
                Err(error) => Err(error),
            }
        })
        .await
    }

    async fn renew(&self, held: &Entry, value: &[u8], _ttl: Duration) -> Result<Written, StoreError> {
        let held = held.clone();
        let file = self.file_of(&held.key);
        let value = value.to_vec();
        self.blocking(format!("renew {}", file.display()), move |store| {
            let _lock = store.lock()?;
            if !is_unchanged(&held, &file)? {
                return Ok(Written::Conflict);
            }
            files::replace(&file, &value, FILE_MODE)?;
            Ok(Written::Done(entry(held.key, held.subnet, value)))
        })
        .await
    }

    async fn release(&self, held: &Entry) -> Result<bool, StoreError> {
        let held = held.clone();
        let file = self.file_of(&held.key);
        self.blocking(format!("remove {}", file.display()), move |store| {
            let _lock = store.lock()?;
            let unchanged = is_unchanged(&held, &file)?;
            if unchanged {
                fs::remove_file(&file)?;
            }
            Ok(unchanged)
        })
        .await
    }

    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError> {
        let action = format!("watch {}", self.path.display());
        let watch = self.blocking(action, move |store| Watch::start(store.clone(), from)).await?;
        Ok(stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) }).boxed())
    }
}

/// What is in the directory.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    config: Option<Vec<u8>>,
    /// By key; all of them name a subnet.
    leases: BTreeMap<String, Vec<u8>>,
    skipped: usize,
    /// Files of leases for which there is no room.
    beyond: usize,
}

impl Snapshot {
    /// The sum over the files, so that it does not depend on their order.
    fn revision(&self) -> Revision {
        let config = self.config.as_ref().map_or(0, |text| fingerprint("config", text));
        self.leases.iter().fold(config, |sum, (key, value)| sum.wrapping_add(fingerprint(key, value)))
    }

    fn listing(self) -> Listing {
        Listing {
            revision: self.revision(),
            skipped: self.skipped,
            beyond: self.beyond,
            entries: self
                .leases
                .into_iter()
                .filter_map(|(key, value)| Some(entry(key.clone(), parse_key(&key).ok()?, value)))
                .collect(),
        }
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

fn read_one(path: PathBuf, most: usize) -> io::Result<Option<Vec<u8>>> {
    read(&[(path, most)]).remove(0)
}

/// A thread that is left behind when it does not end: the process does not wait for it.
fn in_a_thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("store".to_owned()).spawn(work).map(drop)
}

fn entry(key: String, subnet: Ipv4Net, value: Vec<u8>) -> Entry {
    Entry { revision: fingerprint(&key, &value), created: 0, key, subnet, value, expiry: None }
}

fn is_unchanged(held: &Entry, file: &Path) -> io::Result<bool> {
    Ok(read_one(file.to_owned(), MAX_VALUE)?
        .is_some_and(|current| fingerprint(&held.key, &current) == held.revision))
}

/// Stands for a name and a content; the same in all processes of one build.
fn fingerprint(name: impl Hash, content: &[u8]) -> Revision {
    let mut hasher = DefaultHasher::new();
    (name, content).hash(&mut hasher);
    hasher.finish().cast_signed()
}

/// Leases are no secret: any node's tools may read them.
const FILE_MODE: u32 = 0o644;
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
