//! Reports: the same tables on the terminal, in Markdown and in HTML, which adds plots.

mod html;
mod markdown;
mod plot;
mod terminal;

use crate::goals::Verdict;
use crate::machine::Machine;
use crate::plan::{Metric, thousands};
use crate::record::{Record, Row};
use crate::stats::{Percentiles, Spread};

pub use html::html;
pub use markdown::markdown;
pub use terminal::terminal;

/// A table with its title. Every row has as many cells as the header.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Table {
    title: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// That the machine had other things to do, in words.
#[must_use]
pub fn busy(machine: &Machine) -> String {
    let percent = 100.0 * machine.busy;
    format!(
        "other programs took {percent:.0} % of the processors before or after the run: do not draw conclusions"
    )
}

/// What the figures were measured on and with, name and value.
fn facts(record: &Record) -> Vec<(String, String)> {
    let machine = &record.machine;
    let memory = machine.memory as f64 / f64::from(1 << 30);
    let mut facts = vec![
        ("date".into(), record.date.clone()),
        ("machine".into(), format!("{}: {} × {}, {memory:.1} GiB", machine.name, machine.cpus, machine.cpu)),
        ("kernel".into(), machine.kernel.clone()),
        ("load".into(), record.load.describe(machine.cpus)),
        ("other load".into(), format!("{:.0} % before or after the run", 100.0 * machine.busy)),
        ("measured".into(), format!("{} rounds, {} s for streams and floods", record.rounds, record.seconds)),
        ("command".into(), record.command.clone()),
    ];
    let congestion = record.congestion();
    if !congestion.is_empty() {
        facts.push(("TCP".into(), format!("congestion control {}", congestion.join(" and "))));
    }
    facts.extend(machine.versions.clone());
    facts
}

/// One table for each metric of each place.
fn tables(record: &Record) -> Vec<(String, Vec<Table>)> {
    let of_place = |place: String| {
        let of_metric = |metric| {
            let mut rows: Vec<&Row> = record.rows(&place, metric).collect();
            let scenarios = record.distinct(|key| &key.scenario);
            // Subjects side by side; within a scenario their order is kept.
            rows.sort_by_key(|row| scenarios.iter().position(|name| *name == row.key.scenario));
            (!rows.is_empty()).then(|| table(record, metric, &rows))
        };
        let tables = Metric::ALL.into_iter().filter_map(of_metric).collect();
        (place, tables)
    };
    record.distinct(|key| &key.place).into_iter().map(of_place).collect()
}

/// What a table or plot shows, and on what kind of host.
fn title(record: &Record, metric: Metric) -> String {
    format!("{}, {} host", metric.title(), record.load)
}

/// A column: its heading, and what it shows of a row.
type Column = (String, Box<dyn Fn(&Row) -> String>);

fn table(record: &Record, metric: Metric, rows: &[&Row]) -> Table {
    let columns = columns(record, metric, rows.iter().any(|row| row.resident.is_some()));
    Table {
        title: title(record, metric),
        header: columns.iter().map(|(name, _)| name.clone()).collect(),
        rows: rows.iter().map(|row| columns.iter().map(|(_, show)| show(row)).collect()).collect(),
    }
}

/// The columns that have something to say about a metric. Where no daemon is measured there is no
/// cost to show.
fn columns(record: &Record, metric: Metric, with_cost: bool) -> Vec<Column> {
    let column = |name: &str, show: fn(&Row) -> String| -> Column { (name.into(), Box::new(show)) };
    let mut columns = vec![
        column("scenario", |row| row.key.scenario.clone()),
        column("subject", |row| row.key.subject.clone()),
        ("median".into(), Box::new(move |row: &Row| metric.show(row.value.median)) as _),
        ("min … max".into(), Box::new(move |row| metric.show_range(row.value.min, row.value.max))),
    ];
    if metric.has_round_trips() {
        columns.push(column("average", |row| percentile(row, |p| p.mean)));
        columns.push(column("p90", |row| percentile(row, |p| p.p90)));
        columns.push(column("p99", |row| percentile(row, |p| p.p99)));
        columns.push(column("longest", |row| percentile(row, |p| p.max)));
    }
    if let Some(baseline) = record.baseline.as_ref().filter(|_| metric != Metric::LossPercent) {
        columns.push(column(&format!("× {baseline}"), |row| spread(row.ratio, |x| format!("{x:.2}"))));
    }
    if metric == Metric::BitsPerSecond {
        columns.push(column("sent again", |row| median(row.retransmits, thousands)));
    }
    if with_cost && matches!(metric, Metric::BitsPerSecond | Metric::DatagramsPerSecond) {
        columns.push(column("CPU s/GB", |row| median(row.cpu_seconds_per_gigabyte, |x| format!("{x:.2}"))));
    }
    if with_cost && metric != Metric::ConnectionsPerSecond {
        columns.push(column("CPU ns/packet", |row| median(row.nanoseconds_per_packet, thousands)));
    }
    if with_cost {
        columns.push(column("memory", |row| row.resident.map_or(NONE.into(), mebibytes)));
    }
    columns
}

