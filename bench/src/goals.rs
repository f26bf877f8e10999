//! The speed to reach: the goals, as data, and whether a run reaches them.

use std::fmt;
use std::fs;
use std::time::Duration;

use integration::{Site, Store, await_until};
use serde::{Deserialize, Serialize};

use crate::lookup::{self, Lookup};
use crate::plan::HostLoad;
use crate::plan::Scenario::{self, Ping, Tcp1, Tcp4, Tcp16, TcpBoth, TcpReverse, TcpRtt, Udp64, UdpRtt};
use crate::process::Daemons;
use crate::record::{Key, Record, Row};
use crate::stats::Percentiles;

/// A goal and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// What is to be fast.
    pub what: String,
    /// How fast.
    pub goal: String,
    /// What was measured, a part for each place and scenario, the worst first; those that miss the
    /// goal are marked by `!`. Empty if nothing was measured.
    pub measured: Vec<String>,
    /// Whether it is reached; `None` if it was not measured.
    pub reached: Option<bool>,
}

/// A goal that is a ratio to the kernel's VXLAN.
struct RatioGoal {
    what: &'static str,
    /// Places, by the beginning or end of their names.
    place: fn(&str) -> bool,
    scenarios: &'static [Scenario],
    subjects: &'static [&'static str],
    bound: Bound,
}

#[derive(Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

const RATIO_GOALS: [RatioGoal; 7] = [
    RatioGoal {
        what: "TCP, 1 and 4 streams and reverse, plain wire, behind a router",
        place: |place| place == "routed/plain",
        scenarios: &[Tcp1, Tcp4, TcpReverse],
        subjects: VXLAN,
        bound: Bound::AtLeast(1.0),
    },
    RatioGoal {
        what: "TCP, 1 stream and reverse, super-packet veth",
        place: passes_super_packets,
        scenarios: &[Tcp1, TcpReverse],
        subjects: VXLAN,
        bound: Bound::AtLeast(0.8),
    },
    RatioGoal {
        what: "TCP, 4 streams, super-packet veth",
        place: passes_super_packets,
        scenarios: &[Tcp4],
        subjects: VXLAN,
        bound: Bound::AtLeast(0.4),
    },
    RatioGoal {
        what: "TCP, any, super-packet veth (12 × flannel's udp backend)",
        place: passes_super_packets,
        scenarios: &[Tcp1, Tcp4, Tcp16, TcpReverse, TcpBoth],
        subjects: &["overlayd-udp", "overlayd-vxlan"],
        bound: Bound::AtLeast(0.04),
    },
    RatioGoal {
        what: "TCP, 1 stream and reverse, to and from a kernel VXLAN host",
        place: |_| true,
        scenarios: &[Tcp1, TcpReverse],
        subjects: &["overlayd-kernel"],
        bound: Bound::AtLeast(0.6),
    },
    RatioGoal {
        what: "64-byte UDP delivered under flood",
        place: |_| true,
        scenarios: &[Udp64],
        subjects: VXLAN,
        bound: Bound::AtLeast(1.0),
    },
    RatioGoal {
        what: "round trip, median",
        place: |_| true,
        scenarios: &[TcpRtt, UdpRtt],
        subjects: VXLAN,
        bound: Bound::AtMost(2.5),
    },
];
/// Where others want the processors, too.
const BUSY_GOALS: [RatioGoal; 2] = [
    RatioGoal {
        what: "TCP, 1 and 4 streams and reverse, plain wire, busy host",
        place: |place| place.ends_with("/plain"),
        scenarios: &[Tcp1, Tcp4, TcpReverse],
        subjects: VXLAN,
        bound: Bound::AtLeast(0.9),
    },
    RatioGoal {
        what: "ping, average, busy host",
        place: |_| true,
        scenarios: &[Ping],
        subjects: VXLAN,
        bound: Bound::AtMost(6.0),
    },
];
/// The format of what it is compared with.
const VXLAN: &[&str] = &["overlayd-vxlan"];
/// Leases in the goals of lookup and memory.
const LEASES: u32 = 10_000;
/// Changes of leases in a second.
const CHANGES: u32 = 1_000;
const LOOKUP_NANOSECONDS: f64 = 5.0;
/// A lookup among changing leases that takes longer by no more than this is no slower: that much
/// two spells of the same differ.
const SAME: f64 = 1.1;
const MEMORY: u64 = 64 << 20;
/// The longest ping on a busy host.
const LONGEST: Duration = Duration::from_millis(5);
/// The slowest round trip but one in a hundred where processors are awake: no time slice's length.
const AWAKE: Duration = Duration::from_millis(1);

