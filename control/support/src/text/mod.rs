//! Text for a terminal: columns, and numbers with units.

mod table;
mod units;

pub use table::{Align, printable, table};
pub use units::{ago, bits, count, millis, plural, share, size};
