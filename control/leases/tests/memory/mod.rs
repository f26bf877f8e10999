//! A store in memory, which can fail, forget and be written to behind everybody's back: for tests
//! in which hours pass at once.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use ipnet::Ipv4Net;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use overlay_leases::store::{
    Entry, Event, EventStream, LeaseStore, Listing, Revision, StoreError, StoreId, Written,
};
use overlay_leases::store::{key_of, parse_key};

type Told = Result<(Revision, Event), StoreError>;

/// What etcd would hold, without the server. Nothing expires by itself.
#[derive(Default)]
pub struct Memory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    config: String,
    entries: BTreeMap<String, Entry>,
    revision: Revision,
    is_down: bool,
    /// For how many of its last keys a listing has no room.
    beyond: usize,
    /// Whether it does not tell its configuration.
    refuses_config: bool,
    history: Vec<(Revision, Event)>,
    watchers: Vec<UnboundedSender<Told>>,
    /// Keys of all conditional writes that were asked for.
    asked: Vec<String>,
    /// How long it takes to remove a key.
    release_takes: Duration,
}

impl Memory {
    /// A store with this network configuration and nothing else.
    pub fn new(config: &str) -> Self {
        let memory = Self::default();
        memory.lock().config = config.to_owned();
        memory
    }

    /// Has another configuration from now on; who follows changes is told.
    pub fn set_config(&self, config: &str) {
        let mut state = self.lock();
        config.clone_into(&mut state.config);
        state.revision += 1;
        state.tell(&Event::Config(Some(config.to_owned())));
    }

    /// Tells who follows changes that there is no configuration any more.
    pub fn remove_config(&self) {
        let mut state = self.lock();
        state.revision += 1;
        state.tell(&Event::Config(None));
    }

    /// Has no room from now on in a listing for so many of its last keys; who follows changes lists anew.
    pub fn have_beyond(&self, keys: usize) {
        let mut state = self.lock();
        state.beyond = keys;
        state.tell(&Event::Relist);
    }

    /// Fails from now on when it is asked for its configuration, and for nothing else, until `refuses` is `false`.
    pub fn refuse_config(&self, refuses: bool) {
        self.lock().refuses_config = refuses;
    }

    /// Takes this long from now on to remove a key.
    pub fn release_slowly(&self, takes: Duration) {
        self.lock().release_takes = takes;
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.lock().entries.len()
    }

    /// Writes a key as somebody else would; with an `expiry`, somebody who keeps it alive.
    pub fn put(&self, key: &str, value: &str, expiry: Option<i64>) {
        self.lock().put(key, value.as_bytes(), expiry);
    }

    /// Removes a key.
    pub fn delete(&self, key: &str) {
        self.lock().delete(key);
    }

    /// Fails from now on until `is_down` is `false`; those who follow changes are told.
    pub fn set_down(&self, is_down: bool) {
        let mut state = self.lock();
        state.is_down = is_down;
        for watcher in std::mem::take(&mut state.watchers) {
            // Who no longer listens need not know.
            let _ = watcher.send(Err(down()));
        }
    }

    /// Loses all leases, as a server whose disk was replaced. Those who follow changes are told to list again.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.entries.clear();
        let revision = state.revision;
        for watcher in std::mem::take(&mut state.watchers) {
            let _ = watcher.send(Ok((revision, Event::Relist)));
        }
    }

    /// The entry under a key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.lock().entries.get(key).cloned()
    }

    /// The value under a key.
    pub fn value(&self, key: &str) -> Option<String> {
        self.get(key).map(|entry| String::from_utf8(entry.value).expect("UTF-8"))
    }

    /// How many conditional writes there have been to a key.
    pub fn asked(&self, key: &str) -> usize {
        self.lock().asked.iter().filter(|asked| *asked == key).count()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn up(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        let state = self.lock();
        if state.is_down { Err(down()) } else { Ok(state) }
    }
}

impl State {
    fn put(&mut self, key: &str, value: &[u8], expiry: Option<i64>) -> Entry {
        self.revision += 1;
        let created = self.entries.get(key).map_or(self.revision, |before| before.created);
        let entry = Entry {
            key: key.to_owned(),
            subnet: parse_key(key).expect("a lease's key"),
            value: value.to_vec(),
            revision: self.revision,
            created,
            expiry,
        };
        self.entries.insert(key.to_owned(), entry.clone());
        self.tell(&Event::Put(entry.clone()));
        entry
    }

    fn delete(&mut self, key: &str) {
        self.revision += 1;
        self.entries.remove(key).expect("a key to be deleted");
        self.tell(&Event::Delete(key.to_owned()));
    }

    fn tell(&mut self, event: &Event) {
        let revision = self.revision;
        self.history.push((revision, event.clone()));
        self.watchers.retain(|watcher| watcher.send(Ok((revision, event.clone()))).is_ok());
    }

    fn is_unchanged(&self, held: &Entry) -> bool {
        self.entries.get(&held.key).is_some_and(|entry| entry.revision == held.revision)
    }
}

#[async_trait]
impl LeaseStore for Memory {
    fn how_to_configure(&self, config: &str) -> String {
        format!("put {config}")
    }

    fn id(&self) -> StoreId {
        StoreId::read("memory")
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        let state = self.up()?;
        if state.refuses_config { Err(down()) } else { Ok(Some(state.config.clone())) }
    }

    async fn list(&self) -> Result<Listing, StoreError> {
        let state = self.up()?;
        Ok(Listing {
            entries: state.entries.values().take(state.entries.len() - state.beyond).cloned().collect(),
            skipped: 0,
            beyond: state.beyond,
            revision: state.revision,
        })
    }

    async fn entry_of(&self, subnet: Ipv4Net) -> Result<Option<Entry>, StoreError> {
        Ok(self.up()?.entries.get(&key_of(subnet)).cloned())
    }

    async fn create(&self, subnet: Ipv4Net, value: &[u8], _ttl: Duration) -> Result<Written, StoreError> {
        let mut state = self.up()?;
        let key = key_of(subnet);
        state.asked.push(key.clone());
        if state.entries.contains_key(&key) {
            return Ok(Written::Conflict);
        }
        Ok(Written::Done(state.put(&key, value, Some(EXPIRY))))
    }

    async fn renew(&self, held: &Entry, value: &[u8], _ttl: Duration) -> Result<Written, StoreError> {
        let mut state = self.up()?;
        state.asked.push(held.key.clone());
        if !state.is_unchanged(held) {
            return Ok(Written::Conflict);
        }
        Ok(Written::Done(state.put(&held.key, value, held.expiry)))
    }

    async fn release(&self, held: &Entry) -> Result<bool, StoreError> {
        let takes = self.lock().release_takes;
        tokio::time::sleep(takes).await;
        let mut state = self.up()?;
        let unchanged = state.is_unchanged(held);
        if unchanged {
            state.delete(&held.key);
        }
        Ok(unchanged)
    }

    async fn watch(&self, from: Revision) -> Result<EventStream, StoreError> {
        let mut state = self.up()?;
        let (watcher, events) = unbounded_channel();
        for told in state.history.iter().filter(|(revision, _)| *revision > from) {
            watcher.send(Ok(told.clone())).expect("the receiver is here");
        }
        state.watchers.push(watcher);
        let next = |mut events: UnboundedReceiver<Told>| async move { Some((events.recv().await?, events)) };
        Ok(stream::unfold(events, next).boxed())
    }
}

fn down() -> StoreError {
    StoreError { action: "ask".to_owned(), reason: "the store is down".to_owned() }
}

/// Of all keys that were created here.
const EXPIRY: i64 = 7;
