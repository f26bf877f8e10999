//! Connections that carry nothing: opened by the client, closed by the server first (so that the
//! client's ports are free again at once), then by the client.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::{Measured, PATIENCE, Target};

/// Opens and closes connections for so long, some at a time.
pub fn connections(target: &Target, duration: Duration) -> anyhow::Result<Measured> {
    let to = target.at(target.ports.door());
    let begun = Instant::now();
    let one_after_the_other = || -> anyhow::Result<u64> {
        let mut count = 0;
        while begun.elapsed() < duration {
            let mut stream =
                TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.read(&mut [0]).context("wait for the server to close a connection")?;
            count += 1;
        }
        Ok(count)
    };
    let counts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_A_TIME).map(|_| scope.spawn(one_after_the_other)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("a thread that does not panic"));
        joined.collect::<anyhow::Result<Vec<u64>>>()
    })?;
    let (count, seconds) = (counts.iter().sum::<u64>(), begun.elapsed().as_secs_f64());
    Ok(Measured {
        value: count as f64 / seconds,
        seconds,
        bytes: 0,
        packets: None,
        retransmits: None,
        congestion: None,
        sent: Some(count),
        round_trip: None,
    })
}

const AT_A_TIME: usize = 4;
