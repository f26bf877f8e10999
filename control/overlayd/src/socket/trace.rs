//! `POST /v1/trace?…`: what the data plane would do with a packet, by the rule and the table that its loops have.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use overlay::admit::SourceCheck;
use overlay::drops::DropReason;
use overlay::table::PeerTable;
use overlay::trace::{self, Described, NoPacket};
use overlay_wire::ecn::Ecn;
use overlay_wire::icmp::IcmpError;
use overlay_wire::ip::protocol;

use super::source::{Source, not_yet};
use overlay_api::reach::Way;
use overlay_api::trace::{Answer, Direction, Dropped, Peer, Question, Verdict};
use overlay_leases::lease::LeaseBackend;
use overlay_node::ways::Reached;

const TTL: u8 = 64;

pub(super) async fn trace(
    State(source): State<Arc<dyn Source>>,
    Query(question): Query<Question>,
) -> Response {
    let Some(node) = source.node() else { return not_yet(source.as_ref()) };
    let table = node.tunnel().map(|tunnel| (tunnel.table(), tunnel.source_check));
    let table = table.as_ref().map(|(table, check)| (&**table, *check));
    let here = Here { public_ip: node.plan().underlay.public_ip, mtu: node.plan().mtu() };
    match answer(&question, here, &node.peers(), table) {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()).into_response(),
    }
}

/// This node.
#[derive(Debug, Clone, Copy)]
struct Here {
    public_ip: Ipv4Addr,
    mtu: u32,
}

/// Answers where the others are `peers`, and the loops have `table`, if there are any.
fn answer(
    question: &Question,
    here: Here,
    peers: &[Reached],
    table: Option<(&PeerTable, SourceCheck)>,
) -> Result<Answer, NoPacket> {
    let packet = described(question);
    let past = |peer: Option<&Reached>| {
        let mtu = peer.filter(|_| question.direction == Direction::Egress).map(|_| here.mtu);
        Answer { peer: peer.map(shown), verdict: None, mtu, far_end: None }
    };
    let other_end = match question.direction {
        Direction::Egress => peers.iter().filter(|peer| has(peer, question.dst)).max_by_key(length),
        Direction::Ingress => sender(peers, question.src),
    };
    // What is said to arrive by the tunnel does, whichever way others go.
    let by_tunnel = question.direction == Direction::Ingress && question.outer.is_some();
    let is_direct = other_end.is_some_and(|peer| peer.way == Way::Direct) && !by_tunnel;
    let Some((table, check)) = table.filter(|_| !is_direct) else { return Ok(past(other_end)) };
    match question.direction {
        Direction::Egress => {
            let trace::Outward { verdict, to: _, mtu, far_end } =
                packet.outward(table, here.public_ip.into())?;
            let peer = other_end.map(shown);
            Ok(Answer { peer, verdict: Some(said(verdict)), mtu, far_end: far_end.map(said) })
        }
        Direction::Ingress => {
            let outside = Ecn::of_tos(question.outer_ecn.unwrap_or_default());
            let trace::Inward { verdict, outer } = packet.inward(table, check, question.outer, outside)?;
            let at = |peer: &&Reached| Some(IpAddr::from(peer.lease.attrs.public_ip)) == outer;
            let peer = other_end.filter(at).or_else(|| peers.iter().find(at)).map(shown);
            Ok(Answer { peer, verdict: Some(said(verdict)), mtu: None, far_end: None })
        }
    }
}

fn described(question: &Question) -> Described {
    let Question { src, dst, .. } = *question;
    Described {
        src,
        dst,
        protocol: question.protocol.unwrap_or(if dst.is_ipv6() { protocol::ICMPV6 } else { protocol::ICMP }),
        ports: (question.source_port.unwrap_or_default(), question.port.unwrap_or_default()),
        len: question.len.unwrap_or_default(),
        dont_fragment: !question.may_fragment.unwrap_or_default(),
        ttl: question.ttl.unwrap_or(TTL),
        ecn: Ecn::of_tos(question.ecn.unwrap_or_default()),
    }
}

