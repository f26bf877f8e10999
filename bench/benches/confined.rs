//! What the filter of system calls costs each call of a worker: one that does next to nothing, with the filter and
//! without.

use std::fs::File;
use std::io::{self, Write};
use std::thread;
use std::time::Instant;

use overlay::confine::{Confinement, SystemCalls};

fn main() {
    let mut with = Vec::new();
    let mut without = Vec::new();
    for _ in 0..ROUNDS {
        without.push(per_call(SystemCalls::Allowed).expect("measure"));
        with.push(per_call(SystemCalls::Refused).expect("measure"));
    }
    for (name, mut rounds) in [("without the filter", without), ("with it", with)] {
        rounds.sort_by(f64::total_cmp);
        let (least, most) = (rounds[0], rounds[ROUNDS - 1]);
        println!("{name:<20} {:6.1} ns a call ({least:.1} … {most:.1})", rounds[ROUNDS / 2]);
    }
}

/// Nanoseconds for writing a byte to nowhere.
fn per_call(others: SystemCalls) -> io::Result<f64> {
    let confinement = Confinement::new(others, false)?;
    let mut nowhere = File::options().write(true).open("/dev/null")?;
    let measure = move || {
        confinement.enter()?;
        let start = Instant::now();
        for _ in 0..CALLS {
            nowhere.write_all(b"x")?;
        }
        Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS))
    };
    thread::spawn(measure).join().expect("a thread that does not panic")
}

const ROUNDS: usize = 9;
const CALLS: u32 = 500_000;
