//! What becomes of a lease when its owner gets another address.

use std::fs;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use overlay_leases::membership::{Membership, Terms, View};
use overlay_leases::store::DirStore;
use overlay_leases::store::key_of;

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
const BEFORE: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);
const NOW: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);

#[tokio::test]
async fn a_node_that_gets_another_address_keeps_its_subnet_and_mac() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("config"), CONFIG).unwrap();
    let store = Arc::new(DirStore::open(directory.path()).unwrap());
    let terms = Terms {
        public_ip: BEFORE,
        previous: None,
        vtep_mac: None,
        ttl: Duration::from_secs(60),
        renew_margin: Duration::from_secs(10),
    };
    let (address, follow) = watch::channel(BEFORE);
    let (out, mut views) = watch::channel(None);
    tokio::spawn(Membership::new(store, terms, None, out).following(follow).run());

    let first = of(&mut views, BEFORE).await;
    let file = directory.path().join("subnets").join(key_of(first.lease.subnet));
    let text = fs::read_to_string(&file).unwrap();
    address.send_replace(NOW);
    let second = of(&mut views, NOW).await;
    assert_eq!(second.lease.subnet, first.lease.subnet);
    assert_eq!(second.lease.attrs.backend, first.lease.attrs.backend);
    assert_eq!(fs::read_to_string(&file).unwrap(), text.replace("192.168.1.12", "192.168.1.50"));

    // And it is held by the new address: written by another, it is put right.
    let ours = text.replace("192.168.1.12", "192.168.1.50");
    let draft = directory.path().join("draft");
    fs::write(&draft, ours.replace(":1,", ":7,")).unwrap();
    fs::rename(&draft, &file).unwrap();
    timeout(Duration::from_secs(30), async {
        while fs::read_to_string(&file).unwrap() != ours {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("our own words again");
    assert_eq!(fs::read_dir(directory.path().join("subnets")).unwrap().count(), 1);
}

async fn of(views: &mut watch::Receiver<Option<View>>, public_ip: Ipv4Addr) -> View {
    let view = views.wait_for(|view| {
        view.as_ref().is_some_and(|view| view.connected && view.lease.attrs.public_ip == public_ip)
    });
    timeout(Duration::from_secs(30), view).await.expect("a view").unwrap().clone().unwrap()
}
