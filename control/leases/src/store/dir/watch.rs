//! Following the changes in a directory.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::directory::DirStore;
use super::snapshot::{Snapshot, entry};
use crate::store::entry::{Event, Revision};
use crate::store::key::parse_key;
use crate::store::lease_store::StoreError;
use crate::store::limits::{MAX_CONFIG, MAX_VALUE, config_text};

/// The state of one watch: what has been told so far, and what is yet to be looked at.
pub(super) struct Watch {
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
    pub(super) fn start(store: DirStore, from: Revision) -> io::Result<Self> {
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
        let listed = store.listed.lock().clone();
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

    pub(super) async fn next(&mut self) -> Option<Result<(Revision, Event), StoreError>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            let Some(first) = self.changes.recv().await else {
                return Some(Err(self.fail(io::Error::other("the notifications ended"))));
            };
            // However often a file is written meanwhile, it is looked at once.
            let mut named = Named::default();
            let mut change = Some(first);
            while let Some(next) = change {
                match next {
                    Ok(next) => named.add(&next),
                    Err(error) => return Some(Err(self.fail(io::Error::other(error)))),
                }
                change = self.changes.try_recv().ok();
            }
            if let Err(error) = self.look(named).await {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }

    fn fail(&mut self, error: io::Error) -> StoreError {
        self.ended = true;
        StoreError::new(format!("watch {}", self.store.path.display()), error)
    }

    /// Looks at the files that notifications name.
    async fn look(&mut self, named: Named) -> Result<(), StoreError> {
        let (root, subnets, config) =
            (self.store.path.clone(), self.store.subnets(), self.store.config_file());
        if named.all || named.paths.contains(&root) || named.paths.contains(&subnets) {
            // Replaced or gone: the notifications are about a directory that is no longer the store's.
            self.relist();
            return Ok(());
        }
        let action = format!("look at {}", root.display());
        let found = self.store.blocking(action, move |store| {
            let names_lease = |path: &PathBuf| path.file_name()?.to_str().map(|name| parse_key(name).is_ok());
            let is_ours = |path: &PathBuf| {
                *path == config || (path.parent() == Some(&subnets) && names_lease(path) == Some(true))
            };
            let files = named.paths.into_iter().filter(is_ours).map(|path| {
                let most = if path == config { MAX_CONFIG } else { MAX_VALUE };
                (path, most)
            });
            let files: Vec<_> = files.collect();
            let found = store.find(&files);
            // What cannot be used is passed over, and stays as it was last told.
            let usable =
                files.into_iter().zip(found).filter_map(|((path, _), found)| Some((path, found.ok()?)));
            Ok(usable.collect::<Vec<_>>())
        });
        for (path, content) in found.await? {
            if path == self.store.config_file() {
                self.tell_config(content);
            } else if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                self.tell_lease(name, content);
            }
        }
        Ok(())
    }

    /// Tells in what `now` differs from what has been told.
    fn catch_up(&mut self, now: Snapshot) {
        self.tell_config(now.config);
        // What a directory without end lacks in a look may be there all the same.
        let is_gone = |key: &&String| now.beyond == 0 && !now.leases.contains_key(*key);
        let gone: Vec<String> = self.told.leases.keys().filter(is_gone).cloned().collect();
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
            let text = config.map(|config| config_text(&config));
            self.queue.push_back((self.told.revision(), Event::Config(text)));
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

/// What notifications are about.
#[derive(Default)]
struct Named {
    /// Each once, in the order of the changes.
    paths: Vec<PathBuf>,
    seen: BTreeSet<PathBuf>,
    /// Whether some were lost.
    all: bool,
}

impl Named {
    fn add(&mut self, change: &notify::Event) {
        self.all |= change.need_rescan();
        for path in &change.paths {
            if self.seen.insert(path.clone()) {
                self.paths.push(path.clone());
            }
        }
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
