//! Traffic between namespaces, each kind checked at its receiving end.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{self, IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use serde_json::Value;

use crate::netns::{Namespace, succeed};
use crate::noise::Noise;
use crate::process::{Process, SOON, await_until};

/// Pings three times; each must be answered.
#[track_caller]
pub fn ping(ns: &Namespace, address: Ipv4Addr) {
    for size in [56; 3] {
        ping_once(ns, address, size);
    }
}

/// Pings once, with so many octets of data, which must come back as they were.
#[track_caller]
pub fn ping_once(ns: &Namespace, address: Ipv4Addr, size: u16) {
    // Once at a time: after the last of several, ping waits hardly longer than the earlier answers took.
    let text = ns.ok(&format!("ping -n -c 1 -W 20 -s {size} {address}"));
    assert!(!text.contains("wrong data"), "{text}");
}

/// Whether one ping is answered within 200 ms.
pub fn answers(ns: &Namespace, address: Ipv4Addr) -> bool {
    ns.run(&format!("ping -n -c 1 -W 0.2 {address}")).status.success()
}

/// What an iperf3 run measured at the receiving end.
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Received bits per second.
    pub bits_per_second: f64,
    /// Datagrams lost, in per cent; 0 for TCP.
    pub lost_percent: f64,
}

/// Runs iperf3 from `client` to a server in `server`, with more client flags (`-t 1`, `-u -b 50M`, …).
/// Something must arrive. `directory` takes the log.
#[track_caller]
pub fn iperf3(
    client: &Namespace,
    server: &Namespace,
    address: Ipv4Addr,
    flags: &str,
    directory: &std::path::Path,
) -> Throughput {
    let mut command = server.command("iperf3");
    command.args(["-s", "-1", "-p", "5201"]);
    let mut listener = Process::spawn("iperf3", command, directory);
    await_listening(server, 5201);
    let mut command = client.command("iperf3");
    command.args(["-c", &address.to_string(), "-p", "5201", "--json", "--connect-timeout", "5000"]);
    let text = succeed(command.args(flags.split_whitespace()));
    listener.wait(SOON);
    let report: Value = serde_json::from_str(&text).expect("iperf3's JSON");
    let end = &report["end"];
    let sum = if end["sum_received"].is_object() { &end["sum_received"] } else { &end["sum"] };
    let throughput = Throughput {
        bits_per_second: sum["bits_per_second"].as_f64().expect("bits per second"),
        lost_percent: end["sum"]["lost_percent"].as_f64().unwrap_or(0.0),
    };
    assert!(throughput.bits_per_second > 0.0 && throughput.lost_percent < 100.0, "{text}");
    throughput
}

/// Waits until something listens on a TCP port in a namespace.
#[track_caller]
pub fn await_listening(ns: &Namespace, port: u16) {
    let wanted = format!(":{port:04X} ");
    await_until(SOON, &format!("a listener on port {port}"), || {
        let tables = ns.within(|| {
            ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/thread-self/net/{table}")))
        });
        tables.iter().flatten().flat_map(|text| text.lines()).any(|line| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next().is_some_and(|field| format!("{field} ").ends_with(&wanted));
            local && fields.nth(1) == Some(LISTENING)
        })
    });
}

/// Sends so many MiB of noise over TCP from one namespace to another and compares them, octet for octet.
#[track_caller]
pub fn transfer(from: &Namespace, to: &Namespace, address: impl Into<IpAddr>, mebibytes: usize) {
    let address = address.into();
    let listener = to.within(|| TcpListener::bind((address, 0))).expect("bind a TCP listener");
    let target = listener.local_addr().expect("a bound address");
    let stream = from.within(|| TcpStream::connect_timeout(&target, SOON));
    let stream = stream.unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    let (received, _) = listener.accept().expect("accept");
    for end in [&stream, &received] {
        end.set_read_timeout(Some(SOON)).expect("set a timeout");
        end.set_write_timeout(Some(SOON)).expect("set a timeout");
    }
    // Every MiB is the same noise from another place on: making it costs nothing beside sending it,
    // and one that is lost, repeated or misplaced still differs from the one expected.
    let noise = Noise::default().octets(2 * MIB);
    let block = |number: usize| &noise[number * STEP % MIB..][..MIB];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..mebibytes {
                (&stream)
                    .write_all(block(number))
                    .unwrap_or_else(|e| panic!("send MiB {number} to {target}: {e}"));
            }
            stream.shutdown(net::Shutdown::Write).expect("end the stream");
        });
        // Closed when a check fails here, so that the sender does not wait.
        let mut received = received;
        let mut arrived = vec![0; MIB];
        for number in 0..mebibytes {
            received.read_exact(&mut arrived).unwrap_or_else(|e| panic!("receive MiB {number}: {e}"));
            assert!(arrived == block(number), "MiB {number} was changed on its way");
        }
        assert_eq!(received.read(&mut arrived).expect("the end of the stream"), 0, "more than was sent");
    });
}

