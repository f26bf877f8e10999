//! What leases are judged by of this host, as it is now. A subnet that was fit when it was leased need not stay so: an
//! interface gets another address, the default route another gateway, and the store's names are resolved at last.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use overlay_host::iface::{self, IfaceSpec, Underlay};
use overlay_host::link::HostChanges;
use overlay_host::netlink::Netlink;
use overlay_host::{HostError, holdings};
use overlay_leases::lease::{Gateway, HostFacts};
use overlay_leases::store::StoreAddresses;

/// Looks now, and then whenever something may be other than it was, for as long as anybody listens.
///
/// # Errors
/// The kernel cannot be asked.
pub(super) async fn follow(
    spec: IfaceSpec,
    underlay: Underlay,
    stores: StoreAddresses,
) -> Result<watch::Receiver<HostFacts>, HostError> {
    let changes = HostChanges::subscribe()?;
    let (tell, told) = watch::channel(look(&underlay, &stores).await?);
    tokio::spawn(async move {
        tokio::select! {
            () = tell.closed() => {}
            () = look_again(spec, underlay, stores, changes, &tell) => {}
        }
    });
    Ok(told)
}

async fn look_again(
    spec: IfaceSpec,
    mut underlay: Underlay,
    stores: StoreAddresses,
    mut changes: HostChanges,
    tell: &watch::Sender<HostFacts>,
) {
    loop {
        // Of what names are resolved to, and by whom, the kernel says nothing.
        if let Ok(Err(_)) = timeout(AGAIN, changes.changed()).await
            && let Ok(anew) = HostChanges::subscribe()
        {
            changes = anew;
        }
        let begun = Instant::now();
        // One that is gone for now keeps what is known of it.
        if let Ok(now) = iface::choose_again(&spec, &underlay).await {
            underlay = now;
        }
        match look(&underlay, &stores).await {
            Ok(facts) => _ = tell.send_if_modified(|told| std::mem::replace(told, facts.clone()) != facts),
            Err(error) => debug!(%error, "what this host has cannot be looked at"),
        }
        // A table with all the routes of the Internet takes long to list, and changes all the time.
        sleep(SELDOM.max(SHARE * begun.elapsed())).await;
    }
}

async fn look(underlay: &Underlay, stores: &StoreAddresses) -> Result<HostFacts, HostError> {
    let kept = holdings::kept(&underlay.name, &stores.now()).await?;
    let netlink = Netlink::open()?;
    let addresses = netlink.addresses().await?;
    let on = |index: u32| -> BTreeSet<Ipv4Addr> {
        addresses.iter().filter(|own| own.index == index).map(|own| own.address).collect()
    };
    let mut vital = on(underlay.index);
    let mut others: BTreeSet<(Ipv4Addr, u32)> = BTreeSet::new();
    for route in netlink.routes().await? {
        match route.device {
            Some(device) if device == underlay.index => vital.extend(route.gateways),
            Some(device) => others.extend(route.gateways.into_iter().map(|gateway| (gateway, device))),
            None => {}
        }
    }
    let gateways = others.into_iter().map(|(address, device)| Gateway { address, beside: on(device) });
    let broadcasts = addresses.iter().filter_map(|own| broadcast(own.address, own.prefix_len));
    Ok(HostFacts { kept, vital, gateways: gateways.collect(), broadcasts: broadcasts.collect() })
}

/// The broadcast address of an interface's network; of two hosts or one, there is none (RFC 3021).
fn broadcast(address: Ipv4Addr, prefix_len: u8) -> Option<Ipv4Addr> {
    let network = Ipv4Net::new(address, prefix_len).ok()?;
    (prefix_len <= 30).then(|| network.broadcast())
}

/// How often it is looked without a word from the kernel.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two looks.
const SELDOM: Duration = Duration::from_secs(5);
/// How much longer than a look the time between two is.
const SHARE: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_more_than_two_addresses_has_a_broadcast_address() {
        let of = |address: [u8; 4], prefix_len| broadcast(address.into(), prefix_len);
        assert_eq!(of([192, 168, 1, 12], 24), Some([192, 168, 1, 255].into()));
        assert_eq!(of([192, 168, 1, 12], 22), Some([192, 168, 3, 255].into()));
        assert_eq!(of([192, 168, 1, 13], 30), Some([192, 168, 1, 15].into()));
        assert_eq!([of([192, 168, 1, 12], 31), of([10, 1, 9, 0], 32)], [None, None]);
    }
}
