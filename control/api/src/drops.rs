//! What is dropped and why: `GET /v1/drops`.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Show;
use crate::status::Directions;
use overlay_support::text::{Align, ago, size, table};
use overlay_wire::drops::DropReason;

/// The answer: every reason, in both directions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drops(pub Directions<Vec<Drop>>);

/// One reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drop {
    /// Its name.
    pub reason: String,
    /// Packets dropped for it since the data plane started.
    pub packets: u64,
    /// One of the last of them: not more than one in a tenth of a second is looked at.
    pub last: Option<Last>,
}

/// A dropped packet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Last {
    /// When that was, in milliseconds since 1970.
    pub unix_ms: u64,
    /// How long ago.
    pub ago_ms: u64,
    /// Where it came from on the underlay, or was to go there.
    pub outer: Option<SocketAddr>,
    /// The inner packet's source.
    pub src: Option<IpAddr>,
    /// The inner packet's destination.
    pub dst: Option<IpAddr>,
    /// Its protocol number.
    pub protocol: Option<u8>,
    /// Its source and destination port, with TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// The inner packet's length, or that of what came if there is none to be seen.
    pub len: usize,
}

impl Last {
    /// `tcp 10.1.63.2:4000 → 10.1.9.3:80`, as far as it is known.
    fn inner(&self) -> String {
        let (Some(src), Some(dst)) = (self.src, self.dst) else { return "not to be read".to_owned() };
        let protocol = match self.protocol {
            Some(1 | 58) => "icmp".to_owned(),
            Some(6) => "tcp".to_owned(),
            Some(17) => "udp".to_owned(),
            other => format!("protocol {}", other.unwrap_or_default()),
        };
        match self.ports {
            Some((from, to)) => format!("{protocol} {src} port {from} to {dst} port {to}"),
            None => format!("{protocol} {src} to {dst}"),
        }
    }
}

impl Show for Drops {
    const RESOURCE: &'static str = "/v1/drops";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        let Self(Directions { egress, ingress }) = self;
        let rows: Vec<_> = [("egress", egress), ("ingress", ingress)]
            .into_iter()
            .flat_map(|(direction, drops)| drops.iter().map(move |drop| (direction, drop)))
            .filter(|(_, drop)| drop.packets > 0)
            .map(|(direction, Drop { reason, packets, last })| {
                let mut row = vec![direction.to_owned(), reason.clone(), packets.to_string()];
                row.extend(match last {
                    None => [const { String::new() }; 4],
                    Some(last) => {
                        let outer = last.outer.map_or_else(|| "-".to_owned(), |outer| outer.to_string());
                        [ago(Some(last.ago_ms)), outer, last.inner(), size(last.len as u64)]
                    }
                });
                row
            })
            .collect();
        if rows.is_empty() {
            return "no drops\n".to_owned();
        }
        const COLUMNS: [(&str, Align); 7] = [
            ("", Align::Left),
            ("REASON", Align::Left),
            ("PACKETS", Align::Right),
            ("LAST", Align::Right),
            ("UNDERLAY", Align::Left),
            ("INNER PACKET", Align::Left),
            ("LENGTH", Align::Right),
        ];
        let told = |drop: &&Drop| drop.packets > 0;
        let mut reasons: Vec<&str> =
            egress.iter().chain(ingress).filter(told).map(|drop| drop.reason.as_str()).collect();
        reasons.sort_unstable();
        reasons.dedup();
        let mut out = table(&COLUMNS, rows);
        // A newer daemon may have others.
        for reason in reasons.into_iter().filter_map(DropReason::named) {
            let (meaning, remedy) = (reason.meaning(), reason.remedy());
            let _ = write!(out, "\n{}: {meaning}\n  remedy: {remedy}\n", reason.label());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_with_who_gave_it_last() {
        let last = Last {
            unix_ms: 1,
            ago_ms: 1_500,
            outer: Some("192.168.199.99:4000".parse().unwrap()),
            src: Some("10.1.63.2".parse().unwrap()),
            dst: Some("10.1.9.3".parse().unwrap()),
            protocol: Some(17),
            ports: Some((4000, 53)),
            len: 60,
        };
        let drop = |reason: &str, packets, last| Drop { reason: reason.into(), packets, last };
        let drops = Drops(Directions {
            egress: vec![drop("no_route", 0, None)],
            ingress: vec![
                drop("unknown_peer", 3, Some(last.clone())),
                drop("truncated", 1, Some(Last { src: None, ..last })),
            ],
        });
        let text = drops.to_text(None);
        assert!(text.contains("udp 10.1.63.2 port 4000 to 10.1.9.3 port 53"), "{text}");
        assert!(text.contains("192.168.199.99:4000") && text.contains("1 s ago"), "{text}");
        assert!(text.contains("not to be read") && !text.contains("no_route"), "{text}");
        for reason in [DropReason::UnknownPeer, DropReason::Truncated] {
            let told = format!("\n{}: {}\n  remedy: {}\n", reason.label(), reason.meaning(), reason.remedy());
            assert_eq!(text.matches(&told).count(), 1, "no {told:?} in {text}");
        }
    }

    #[test]
    fn a_reason_in_both_directions_is_explained_once_and_one_of_another_version_not() {
        let drop = |reason: &str| Drop { reason: reason.into(), packets: 1, last: None };
        let drops = Drops(Directions {
            egress: vec![drop("not_ip")],
            ingress: vec![drop("not_ip"), drop("of_tomorrow")],
        });
        let text = drops.to_text(None);
        assert_eq!(text.matches("remedy: ").count(), 1, "{text}");
        assert!(text.contains("of_tomorrow"), "{text}");
    }
}