/// A server on a thread of its own. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    listener: Option<TcpListener>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers every TCP connection's first request with an HTTP page whose body is the address
    /// that it came from.
    #[track_caller]
    pub fn http(ns: &Namespace, port: u16) -> Self {
        let listener = ns.within(|| TcpListener::bind(("0.0.0.0", port))).expect("bind a TCP listener");
        let own = listener.try_clone().expect("a second handle on the listener");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while let Ok((mut stream, peer)) = own.accept() {
                if stopped.load(Ordering::Acquire) {
                    return;
                }
                let body = peer.ip().to_string();
                let mut request = [0; 4096];
                // A client that gives up is the client's failure to report.
                let _ = stream.set_read_timeout(Some(SOON));
                let _ = stream.read(&mut request);
                let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Self { stop, listener: Some(listener), thread: Some(thread) }
    }

    /// Answers every datagram to a UDP port with what `answer` makes of it and its sender; `None` for silence.
    #[track_caller]
    pub fn udp(
        ns: &Namespace,
        port: u16,
        answer: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        let socket = ns.within(|| UdpSocket::bind(("0.0.0.0", port))).expect("bind a UDP socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("set a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Acquire) {
                let Ok((length, peer)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(reply) = answer(&buffer[..length], peer.ip()) {
                    // A reply that cannot be sent is missed by the one who waits for it.
                    let _ = socket.send_to(&reply, peer);
                }
            }
        });
        Self { stop, listener: None, thread: Some(thread) }
    }

    /// Answers every datagram with itself.
    #[track_caller]
    pub fn udp_echo(ns: &Namespace, port: u16) -> Self {
        Self::udp(ns, port, |request, _| Some(request.to_vec()))
    }

    /// A name server that knows one address for every name.
    #[track_caller]
    pub fn dns(ns: &Namespace, address: Ipv4Addr) -> Self {
        Self::udp(ns, 53, move |query, _| {
            let mut reply = query.to_vec();
            reply.get_mut(2..4)?.copy_from_slice(&[0x81, 0x80]);
            reply.get_mut(6..8)?.copy_from_slice(&[0, 1]);
            // The name of the question (by pointer), type A, class IN, 30 seconds, four octets.
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
            reply.extend(address.octets());
            Some(reply)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(listener) = &self.listener {
            // Wakes the thread from its accept.
            let _ = shutdown(listener, Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends one datagram and returns the answer; `None` if there is none within `limit`.
#[track_caller]
pub fn ask(ns: &Namespace, address: Ipv4Addr, port: u16, request: &[u8], limit: Duration) -> Option<Vec<u8>> {
    let target = SocketAddr::from((address, port));
    let socket = ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
    socket.connect(target).expect("connect a UDP socket");
    socket.set_read_timeout(Some(limit)).expect("set a timeout");
    socket.send(request).unwrap_or_else(|error| panic!("send to {target}: {error}"));
    let mut buffer = vec![0; 1 << 16];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// Sends datagrams of many sizes up to `largest` octets to an echo server; each must come back as it was.
#[track_caller]
pub fn echo(ns: &Namespace, address: Ipv4Addr, port: u16, largest: usize) {
    for size in [1, 2, 3, 64, 511, 512, 1000, largest - 1, largest] {
        let mut request = vec![0; size];
        Noise::default().fill(&mut request);
        let reply = ask(ns, address, port, &request, SOON);
        assert_eq!(reply.as_deref(), Some(&request[..]), "a datagram of {size} octets to {address}");
    }
}

/// Asks the name server at `address` for a name's address.
#[track_caller]
pub fn resolve(ns: &Namespace, address: Ipv4Addr, name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let reply = ask(ns, address, 53, &query, SOON)?;
    assert_eq!(reply[..2], query[..2], "the answer to another question");
    let octets: [u8; 4] = reply[reply.len() - 4..].try_into().expect("four octets");
    Some(octets.into())
}

/// Fetches `http://address:port/`, giving up after `limit`. Returns the page's text.
///
/// # Errors
/// What kept the page from coming; `TimedOut` if nothing was refused but nothing came either.
pub fn fetch(ns: &Namespace, address: Ipv4Addr, port: u16, limit: Duration) -> Result<String, ErrorKind> {
    let target = SocketAddr::from((address, port));
    let fetch = || {
        let mut stream = TcpStream::connect_timeout(&target, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page)?;
        Ok(page.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned()))
    };
    ns.within(fetch).map_err(|error: io::Error| match error.kind() {
        ErrorKind::WouldBlock => ErrorKind::TimedOut,
        kind => kind,
    })
}

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";
const MIB: usize = 1 << 20;
/// Between the beginnings of two blocks of noise; odd, so that no two of the first 2^20 begin at one place.
const STEP: usize = 4099;
