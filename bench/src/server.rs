//! What answers: iperf3's server, echoes, a sink that counts datagrams, and a door that opens and closes.
//!
//! ```text
//! port      TCP  iperf3
//! port + 1  TCP  echo               UDP  echo
//! port + 2  TCP  opens and closes   UDP  sink
//! port + 3  TCP  what the sink has counted
//! ```
//!
//! All of it runs in the network namespace of the thread that starts it.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use rustix::net::{RecvFlags, Shutdown, recv, shutdown, sockopt};
use serde::{Deserialize, Serialize};

/// The port of iperf3's server, from which the others count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports(pub u16);

impl Ports {
    /// iperf3.
    #[must_use]
    pub fn iperf3(self) -> u16 {
        self.0
    }

    /// Echo, TCP and UDP.
    #[must_use]
    pub fn echo(self) -> u16 {
        self.0 + 1
    }

    /// TCP connections that the server closes at once.
    #[must_use]
    pub fn door(self) -> u16 {
        self.0 + 2
    }

    /// UDP datagrams that are counted.
    #[must_use]
    pub fn sink(self) -> u16 {
        self.0 + 2
    }

    /// TCP: a line with a run's number is answered with a [`Tally`] as a line of JSON.
    #[must_use]
    pub fn control(self) -> u16 {
        self.0 + 3
    }

    /// The largest first port.
    pub const MAX: u16 = u16::MAX - 3;
}

/// What the sink has counted of one run. A datagram begins with the number of its run (eight bytes, network
/// order); a later run has a higher number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// The run.
    pub run: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Their payload in bytes.
    pub bytes: u64,
    /// From the first to the last.
    pub nanoseconds: u64,
}

/// All of it, running. It ends when dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    listeners: Vec<TcpListener>,
    threads: Vec<JoinHandle<()>>,
    iperf3: Child,
}

impl Server {
    /// Starts everything on `ports` of every address.
    ///
    /// # Errors
    /// If a port is taken, or iperf3 cannot be started.
    pub fn start(ports: Ports) -> anyhow::Result<Self> {
        let tcp = |port: u16| {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                .with_context(|| format!("listen on TCP port {port}"))
        };
        let udp = |port: u16| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_read_timeout(Some(GLANCE))?;
            anyhow::Ok(socket)
        };
        let (echo, door, control) = (tcp(ports.echo())?, tcp(ports.door())?, tcp(ports.control())?);
        let udp_echo = udp(ports.echo()).with_context(|| format!("bind UDP port {}", ports.echo()))?;
        let sink = udp(ports.sink()).with_context(|| format!("bind UDP port {}", ports.sink()))?;
        // Without the right to exceed the system's limit, up to that.
        sockopt::set_socket_recv_buffer_size_force(&sink, ROOM)
            .or_else(|_| sockopt::set_socket_recv_buffer_size(&sink, ROOM))
            .context("give the sink room")?;
        let iperf3 = Command::new("iperf3")
            .args(["--server", "--port", &ports.iperf3().to_string()])
            // Without this a client that is gone keeps the server from the next one for two minutes.
            .args(["--rcv-timeout", "3000"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start iperf3")?;

        let mut server = Self { stop: Arc::default(), listeners: Vec::new(), threads: Vec::new(), iperf3 };
        let tally = Arc::new(Mutex::new(Tally::default()));
        let counted = Arc::clone(&tally);
        server.accept(echo, |stream| {
            std::thread::spawn(move || echo_stream(stream));
        })?;
        server.accept(door, drop)?;
        server.accept(control, move |stream| {
            let tally = Arc::clone(&counted);
            std::thread::spawn(move || answer(&stream, &tally));
        })?;
        let stopped = Arc::clone(&server.stop);
        server.threads.push(std::thread::spawn(move || echo_datagrams(&udp_echo, &stopped)));
        let stopped = Arc::clone(&server.stop);
        server.threads.push(std::thread::spawn(move || count(&sink, &tally, &stopped)));
        Ok(server)
    }

    /// How iperf3's server ended, if it has: the rest cannot tell.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.iperf3.try_wait().context("ask for iperf3's state")? {
            None => Ok(()),
            Some(status) => anyhow::bail!("iperf3's server ended: {status}; is its port taken?"),
        }
    }

    fn accept(
        &mut self,
        listener: TcpListener,
        mut serve: impl FnMut(TcpStream) + Send + 'static,
    ) -> anyhow::Result<()> {
        self.listeners.push(listener.try_clone().context("copy a listener")?);
        let stopped = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                // A connection that ended before it was accepted is its client's affair.
                if let Ok((stream, _)) = listener.accept() {
                    serve(stream);
                }
            }
        }));
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for listener in &self.listeners {
            // Wakes the thread from its accept.
            let _ = shutdown(listener, Shutdown::Both);
        }
        // It may have ended by itself: that is what was wanted.
        let _ = self.iperf3.kill();
        let _ = self.iperf3.wait();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn echo_stream(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    if stream.set_nodelay(true).is_err() {
        return;
    }
    // The client closes when it has enough, in whatever way.
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            return;
        }
    }
}

fn echo_datagrams(socket: &UdpSocket, stopped: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    while !stopped.load(Ordering::Acquire) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            // An answer that cannot be sent is counted as lost by the one who waits for it.
            let _ = socket.send_to(&buffer[..len], from);
        }
    }
}

/// Counts what arrives, a handful at a time: it sleeps a little after each, so that the sender, in
/// whose system call the packets arrive on one machine, does not pay for waking it with each. What is
/// measured is the way, not that.
fn count(socket: &UdpSocket, tally: &Mutex<Tally>, stopped: &AtomicBool) {
    let mut buffer = vec![0; 1 << 16];
    let mut first = Instant::now();
    while !stopped.load(Ordering::Acquire) {
        let mut flags = RecvFlags::empty();
        while let Ok((_, len)) = recv(socket, &mut buffer[..], flags) {
            flags = RecvFlags::DONTWAIT;
            let Some(run) = buffer[..len].first_chunk().map(|number| u64::from_be_bytes(*number)) else {
                continue;
            };
            let now = Instant::now();
            let mut tally = tally.lock();
            if run > tally.run {
                *tally = Tally { run, ..Tally::default() };
                first = now;
            }
            if run == tally.run {
                tally.received += 1;
                tally.bytes += len as u64;
                tally.nanoseconds = (now - first).as_nanos() as u64;
            }
        }
        if flags.contains(RecvFlags::DONTWAIT) {
            std::thread::sleep(GATHER);
        }
    }
}

fn answer(stream: &TcpStream, tally: &Mutex<Tally>) {
    let reply = |line: &str| -> io::Result<()> {
        let run = line.trim().parse().map_err(|_| ErrorKind::InvalidData)?;
        let tally = *tally.lock();
        let tally = if tally.run == run { tally } else { Tally { run, ..Tally::default() } };
        let mut text = serde_json::to_string(&tally)?;
        text.push('\n');
        (&*stream).write_all(text.as_bytes())
    };
    // Whatever fails ends the conversation, and the client says what it missed.
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if reply(&line).is_err() {
            return;
        }
    }
}

/// How long the sink lets datagrams gather.
const GATHER: Duration = Duration::from_micros(100);
/// Room for datagrams that gather, in bytes: many times what arrives in that time, so that a moment in
/// which something else runs loses none.
const ROOM: usize = 4 << 20;
/// How often a thread that waits for datagrams looks whether it is to stop.
const GLANCE: Duration = Duration::from_millis(50);
