//! Listing all leases, page by page: there may be any number of them, and what somebody has put among them may
//! be of any size.

use etcd_client::{Client, GetOptions, GetResponse, KeyValue};

use super::cluster::{Cluster, is_too_long};
use super::keys::{entry, name_of, revision_of};
use crate::store::entry::{Listing, Revision};
use crate::store::lease_store::StoreError;
use crate::store::limits::{MAX_VALUE, Room};

/// All keys that begin with `prefix`, as they are at one moment.
pub(super) async fn list(cluster: &Cluster, prefix: &str) -> Result<Listing, StoreError> {
    let mut tries = 1;
    loop {
        match pages(cluster, prefix).await {
            // That moment's history was compacted while the listing was read.
            Err(error) if error.reason.contains(COMPACTED) && tries < TRIES => tries += 1,
            listing => return listing,
        }
    }
}

async fn pages(cluster: &Cluster, prefix: &str) -> Result<Listing, StoreError> {
    let range = Range { action: format!("list {prefix}"), end: end_of(prefix) };
    let (mut listing, mut room) = (Listing::default(), Room::ALL);
    let mut from = prefix.as_bytes().to_vec();
    let mut size = LARGEST_PAGE;
    loop {
        let page = match range.get(cluster, &from, size, listing.revision, Part::Values).await? {
            Some(page) => {
                size = (2 * size).min(LARGEST_PAGE);
                page
            }
            None if size > 1 => {
                size = (size / 8).max(1);
                continue;
            }
            // One value that is longer than any answer may be: its key is enough.
            None => match range.get(cluster, &from, 1, listing.revision, Part::Keys).await? {
                Some(page) => page,
                None => return Err(StoreError::new(range.action, "a key is longer than an answer may be")),
            },
        };
        listing.revision = page.revision;
        for (number, kv) in page.answer.kvs().iter().enumerate() {
            match name_of(kv, prefix) {
                Some(name) => {
                    let mut entry = entry(name, kv);
                    if page.part == Part::Keys {
                        entry.value = vec![b' '; MAX_VALUE + 1];
                    }
                    if !room.take(kv.key(), &entry.value) {
                        // How many keys there are from this page's beginning on.
                        let count = usize::try_from(page.answer.count()).unwrap_or_default();
                        listing.beyond = count.saturating_sub(number).max(1);
                        return Ok(listing);
                    }
                    listing.entries.push(entry);
                }
                None => listing.skipped += 1,
            }
        }
        match page.answer.kvs().last().map(KeyValue::key) {
            Some(last) if page.answer.more() => from = [last, &[0]].concat(),
            _ => return Ok(listing),
        }
    }
}

/// What is asked for, but for where a page begins.
struct Range {
    action: String,
    end: Vec<u8>,
}

/// What is asked of each key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Values,
    Keys,
}

struct Page {
    answer: GetResponse,
    part: Part,
    /// That of the first page.
    revision: Revision,
}

impl Range {
    /// At most `size` keys from `from` on, as they were at the revision `at`, or are now if that is 0; `None` if
    /// the answer is longer than one may be.
    async fn get(
        &self,
        cluster: &Cluster,
        from: &[u8],
        size: i64,
        at: Revision,
        part: Part,
    ) -> Result<Option<Page>, StoreError> {
        let request = |mut client: Client, _| {
            let options =
                GetOptions::new().with_range(self.end.as_slice()).with_limit(size).with_revision(at);
            let options = if part == Part::Keys { options.with_keys_only() } else { options };
            async move {
                match client.get(from, Some(options)).await {
                    Ok(answer) => Ok(Some(answer)),
                    Err(error) if is_too_long(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            }
        };
        let answer = cluster.call(&self.action, request).await?;
        Ok(answer.map(|answer| {
            let revision = if at == 0 { revision_of(answer.header()) } else { at };
            Page { answer, part, revision }
        }))
    }
}

/// The first key after all that begin with `prefix`, which ends with a slash.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Some 200 bytes each: a quarter of what an answer may have.
const LARGEST_PAGE: i64 = 5_000;
/// What etcd says of a moment that is no longer kept.
const COMPACTED: &str = "required revision has been compacted";
/// Compactions come minutes apart.
const TRIES: u32 = 3;
