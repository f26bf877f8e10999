//! For programs, not tests: cleaning up when they are interrupted or the harness gives up.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::netns;

/// Removes all namespaces and files of this process when it is interrupted or panics: a release
/// build does not unwind, so dropping is not enough. A panic is what the harness does when it
/// cannot go on; it is reported as `program`'s error, with what the daemons had to say.
///
/// # Errors
/// If the signals cannot be watched.
pub fn clean_up_whatever_happens(program: &'static str) -> io::Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            eprintln!("\ninterrupted: cleaning up");
            netns::remove_own();
            std::process::exit(130);
        }
    });
    std::panic::set_hook(Box::new(move |panic| {
        if interrupted.load(Ordering::Acquire) {
            // What fails now fails because of the interruption, and the thread above is at work.
            loop {
                std::thread::park();
            }
        }
        let payload = panic.payload();
        let said = payload.downcast_ref::<String>().map(String::as_str);
        let what = said.or(payload.downcast_ref::<&str>().copied()).unwrap_or("it failed without a word");
        match panic.location() {
            Some(place) => eprintln!("{program}: {what}\n  ({place})"),
            None => eprintln!("{program}: {what}"),
        }
        print_logs(&std::env::temp_dir());
        netns::remove_own();
        std::process::exit(1);
    }));
    Ok(())
}

/// Prints what the daemons had to say.
fn print_logs(directory: &Path) {
    let files = |directory: &Path| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let own = |name: &str| name.starts_with(&netns::directory_prefix());
    for site in files(directory).filter(|entry| entry.file_name().to_str().is_some_and(own)) {
        for host in files(&site.path()) {
            if let Ok(log) = std::fs::read_to_string(host.path().join("overlayd.log")) {
                eprintln!("── {} ──\n{log}", host.file_name().display());
            }
        }
    }
}
