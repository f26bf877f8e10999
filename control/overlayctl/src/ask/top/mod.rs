//! `overlayctl top`: a live screen of workers and peers, until somebody has seen enough.

mod screen;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::thread;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use overlay_api::Show;
use overlay_api::client;
use screen::{Sample, Screen};

/// Shows the daemon at `socket` every so often, until `q`, Ctrl-C or a signal. The terminal is left as it was, however
/// this ends.
///
/// # Errors
/// For people: there is no terminal, or nobody answers to begin with.
pub async fn top(socket: &Path, interval: Duration) -> Result<String, String> {
    if !io::stdout().is_terminal() {
        return Err(
            "top needs a terminal: for a file or a pipe there is 'overlayctl peers --watch'".to_owned()
        );
    }
    let first = sample(socket).await?;
    let watch = |kind| signal(kind).map_err(|error| format!("cannot wait for signals: {error}"));
    let signals =
        [watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?, watch(SignalKind::hangup())?];
    let terminal = ratatui::try_init().map_err(|error| format!("cannot use the terminal: {error}"))?;
    let ended = run(terminal, socket, Screen::new(first, interval), signals).await;
    ratatui::try_restore().and(ended).map_err(|error| format!("cannot draw: {error}"))?;
    Ok(String::new())
}

async fn run(
    mut terminal: DefaultTerminal,
    socket: &Path,
    mut screen: Screen,
    [mut interrupt, mut terminate, mut hangup]: [Signal; 3],
) -> io::Result<()> {
    let mut events = events();
    // Rates need a second look, which need not wait.
    let mut next = Instant::now() + screen.interval().min(FIRST);
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        tokio::select! {
            () = sleep_until(next) => {
                next = Instant::now() + screen.interval();
                if !screen.is_paused() {
                    screen.take(sample(socket).await);
                }
            }
            event = events.recv() => match event {
                Some(Event::Key(key)) if key.kind == KeyEventKind::Press => {
                    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
                    if interrupts || screen.press(key.code) {
                        return Ok(());
                    }
                    next = next.min(Instant::now() + screen.interval());
                }
                // Another size: it is drawn anew anyway.
                Some(_) => {}
                None => return Ok(()),
            },
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
    }
}

/// What the terminal says, by a thread of its own, which waits for keys as long as the process lives.
fn events() -> mpsc::Receiver<Event> {
    let (out, events) = mpsc::channel(16);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if out.blocking_send(event).is_err() {
                break;
            }
        }
    });
    events
}

async fn sample(socket: &Path) -> Result<Sample, String> {
    Ok(Sample { status: get(socket).await?, peers: get(socket).await?, stats: get(socket).await? })
}

async fn get<T: Show>(socket: &Path) -> Result<T, String> {
    client::get_json(socket, T::RESOURCE).await.map_err(|error| error.to_string())
}

/// Until the second look.
const FIRST: Duration = Duration::from_millis(500);
