//! Requests and responses, one outstanding: how long the way there and back takes.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Measured, PATIENCE, Target};
use crate::stats::Percentiles;

/// Over one TCP connection, without Nagle's algorithm.
pub fn tcp(target: &Target, duration: Duration) -> anyhow::Result<Measured> {
    let to = target.at(target.ports.echo());
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut message = [0x5a; LEN];
    repeat(duration, || {
        stream.write_all(&message).context("send a request")?;
        stream.read_exact(&mut message).context("wait for a response")?;
        Ok(true)
    })
}

/// By UDP datagrams. One that is not answered in time is lost, and has no part in the percentiles.
pub fn udp(target: &Target, duration: Duration) -> anyhow::Result<Measured> {
    let to = target.at(target.ports.echo());
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).context("bind a UDP socket")?;
    socket.connect(to).with_context(|| format!("no way to {to}"))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut number = 0_u64;
    let mut message = [0x5a; LEN];
    repeat(duration, || {
        number += 1;
        message[..8].copy_from_slice(&number.to_be_bytes());
        socket.send(&message).context("send a request")?;
        let mut answer = [0; LEN];
        loop {
            match socket.recv(&mut answer) {
                Ok(_) if answer == message => return Ok(true),
                // The late answer to a request that was given up.
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error) => return Err(error).context("wait for a response"),
            }
        }
    })
}

/// Makes exchanges, which say whether they were answered, for so long.
fn repeat(
    duration: Duration,
    mut exchange: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Measured> {
    let begun = Instant::now();
    let mut round_trips = Vec::with_capacity(1 << 20);
    let mut sent = 0;
    let mut now = begun;
    while now - begun < duration {
        sent += 1;
        let answered = exchange()?;
        let after = Instant::now();
        if answered {
            round_trips.push((after - now).as_nanos() as u64);
        }
        now = after;
    }
    let answered = round_trips.len() as u64;
    let Some(round_trip) = Percentiles::of(round_trips) else { bail!("no request was answered") };
    Ok(Measured {
        value: round_trip.p50 as f64,
        seconds: (now - begun).as_secs_f64(),
        bytes: answered * 2 * LEN as u64,
        packets: Some(answered * 2),
        retransmits: None,
        congestion: None,
        sent: Some(sent),
        round_trip: Some(round_trip),
    })
}

/// Payload of a request, and of a response.
const LEN: usize = 64;
/// A datagram without an answer for that long is lost.
const LOST: Duration = Duration::from_millis(200);
