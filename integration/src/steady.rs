//! Steady traffic beside whatever else happens: slow enough that a sound overlay loses none of it,
//! and counted, so that one lost packet shows.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::datagrams::{NUMBERED_LEN, Order, receive_numbered, receiver};
use crate::netns::Namespace;
use crate::process::{SOON, await_until};

/// Numbered datagrams and a numbered TCP stream from one namespace to another, until stopped.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    datagrams: Paced,
    streaming: JoinHandle<u64>,
    reading: JoinHandle<u64>,
}

impl Steady {
    /// Starts both at `address` in `to`.
    #[track_caller]
    pub fn start(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = to.within(|| TcpListener::bind((address, 0))).expect("bind a TCP listener");
        let target = listener.local_addr().expect("a bound address");
        let stream = from.within(|| TcpStream::connect_timeout(&target, SOON)).expect("connect");
        let (received, _) = listener.accept().expect("accept");
        for end in [&stream, &received] {
            end.set_read_timeout(Some(SOON)).expect("set a timeout");
            end.set_write_timeout(Some(SOON)).expect("set a timeout");
        }
        let stopped = stop.clone();
        Self {
            stop,
            datagrams: Paced::start(from, to, address, PER_SECOND),
            streaming: std::thread::spawn(move || write(stream, &stopped)),
            reading: std::thread::spawn(move || read(received)),
        }
    }

    /// Stops, and checks that every datagram and every octet has arrived. Returns how many datagrams.
    #[track_caller]
    pub fn nothing_lost(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        let (written, read) = (self.streaming.join().expect("writer"), self.reading.join().expect("reader"));
        assert_eq!(read, written, "blocks of the stream");
        let Order { sent, received, .. } = self.datagrams.stop();
        assert_eq!(received, sent, "datagrams");
        assert!(sent > 0 && written > 0, "nothing was sent");
        sent
    }
}

/// Numbered datagrams at a steady pace, from a thread of its own.
#[derive(Debug)]
pub struct Paced {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Option<(JoinHandle<u64>, JoinHandle<Order>)>,
}

impl Paced {
    /// Begins to send so many datagrams a second.
    #[track_caller]
    pub fn start(from: &Namespace, to: &Namespace, address: Ipv4Addr, per_second: u32) -> Self {
        let receiver = receiver(to, address);
        let socket = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        socket.connect(receiver.local_addr().expect("a bound address")).expect("connect a UDP socket");
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let (start, mut sent) = (Instant::now(), 0);
            while !stopped.load(Ordering::Acquire) {
                // What is due, however long this thread has slept.
                let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u64;
                while sent < due {
                    let mut datagram = [0; NUMBERED_LEN];
                    datagram[8..16].copy_from_slice(&sent.to_le_bytes());
                    socket.send(&datagram).expect("send a datagram");
                    sent += 1;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            sent
        });
        let (stopped, counter) = (Arc::clone(&stop), Arc::clone(&received));
        let receiver = std::thread::spawn(move || receive_numbered(&receiver, &stopped, &counter));
        Self { stop, received, threads: Some((sender, receiver)) }
    }

    /// Waits until so many more have arrived.
    #[track_caller]
    pub fn await_more(&self, count: u64) {
        let wanted = self.received.load(Ordering::Acquire) + count;
        await_until(SOON, &format!("{count} more datagrams"), || {
            self.received.load(Ordering::Acquire) >= wanted
        });
    }

    /// Stops sending, waits for what is on its way, and says what became of all.
    #[track_caller]
    pub fn stop(mut self) -> Order {
        self.stop.store(true, Ordering::Release);
        let (sender, receiver) = self.threads.take().expect("stopped once");
        let sent = sender.join().expect("the sender");
        Order { streams: 1, sent, ..receiver.join().expect("the receiver") }
    }
}

fn write(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        let block = number.to_le_bytes().repeat(BLOCK / 8);
        stream.write_all(&block).unwrap_or_else(|error| panic!("write block {number}: {error}"));
        number += 1;
        std::thread::sleep(INTERVAL);
    }
    number
}

fn read(mut stream: TcpStream) -> u64 {
    let mut block = vec![0; BLOCK];
    let mut number = 0_u64;
    loop {
        match stream.read_exact(&mut block) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return number,
            Err(error) => panic!("read block {number}: {error}"),
        }
        assert!(block == number.to_le_bytes().repeat(BLOCK / 8), "block {number} was changed on its way");
        number += 1;
    }
}

/// Datagrams a second.
const PER_SECOND: u32 = 500;
/// Between two blocks of the stream.
const INTERVAL: Duration = Duration::from_millis(20);
/// Octets written to the stream at a time: several segments.
const BLOCK: usize = 32 << 10;
