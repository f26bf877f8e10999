//! `overlayctl`'s commands that ask a daemon and show what it says.

mod capture;
mod top;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::sleep;

use crate::arguments;
use overlay_api::Show;
use overlay_api::client;

pub use capture::capture;
pub use top::top;

/// Shows an answer of the daemon at `socket`: once, or again and again, as `options` say. Returns what is left to
/// print.
///
/// # Errors
/// For people: nobody answers, or not as expected; or nobody reads any more.
pub async fn show<T: Show>(socket: &Path, options: &arguments::Show) -> Result<String, String> {
    let Some(seconds) = options.watch else { return once::<T>(socket, options.json).await };
    let pause = Duration::from_secs_f64(seconds);
    if options.json {
        loop {
            print(&once::<T>(socket, true).await?)?;
            sleep(pause).await;
        }
    }
    let clear = if io::stdout().is_terminal() { CLEAR } else { "" };
    let mut earlier: Option<T> = None;
    loop {
        let now: T = ask(socket).await?;
        if earlier.is_some() || !T::HAS_RATES {
            print(&format!("{clear}{}\n", now.to_text(earlier.as_ref())))?;
        }
        // The first rates need not wait for the whole time.
        let first = earlier.is_none() && T::HAS_RATES;
        earlier = Some(now);
        sleep(if first { pause.min(SAMPLE) } else { pause }).await;
    }
}

async fn once<T: Show>(socket: &Path, json: bool) -> Result<String, String> {
    if json {
        let body = client::get(socket, T::RESOURCE).await.map_err(|error| error.to_string())?;
        return Ok(String::from_utf8_lossy(&body).into_owned() + "\n");
    }
    let first: T = ask(socket).await?;
    if !T::HAS_RATES {
        return Ok(first.to_text(None));
    }
    sleep(SAMPLE).await;
    Ok(ask::<T>(socket).await?.to_text(Some(&first)))
}

async fn ask<T: Show>(socket: &Path) -> Result<T, String> {
    let body = client::get(socket, T::RESOURCE).await.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body).map_err(|error| {
        format!("the daemon's answer is not understood: {error} (is it of another version? try --json)")
    })
}

/// Prints at once; the reader may have seen enough.
fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let printed = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    printed.map_err(|error| format!("cannot print: {error}"))
}

/// The time over which a rate is measured that is asked for once.
const SAMPLE: Duration = Duration::from_secs(1);
/// Moves the cursor home and clears the screen, as `clear` and `watch` do.
const CLEAR: &str = "\x1b[H\x1b[2J\x1b[3J";