/// Who sends from `src`: whose pod it is, or which node itself.
fn sender(peers: &[Reached], src: IpAddr) -> Option<&Reached> {
    let owner = peers.iter().filter(|peer| has(peer, src)).max_by_key(length);
    owner.or_else(|| peers.iter().find(|peer| src == peer.lease.attrs.public_ip))
}

fn has(peer: &Reached, address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if peer.lease.subnet.contains(&address))
}

fn length(peer: &&Reached) -> u8 {
    peer.lease.subnet.prefix_len()
}

fn shown(Reached { lease, way, problem }: &Reached) -> Peer {
    let vtep_mac = match lease.attrs.backend {
        LeaseBackend::Vxlan { vtep_mac, .. } => Some(vtep_mac.to_string()),
        _ => None,
    };
    let (subnet, public_ip) = (lease.subnet, lease.attrs.public_ip);
    Peer { subnet, public_ip, vtep_mac, way: *way, problem: problem.clone() }
}

fn said(verdict: trace::Verdict) -> Verdict {
    let dropped = |reason: DropReason| Dropped {
        reason: reason.label().to_owned(),
        meaning: reason.meaning().to_owned(),
        remedy: reason.remedy().to_owned(),
    };
    let told = |error| match error {
        IcmpError::TimeExceeded => "time exceeded".to_owned(),
        IcmpError::NetUnreachable => "network unreachable".to_owned(),
        IcmpError::FragmentationNeeded { mtu } => format!("fragmentation needed, up to {mtu} bytes fit"),
    };
    Verdict { dropped: verdict.outcome.err().map(dropped), told: verdict.told.map(told) }
}

#[cfg(test)]
mod tests {
    use ipnet::Ipv4Net;
    use overlay::table::{self, Local};
    use overlay_leases::lease::{Lease, LeaseAttrs};
    use overlay_wire::{Families, Format, MacAddr};

    use super::*;

    const HERE: Here = Here { public_ip: Ipv4Addr::new(192, 168, 1, 12), mtu: 1450 };

    /// One node by the tunnel, and one by a plain route.
    fn peers() -> Vec<Reached> {
        [("10.1.63.0/24", "192.168.199.238", Way::Tunnel), ("10.1.7.0/24", "192.168.1.7", Way::Direct)]
            .map(|(subnet, public_ip, way)| {
                let backend = LeaseBackend::Vxlan { vni: 1, vtep_mac: MacAddr([2; 6]) };
                let attrs = LeaseAttrs { public_ip: public_ip.parse().unwrap(), backend };
                Reached { lease: Lease { subnet: subnet.parse().unwrap(), attrs }, way, problem: None }
            })
            .into()
    }

