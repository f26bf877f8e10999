//! The report on the terminal.

use std::fmt::Write;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement};

use super::{Table, facts, goals, notes, tables};
use crate::record::Record;

/// As text.
#[must_use]
pub fn terminal(record: &Record) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for (name, value) in facts(record) {
        let _ = writeln!(text, "{name:<12} {value}");
    }
    for (place, tables) in tables(record) {
        for table in tables {
            let _ = write!(text, "\n{place}: {}\n{}", table.title, draw(&table, 2));
        }
    }
    if let Some(table) = goals(record, "\n") {
        let _ = write!(text, "\n{}\n{}", table.title, draw(&table, table.header.len()));
    }
    for note in notes(record) {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// Columns from `numbers` on are aligned to the right.
fn draw(table: &Table, numbers: usize) -> String {
    let mut drawn = comfy_table::Table::new();
    drawn.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    drawn.set_header(&table.header);
    for row in &table.rows {
        drawn.add_row(row);
    }
    for column in drawn.column_iter_mut().skip(numbers) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    drawn.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}
