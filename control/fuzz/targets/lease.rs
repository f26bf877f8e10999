//! Leases as a store has them, one line a key or a value, and the set that is made of them.
#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use overlay_leases::lease::{Ground, HostFacts, LeaseAttrs, LeaseSet};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::store::{Entry, Event, Listing, key_of, parse_key};
use tokio::time::Instant;

fuzz_target!(|data: &[u8]| {
    let mut set = LeaseSet::default();
    let mut listing = Listing::default();
    let mut lines = data.split(|byte| *byte == b'\n');
    while let Some(key) = lines.next() {
        let value = lines.next().unwrap_or_default();
        let key = String::from_utf8_lossy(key).into_owned();
        if let Ok(attrs) = LeaseAttrs::from_json(value) {
            let again = LeaseAttrs::from_json(attrs.to_json().as_bytes());
            assert_eq!(again, Ok(attrs.clone()), "what we write we read");
            assert_eq!(LeaseAttrs::public_ip_of(value), Some(attrs.public_ip));
        }
        let Ok(subnet) = parse_key(&key) else {
            set.apply_event(&Event::Delete(key));
            continue;
        };
        assert!(key.starts_with(&key_of(subnet)) && subnet == subnet.trunc());
        let entry = Entry { key, subnet, value: value.to_vec(), revision: 1, created: 1, expiry: None };
        set.apply_event(&Event::Put(entry.clone()));
        listing.entries.push(entry);
    }
    set.apply(&listing, Instant::now());
    let own = Some("10.1.9.0/24".parse().expect("a subnet"));
    for backend in ["udp", "vxlan"] {
        let config = format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"{backend}"}}}}"#);
        let config = NetworkConfig::parse(&config).expect("a configuration");
        let (public_ip, host) = (Ipv4Addr::new(192, 168, 1, 12), HostFacts::default());
        let ground = Ground { config: &config, own, public_ip, host: &host };
        let judgement = ground.judge(&set);
        let apart = judgement.held.windows(2).all(|two| two[0].broadcast() < two[1].network());
        assert!(apart, "no two of those in use have an address in common");
        for peer in judgement.peers.iter() {
            assert!(config.network.contains(&peer.subnet) && peer.subnet != config.network);
            assert!(own.is_none_or(|own| !own.contains(&peer.subnet) && !peer.subnet.contains(&own)));
        }
        set.note_use(&judgement);
        assert_eq!(ground.judge(&set).peers, judgement.peers, "who is in use stays so");
    }
});