/// What went wrong, and what was not as it was asked for.
fn notes(record: &Record) -> Vec<String> {
    let failure = |failure: &crate::record::Failure| {
        let key = &failure.key;
        format!("{} {} {} round {}: {}", key.place, key.subject, key.scenario, failure.round, failure.error)
    };
    record.remarks.iter().cloned().chain(record.failures.iter().map(failure)).collect()
}

/// The goals, if they were asked for. Of many measurements of one the worst are shown, `between`
/// them that.
fn goals(record: &Record, between: &str) -> Option<Table> {
    let row = |verdict: &Verdict| {
        let mark = match verdict.reached {
            Some(true) => "pass",
            Some(false) => "miss",
            None => NONE,
        };
        let mut measured: Vec<_> = verdict.measured.iter().take(WORST).cloned().collect();
        match verdict.measured.len() {
            0 => measured.push("not measured".into()),
            len if len > WORST => measured.push(format!("and {} better", len - WORST)),
            _ => {}
        }
        vec![verdict.what.clone(), verdict.goal.clone(), mark.into(), measured.join(between)]
    };
    let header = ["what", "goal", "", "measured"].map(str::to_owned).to_vec();
    let rows: Vec<_> = record.goals.iter().map(row).collect();
    (!rows.is_empty()).then(|| Table { title: "Goals".into(), header, rows })
}

fn spread(spread: Option<Spread>, show: impl Fn(f64) -> String) -> String {
    spread.map_or(NONE.into(), |s| format!("{} ({} … {})", show(s.median), show(s.min), show(s.max)))
}

fn median(spread: Option<Spread>, show: impl Fn(f64) -> String) -> String {
    spread.map_or(NONE.into(), |s| show(s.median))
}

fn percentile(row: &Row, of: fn(&Percentiles) -> u64) -> String {
    row.round_trip.map_or(NONE.into(), |p| Metric::RoundTrip.show(of(&p) as f64))
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// So many measurements of one goal are shown.
const WORST: usize = 4;
const NONE: &str = "-";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::record;
    use crate::record::{Failure, Key};

    fn full_record() -> Record {
        let mut record = record();
        record.goals = vec![Verdict {
            what: "round trip".into(),
            goal: "at most 2.5".into(),
            measured: (0..9).map(|i| format!("!2.{} routed/plain", 9 - i)).collect(),
            reached: Some(false),
        }];
        record.failures = vec![Failure {
            key: Key { place: "routed/plain".into(), subject: "peer".into(), scenario: "tcp-1".into() },
            round: 2,
            error: "no <answer> | at all".into(),
        }];
        record
    }

    #[test]
    fn tables_put_the_subjects_of_a_scenario_side_by_side() {
        let tables = tables(&record());
        let (place, tables) = &tables[0];
        assert_eq!(place, "routed/plain");
        assert_eq!(
            tables.iter().map(|t| t.title.as_str()).collect::<Vec<_>>(),
            ["TCP throughput, busy host", "Round trip, median, busy host"]
        );
        let names = |table: &Table| table.rows.iter().map(|row| row[1].clone()).collect::<Vec<_>>();
        assert_eq!(names(&tables[0]), ["kernel-vxlan", "overlayd-vxlan"]);
        let row = tables[0].header.iter().zip(&tables[0].rows[1]);
        let row: Vec<String> = row.map(|(name, cell)| format!("{name}: {cell}")).collect();
        assert_eq!(
            row,
            [
                "scenario: tcp-1",
                "subject: overlayd-vxlan",
                "median: 4.00 Gbit/s",
                "min … max: 4.00 … 4.00 Gbit/s",
                "× kernel-vxlan: 1.25 (0.50 … 2.00)",
                "sent again: 7",
                "CPU s/GB: 1.00",
                "CPU ns/packet: 2,000",
                "memory: 10.0 MiB",
            ]
        );
        assert_eq!(tables[0].rows[0][4..], ["-", "7", "-", "-", "-"]);
    }

    #[test]
    fn every_report_names_machine_command_figures_and_failures() {
        let record = full_record();
        for report in [terminal(&record), markdown(&record)] {
            for wanted in [
                "Abacus <9000>",
                "Linux 6.18",
                "congestion control cubic",
                "busy: 4 ordinary processor hogs on 2 processors",
                "TCP throughput, busy host",
                "overlay-bench run",
                "1.25 (0.50 … 2.00)",
                "no <answer>",
                "miss",
                "and 5 better",
            ] {
                assert!(report.contains(wanted), "{wanted} is not in\n{report}");
            }
        }
        assert!(markdown(&record).contains(r"no <answer> \| at all"));
    }

    #[test]
    fn the_page_needs_nothing_else_and_escapes_what_it_shows() {
        let page = html(&full_record()).unwrap();
        assert!(page.contains("Abacus &lt;9000&gt;") && page.contains("no &lt;answer&gt;"));
        assert!(page.contains("<svg") && page.contains("prefers-color-scheme: dark"));
        for outside in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("busy: 4 ordinary processor hogs"));
        assert!(page.contains("TCP throughput, busy host (more is better)"));
        assert_eq!(page.matches("<table").count(), page.matches("</table>").count());
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }
}
