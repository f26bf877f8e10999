//! Which subnet to ask for. Pure; whether we get it is decided by the store's conditional write,
//! and whoever loses that race lists again and chooses again.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rand::Rng;

use super::attrs::LeaseAttrs;
use super::gate::{Ground, HostFacts};
use super::set::LeaseSet;
use crate::netconf::NetworkConfig;
use crate::store::Entry;
use overlay_support::overlap::overlap;

/// The subnet to ask for, and why this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// A lease that carries our PublicIP already: renew it.
    Ours(Entry),
    /// The subnet we had before, which is free: create it.
    Previous(Ipv4Net),
    /// Any free one: create it.
    Free(Ipv4Net),
}

/// Every subnet from SubnetMin to SubnetMax overlaps a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no subnet is free: all {taken} of length /{subnet_len} from {subnet_min} to {subnet_max} are taken (leases: {leases}, keys without expiry: {reservations}, keys that cannot be read: {garbage}): delete those of nodes that are gone, or widen the network's limits{}", of_this_host(.kept)
)]
pub struct NetworkFull {
    /// How many subnets there are between the limits, all of them taken.
    pub taken: usize,
    /// Leases in the store, which end by themselves; also those outside the limits.
    pub leases: usize,
    /// Keys without expiry, which do not.
    pub reservations: usize,
    /// Keys whose value is not a lease.
    pub garbage: usize,
    /// The length of each.
    pub subnet_len: u8,
    /// The first of them.
    pub subnet_min: Ipv4Addr,
    /// The last of them.
    pub subnet_max: Ipv4Addr,
    /// What is between the limits of this host's own, whose subnets it cannot have.
    pub kept: Vec<Ipv4Addr>,
}

fn of_this_host(kept: &[Ipv4Addr]) -> String {
    if kept.is_empty() {
        return String::new();
    }
    let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
    format!(
        "; a subnet with {} in it would take that from this host: set SubnetMin and SubnetMax where no hosts are, or another Network",
        kept.join(" or ")
    )
}

/// Chooses as flannel does: (1) a lease with our PublicIP that fits the configuration, (2) the
/// `previous` subnet if it fits and is free, (3) a random one of the first 100 that are free.
/// Of several in (1), one whose addresses nobody else has comes first, then a reservation, then the previous
/// subnet, then the lowest. A key whose value is unusable is ours if its PublicIP is, or if it has none and names
/// the previous subnet. Anybody can write our PublicIP: where somebody else has the addresses, a key is ours only if it
/// is of the previous subnet. What leases that the gate refuses claim, and where other nodes are, is avoided for as
/// long as there is anything else. What this `host` is in itself is no pods' at all.
pub fn choose(
    config: &NetworkConfig,
    leases: &LeaseSet,
    public_ip: Ipv4Addr,
    previous: Option<Ipv4Net>,
    host: &HostFacts,
    rng: &mut impl Rng,
) -> Result<Choice, NetworkFull> {
    let judgement = Ground { config, own: None, public_ip, host }.judge(leases);
    let refused: HashSet<&str> = judgement.refused.iter().map(|refused| refused.key.as_str()).collect();
    let readable = leases.iter().filter(|known| known.attrs.public_ip == public_ip).map(|known| &known.entry);
    let garbage = leases.iter_garbage().filter(|entry| match LeaseAttrs::public_ip_of(&entry.value) {
        Some(owner) => owner == public_ip,
        None => Some(entry.subnet) == previous,
    });
    let is_fit = |subnet: Ipv4Net| config.fits(subnet) && !host.is_in(subnet);
    // What the gate refuses is another's. A value that cannot be read does not get as far as that.
    let readable = readable.map(|entry| (entry, !refused.contains(entry.key.as_str())));
    let garbage = garbage.map(|entry| (entry, !overlaps_any(&judgement.held, entry.subnet)));
    // Where the store tells who was first, another's very subnet is nobody's to come back to.
    let is_another = |entry: &Entry| entry.created > 0 && judgement.held.binary_search(&entry.subnet).is_ok();
    let ours = readable.chain(garbage).filter(|(entry, is_held)| {
        let is_back = Some(entry.subnet) == previous && !is_another(entry);
        is_fit(entry.subnet) && (*is_held || is_back)
    });
    let ours = ours.max_by_key(|(entry, is_held)| {
        (*is_held, entry.expiry.is_none(), Some(entry.subnet) == previous, Reverse(entry.subnet))
    });
    if let Some((entry, _)) = ours {
        return Ok(Choice::Ours(entry.clone()));
    }

    // A key that names a subnet keeps us from creating it, whatever its value.
    let named = leases.subnets().filter(|subnet| config.fits(*subnet));
    let taken: Vec<Ipv4Net> = judgement.held.iter().copied().chain(named).collect();
    let is_free = |subnet: Ipv4Net| !taken.iter().any(|other| overlap(subnet, *other));
    if let Some(subnet) = previous.filter(|subnet| is_fit(*subnet) && is_free(*subnet)) {
        return Ok(Choice::Previous(subnet));
    }

    let claimed =
        leases.subnets().filter(|subnet| config.network.contains(subnet) && *subnet != config.network);
    let nodes = leases.iter().map(|known| Ipv4Net::from(known.attrs.public_ip));
    let free_of = |subnets: Vec<Ipv4Net>| -> Vec<Ipv4Net> {
        let mut taken = Taken::new(subnets.into_iter().chain(host.avoided().map(Ipv4Net::from)).collect());
        config.subnets().filter(|subnet| taken.is_free(*subnet)).take(CANDIDATES).collect()
    };
    let mut candidates = free_of(claimed.chain(nodes).collect());
    if candidates.is_empty() {
        candidates = free_of(taken);
    }
    if candidates.is_empty() {
        return Err(NetworkFull {
            taken: config.subnets().count(),
            leases: leases.iter().filter(|known| known.entry.expiry.is_some()).count(),
            reservations: leases.iter().filter(|known| known.entry.expiry.is_none()).count(),
            garbage: leases.garbage(),
            subnet_len: config.subnet_len,
            subnet_min: config.subnet_min,
            subnet_max: config.subnet_max,
            kept: kept(config, host),
        });
    }
    Ok(Choice::Free(candidates[rng.random_range(0..candidates.len())]))
}