    fn subnet(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    /// As the workers have it.
    fn table() -> PeerTable {
        let local = Local {
            network: subnet("10.1.0.0/16").into(),
            subnets: subnet("10.1.9.0/24").into(),
            overlay_addresses: Ipv4Addr::new(10, 1, 9, 0).into(),
            public: HERE.public_ip.into(),
            addresses: vec![HERE.public_ip.into()],
            mtu: HERE.mtu,
            format: Format::Vxlan { vni: 1, vtep_mac: MacAddr([2; 6]) },
            port: 8472,
        };
        let peer = |Reached { lease, .. }: Reached| table::Peer {
            subnets: lease.subnet.into(),
            public: lease.attrs.public_ip.into(),
            vtep_macs: Some(Families::V4(MacAddr([2; 6]))),
        };
        PeerTable::new(local, peers().into_iter().map(peer).collect())
    }

    fn question(direction: Direction, src: &str, dst: &str) -> Question {
        Question::new(direction, src.parse().unwrap(), dst.parse().unwrap())
    }

    fn ask(question: Question) -> Answer {
        answer(&question, HERE, &peers(), Some((&table(), SourceCheck::Strict))).unwrap()
    }

    /// The subnet of the node, and for which reason it is dropped.
    fn outline(answer: &Answer) -> (Option<String>, Option<&str>) {
        let reason = answer.verdict.as_ref().and_then(|verdict| verdict.dropped.as_ref());
        (
            answer.peer.as_ref().map(|peer| peer.subnet.to_string()),
            reason.map(|reason| reason.reason.as_str()),
        )
    }

    #[test]
    fn a_packet_out_is_told_its_node_and_what_becomes_of_it_there() {
        let out = |src, dst| ask(question(Direction::Egress, src, dst));
        let good = out("10.1.9.3", "10.1.63.2");
        assert_eq!(outline(&good), (Some("10.1.63.0/24".to_owned()), None));
        assert_eq!((good.mtu, &good.far_end.unwrap().dropped), (Some(1450), &None));
        let forged = out("10.1.7.2", "10.1.63.2").far_end.and_then(|far| far.dropped).unwrap();
        assert_eq!((forged.reason.as_str(), forged.meaning.is_empty()), ("other_peers_source", false));

        let nobodys = out("10.1.9.3", "10.1.99.2");
        assert_eq!(outline(&nobodys), (None, Some("no_route")));
        assert_eq!(nobodys.verdict.unwrap().told.as_deref(), Some("network unreachable"));
        assert_eq!((nobodys.mtu, nobodys.far_end), (None, None));

        let large = Question { len: Some(1451), ..question(Direction::Egress, "10.1.9.3", "10.1.63.2") };
        let Verdict { dropped, told } = ask(large).verdict.unwrap();
        assert_eq!(dropped.unwrap().reason, "too_big");
        assert_eq!(told.as_deref(), Some("fragmentation needed, up to 1450 bytes fit"));
        let cut = Question { may_fragment: Some(true), ..large };
        assert_eq!(outline(&ask(cut)), (Some("10.1.63.0/24".to_owned()), None));
    }

    #[test]
    fn what_goes_by_a_plain_route_or_has_no_tunnel_meets_no_rule() {
        let direct = ask(question(Direction::Egress, "10.1.9.3", "10.1.7.2"));
        assert_eq!((direct.peer.unwrap().way, direct.verdict, direct.mtu), (Way::Direct, None, Some(1450)));
        let arriving = question(Direction::Ingress, "10.1.7.2", "10.1.9.3");
        assert_eq!(ask(arriving).verdict, None);
        let by_tunnel = Question { outer: Some(IpAddr::from([192, 168, 1, 7])), ..arriving };
        assert_eq!(ask(by_tunnel).verdict, Some(Verdict { dropped: None, told: None }));
        let without = answer(&question(Direction::Egress, "10.1.9.3", "10.1.63.2"), HERE, &peers(), None);
        assert_eq!(without.unwrap().verdict, None);
    }

    #[test]
    fn a_packet_in_is_judged_by_where_it_comes_from() {
        let from = |src, outer: Option<&str>| {
            let outer = outer.map(|outer| outer.parse().unwrap());
            ask(Question { outer, ..question(Direction::Ingress, src, "10.1.9.3") })
        };
        let known = || Some("10.1.63.0/24".to_owned());
        assert_eq!(outline(&from("10.1.63.2", None)), (known(), None));
        assert_eq!(outline(&from("192.168.199.238", None)), (known(), None));
        assert_eq!(outline(&from("10.1.99.2", None)), (known(), Some("stale_source")));
        assert_eq!(outline(&from("10.1.99.2", Some("192.168.1.99"))), (None, Some("unknown_peer")));
        assert_eq!(
            outline(&from("10.1.7.2", Some("192.168.199.238"))),
            (known(), Some("other_peers_source"))
        );
    }
}
