//! The program `overlay-bench`: see `overlay-bench --help`.

use std::process::ExitCode;

use bench::cli;

fn main() -> ExitCode {
    match cli::main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("overlay-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
