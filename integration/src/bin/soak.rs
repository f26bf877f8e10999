//! The soak (`make soak MINUTES=n [SEED=s]`): mixed traffic over three hosts while daemons, etcd, links,
//! devices, rules and leases come and go at random. `SOAK_MINUTES` and `SOAK_SEED` say for how long and from
//! which seed; arguments are flags for each daemon. Needs root. Ends with 1 at the first thing that does not hold.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use integration::{guard, soak};

fn main() -> ExitCode {
    let setting = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let number = |name: &str, default: u64| match setting(name) {
        None => Ok(default),
        Some(text) => text.parse().map_err(|_| format!("{name}={text}: give a whole number")),
    };
    // What nobody chose is to be another each time.
    let nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.subsec_nanos().into());
    let (minutes, seed) = match (number("SOAK_MINUTES", 3), number("SOAK_SEED", nanoseconds)) {
        (Ok(minutes), Ok(seed)) => (minutes, seed),
        (Err(error), _) | (_, Err(error)) => return refuse(&error),
    };
    if !rustix::process::geteuid().is_root() {
        return refuse("making network namespaces takes root");
    }
    if let Err(error) = guard::clean_up_whatever_happens("overlay-soak") {
        return refuse(&error.to_string());
    }
    println!("{minutes} minutes from seed {seed}: make soak MINUTES={minutes} SEED={seed}");
    let flags: Vec<_> = std::env::args().skip(1).collect();
    let report = soak::run(Duration::from_secs(60 * minutes), seed, &flags);
    print!("\n{}", report.to_text());
    // The traffic's threads go on until the process ends.
    integration::netns::remove_own();
    std::process::exit(0);
}

fn refuse(why: &str) -> ExitCode {
    eprintln!("overlay-soak: {why}");
    ExitCode::FAILURE
}
