//! Logs: events with fields, on standard error.

use std::ffi::OsStr;
use std::fmt;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::Layer as _;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{self as log, FmtContext};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

use crate::events::Events;
use overlay_flags::LogFormat;

/// Starts logging at `verbosity` (see `--v`) in `format`. Returns the events that are kept.
pub fn start(verbosity: u8, format: LogFormat) -> Events {
    let filter = EnvFilter::new(directives(verbosity));
    let format = match format {
        LogFormat::Auto if is_journal() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Text,
        chosen => chosen,
    };
    let colours =
        std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
    let lines = log::layer()
        .with_writer(std::io::stderr)
        .with_ansi(colours && format == LogFormat::Text)
        // Saying on standard error that standard error is broken would panic: forwarding matters more.
        .log_internal_errors(false)
        .with_target(verbosity > 1);
    let lines = match format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Journald => lines
            .event_format(Prioritized(
                log::format().without_time().with_ansi(false).with_target(verbosity > 1),
            ))
            .boxed(),
        _ => lines.boxed(),
    };
    let events = Events::default();
    tracing_subscriber::registry().with(filter).with(lines).with(events.clone()).init();
    events
}

/// What is logged at `verbosity`. What the netlink crates warn of (an answer that nobody waits for any more, an attribute
/// that they do not know) means nothing to an operator.
fn directives(verbosity: u8) -> &'static str {
    match verbosity {
        0 => "info,netlink_proto=error,netlink_packet_route=error",
        1 => "info,overlay=debug,netlink_proto=error,netlink_packet_route=error",
        // What those see is what goes to etcd and comes from there: passwords and tokens.
        2 => "debug,h2=info,hyper=info,tower=info,tonic=info,rustls=info",
        _ => "trace,h2=info,hyper=info,tower=info,tonic=info,rustls=info",
    }
}

/// Says on standard error why the program does not start, before there is a log.
pub fn refuse(error: &dyn fmt::Display) {
    let text = format!("overlayd: {error}");
    let text = if is_journal() { prioritized(Level::ERROR, &text) } else { format!("{}\n", text.trim_end()) };
    // Where nobody listens, the exit code has to do.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// Whether standard error is a stream of the journal's. The variable alone does not say so: children inherit
/// it, wherever their standard error goes (`systemd.exec(5)`).
fn is_journal() -> bool {
    let stream = std::env::var_os("JOURNAL_STREAM");
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stream.zip(stderr.ok()).is_some_and(|(stream, stderr)| names(&stream, stderr.dev(), stderr.ino()))
}

fn names(stream: &OsStr, device: u64, inode: u64) -> bool {
    stream.to_str().is_some_and(|stream| stream == format!("{device}:{inode}"))
}

/// Puts the journal's priority in front of every line.
struct Prioritized<F>(F);

impl<S, N, F> FormatEvent<S, N> for Prioritized<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        writer.write_str(&prioritized(*event.metadata().level(), &text))
    }
}

fn prioritized(level: Level, text: &str) -> String {
    // As in syslog(3).
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    text.lines().map(|line| format!("<{priority}>{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_the_priority_of_its_event() {
        assert_eq!(prioritized(Level::WARN, " WARN a\nb\n"), "<4> WARN a\n<4>b\n");
        let first = |level| prioritized(level, "x").chars().nth(1).unwrap();
        assert_eq!([Level::ERROR, Level::INFO, Level::DEBUG, Level::TRACE].map(first), ['3', '6', '7', '7']);
    }

    #[test]
    fn warnings_of_the_netlink_crates_are_for_whoever_looks_closely() {
        for (verbosity, told) in [(0, false), (1, false), (2, true), (3, true)] {
            let filter = EnvFilter::new(directives(verbosity));
            let log = tracing_subscriber::registry().with(filter);
            tracing::subscriber::with_default(log, || {
                assert_eq!(tracing::enabled!(target: "netlink_proto::connection", Level::WARN), told);
                assert_eq!(tracing::enabled!(target: "netlink_packet_route::link", Level::WARN), told);
                assert!(tracing::enabled!(target: "overlay_host", Level::WARN));
            });
        }
    }

    #[test]
    fn the_journal_is_the_stream_that_the_variable_names() {
        assert!(names(OsStr::new("8:4242"), 8, 4242));
        for other in ["8:4243", "9:4242", "8", ""] {
            assert!(!names(OsStr::new(other), 8, 4242), "{other}");
        }
    }
}
