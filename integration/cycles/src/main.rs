//! Refuses crates whose modules use each other in a circle. A module uses another if a path in it leads there; a child
//! that names something of its parent uses the parent. What only tests see does not count.
//!
//! Usage: module-cycles CRATE_DIRECTORY…

mod circle;
mod modules;

use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut is_good = true;
    for directory in std::env::args_os().skip(1).map(PathBuf::from) {
        match modules::read(&directory) {
            Ok(uses) => {
                if let Some(circle) = circle::find(&uses) {
                    println!("{}: {}", directory.display(), circle.join(" → "));
                    is_good = false;
                }
            }
            Err(error) => {
                println!("{}: {error}", directory.display());
                is_good = false;
            }
        }
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
