//! Echoes at a steady pace, by the system's `ping`: what somebody sees who looks whether the way is short.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::{Measured, Target};
use crate::stats::Percentiles;

/// Asks a hundred times a second, and gives the average. What is not answered has no part in it.
pub fn echoes(target: &Target, seconds: f64) -> anyhow::Result<Measured> {
    let count = (seconds / INTERVAL).ceil().max(1.0) as u64;
    let output = Command::new("ping")
        .args(["-n", "-s", &LEN.to_string(), "-i", &INTERVAL.to_string(), "-c", &count.to_string()])
        .args(["-W", "1", &target.address.to_string()])
        .stdin(Stdio::null())
        .output()
        .context("start ping")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let round_trips = said.lines().filter_map(round_trip).collect::<Vec<_>>();
    let answered = round_trips.len() as u64;
    let Some(round_trip) = Percentiles::of(round_trips) else {
        bail!("no echo was answered: {said}{}", String::from_utf8_lossy(&output.stderr));
    };
    Ok(Measured {
        value: round_trip.mean as f64,
        seconds,
        bytes: answered * 2 * LEN,
        packets: Some(answered * 2),
        retransmits: None,
        congestion: None,
        sent: Some(count),
        round_trip: Some(round_trip),
    })
}

/// What a line of ping's says, in nanoseconds.
fn round_trip(line: &str) -> Option<u64> {
    let milliseconds = line.split_once("time=")?.1.split(' ').next()?.parse::<f64>().ok()?;
    Some((milliseconds * 1e6) as u64)
}

/// Payload of an echo.
const LEN: u64 = 56;
/// Seconds from one to the next: so long that all that takes part falls asleep in between.
const INTERVAL: f64 = 0.01;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_are_read_from_lines() {
        assert_eq!(round_trip("64 bytes from 10.1.63.2: icmp_seq=1 ttl=62 time=0.152 ms"), Some(152_000));
        assert_eq!(round_trip("64 bytes from 10.1.63.2: icmp_seq=7 ttl=62 time=12 ms"), Some(12_000_000));
        assert_eq!(round_trip("rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms"), None);
    }
}
