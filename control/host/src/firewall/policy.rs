//! What the host's firewall is to do for an overlay, as data: which packets keep their source, which get this host's,
//! which are accepted and which dropped. [`nft`](super::nft) and [`iptables`](super::iptables) write it down, each in its
//! own words and places. Pure.

use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};

use crate::Desired;

/// What becomes of packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// Which packets.
    pub(super) when: Match,
    /// What becomes of them.
    pub(super) then: Action,
    /// Why, in a sentence.
    pub(super) why: &'static str,
    /// The same in one word, which every version of iptables lists without quotes.
    pub(super) word: &'static str,
}

/// Which packets: those to which all apply that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// Where they come from.
    pub(super) source: Option<Is<IpNet>>,
    /// Where they go.
    pub(super) destination: Option<Is<IpNet>>,
    /// The interface by which they have come.
    pub(super) arrives: Option<Is<String>>,
    /// The interface by which they leave.
    pub(super) leaves: Option<Is<String>>,
    /// The port of a UDP datagram's receiver.
    pub(super) udp_port: Option<u16>,
    /// Whether kube-proxy has marked them to be masqueraded.
    pub(super) marked: Option<bool>,
    /// Whether their source is an address of this host's.
    pub(super) from_this_host: Option<bool>,
}

/// One value, or any other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Is<T> {
    /// This one.
    This(T),
    /// Any but this one.
    Not(T),
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Rules that come later have their say.
    Return,
    /// They are bound to the source that they have: nothing translates it any more.
    KeepSource,
    /// They get this host's address.
    Masquerade,
    /// They pass.
    Accept,
    /// They go no further.
    Drop,
}

/// Set by kube-proxy on what it will masquerade (its `--iptables-masquerade-bit`, 14 by default).
pub(super) const KUBE_PROXY_MARK: u32 = 0x4000;

/// RFC 5771.
const MULTICAST: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4);

/// Before everything of ours, as flannel's rule 1.
pub(super) fn left_to_kube_proxy() -> Rule {
    Rule {
        when: Match { marked: Some(true), ..Match::default() },
        then: Action::Return,
        why: "marked by kube-proxy, which masquerades it itself: twice would stall the connection",
        word: "marked-by-kube-proxy",
    }
}

/// What others than this node send to the tunnel's port of a host, by whatever bridge they are on, keeps its source:
/// masqueraded, by docker for one, it would have this node's address, and be taken for a packet of the overlay. A drop
/// would also hit the tunnels of nodes for which this host is a router, and before translation nothing tells these apart.
/// What kube-proxy has marked is to be translated.
pub(super) fn from_others_to_a_tunnel(desired: &Desired) -> Option<Rule> {
    let port = desired.tunnel_port.filter(|_| desired.forward_rules)?;
    Some(Rule {
        when: Match {
            leaves: Some(Is::Not(desired.device.clone())),
            udp_port: Some(port),
            marked: Some(false),
            from_this_host: Some(false),
            ..Match::default()
        },
        then: Action::KeepSource,
        why: "from others to the tunnel's port of a host: bound to its own source, so it passes as nobody else's",
        word: "from-others-to-a-tunnel",
    })
}

/// What goes from pod to pod through the device is bound to its own source.
///
/// How that agrees with flannel's six rules of `--ip-masq`: 1 comes first. 2 returns the same packets, without keeping
/// docker's later rule from them. 3 concerns what leaves for a pod of ours, through docker0 and not through this device. 4
/// and 6 concern sources outside the network, which are not bound. 5 masquerades what comes from elsewhere in the network
/// than from our pods (containers of a former subnet, say, whose replies would go to its new owner): with `ip_masq` that
/// is left to it, and only our own pods are bound.
pub(super) fn pod_to_pod(desired: &Desired) -> Rule {
    bound(
        desired,
        &desired.device,
        "pod to pod: bound to its own source, else docker's MASQUERADE would rewrite it",
    )
}

/// The same for what needs no tunnel. Nothing else that leaves by the underlay is touched.
pub(super) fn pod_to_pod_directly(desired: &Desired) -> Option<Rule> {
    let out = desired.direct.as_ref()?;
    Some(bound(desired, out, "pod to pod on the underlay's own link: bound to its own source likewise"))
}

fn bound(desired: &Desired, out: &str, why: &'static str) -> Rule {
    Rule {
        when: Match { leaves: Some(Is::This(out.to_owned())), ..between_pods(desired) },
        then: Action::KeepSource,
        why,
        word: "pod-to-pod",
    }
}

/// Sources and destinations of what goes from pod to pod.
pub(super) fn between_pods(desired: &Desired) -> Match {
    Match {
        source: Some(Is::This(desired.bound().into())),
        destination: Some(Is::This(desired.network.trunc().into())),
        ..Match::default()
    }
}

/// What enters the overlay from outside gets this host's address. flannel's rule 4 would return what goes to our own
/// pods; through this device nothing does, they are not behind it.
pub(super) fn return_path(desired: &Desired) -> Option<Rule> {
    desired.masquerade.return_path.then(|| Rule {
        when: Match {
            source: Some(Is::Not(desired.network.trunc().into())),
            leaves: Some(Is::This(desired.device.clone())),
            ..Match::default()
        },
        then: Action::Masquerade,
        why: "from outside the network into the overlay: replies come back through the overlay too",
        word: "from-outside-into-the-overlay",
    })
}

