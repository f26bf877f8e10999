//! What is kept of a run: every sample, and the summary of the samples.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::client::Measured;
use crate::goals::Verdict;
use crate::machine::Machine;
use crate::plan::{HostLoad, Metric, Scenario};
use crate::process::{CpuTime, Daemons};
use crate::stats::{Percentiles, Spread, paired_ratios};

/// A whole run, as in the JSON file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// When it began, in UTC (RFC 3339).
    pub date: String,
    /// The command line.
    pub command: String,
    /// The machine.
    pub machine: Machine,
    /// The subject that the ratios are to, if it was measured.
    pub baseline: Option<String>,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// How long streams and floods ran, in seconds.
    pub seconds: f64,
    /// Datagrams per second where the rate was set.
    pub udp_rate: u32,
    /// What else the processors had to do.
    #[serde(default)]
    pub load: HostLoad,
    /// Every measurement, in the order in which they were made.
    pub samples: Vec<Sample>,
    /// What went wrong.
    pub failures: Vec<Failure>,
    /// What was not as it was asked for, a line each.
    pub remarks: Vec<String>,
    /// The samples of all rounds together, computed by [`summarise`](Self::summarise).
    pub summary: Vec<Row>,
    /// The goals, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub goals: Vec<Verdict>,
}

/// Which measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Topology and wire, as in `routed/plain`.
    pub place: String,
    /// Who carried the packets.
    pub subject: String,
    /// What was measured.
    pub scenario: String,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Which.
    #[serde(flatten)]
    pub key: Key,
    /// In which round, from 1.
    pub round: u32,
    /// What came of it.
    #[serde(flatten)]
    pub measured: Measured,
    /// What it cost, where a daemon did the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
}

/// What the daemons spent on a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Processor time of all daemons together, in seconds.
    pub cpu_seconds: f64,
    /// Memory of the larger daemon at its end, in bytes.
    pub resident: u64,
}

/// A measurement that could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which.
    #[serde(flatten)]
    pub key: Key,
    /// In which round, from 1.
    pub round: u32,
    /// Why.
    pub error: String,
}

/// All rounds of one measurement together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Which.
    #[serde(flatten)]
    pub key: Key,
    /// How many rounds gave a value.
    pub rounds: usize,
    /// The value, in the scenario's unit.
    pub value: Spread,
    /// The value divided by the baseline's of the same round.
    pub ratio: Option<Spread>,
    /// The daemons' processor time for a gigabyte (10⁹ bytes) of payload delivered, in seconds.
    pub cpu_seconds_per_gigabyte: Option<Spread>,
    /// The daemons' processor time for a packet delivered, in nanoseconds.
    pub nanoseconds_per_packet: Option<Spread>,
    /// TCP segments sent again.
    pub retransmits: Option<Spread>,
    /// Medians of the round trips' percentiles, and the longest of all rounds.
    pub round_trip: Option<Percentiles>,
    /// The most memory that a daemon had, in bytes.
    pub resident: Option<u64>,
}

/// The daemons' state before a measurement.
#[derive(Debug)]
pub struct Meter<'d> {
    daemons: &'d Daemons,
    before: Option<CpuTime>,
}

impl<'d> Meter<'d> {
    /// Begins.
    #[must_use]
    pub fn begin(daemons: &'d Daemons) -> Self {
        Self { daemons, before: daemons.cpu_time() }
    }

    /// Ends: what was spent since. `None` without daemons.
    #[must_use]
    pub fn end(self) -> Option<Cost> {
        let spent = self.daemons.cpu_time()? - self.before?;
        Some(Cost { cpu_seconds: spent.seconds(), resident: self.daemons.resident()? })
    }
}

impl Record {
    /// Computes the summary, one row for each place, scenario and subject, in the order in which they
    /// first occur.
    pub fn summarise(&mut self) {
        let mut keys: Vec<&Key> = Vec::new();
        for sample in &self.samples {
            if !keys.contains(&&sample.key) {
                keys.push(&sample.key);
            }
        }
        self.summary = keys.into_iter().filter_map(|key| self.row(key)).collect();
    }

