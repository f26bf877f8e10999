//! ICMP echoes on the underlay, to be held against those through the overlay.

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use etherparse::{IcmpEchoHeader, Icmpv4Header, Icmpv4Type, Ipv4Slice};
use socket2::{Domain, Protocol, Socket, Type};

/// Asks `host` for an echo. Returns how long it took; `None` without an answer within `patience`.
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`, or what the kernel said to sending.
pub async fn ping(host: Ipv4Addr, patience: Duration) -> io::Result<Option<Duration>> {
    tokio::task::spawn_blocking(move || ask(host, patience)).await.map_err(io::Error::other)?
}

fn ask(host: Ipv4Addr, patience: Duration) -> io::Result<Option<Duration>> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.connect(&SocketAddrV4::new(host, 0).into())?;
    let echo = IcmpEchoHeader { id: rand::random(), seq: 1 };
    let request = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &[]);
    let asked = Instant::now();
    socket.send(&request.to_bytes())?;
    let mut buffer = [0; 1500];
    loop {
        let left = patience.saturating_sub(asked.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let len = match (&socket).read(&mut buffer) {
            Ok(len) => len,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if answers(&buffer[..len], echo) {
            return Ok(Some(asked.elapsed()));
        }
    }
}

fn answers(packet: &[u8], echo: IcmpEchoHeader) -> bool {
    let Ok(packet) = Ipv4Slice::from_slice(packet) else { return false };
    let icmp = Icmpv4Header::from_slice(packet.payload().payload);
    icmp.is_ok_and(|(header, _)| header.icmp_type == Icmpv4Type::EchoReply(echo))
}
