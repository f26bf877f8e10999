//! Logs: events with fields, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Starts logging at `verbosity` (see `--v`): for a person on a terminal, for the journal otherwise,
/// which has its own clock.
pub fn start(verbosity: u8) {
    let filter = EnvFilter::new(match verbosity {
        0 => "info",
        1 => "info,control=debug",
        2 => "debug,h2=info,hyper=info,tower=info",
        _ => "trace",
    });
    let terminal = std::io::stderr().is_terminal();
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let logs = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal)
        // Saying on standard error that standard error is broken would panic: forwarding matters more.
        .log_internal_errors(false)
        .with_target(verbosity > 1);
    if journal { logs.without_time().init() } else { logs.init() }
}
