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

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream;
use ipnet::Ipv4Net;
use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{Entry, Event, EventStream, LeaseStore, Listing, Revision, StoreError, Written};
use crate::files;
use crate::lease::{key_of, parse_key};
use crate::metrics::StoreMeter;

/// A store in a directory.
#[derive(Debug, Clone)]
pub struct DirStore {
    /// Absolute, as the watcher reports paths.
    path: PathBuf,
    /// The last listing: what a watch from there on compares with. A directory itself has no history.
    listed: Arc<Mutex<Snapshot>>,
    meter: StoreMeter,
}

impl DirStore {
    /// Opens the store at `path`; makes it and its `subnets` (0755) if they are missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref();
        let opened = std::path::absolute(path).and_then(|path| {
            let store = Self { path, listed: Arc::default(), meter: StoreMeter::default() };
            files::make_directory(&store.subnets())?;
            Ok(store)
        });
        opened.map_err(|error| {
            let reason = format!("{error} (--store=dir:PATH wants a directory that overlayd can write to)");
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

    /// Runs `work`, which blocks on files and locks, apart from the runtime's own threads.
    async fn blocking<T: Send + 'static>(
        &self,
        action: String,
        work: impl FnOnce(&Self) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        let request = async {
            let done = tokio::task::spawn_blocking(move || work(&store)).await;
            let result = done.unwrap_or_else(|error| Err(io::Error::other(error)));
            result.map_err(|error| StoreError::new(action.as_str(), error))
        };
        self.meter.time(&action, request).await
    }

    /// Holds off all other writers of ours, in this process and others, until dropped.
    fn lock(&self) -> io::Result<File> {
        let file = File::options().create(true).append(true).open(self.path.join(".lock"))?;
        file.lock()?;
        Ok(file)
    }

    fn snapshot(&self) -> io::Result<Snapshot> {
        let mut snapshot = Snapshot { config: read(&self.config_file())?, ..Snapshot::default() };
        let names = match fs::read_dir(self.subnets()) {
            Ok(names) => names,
            // As in etcd, `subnets` is there only with something in it. The directory itself must
            // be there: without it, this would be a store that has lost all its leases.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::metadata(&self.path)?;
                return Ok(snapshot);
            }
            Err(error) => return Err(error),
        };
        for name in names {
            let name = name?.file_name();
            let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else { continue };
            if parse_key(name).is_err() {
                snapshot.skipped += 1;
            } else if let Some(value) = read(&self.file_of(name))? {
                snapshot.leases.insert(name.to_owned(), value);
            }
        }
        Ok(snapshot)
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
            read(&store.config_file())
        });
        Ok(config.await?.map(as_text))
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
            entries: self
                .leases
                .into_iter()
                .filter_map(|(key, value)| Some(entry(key.clone(), parse_key(&key).ok()?, value)))
                .collect(),
        }
    }
}

/// The state of one watch: what has been told so far, and what is yet to be looked at.
struct Watch {
    store: DirStore,
    told: Snapshot,
    queue: VecDeque<(Revision, Event)>,
    ended: bool,
    changes: mpsc::UnboundedReceiver<notify::Result<notify::Event>>,
    /// Ends the notifications when dropped.
    _watcher: RecommendedWatcher,
}