/// What of the host's is where pods are to be.
fn kept(config: &NetworkConfig, host: &HostFacts) -> Vec<Ipv4Addr> {
    let (first, last) = config.pods();
    host.avoided().filter(|address| (first..=last).contains(address)).collect()
}

/// Whether `subnet` overlaps one of `apart`, which are in order and do not overlap each other.
fn overlaps_any(apart: &[Ipv4Net], subnet: Ipv4Net) -> bool {
    let before = apart.partition_point(|other| other.network() <= subnet.broadcast());
    before > 0 && overlap(apart[before - 1], subnet)
}

/// The subnets taken, to be asked about in ascending order: one walk over both, however many there are.
struct Taken {
    /// Sorted by first address, so that all that begin before a candidate's end are met before it.
    subnets: std::iter::Peekable<std::vec::IntoIter<Ipv4Net>>,
    /// The last address that any of those met reaches.
    reach: Option<Ipv4Addr>,
}

impl Taken {
    fn new(mut subnets: Vec<Ipv4Net>) -> Self {
        subnets.sort_unstable();
        Self { subnets: subnets.into_iter().peekable(), reach: None }
    }

    fn is_free(&mut self, subnet: Ipv4Net) -> bool {
        while let Some(other) = self.subnets.next_if(|other| other.network() <= subnet.broadcast()) {
            self.reach = self.reach.max(Some(other.broadcast()));
        }
        self.reach.is_none_or(|reach| reach < subnet.network())
    }
}