    /// The rows of a place and metric.
    pub fn rows(&self, place: &str, metric: Metric) -> impl Iterator<Item = &Row> {
        self.summary.iter().filter(move |row| row.key.place == place && row.metric() == Some(metric))
    }

    /// The places, scenarios and subjects that have values, each in the order of their first.
    #[must_use]
    pub fn distinct(&self, of: impl Fn(&Key) -> &String) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for name in self.summary.iter().map(|row| of(&row.key)) {
            if !found.contains(name) {
                found.push(name.clone());
            }
        }
        found
    }

    /// The congestion controls that the streams had.
    #[must_use]
    pub fn congestion(&self) -> Vec<&str> {
        let names: BTreeSet<&str> =
            self.samples.iter().filter_map(|sample| sample.measured.congestion.as_deref()).collect();
        names.into_iter().collect()
    }

    fn row(&self, key: &Key) -> Option<Row> {
        let samples = || self.samples.iter().filter(|sample| sample.key == *key);
        let spread = |of: &dyn Fn(&Sample) -> Option<f64>| {
            Spread::of(samples().filter_map(of).filter(|x| x.is_finite()))
        };
        let moves_data = matches!(
            Scenario::named(&key.scenario)?.metric(),
            Metric::BitsPerSecond | Metric::DatagramsPerSecond
        );
        let per = |sample: &Sample, what: f64| Some(sample.cost?.cpu_seconds / what);
        let round_trips: Vec<_> = samples().filter_map(|sample| sample.measured.round_trip).collect();
        Some(Row {
            key: key.clone(),
            rounds: samples().count(),
            value: spread(&|sample| Some(sample.measured.value))?,
            ratio: self.ratios(key),
            cpu_seconds_per_gigabyte: spread(&|sample| {
                per(sample, sample.measured.bytes as f64 / 1e9).filter(|_| moves_data)
            }),
            nanoseconds_per_packet: spread(&|sample| per(sample, sample.measured.packets? as f64 / 1e9)),
            retransmits: spread(&|sample| Some(sample.measured.retransmits? as f64)),
            round_trip: Percentiles::middle(&round_trips),
            resident: samples().filter_map(|sample| Some(sample.cost?.resident)).max(),
        })
    }

    fn ratios(&self, key: &Key) -> Option<Spread> {
        let subject = self.baseline.as_ref().filter(|baseline| **baseline != key.subject)?;
        // What is lost has no meaningful ratio: the baseline mostly loses nothing.
        Scenario::named(&key.scenario).filter(|scenario| scenario.metric() != Metric::LossPercent)?;
        let of_baseline = Key { subject: subject.clone(), ..key.clone() };
        Spread::of(paired_ratios(&self.values(key), &self.values(&of_baseline)))
    }

    fn values(&self, key: &Key) -> Vec<(u32, f64)> {
        let samples = self.samples.iter().filter(|sample| sample.key == *key);
        samples.map(|sample| (sample.round, sample.measured.value)).collect()
    }
}

