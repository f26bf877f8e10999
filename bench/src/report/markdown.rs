//! The report in Markdown.

use std::fmt::Write;

use super::{Table, facts, goals, notes, tables};
use crate::record::Record;

/// As Markdown, to be put below a heading of one's own.
#[must_use]
pub fn markdown(record: &Record) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for (name, value) in facts(record) {
        let _ = writeln!(text, "- {name}: {value}");
    }
    if let Some(table) = goals(record, ", ") {
        let _ = write!(text, "\n## {}\n\n{}", table.title, draw(&table, table.header.len()));
    }
    for (place, tables) in tables(record) {
        let _ = writeln!(text, "\n## {place}");
        for table in tables {
            let _ = write!(text, "\n### {}\n\n{}", table.title, draw(&table, 2));
        }
    }
    let notes = notes(record);
    if !notes.is_empty() {
        let _ = writeln!(text, "\n## Notes\n");
        for note in notes {
            let _ = writeln!(text, "- {}", escape(&note));
        }
    }
    text
}

/// Columns from `numbers` on are aligned to the right.
fn draw(table: &Table, numbers: usize) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let rule = |index: usize| if index < numbers { "---" } else { "--:" }.to_owned();
    let mut text = line(table.header.clone());
    text += &line((0..table.header.len()).map(rule).collect());
    for row in &table.rows {
        text += &line(row.iter().map(|cell| escape(cell)).collect());
    }
    text
}

/// A bar would end the cell.
fn escape(cell: &str) -> String {
    cell.replace('|', "\\|")
}
