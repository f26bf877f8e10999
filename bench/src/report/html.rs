//! The report as one HTML page: tables and plots, light or dark as the reader has it.

use std::fmt::Write;

use clap::ValueEnum;

use super::plot::{self, Bar, Group, Plot};
use super::{Table, facts, goals, notes, tables, title};
use crate::plan::{Metric, Scenario, Subject};
use crate::record::{Record, Row};

/// As a page that refers to nothing outside itself.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn html(record: &Record) -> anyhow::Result<String> {
    let mut body = String::from("<h1>overlay-bench</h1>\n<dl>\n");
    // Writing to a string cannot fail.
    for (name, value) in facts(record) {
        let _ = writeln!(body, "<dt>{}</dt><dd>{}</dd>", escape(&name), escape(&value));
    }
    body += "</dl>\n";
    let notes = notes(record);
    if !notes.is_empty() {
        body += "<ul class=\"notes\">\n";
        for note in notes {
            let _ = writeln!(body, "<li>{}</li>", escape(&note));
        }
        body += "</ul>\n";
    }
    if let Some(table) = goals(record, ", ") {
        let _ = write!(
            body,
            "<h2>{}</h2>\n<div class=\"goals\">{}</div>\n",
            table.title,
            draw(&table, table.header.len())
        );
    }
    let subjects = record.distinct(|key| &key.subject);
    body += &legend(&subjects);
    for (place, tables) in tables(record) {
        let _ = writeln!(body, "<h2>{}</h2>\n<div class=\"plots\">", escape(&place));
        for metric in Metric::ALL {
            if let Some(plot) = plotted(record, &place, metric, &subjects) {
                let _ = writeln!(body, "<figure>{}</figure>", plot::svg(&plot)?);
            }
        }
        body += "</div>\n";
        for table in tables {
            let _ = write!(body, "<h3>{}</h3>\n{}", escape(&table.title), draw(&table, 2));
        }
    }
    let title = format!("overlay-bench {}", record.date);
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{}</title>\n\
         <style>{}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        escape(&title),
        style()
    ))
}

/// A metric's values at a place, a group for each scenario.
fn plotted(record: &Record, place: &str, metric: Metric, subjects: &[String]) -> Option<Plot> {
    let rows: Vec<&Row> = record.rows(place, metric).collect();
    let bar = |row: &&Row| Bar {
        series: series(subjects, &row.key.subject),
        spread: row.value,
        text: match row.ratio {
            Some(ratio) => format!("{} · {:.2}×", metric.show(row.value.median), ratio.median),
            None => metric.show(row.value.median),
        },
    };
    let group = |label: String| {
        let bars: Vec<Bar> = rows.iter().filter(|row| row.key.scenario == label).map(bar).collect();
        (!bars.is_empty()).then_some(Group { label, bars })
    };
    let scenarios = record.distinct(|key| &key.scenario);
    let known = scenarios.into_iter().filter(|name| Scenario::named(name).is_some());
    let groups: Vec<Group> = known.filter_map(group).collect();
    let better = if metric.more_is_better() { "more is better" } else { "less is better" };
    let title = format!("{} ({better})", title(record, metric));
    (!groups.is_empty()).then_some(Plot { title, groups })
}

fn legend(subjects: &[String]) -> String {
    let mut text = String::from("<p class=\"legend\">");
    for subject in subjects {
        let index = series(subjects, subject) % plot::SERIES.len();
        let _ = write!(text, "<span class=\"s{index}\">{}</span> ", escape(subject));
    }
    text + "</p>\n"
}

/// The colour of a subject: the same in every report, whatever else was measured.
fn series(subjects: &[String], name: &str) -> usize {
    let known = Subject::value_variants().iter().position(|subject| subject.to_string() == name);
    known.or_else(|| subjects.iter().position(|subject| subject == name)).unwrap_or(0)
}

/// Columns from `numbers` on are aligned to the right. A line is drawn where the first cell changes.
fn draw(table: &Table, numbers: usize) -> String {
    let cells = |tag: &str, row: &[String]| {
        let cell = |(index, text): (usize, &String)| {
            let class = match (index < numbers, text.as_str()) {
                (_, "pass") => " class=\"pass\"",
                (_, "miss") => " class=\"miss\"",
                (true, _) => "",
                (false, _) => " class=\"number\"",
            };
            format!("<{tag}{class}>{}</{tag}>", escape(text))
        };
        row.iter().enumerate().map(cell).collect::<String>()
    };
    let mut text = format!("<div class=\"wide\"><table>\n<tr>{}</tr>\n", cells("th", &table.header));
    let mut before = None;
    for row in &table.rows {
        let class = if before == row.first() { "" } else { " class=\"first\"" };
        let _ = writeln!(text, "<tr{class}>{}</tr>", cells("td", row));
        before = row.first();
    }
    text + "</table></div>\n"
}

/// The colours' marks in the plots are mapped here; the dark scheme has its own.
fn style() -> String {
    let mut text = String::from(STYLE);
    for (index, mark) in plot::SERIES.iter().enumerate() {
        let _ = writeln!(text, ".s{index}::before {{ background: {mark}; }}");
    }
    let _ = write!(
        text,
        "svg [fill=\"{ink}\"] {{ fill: var(--ink); }}\nsvg [stroke=\"{ink}\"] {{ stroke: var(--ink); }}\n\
         svg [stroke=\"{faint}\"] {{ stroke: var(--line); }}\n",
        ink = plot::INK,
        faint = plot::FAINT
    );
    text
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c1f23; --soft: #5c6570; --line: #d9dde2; --page: #ffffff;
  --pass: #1d7f45; --miss: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --soft: #9aa4af; --line: #3a4149; --page: #15181c;
    --pass: #5fce8f; --miss: #ff8a80; }
}
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin: 0 0 .6rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.notes { color: var(--miss); }
.legend { margin: 1rem 0 0; padding: .5rem 0; position: sticky; top: 0; background: var(--page); }
.legend span { margin-right: 1.2rem; white-space: nowrap; }
.legend span::before { content: ''; display: inline-block; width: .8em; height: .8em;
  margin-right: .4em; border-radius: 2px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr)); gap: 1rem 2rem; }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
svg text { font-family: system-ui, sans-serif; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .18rem .7rem; text-align: left; }
th { color: var(--soft); font-weight: 600; }
tr.first td { border-top: 1px solid var(--line); }
/* The last column of the goals is long. */
.goals td:last-child { white-space: normal; }
.number { text-align: right; }
.pass { color: var(--pass); font-weight: 600; } .miss { color: var(--miss); font-weight: 600; }
";
