//! The reference in `docs/reference`: flags, metrics and drop reasons as the programs have them.

mod drops;
mod flags;
mod metrics;

use std::path::Path;

use crate::save;

/// Writes its documents into `directory`.
pub fn write(directory: &Path) -> Result<(), String> {
    for (name, text) in [
        ("flags.md", flags::document()),
        ("metrics.md", metrics::document()?),
        ("drop-reasons.md", drops::document()),
    ] {
        save(&directory.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// What each document says of itself.
const WRITTEN: &str =
    "<!-- Written by `make reference` from the code: change the code's help, not this file. -->\n";

/// A table in Markdown, behind an empty line.
fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text =
        format!("\n{}{}", line(&head.map(str::to_owned)), line(&[const { "---" }; N].map(str::to_owned)));
    text.extend(rows.into_iter().map(|row| line(&row)));
    text
}

/// `text` in a cell, where bars and angle brackets have a meaning of their own, and no line ends.
fn cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|").replace('<', "&lt;")
}

/// `text` as code in a cell.
fn code(text: &str) -> String {
    format!("`{}`", text.replace('|', "\\|"))
}