/// Judges a run by the goals for its load; on an idle host, lookup and memory, too, measured here and now.
///
/// # Panics
/// As the harness does, if the daemon with many leases does not come up.
#[must_use]
pub fn judge(record: &Record) -> Vec<Verdict> {
    let rows = &record.summary;
    let judged = |goals: &[RatioGoal]| goals.iter().map(|goal| goal.judge(rows)).collect::<Vec<_>>();
    match record.load {
        HostLoad::Busy => {
            let longest = judge_round_trips(rows, "longest ping, busy host", &[Ping], LONGEST, |p| p.max);
            return [judged(&BUSY_GOALS), vec![longest]].concat();
        }
        HostLoad::Awake => {
            let what = "round trip, 99th percentile, awake host";
            return vec![judge_round_trips(rows, what, &[TcpRtt, UdpRtt], AWAKE, |p| p.p99)];
        }
        HostLoad::Idle => {}
    }
    let mut verdicts = judged(&RATIO_GOALS);
    verdicts.extend(judge_lookup(lookup::measure(LEASES, CHANGES)));
    verdicts.push(judge_memory(resident(LEASES)));
    verdicts
}

impl RatioGoal {
    /// Every place and scenario must reach the goal by the median of its rounds.
    fn judge(&self, rows: &[Row]) -> Verdict {
        let concerns = |row: &&Row| {
            let scenario = Scenario::named(&row.key.scenario);
            (self.place)(&row.key.place)
                && self.subjects.contains(&row.key.subject.as_str())
                && scenario.is_some_and(|scenario| self.scenarios.contains(&scenario))
        };
        let mut rows: Vec<_> =
            rows.iter().filter(concerns).filter_map(|row| Some((row, row.ratio?.median))).collect();
        rows.sort_by(|(_, a), (_, b)| if self.bound.is_lower() { a.total_cmp(b) } else { b.total_cmp(a) });
        let part = |(row, ratio): &(&Row, f64)| {
            let mark = if self.bound.holds(*ratio) { "" } else { "!" };
            let subject =
                if self.subjects.len() > 1 { format!(" {}", row.key.subject) } else { String::new() };
            format!("{mark}{ratio:.2} {} {}{subject}", row.key.place, row.key.scenario)
        };
        Verdict {
            what: self.what.into(),
            goal: self.bound.to_string(),
            measured: rows.iter().map(part).collect(),
            reached: rows.first().map(|(_, worst)| self.bound.holds(*worst)),
        }
    }
}

impl Bound {
    fn is_lower(self) -> bool {
        matches!(self, Self::AtLeast(_))
    }

    fn holds(self, ratio: f64) -> bool {
        match self {
            Self::AtLeast(bound) => ratio >= bound,
            Self::AtMost(bound) => ratio <= bound,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound:?} × kernel VXLAN"),
            Self::AtMost(bound) => write!(f, "at most {bound:?} × kernel VXLAN"),
        }
    }
}

/// What `of` tells of the round trips in `scenarios` is to be shorter than `bound`, whoever is compared with it.
fn judge_round_trips(
    rows: &[Row],
    what: &str,
    scenarios: &[Scenario],
    bound: Duration,
    of: fn(&Percentiles) -> u64,
) -> Verdict {
    let concerns = |row: &&Row| {
        VXLAN.contains(&row.key.subject.as_str())
            && scenarios.iter().any(|scenario| scenario.to_string() == row.key.scenario)
    };
    let mut times: Vec<_> = rows
        .iter()
        .filter(concerns)
        .filter_map(|row| Some((Duration::from_nanos(of(&row.round_trip?)), &row.key)))
        .collect();
    times.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    let part = |(time, key): &(Duration, &Key)| {
        let mark = if *time < bound { "" } else { "!" };
        format!("{mark}{:.2} ms {} {}", time.as_secs_f64() * 1e3, key.place, key.scenario)
    };
    Verdict {
        what: what.into(),
        goal: format!("below {} ms", bound.as_millis()),
        measured: times.iter().map(part).collect(),
        reached: times.first().map(|(longest, _)| *longest < bound),
    }
}

fn passes_super_packets(place: &str) -> bool {
    place.ends_with("/veth")
}

fn judge_lookup(lookup: Lookup) -> [Verdict; 2] {
    [
        Verdict {
            what: "lookup with 10,000 leases".into(),
            goal: format!("at most {LOOKUP_NANOSECONDS} ns"),
            measured: vec![format!("{:.2} ns", lookup.at_rest)],
            reached: Some(lookup.at_rest <= LOOKUP_NANOSECONDS),
        },
        Verdict {
            what: "lookup while leases change 1,000 times a second".into(),
            goal: "no slower".into(),
            measured: vec![format!(
                "{:.2} ns at {:.0} changes/s",
                lookup.changing, lookup.changes_per_second
            )],
            reached: (lookup.changes_per_second > 0.9 * f64::from(CHANGES))
                .then_some(lookup.changing <= SAME * lookup.at_rest),
        },
    ]
}