impl Row {
    /// What its value is; `None` for a scenario that this program does not know.
    #[must_use]
    pub fn metric(&self) -> Option<Metric> {
        Scenario::named(&self.key.scenario).map(Scenario::metric)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two rounds on one place, overlayd half as fast as the kernel, then twice as fast.
    pub(crate) fn record() -> Record {
        let sample = |subject: &str, scenario: &str, round, value, cost| Sample {
            key: Key { place: "routed/plain".into(), subject: subject.into(), scenario: scenario.into() },
            round,
            measured: Measured {
                value,
                seconds: 2.0,
                bytes: 2_000_000_000,
                packets: Some(1_000_000),
                retransmits: (scenario == "tcp-1").then_some(7),
                congestion: (scenario == "tcp-1").then(|| "cubic".into()),
                sent: None,
                round_trip: (scenario == "udp-rtt").then(|| Percentiles {
                    p50: value as u64,
                    p90: 2 * value as u64,
                    p99: 3 * value as u64,
                    max: 4 * value as u64,
                    mean: value as u64,
                }),
            },
            cost,
        };
        let cost = |cpu_seconds| Some(Cost { cpu_seconds, resident: 10 << 20 });
        let machine = Machine {
            name: "lab".into(),
            cpu: "Abacus <9000>".into(),
            cpus: 2,
            memory: 8 << 30,
            kernel: "Linux 6.18".into(),
            busy: 0.0,
            versions: vec![("overlayd".into(), "overlayd 0.1".into())],
        };
        let mut record = Record {
            date: "2026-11-21T08:00:00Z".into(),
            command: "overlay-bench run".into(),
            machine,
            baseline: Some("kernel-vxlan".into()),
            rounds: 2,
            seconds: 2.0,
            udp_rate: 20_000,
            load: HostLoad::Busy,
            samples: vec![
                sample("kernel-vxlan", "tcp-1", 1, 8e9, None),
                sample("kernel-vxlan", "udp-rtt", 1, 8e3, None),
                sample("overlayd-vxlan", "tcp-1", 1, 4e9, cost(1.0)),
                sample("overlayd-vxlan", "udp-rtt", 1, 16e3, cost(1.0)),
                sample("kernel-vxlan", "tcp-1", 2, 2e9, None),
                sample("kernel-vxlan", "udp-rtt", 2, 8e3, None),
                sample("overlayd-vxlan", "tcp-1", 2, 4e9, cost(3.0)),
                sample("overlayd-vxlan", "udp-rtt", 2, 24e3, cost(1.0)),
            ],
            failures: Vec::new(),
            remarks: Vec::new(),
            summary: Vec::new(),
            goals: Vec::new(),
        };
        record.summarise();
        record
    }

    #[test]
    fn rows_hold_all_rounds() {
        let record = record();
        assert_eq!(record.summary.len(), 4);
        let row = &record.summary[2];
        assert_eq!(
            (row.key.subject.as_str(), row.key.scenario.as_str(), row.rounds),
            ("overlayd-vxlan", "tcp-1", 2)
        );
        assert_eq!(row.value, Spread { median: 4e9, min: 4e9, max: 4e9 });
        assert_eq!(row.ratio, Some(Spread { median: 1.25, min: 0.5, max: 2.0 }));
        assert_eq!(row.cpu_seconds_per_gigabyte, Some(Spread { median: 1.0, min: 0.5, max: 1.5 }));
        assert_eq!(row.nanoseconds_per_packet, Some(Spread { median: 2000.0, min: 1000.0, max: 3000.0 }));
        assert_eq!(row.retransmits, Some(Spread { median: 7.0, min: 7.0, max: 7.0 }));
        assert_eq!(row.resident, Some(10 << 20));
    }

    #[test]
    fn the_baseline_has_neither_ratio_nor_daemon() {
        let record = record();
        let row = &record.summary[0];
        assert_eq!((row.ratio, row.cpu_seconds_per_gigabyte, row.resident), (None, None, None));
    }

    #[test]
    fn round_trips_keep_their_percentiles_and_cost_nothing_by_the_gigabyte() {
        let record = record();
        let row = &record.summary[3];
        assert_eq!(
            row.round_trip,
            Some(Percentiles { p50: 20_000, p90: 40_000, p99: 60_000, max: 96_000, mean: 20_000 })
        );
        assert_eq!(row.ratio.map(|ratio| ratio.median), Some(2.5));
        assert_eq!(row.cpu_seconds_per_gigabyte, None);
        assert!(row.nanoseconds_per_packet.is_some());
    }

    #[test]
    fn the_json_can_be_read_again() {
        let record = record();
        let again: Record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(again.samples, record.samples);
        assert_eq!(again.summary, record.summary);
    }
}
