//! Aligned columns.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Where the cells of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    /// On the left, as words.
    Left,
    /// On the right, as numbers.
    Right,
}

/// `text` for a terminal: what others wrote, in a lease say, must not move its cursor.
pub fn printable(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escape).collect::<String>().into()
}

/// Columns as wide as their widest cell; nothing without rows.
pub fn table(columns: &[(&str, Align)], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let head: Vec<String> = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
    let printable = |row: Vec<String>| row.iter().map(|cell| printable(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(rows.into_iter().map(printable)).collect();
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::from(" ");
        for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(columns) {
            let _ = match align {
                Align::Right => write!(line, " {cell:>width$} "),
                Align::Left => write!(line, " {cell:<width$} "),
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_stand_below_one_another() {
        let rows = [["a", "1"], ["long", "100"]].map(|row| row.map(str::to_owned).to_vec());
        let columns = [("NAME", Align::Left), ("N", Align::Right)];
        assert_eq!(table(&columns, rows.into()), "  NAME    N\n  a       1\n  long  100\n");
        assert_eq!(table(&columns, Vec::new()), "");
    }

    #[test]
    fn what_a_cell_holds_stays_in_it() {
        let rows = vec![vec!["\u{1b}[2J\nüb".to_owned()]];
        assert_eq!(table(&[("NAME", Align::Left)], rows), "  NAME\n  \\u{1b}[2J\\nüb\n");
    }
}