fn judge_memory(resident: Option<u64>) -> Verdict {
    Verdict {
        what: "resident memory with 10,000 leases".into(),
        goal: format!("at most {} MiB", MEMORY >> 20),
        measured: resident.map(|bytes| format!("{:.1} MiB", bytes as f64 / MIB)).into_iter().collect(),
        reached: resident.map(|bytes| bytes <= MEMORY),
    }
}

/// The memory of a daemon that has so many peers.
fn resident(leases: u32) -> Option<u64> {
    let site = Site::new();
    let host = site.host("worker", "192.168.1.12");
    let config = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#;
    let store = Store::dir_with(&site, "store", config);
    let Store::Dir(directory) = &store else { return None };
    for i in 1..=leases {
        let [_, b, c, _] = (i << 8).to_be_bytes();
        let mac = format!("02:00:00:00:{b:02x}:{c:02x}");
        let lease = format!(
            r#"{{"PublicIP":"172.16.{b}.{c}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
        );
        let file = directory.join("subnets").join(format!("10.{b}.{c}.0-24"));
        fs::write(&file, lease).unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
    }
    let daemon = host.overlayd(&store).start();
    await_until(Duration::from_secs(60), "the daemon to know all peers", || {
        daemon.status().peers().len() == leases as usize
    });
    Daemons(vec![daemon.id()]).resident()
}

const MIB: f64 = (1 << 20) as f64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;

    #[test]
    fn a_goal_is_reached_if_every_measurement_reaches_it() {
        let rows = record().summary;
        let verdict = RATIO_GOALS[0].judge(&rows);
        assert_eq!((verdict.reached, verdict.measured), (Some(true), vec!["1.25 routed/plain tcp-1".into()]));
        let mut slow = rows[2].clone();
        slow.key.scenario = "tcp-4".into();
        slow.ratio.as_mut().unwrap().median = 0.99;
        let verdict = RATIO_GOALS[0].judge(&[rows[2].clone(), slow]);
        assert_eq!(verdict.reached, Some(false));
        assert_eq!(verdict.goal, "at least 1.0 × kernel VXLAN");
        assert_eq!(verdict.measured, ["!0.99 routed/plain tcp-4", "1.25 routed/plain tcp-1"]);
    }

    #[test]
    fn round_trips_are_to_be_short() {
        let mut rows = record().summary;
        assert_eq!(RATIO_GOALS[6].judge(&rows).reached, Some(true));
        rows[3].ratio.as_mut().unwrap().median = 2.6;
        assert_eq!(RATIO_GOALS[6].judge(&rows).reached, Some(false));
    }

    #[test]
    fn a_busy_host_has_goals_of_its_own() {
        let mut record = record();
        assert_eq!(record.load, HostLoad::Busy);
        record.summary[3].key.scenario = "ping".into();
        let reached =
            |record: &Record| judge(record).iter().map(|verdict| verdict.reached).collect::<Vec<_>>();
        assert_eq!(reached(&record), [Some(true); 3]);
        record.summary[3].round_trip.as_mut().unwrap().max = 5_000_000;
        assert_eq!(reached(&record), [Some(true), Some(true), Some(false)]);
        record.load = HostLoad::Awake;
        assert_eq!(reached(&record), [None]);
        record.summary[3].key.scenario = "udp-rtt".into();
        assert_eq!(judge(&record)[0].measured, ["0.06 ms routed/plain udp-rtt"]);
    }

    #[test]
    fn what_was_not_measured_is_not_judged() {
        let rows = record().summary;
        let verdict = RATIO_GOALS[1].judge(&rows);
        assert_eq!((verdict.reached, verdict.measured), (None, Vec::new()));
        assert_eq!(judge_memory(None).reached, None);
    }

    #[test]
    fn lookups_and_memory_have_their_bounds() {
        let judged = |at_rest, changing, changes_per_second| {
            judge_lookup(Lookup { at_rest, changing, changes_per_second }).map(|verdict| verdict.reached)
        };
        assert_eq!(judged(4.0, 4.1, 1000.0), [Some(true), Some(true)]);
        assert_eq!(judged(5.1, 6.0, 1000.0), [Some(false), Some(false)]);
        assert_eq!(judged(4.0, 4.1, 500.0), [Some(true), None], "not enough changes to say");
        assert_eq!(judge_memory(Some(65 << 20)).reached, Some(false));
    }
}