impl Watch {
    /// First the notifications, then the look at the directory: a change in between is noticed twice, not never.
    fn start(store: DirStore, from: Revision) -> io::Result<Self> {
        let (sender, changes) = mpsc::unbounded_channel();
        let tell = move |event: notify::Result<notify::Event>| {
            if event.as_ref().map_or(true, is_change) {
                // A receiver that is gone has no more interest.
                let _ = sender.send(event);
            }
        };
        let mut watcher = notify::recommended_watcher(tell).map_err(io::Error::other)?;
        watcher.watch(&store.path, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        match watcher.watch(&store.subnets(), RecursiveMode::NonRecursive) {
            // When somebody makes it, the watch on its parent tells.
            Err(error) if matches!(error.kind, notify::ErrorKind::PathNotFound) => {}
            other => other.map_err(io::Error::other)?,
        }

        let now = store.snapshot()?;
        let listed = store.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = if listed.revision() == from { listed } else { now.clone() };
        let mut watch =
            Self { store, told, queue: VecDeque::new(), ended: false, changes, _watcher: watcher };
        if watch.told.revision() == from {
            watch.catch_up(now);
        } else {
            watch.relist();
        }
        Ok(watch)
    }

    async fn next(&mut self) -> Option<Result<(Revision, Event), StoreError>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            let looked = match self.changes.recv().await {
                Some(Ok(change)) => self.look(&change),
                Some(Err(error)) => Err(io::Error::other(error)),
                None => Err(io::Error::other("the notifications ended")),
            };
            if let Err(error) = looked {
                self.ended = true;
                let action = format!("watch {}", self.store.path.display());
                return Some(Err(StoreError::new(action, error)));
            }
        }
    }

    /// Looks at the files that a notification names.
    fn look(&mut self, change: &notify::Event) -> io::Result<()> {
        if change.need_rescan() {
            self.relist();
        }
        for path in &change.paths {
            if self.ended {
                break;
            }
            if *path == self.store.path || *path == self.store.subnets() {
                // Replaced or gone: the notifications are about a directory that is no longer the store's.
                self.relist();
            } else if *path == self.store.config_file() {
                self.tell_config(read(path)?);
            } else if path.parent() == Some(&self.store.subnets())
                && let Some(name) = path.file_name().and_then(|name| name.to_str())
            {
                self.tell_lease(name, read(path)?);
            }
        }
        Ok(())
    }

    /// Tells in what `now` differs from what has been told.
    fn catch_up(&mut self, now: Snapshot) {
        self.tell_config(now.config);
        let gone: Vec<String> =
            self.told.leases.keys().filter(|key| !now.leases.contains_key(*key)).cloned().collect();
        for key in gone {
            self.tell_lease(&key, None);
        }
        for (key, value) in now.leases {
            self.tell_lease(&key, Some(value));
        }
    }

    fn tell_config(&mut self, config: Option<Vec<u8>>) {
        if !is_being_filled(config.as_deref()) && config != self.told.config {
            self.told.config.clone_from(&config);
            self.queue.push_back((self.told.revision(), Event::Config(config.map(as_text))));
        }
    }

    fn tell_lease(&mut self, name: &str, value: Option<Vec<u8>>) {
        let Ok(subnet) = parse_key(name) else { return };
        if is_being_filled(value.as_deref()) || value.as_ref() == self.told.leases.get(name) {
            return;
        }
        let event = match value {
            Some(value) => {
                self.told.leases.insert(name.to_owned(), value.clone());
                Event::Put(entry(name.to_owned(), subnet, value))
            }
            None => {
                self.told.leases.remove(name);
                Event::Delete(name.to_owned())
            }
        };
        self.queue.push_back((self.told.revision(), event));
    }

    fn relist(&mut self) {
        self.queue.push_back((self.told.revision(), Event::Relist));
        self.ended = true;
    }
}

/// Whether a file has come, gone or been completed. Not while it is being written: half a file is
/// no use, and reading it is announced by notifications of its own.
fn is_change(event: &notify::Event) -> bool {
    event.need_rescan()
        || matches!(
            event.kind,
            EventKind::Create(_)
                | EventKind::Remove(_)
                | EventKind::Modify(ModifyKind::Name(_))
                | EventKind::Access(AccessKind::Close(AccessMode::Write))
        )
}

/// Whether a file is empty, which it will not be for long; then there will be another notification.
fn is_being_filled(content: Option<&[u8]>) -> bool {
    content.is_some_and(<[u8]>::is_empty)
}

/// The content of a file; `None` if there is none. A directory is no file, whatever its name.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(content) => Ok(Some(content)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::IsADirectory) => {
            Ok(None)
        }
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}

fn entry(key: String, subnet: Ipv4Net, value: Vec<u8>) -> Entry {
    Entry { revision: fingerprint(&key, &value), created: 0, key, subnet, value, expiry: None }
}

fn is_unchanged(held: &Entry, file: &Path) -> io::Result<bool> {
    Ok(read(file)?.is_some_and(|current| fingerprint(&held.key, &current) == held.revision))
}

/// Stands for a name and a content; the same in all processes of one build.
fn fingerprint(name: impl Hash, content: &[u8]) -> Revision {
    let mut hasher = DefaultHasher::new();
    (name, content).hash(&mut hasher);
    hasher.finish().cast_signed()
}

/// Go replaces what is not UTF-8 inside a JSON text, too.
fn as_text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Leases are no secret: any node's tools may read them.
const FILE_MODE: u32 = 0o644;