/// flannel's number: enough that nodes starting together seldom ask for the same subnet.
const CANDIDATES: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;
    use crate::lease::Gateway;
    use crate::store::key_of;
    use crate::store::{Event, Listing};

    const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 12);

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn config(network: &str, subnet_len: u8) -> NetworkConfig {
        NetworkConfig::parse(&format!(r#"{{"Network":"{network}","SubnetLen":{subnet_len}}}"#)).unwrap()
    }

    fn set(leases: &[(&str, &str, Option<i64>)]) -> LeaseSet {
        let entry = |&(subnet, ip, expiry): &(&str, &str, Option<i64>)| Entry {
            key: key_of(net(subnet)),
            subnet: net(subnet),
            value: format!(r#"{{"PublicIP":"{ip}"}}"#).into(),
            revision: 1,
            created: 1,
            expiry,
        };
        let mut set = LeaseSet::default();
        let listing = Listing { entries: leases.iter().map(entry).collect(), ..Listing::default() };
        set.apply(&listing, tokio::time::Instant::now());
        set
    }

    fn garbage(subnet: &str, value: &str) -> Event {
        let subnet = net(subnet);
        Event::Put(Entry {
            key: key_of(subnet),
            subnet,
            value: value.into(),
            revision: 1,
            created: 1,
            expiry: None,
        })
    }

    fn pick(config: &NetworkConfig, set: &LeaseSet, previous: Option<&str>) -> Result<Choice, NetworkFull> {
        choose(config, set, IP, previous.map(net), &HostFacts::default(), &mut StdRng::seed_from_u64(1))
    }

    fn ours(choice: Choice) -> Ipv4Net {
        match choice {
            Choice::Ours(entry) => entry.subnet,
            other => panic!("{other:?} is not an existing lease"),
        }
    }

    #[test]
    fn our_own_lease_comes_before_the_previous_subnet() {
        let set = set(&[("10.1.5.0/24", "192.168.1.12", Some(7)), ("10.1.6.0/24", "192.168.1.13", Some(8))]);
        assert_eq!(
            ours(pick(&config("10.1.0.0/16", 24), &set, Some("10.1.9.0/24")).unwrap()),
            net("10.1.5.0/24")
        );
    }

    #[test]
    fn of_several_own_ones_the_reservation_then_the_previous_wins() {
        let config = config("10.1.0.0/16", 24);
        let reserved =
            set(&[("10.1.5.0/24", "192.168.1.12", Some(7)), ("10.1.8.0/24", "192.168.1.12", None)]);
        assert_eq!(ours(pick(&config, &reserved, Some("10.1.5.0/24")).unwrap()), net("10.1.8.0/24"));
        let leased =
            set(&[("10.1.5.0/24", "192.168.1.12", Some(7)), ("10.1.8.0/24", "192.168.1.12", Some(8))]);
        assert_eq!(ours(pick(&config, &leased, Some("10.1.8.0/24")).unwrap()), net("10.1.8.0/24"));
        assert_eq!(ours(pick(&config, &leased, None).unwrap()), net("10.1.5.0/24"));
    }

    #[test]
    fn a_key_that_cannot_be_read_is_ours_by_its_address_or_by_its_subnet() {
        let config = config("10.1.0.0/16", 24);
        let with = |value: &str| {
            let mut set = LeaseSet::default();
            set.apply_event(&garbage("10.1.9.0/24", value));
            set
        };
        let reserved = with(r#"{"PublicIP":"192.168.1.12","BackendType":"vxlan"}"#);
        assert_eq!(ours(pick(&config, &reserved, None).unwrap()), net("10.1.9.0/24"));
        let broken = with("{");
        assert_eq!(ours(pick(&config, &broken, Some("10.1.9.0/24")).unwrap()), net("10.1.9.0/24"));
        assert!(matches!(pick(&config, &broken, Some("10.1.8.0/24")), Ok(Choice::Previous(_))));
        let anothers = with(r#"{"PublicIP":"192.168.1.13","BackendType":"vxlan"}"#);
        assert!(matches!(pick(&config, &anothers, Some("10.1.9.0/24")), Ok(Choice::Free(_))));
    }

    #[test]
    fn an_own_lease_that_does_not_fit_is_passed_over() {
        let config = config("10.1.0.0/16", 24);
        for misfit in ["10.1.5.0/25", "10.2.5.0/24", "10.1.0.0/24"] {
            let choice = pick(&config, &set(&[(misfit, "192.168.1.12", None)]), Some("10.1.9.0/24")).unwrap();
            assert_eq!(choice, Choice::Previous(net("10.1.9.0/24")), "with {misfit}");
        }
    }

    #[test]
    fn the_previous_subnet_must_fit_and_be_free() {
        let config = config("10.1.0.0/16", 24);
        let set = set(&[("10.1.9.0/25", "192.168.1.13", None)]);
        for previous in ["10.1.9.0/24", "10.1.8.0/25", "10.2.8.0/24"] {
            let choice = pick(&config, &set, Some(previous)).unwrap();
            assert!(matches!(choice, Choice::Free(_)), "{previous} gave {choice:?}");
        }
        assert_eq!(pick(&config, &set, Some("10.1.8.0/24")).unwrap(), Choice::Previous(net("10.1.8.0/24")));
    }

    #[test]
    fn a_full_network_says_how_many_are_taken() {
        let config = config("10.1.0.0/28", 30);
        let mut full = set(&[("10.1.0.4/30", "192.168.1.1", None), ("10.1.0.8/30", "192.168.1.2", Some(7))]);
        full.apply_event(&garbage("10.1.0.12/30", "{}"));
        let error = pick(&config, &full, None).unwrap_err();
        assert_eq!((error.taken, error.leases, error.reservations, error.garbage), (3, 1, 1, 1));
        let text = error.to_string();
        let start = "no subnet is free: all 3 of length /30 from 10.1.0.4 to 10.1.0.12 are taken (leases: 1, keys without expiry: 1, keys that cannot be read: 1): ";
        assert!(text.starts_with(start), "{text}");
    }

    #[test]
    fn a_subnet_with_the_host_in_it_is_no_choice_and_one_with_a_node_the_last() {
        let config = config("192.168.0.0/28", 30);
        let kept = [Ipv4Addr::new(192, 168, 0, 6), Ipv4Addr::new(192, 168, 9, 1)].into();
        let host = HostFacts { kept, ..HostFacts::default() };
        let node = ("192.168.0.12/30", "192.168.0.9", Some(7));
        let choice = |leases: &[_], previous: &str| {
            choose(&config, &set(leases), IP, Some(net(previous)), &host, &mut StdRng::seed_from_u64(1))
        };
        assert_eq!(choice(&[], "192.168.0.8/30"), Ok(Choice::Previous(net("192.168.0.8/30"))));
        for _ in 0..20 {
            assert_ne!(choice(&[], "192.168.0.4/30"), Ok(Choice::Free(net("192.168.0.4/30"))));
        }
        let own = ("192.168.0.4/30", "192.168.1.12", None);
        assert_ne!(choice(&[own], "192.168.0.4/30"), Ok(Choice::Free(net("192.168.0.4/30"))));
        // Only where a node is, there is something left.
        assert_eq!(choice(&[node], "192.168.0.4/30"), Ok(Choice::Free(net("192.168.0.8/30"))));
        let other = ("192.168.0.8/30", "192.168.1.13", Some(7));
        let full = choice(&[node, other], "192.168.0.4/30").unwrap_err();
        assert_eq!(full.kept, [Ipv4Addr::new(192, 168, 0, 6)]);
        assert!(full.to_string().contains("192.168.0.6 in it would take that from this host"), "{full}");
    }

    #[test]
    fn a_subnet_with_a_gateway_in_it_is_no_choice_unless_the_gateway_is_a_pod_of_it() {
        let config = config("10.1.0.0/28", 30);
        let gateway = |beside: [u8; 4]| HostFacts {
            gateways: [Gateway { address: Ipv4Addr::new(10, 1, 0, 6), beside: [beside.into()].into() }]
                .into(),
            ..HostFacts::default()
        };
        let choice = |leases: &[_], host: &HostFacts| {
            let previous = Some(net("10.1.0.4/30"));
            choose(&config, &set(leases), IP, previous, host, &mut StdRng::seed_from_u64(1))
        };
        let (elsewhere, bridge) = (gateway([172, 16, 0, 2]), gateway([10, 1, 0, 5]));
        let subnet = net("10.1.0.4/30");
        assert_eq!([elsewhere.is_in(subnet), elsewhere.is_cut_off_by(subnet)], [true; 2]);
        assert_eq!([bridge.is_in(subnet), bridge.is_cut_off_by(subnet)], [false; 2]);
        assert_eq!(choice(&[], &bridge), Ok(Choice::Previous(subnet)));
        let reserved = ("10.1.0.4/30", "192.168.1.12", None);
        let other = ("10.1.0.8/30", "192.168.1.13", Some(7));
        for leases in [&[other][..], &[other, reserved]] {
            assert_eq!(choice(leases, &elsewhere), Ok(Choice::Free(net("10.1.0.12/30"))), "{leases:?}");
        }
    }

    #[test]
    fn a_garbage_value_still_takes_its_subnet() {
        let mut set = LeaseSet::default();
        for subnet in ["10.1.0.4/30", "10.1.0.8/30"] {
            set.apply_event(&garbage(subnet, "{}"));
        }
        let config = config("10.1.0.0/28", 30);
        for seed in 0..20 {
            let choice =
                choose(&config, &set, IP, None, &HostFacts::default(), &mut StdRng::seed_from_u64(seed));
            assert_eq!(choice, Ok(Choice::Free(net("10.1.0.12/30"))));
        }
    }

    #[test]
    fn a_key_with_our_address_gives_us_nobody_elses_subnet() {
        let config = config("10.1.0.0/16", 24);
        let key = |key: &str, value: &str, created: i64| {
            let (subnet, value) = (crate::store::parse_key(key).unwrap(), value.into());
            Event::Put(Entry { key: key.to_owned(), subnet, value, revision: 9, created, expiry: Some(7) })
        };
        let ours = r#"{"PublicIP":"192.168.1.12"}"#;
        let unreadable = r#"{"PublicIP":"192.168.1.12","BackendType":"vxlan"}"#;
        let neighbours = r#"{"PublicIP":"192.168.1.13"}"#;
        let chosen = |keys: &[Event], previous: Option<&str>| {
            let mut set = LeaseSet::default();
            keys.iter().for_each(|key| _ = set.apply_event(key));
            pick(&config, &set, previous).unwrap()
        };
        let theirs = net("10.1.39.0/24");
        for value in [ours, unreadable] {
            for previous in [None, Some("10.1.39.0/24"), Some("10.1.40.0/24")] {
                let keys = [key("10.1.39.0-24", neighbours, 3), key("10.1.39.0-24&fd00::-64", value, 4)];
                let choice = chosen(&keys, previous);
                let subnet = match &choice {
                    Choice::Ours(entry) => entry.subnet,
                    Choice::Previous(subnet) | Choice::Free(subnet) => *subnet,
                };
                assert_ne!(subnet, theirs, "{value}, {previous:?}: {choice:?}");
            }
            // A smaller one, or one in a store that does not tell who was first, keeps nobody from coming back.
            for (other, first, second) in [("10.1.39.0-25", 2, 3), ("10.1.39.0-24", 0, 0)] {
                let keys = [key(other, neighbours, first), key("10.1.39.0-24&fd00::-64", value, second)];
                let back = chosen(&keys, Some("10.1.39.0/24"));
                assert!(matches!(&back, Choice::Ours(entry) if entry.subnet == theirs), "{other}: {back:?}");
                assert!(matches!(chosen(&keys, None), Choice::Free(_)), "{other} to a newcomer");
            }
        }
    }

    #[test]
    fn what_the_gate_refuses_takes_nothing_for_which_there_is_need() {
        let config = config("10.1.0.0/28", 30);
        let hostile = "192.168.1.66";
        // All of them once; then half of it, claimed after a lease inside was.
        let leases = [
            ("0.0.0.0/0", hostile, Some(1)),
            ("10.0.0.0/8", hostile, None),
            ("10.1.0.0/28", hostile, None),
            ("10.1.0.4/30", "192.168.1.13", Some(2)),
            ("10.1.0.0/29", hostile, Some(3)),
            ("10.1.0.8/31", hostile, Some(3)),
            ("10.1.0.8/29", "127.0.0.1", Some(3)),
        ];
        let mut set = set(&leases);
        assert_eq!(pick(&config, &set, None), Ok(Choice::Free(net("10.1.0.12/30"))));
        assert_eq!(pick(&config, &set, Some("10.1.0.12/30")), Ok(Choice::Previous(net("10.1.0.12/30"))));
        set.apply_event(&garbage("10.1.0.12/30", "{}"));
        assert!(pick(&config, &set, None).is_err(), "nothing is left but what is taken");
    }

    proptest! {
        #[test]
        fn a_free_choice_overlaps_no_lease_in_use(
            taken in proptest::collection::vec((0u32..0x1_0000, 18u8..=30), 0..80),
            seed: u64,
        ) {
            let config = config("10.1.0.0/16", 24);
            let nets: Vec<String> = taken
                .iter()
                .map(|&(low, len)| Ipv4Net::new((0x0a01_0000 | low).into(), len).unwrap().trunc().to_string())
                .collect();
            let leases: Vec<_> = nets.iter().map(|net| (net.as_str(), "192.168.1.13", Some(1))).collect();
            let set = set(&leases);
            let host = HostFacts::default();
            let held = Ground { config: &config, own: None, public_ip: IP, host: &host }.judge(&set).held;
            let free: Vec<Ipv4Net> = config
                .subnets()
                .filter(|subnet| !held.iter().any(|other| overlap(*subnet, *other)))
                .collect();
            match choose(&config, &set, IP, None, &host, &mut StdRng::seed_from_u64(seed)) {
                Ok(Choice::Free(subnet)) => prop_assert!(free.contains(&subnet)),
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(full) => {
                    prop_assert!(free.is_empty());
                    prop_assert_eq!(full.taken, 255);
                }
            }
        }
    }
}
