//! The daemon: flanneld's flags in, a running overlay out.

use std::io::{self, Write};
use std::process::ExitCode;

use overlay_flags::Flags;
use overlay_node::service_manager;
use overlayd::daemon;
use overlayd::{connections, logging, privileges};
use tokio::time::Instant;

/// A sanitizer has one of its own.
#[cfg(not(sanitized))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = writeln!(io::stderr(), "overlayd: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    // A file system that does not answer may hold up a thread for ever: it is not waited for.
    runtime.shutdown_background();
    code
}

async fn run() -> ExitCode {
    let started = Instant::now();
    let flags = match Flags::parse_from(std::env::args_os().skip(1), |name| std::env::var_os(name)) {
        Ok(flags) => flags,
        Err(text) if text.is_text() => {
            // The reader may have seen enough, as in `overlayd --help | head`.
            let _ = write!(io::stdout(), "{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            logging::refuse(&error);
            service_manager::pause_before_the_next(started).await;
            return ExitCode::FAILURE;
        }
    };
    let events = logging::start(flags.verbosity, flags.log_format);
    connections::raise_descriptor_limit();
    for (variable, meant) in Flags::unknown_variables(std::env::vars_os().map(|(name, _)| name)) {
        tracing::warn!(variable, meant, "this variable is no flag's, and changes nothing");
    }
    privileges::settle(&flags);
    match daemon::run(flags, events).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            service_manager::pause_before_the_next(started).await;
            ExitCode::FAILURE
        }
    }
}
