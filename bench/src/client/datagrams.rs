//! UDP datagrams in one direction, counted where they arrive. There is no control connection while
//! they flow: under a flood it would be what fails first.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};

use super::{Measured, PATIENCE, Target};
use crate::server::Tally;

/// Sends datagrams of `len` bytes payload as fast as they are taken. The value is what arrived per second.
pub fn flood(target: &Target, len: usize, duration: Duration) -> anyhow::Result<Measured> {
    let mut sender = Sender::new(target, len)?;
    let begun = Instant::now();
    while begun.elapsed() < duration {
        for _ in 0..BURST {
            sender.send()?;
        }
    }
    let took = begun.elapsed();
    let tally = settled(target, sender.run)?;
    // By the receiver's clock: what was still queued when sending ended took time to arrive, too.
    let seconds = Duration::from_nanos(tally.nanoseconds).max(took).as_secs_f64();
    Ok(measured(tally, &sender, seconds, tally.received as f64 / seconds))
}

/// Sends datagrams of `len` bytes payload at the target's rate. The value is the percentage lost.
pub fn paced(target: &Target, len: usize, duration: Duration) -> anyhow::Result<Measured> {
    let mut sender = Sender::new(target, len)?;
    let begun = Instant::now();
    while begun.elapsed() < duration {
        let due = (begun.elapsed().as_secs_f64() * f64::from(target.udp_rate)) as u64;
        while sender.sent + sender.refused < due {
            sender.send()?;
        }
        std::thread::sleep(TICK);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let tally = settled(target, sender.run)?;
    let lost = 1.0 - tally.received as f64 / (sender.sent + sender.refused) as f64;
    Ok(measured(tally, &sender, seconds, 100.0 * lost.max(0.0)))
}

fn measured(tally: Tally, sender: &Sender, seconds: f64, value: f64) -> Measured {
    Measured {
        value,
        seconds,
        bytes: tally.bytes,
        packets: Some(tally.received),
        retransmits: None,
        congestion: None,
        sent: Some(sender.sent),
        round_trip: None,
    }
}

struct Sender {
    socket: UdpSocket,
    payload: Vec<u8>,
    run: u64,
    sent: u64,
    /// Datagrams that the kernel had no room for.
    refused: u64,
}

impl Sender {
    fn new(target: &Target, len: usize) -> anyhow::Result<Self> {
        let any = match target.address {
            std::net::IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            std::net::IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).context("bind a UDP socket")?;
        let to = target.at(target.ports.sink());
        socket.connect(to).with_context(|| format!("no way to {to}"))?;
        let (run, payload) = new_run(len)?;
        Ok(Self { socket, payload, run, sent: 0, refused: 0 })
    }

    fn send(&mut self) -> anyhow::Result<()> {
        match self.socket.send(&self.payload) {
            Ok(_) => self.sent += 1,
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                self.refused += 1;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("send a datagram"),
        }
        Ok(())
    }
}

/// The number of a new run, and what a datagram of it has as payload.
pub(crate) fn new_run(len: usize) -> anyhow::Result<(u64, Vec<u8>)> {
    // Grows from run to run, also when this program is started again.
    let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("read the clock")?.as_nanos();
    let run = run as u64;
    let mut payload = vec![0x5a; len];
    payload[..8].copy_from_slice(&run.to_be_bytes());
    Ok((run, payload))
}

/// What the sink has counted of a run, once the number no longer grows.
pub(crate) fn settled(target: &Target, run: u64) -> anyhow::Result<Tally> {
    let to = target.at(target.ports.control());
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(&stream);
    let mut ask = || -> anyhow::Result<Tally> {
        (&stream).write_all(format!("{run}\n").as_bytes()).context("ask what has arrived")?;
        let mut line = String::new();
        answers.read_line(&mut line).context("hear what has arrived")?;
        serde_json::from_str(&line).with_context(|| format!("read what has arrived: {line:?}"))
    };
    let begun = Instant::now();
    let mut before = ask()?;
    loop {
        std::thread::sleep(QUIET);
        let tally = ask()?;
        if tally == before && tally.received > 0 {
            return Ok(tally);
        }
        if begun.elapsed() > PATIENCE {
            bail!("datagrams sent before still arrive, or none did: {tally:?}");
        }
        before = tally;
    }
}

/// Datagrams between two looks at the clock.
const BURST: usize = 64;
/// Between two looks at how many are due: the pace is even over a few milliseconds.
const TICK: Duration = Duration::from_micros(500);
/// Nothing more has arrived for that long: nothing will.
const QUIET: Duration = Duration::from_millis(30);
