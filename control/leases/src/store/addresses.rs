//! The addresses of the store's endpoints, which this host has to reach whatever the overlay's network is.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::lookup_host;
use tokio::time::{sleep, timeout};

use super::endpoint::Endpoint;

/// What is known of them; shared by its clones.
#[derive(Debug, Clone, Default)]
pub struct StoreAddresses(Arc<Known>);

type Known = Mutex<BTreeSet<Ipv4Addr>>;

impl StoreAddresses {
    /// Those of these endpoints: of the names among them as far as they are resolved within a second, and then again
    /// every minute for as long as somebody has this.
    pub async fn follow(endpoints: &[String]) -> Self {
        let hosts = endpoints.iter().map(|url| Endpoint::of(url).host()).filter(|host| !host.is_empty());
        let hosts: Vec<String> = hosts.map(str::to_owned).collect();
        let literal: BTreeSet<Ipv4Addr> = hosts.iter().filter_map(|host| host.parse().ok()).collect();
        let named: Vec<String> = hosts.into_iter().filter(|host| host.parse::<IpAddr>().is_err()).collect();
        let addresses = Self(Arc::new(Mutex::new(literal.clone())));
        if !named.is_empty() {
            // Before the first route is put: it might lead where the store is.
            let _ = timeout(PATIENCE, resolve(&named, &literal, &Arc::downgrade(&addresses.0))).await;
            let known = Arc::downgrade(&addresses.0);
            tokio::spawn(async move {
                while known.strong_count() > 0 {
                    resolve(&named, &literal, &known).await;
                    sleep(AGAIN).await;
                }
            });
        }
        addresses
    }

    /// As they are known now.
    #[must_use]
    pub fn now(&self) -> BTreeSet<Ipv4Addr> {
        self.0.lock().clone()
    }
}

/// A name that is not resolved now keeps the addresses that it had.
async fn resolve(named: &[String], literal: &BTreeSet<Ipv4Addr>, known: &Weak<Known>) {
    let mut found = literal.clone();
    let mut all = true;
    for name in named {
        match lookup_host((name.as_str(), 0)).await {
            Ok(addresses) => found.extend(addresses.filter_map(|address| match address.ip() {
                IpAddr::V4(address) => Some(address),
                IpAddr::V6(_) => None,
            })),
            Err(_) => all = false,
        }
    }
    let Some(known) = known.upgrade() else { return };
    let mut known = known.lock();
    if all {
        *known = found;
    } else {
        known.extend(found);
    }
}

const PATIENCE: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_are_known_at_once_and_names_when_they_are_resolved() {
        let endpoints = ["http://10.200.3.5:2379", "http://localhost:2379", "http://[fd00::5]:1", "http://"]
            .map(str::to_owned);
        let known = StoreAddresses::follow(&endpoints).await.now();
        assert_eq!(known, BTreeSet::from([Ipv4Addr::new(10, 200, 3, 5), Ipv4Addr::LOCALHOST]));
    }
}
