//! Steady traffic beside whatever else happens: slow enough that a sound overlay loses none of it,
//! and counted, so that one lost packet shows.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::netns::Namespace;

/// Numbered datagrams and a numbered TCP stream from one namespace to another, until stopped.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    /// How many datagrams were sent.
    sending: JoinHandle<u64>,
    /// Which of them did not arrive, of those that should have.
    receiving: JoinHandle<Vec<u64>>,
    streaming: JoinHandle<u64>,
    reading: JoinHandle<u64>,
}

impl Steady {
    /// Starts both at `address` in `to`.
    #[track_caller]
    pub fn start(from: &Namespace, to: &Namespace, address: Ipv4Addr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let receiver = to.within(|| UdpSocket::bind((address, 0))).expect("bind a UDP socket");
        let sender = from.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        sender.connect(receiver.local_addr().expect("a bound address")).expect("connect a UDP socket");
        let listener = to.within(|| TcpListener::bind((address, 0))).expect("bind a TCP listener");
        let target = listener.local_addr().expect("a bound address");
        let stream = from.within(|| TcpStream::connect_timeout(&target, PATIENCE)).expect("connect");
        let (received, _) = listener.accept().expect("accept");
        for end in [&stream, &received] {
            end.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
            end.set_write_timeout(Some(PATIENCE)).expect("set a timeout");
        }
        receiver.set_read_timeout(Some(QUIET)).expect("set a timeout");
        let stopped = [stop.clone(), stop.clone()];
        let [datagrams_stopped, stream_stopped] = stopped;
        Self {
            stop,
            sending: std::thread::spawn(move || send(&sender, &datagrams_stopped)),
            receiving: std::thread::spawn(move || missing(&receiver)),
            streaming: std::thread::spawn(move || write(stream, &stream_stopped)),
            reading: std::thread::spawn(move || read(received)),
        }
    }

    /// Stops, and checks that every datagram and every octet has arrived. Returns how many datagrams.
    #[track_caller]
    pub fn nothing_lost(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        let (written, read) = (self.streaming.join().expect("writer"), self.reading.join().expect("reader"));
        assert_eq!(read, written, "blocks of the stream");
        let (sent, missing) =
            (self.sending.join().expect("sender"), self.receiving.join().expect("receiver"));
        assert!(missing.is_empty(), "{} of {sent} datagrams were lost: {missing:?}", missing.len());
        assert!(sent > 0 && written > 0, "nothing was sent");
        sent
    }
}

fn send(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        // Refused by the kernel is lost, too; it shows as missing.
        let _ = socket.send(&number.to_le_bytes());
        number += 1;
        std::thread::sleep(INTERVAL);
    }
    // The end, several times: the receiver must know what should have come.
    for _ in 0..5 {
        let _ = socket.send(&[&number.to_le_bytes()[..], b"end"].concat());
        std::thread::sleep(INTERVAL);
    }
    number
}

fn missing(socket: &UdpSocket) -> Vec<u64> {
    let mut arrived = Vec::new();
    let mut buffer = [0; 64];
    loop {
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no datagram has arrived for {QUIET:?}, {} before that", arrived.len());
            }
            Err(error) => panic!("receive a datagram: {error}"),
        };
        let number = u64::from_le_bytes(*buffer.first_chunk().expect("a number"));
        if length == 8 {
            arrived.push(number);
        } else {
            arrived.sort_unstable();
            return (0..number).filter(|number| arrived.binary_search(number).is_err()).collect();
        }
    }
}

fn write(mut stream: TcpStream, stop: &AtomicBool) -> u64 {
    let mut number = 0_u64;
    while !stop.load(Ordering::Acquire) {
        let block = number.to_le_bytes().repeat(BLOCK / 8);
        stream.write_all(&block).unwrap_or_else(|error| panic!("write block {number}: {error}"));
        number += 1;
        std::thread::sleep(10 * INTERVAL);
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

/// Between two datagrams.
const INTERVAL: Duration = Duration::from_millis(2);
/// Octets written to the stream at a time: several segments.
const BLOCK: usize = 32 << 10;
/// Without a datagram for so long, the overlay is dead.
const QUIET: Duration = Duration::from_secs(20);
/// The same for the stream.
const PATIENCE: Duration = Duration::from_secs(20);
