//! `overlayctl capture`: copies what the daemon captures into a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use http_body_util::BodyExt as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments;
use overlay_api::capture::Question;
use overlay_api::client;
use overlay_api::pcapng;

/// Writes the packets that `options` ask for to a file, until there are enough or somebody interrupts. Returns
/// what came of it, for people.
///
/// # Errors
/// For people: the file cannot be written, or the daemon cannot capture.
pub async fn capture(socket: &Path, options: arguments::Capture) -> Result<String, String> {
    let arguments::Capture { file, outer, drops, direction, host, peer, protocol, port, .. } = options;
    let question = Question {
        outer,
        drops,
        direction,
        host,
        peer,
        protocol,
        port,
        snaplen: options.snaplen,
        count: options.count,
        bytes: Some(options.bytes),
        millis: options.seconds.map(|seconds| (seconds * 1000.0) as u64),
    };
    let query = serde_urlencoded::to_string(&question).map_err(|error| error.to_string())?;
    let stopped = |kind| signal(kind).map_err(|error| format!("cannot wait for signals: {error}"));
    let (mut interrupt, mut terminate) =
        (stopped(SignalKind::interrupt())?, stopped(SignalKind::terminate())?);
    let to_stdout = file.as_os_str() == "-";
    if !to_stdout && !options.force && file.exists() {
        return Err(format!("{} exists: name another file, or overwrite it with --force", file.display()));
    }
    let opened = client::open(socket, &format!("/v1/capture?{query}")).await;
    let mut body = opened.map_err(|error| error.to_string())?;
    let cannot_write = |error: io::Error| format!("cannot write {}: {error}", file.display());
    let mut out: Box<dyn Write> = match to_stdout {
        true => Box::new(io::stdout()),
        false if options.force => Box::new(File::create(&file).map_err(cannot_write)?),
        false => Box::new(File::create_new(&file).map_err(cannot_write)?),
    };
    let (mut written, mut end) = (0, Vec::new());
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = interrupt.recv() => None,
            _ = terminate.recv() => None,
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| format!("the daemon has broken off: {error}"))?;
        let Ok(bytes) = frame.into_data() else { continue };
        // Who looks at the file meanwhile sees whole blocks, as the daemon hands them over.
        out.write_all(&bytes).and_then(|()| out.flush()).map_err(cannot_write)?;
        written += bytes.len() as u64;
        end.extend_from_slice(&bytes);
        end.drain(..end.len().saturating_sub(LAST_BLOCK));
    }
    if to_stdout {
        return Ok(String::new());
    }
    let missed = match pcapng::missed(&end) {
        Some(0) => ", complete".to_owned(),
        Some(missed) => format!(", packets missed: {missed}"),
        None => ", until interrupted".to_owned(),
    };
    Ok(format!("{written} bytes written to {}{missed}\n", file.display()))
}

/// As much as the last block of a file has.
const LAST_BLOCK: usize = 64;
