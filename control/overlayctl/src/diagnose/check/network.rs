//! Where the overlay's network meets what is the host's own.

use ipnet::Ipv4Net;

use super::finding::Finding;
use overlay_api::reach::Routed;

/// What it means that so much of `network` is routed.
pub(super) fn finding(network: Ipv4Net, routed: &Routed) -> Finding {
    if routed.whole {
        return Finding::ok("network", format!("nothing of this host's own is in {network}"));
    }
    let text = format!("of {network} the overlay routes {}", routed.to_text());
    if routed.rejected.is_empty() {
        let remedy = "packets to pods that are not there leave by the host's own routes, in the clear: give the network configuration a Network of its own, or a SubnetMin and SubnetMax where no hosts are";
        Finding::warning("network", text, remedy)
    } else {
        Finding::ok("network", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnose::check::finding::Level;

    #[test]
    fn what_may_leave_in_the_clear_is_a_warning_and_names_the_cause() {
        let network = "10.0.0.0/8".parse().unwrap();
        let overlaps = vec!["10.200.1.12, this host's own address on eth0".to_owned()];
        let rejected = vec!["10.10.0.0/15".parse().unwrap()];
        let whole = Routed { whole: true, ..Routed::default() };
        assert_eq!(finding(network, &whole).level, Level::Ok);
        let example = Routed { whole: false, overlaps, rejected };
        assert_eq!(finding(network, &example).level, Level::Ok);
        let found = finding(network, &Routed { rejected: Vec::new(), ..example });
        assert_eq!(found.level, Level::Warning);
        assert!(found.text.contains("10.200.1.12, this host's own address on eth0"), "{}", found.text);
    }
}