/// The rules of flannel's `--ip-masq`, if they are wanted, but for the first, which is [`left_to_kube_proxy`].
pub(super) fn flannels_masquerade(desired: &Desired) -> Vec<Rule> {
    if !desired.masquerade.ip_masq {
        return Vec::new();
    }
    let (network, pods) = (IpNet::from(desired.network.trunc()), IpNet::from(desired.pod_subnet.trunc()));
    let rule = |source, destination, then, why| Rule {
        when: Match { source: Some(source), destination: Some(destination), ..Match::default() },
        then,
        why,
        word: "ip-masq",
    };
    vec![
        rule(Is::This(pods), Is::This(network), Action::Return, "our pods to the network: as they are"),
        rule(Is::This(network), Is::This(pods), Action::Return, "the network to our pods: as it is"),
        rule(
            Is::Not(network),
            Is::This(pods),
            Action::Return,
            "from outside to our pods: this node owns them, so replies come this way anyhow",
        ),
        rule(
            Is::This(network),
            Is::Not(MULTICAST.into()),
            Action::Masquerade,
            "pods to the outside, but not multicast: nobody outside has a route back to them",
        ),
        rule(
            Is::Not(network),
            Is::This(network),
            Action::Masquerade,
            "from outside to pods of other nodes: replies come back through this node",
        ),
    ]
}

/// What pods send to the tunnel's port of a host is dropped, wherever that host is, in the network or not: masqueraded,
/// by whomever, it would have this node's address, and be taken for a packet of the overlay. Another pod may have that
/// port: what goes into the overlay, or stays here, is not masqueraded into a packet of this node's.
///
/// An exception comes before it.
pub(super) fn from_pods_to_a_tunnel(desired: &Desired) -> Vec<Rule> {
    let Some(port) = desired.tunnel_port.filter(|_| desired.forward_rules) else { return Vec::new() };
    // Nodes in the network get it, too; from a pod's address none takes it for the overlay's.
    let exception = desired.direct.clone().map(|direct| Rule {
        when: Match {
            leaves: Some(Is::This(direct)),
            udp_port: Some(port),
            marked: Some(false),
            ..between_pods(desired)
        },
        then: Action::Accept,
        why: "pod to pod on the underlay's own link: bound to its own source, so it passes as nobody else's",
        word: "pod-to-pod",
    });
    let drop = Rule {
        when: Match {
            source: Some(Is::This(desired.network.trunc().into())),
            destination: Some(Is::Not(desired.pod_subnet.trunc().into())),
            leaves: Some(Is::Not(desired.device.clone())),
            udp_port: Some(port),
            ..Match::default()
        },
        then: Action::Drop,
        why: "from pods to the tunnel's port of a host: translated, it would pass as the overlay's",
        word: "from-pods-to-a-tunnel",
    };
    exception.into_iter().chain([drop]).collect()
}

/// What is forwarded between pods is accepted.
pub(super) fn forwarded(desired: &Desired) -> Vec<Rule> {
    let network = || Some(Is::This(desired.network.trunc().into()));
    let accept =
        |when, word| Rule { when, then: Action::Accept, why: "what pods exchange is forwarded", word };
    vec![
        accept(Match { source: network(), ..Match::default() }, "from-the-overlay-network"),
        accept(Match { destination: network(), ..Match::default() }, "to-the-overlay-network"),
    ]
}

/// What comes for our own pods by the overlay, or from pods by the underlay, is accepted also where what is routed to
/// containers from elsewhere is not.
pub(super) fn for_our_pods(desired: &Desired) -> Vec<Rule> {
    let pods = || Some(Is::This(desired.pod_subnet.trunc().into()));
    let accept = |when| Rule {
        when,
        then: Action::Accept,
        why: "from pods of other nodes to ours: docker refuses what is routed to containers",
        word: "overlayd-direct",
    };
    let by = |interface: &str| Match {
        destination: pods(),
        arrives: Some(Is::This(interface.to_owned())),
        ..Match::default()
    };
    let network = Some(Is::This(desired.network.trunc().into()));
    let directly = desired.direct.as_ref().map(|underlay| Match { source: network, ..by(underlay) });
    [by(&desired.device)].into_iter().chain(directly).map(accept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Masquerade;

    #[test]
    fn only_a_tunnel_has_a_port_to_be_kept_from_pods() {
        assert_eq!(from_pods_to_a_tunnel(&Desired::example()).len(), 1);
        let direct = Some("eth0".to_owned());
        assert_eq!(from_pods_to_a_tunnel(&Desired { direct, ..Desired::example() }).len(), 2);
        for without in [
            Desired { tunnel_port: None, ..Desired::example() },
            Desired { forward_rules: false, ..Desired::example() },
        ] {
            assert!(from_pods_to_a_tunnel(&without).is_empty());
            assert!(from_others_to_a_tunnel(&without).is_none());
        }
    }

    #[test]
    fn with_ip_masq_only_our_own_pods_are_bound() {
        let masquerade = |ip_masq| Masquerade { ip_masq, ..Desired::example().masquerade };
        let source = |ip_masq| {
            let desired = Desired { masquerade: masquerade(ip_masq), ..Desired::example() };
            (pod_to_pod(&desired).when.source, flannels_masquerade(&desired).len())
        };
        assert_eq!(source(false), (Some(Is::This("10.1.0.0/16".parse().unwrap())), 0));
        assert_eq!(source(true), (Some(Is::This("10.1.9.0/24".parse().unwrap())), 5));
    }
}
