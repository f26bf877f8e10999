//! TCP streams, by iperf3.

use std::fs::File;
use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::{Measured, PATIENCE, Target};
use crate::plan::Direction;

/// Runs `count` streams for `seconds`, rounded up to whole ones: iperf3 knows no others.
pub fn streams(target: &Target, count: u32, direction: Direction, seconds: f64) -> anyhow::Result<Measured> {
    let mut failure = String::new();
    for _ in 0..ATTEMPTS {
        let report = run(target, count, direction, seconds.ceil() as u64)?;
        match report["error"].as_str() {
            // A server that is not yet done with the client before says that it is busy.
            Some(error) => failure = error.to_owned(),
            None => return read(&report, direction),
        }
        std::thread::sleep(BETWEEN);
    }
    bail!("iperf3: {failure}")
}

fn run(target: &Target, count: u32, direction: Direction, seconds: u64) -> anyhow::Result<Value> {
    let mut command = Command::new("iperf3");
    command
        .args(["--client", &target.address.to_string(), "--port", &target.ports.iperf3().to_string()])
        .args(["--parallel", &count.to_string(), "--time", &seconds.to_string()])
        .args(["--interval", "0", "--json", "--connect-timeout", &PATIENCE.as_millis().to_string()])
        .args(match direction {
            Direction::Forward => None,
            Direction::Reverse => Some("--reverse"),
            Direction::Both => Some("--bidir"),
        });
    // A file, since nobody reads while the client is waited for.
    let mut output: File = tempfile::tempfile().context("make a temporary file")?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(Stdio::null());
    let mut child = command.spawn().context("start iperf3")?;
    let limit = Duration::from_secs(seconds) + 2 * PATIENCE;
    let begun = Instant::now();
    while child.try_wait()?.is_none() {
        if begun.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("iperf3 had not ended after {limit:?}");
        }
        std::thread::sleep(GLANCE);
    }
    let mut text = String::new();
    output.rewind()?;
    output.read_to_string(&mut text)?;
    serde_json::from_str(&text).with_context(|| format!("read iperf3's report: {text:?}"))
}

fn read(report: &Value, direction: Direction) -> anyhow::Result<Measured> {
    let end = &report["end"];
    let mut ways = vec![(&end["sum_sent"], &end["sum_received"])];
    if direction == Direction::Both {
        ways.push((&end["sum_sent_bidir_reverse"], &end["sum_received_bidir_reverse"]));
    }
    let number =
        |value: &Value, key: &str| value[key].as_f64().with_context(|| format!("iperf3 gave no {key}"));
    let (mut value, mut bytes, mut retransmits, mut seconds) = (0.0, 0.0, 0.0, 0.0_f64);
    for (sent, received) in ways {
        value += number(received, "bits_per_second")?;
        bytes += number(received, "bytes")?;
        retransmits += number(sent, "retransmits")?;
        seconds = seconds.max(number(received, "seconds")?);
    }
    if bytes == 0.0 {
        bail!("nothing arrived");
    }
    let segment = number(&report["start"], "tcp_mss_default")?;
    Ok(Measured {
        value,
        seconds,
        bytes: bytes as u64,
        packets: Some((bytes / segment).ceil() as u64),
        retransmits: Some(retransmits as u64),
        congestion: end["sender_tcp_congestion"].as_str().map(str::to_owned),
        sent: None,
        round_trip: None,
    })
}

const ATTEMPTS: usize = 3;
/// Between attempts: by then the server has given up an earlier client.
const BETWEEN: Duration = Duration::from_secs(1);
/// Between looks at whether iperf3 has ended.
const GLANCE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn report() -> Value {
        let way = |bits: f64, bytes: u64, again: u64| {
            (
                json!({ "retransmits": again, "bytes": bytes + 1000 }),
                json!({ "bits_per_second": bits, "bytes": bytes, "seconds": 1.5 }),
            )
        };
        let (sent, received) = way(8e9, 1_400_000, 3);
        let (sent_back, received_back) = way(2e9, 700_000, 4);
        json!({
            "start": { "tcp_mss_default": 1400 },
            "end": {
                "sum_sent": sent, "sum_received": received,
                "sender_tcp_congestion": "reno",
                "sum_sent_bidir_reverse": sent_back, "sum_received_bidir_reverse": received_back,
            }
        })
    }

    #[test]
    fn what_was_received_counts() {
        let measured = read(&report(), Direction::Forward).unwrap();
        assert_eq!((measured.value, measured.bytes, measured.seconds), (8e9, 1_400_000, 1.5));
        assert_eq!((measured.packets, measured.retransmits), (Some(1000), Some(3)));
        assert_eq!(measured.congestion.as_deref(), Some("reno"));
    }

    #[test]
    fn both_directions_are_added() {
        let measured = read(&report(), Direction::Both).unwrap();
        assert_eq!((measured.value, measured.bytes), (10e9, 2_100_000));
        assert_eq!((measured.packets, measured.retransmits), (Some(1500), Some(7)));
    }

    #[test]
    fn a_report_without_data_is_an_error() {
        let mut report = report();
        report["end"]["sum_received"]["bytes"] = json!(0);
        assert_eq!(read(&report, Direction::Forward).unwrap_err().to_string(), "nothing arrived");
        let error = read(&json!({}), Direction::Forward).unwrap_err();
        assert_eq!(error.to_string(), "iperf3 gave no bits_per_second");
    }
}
