//! TCP transfers between pods, one after the other, each compared octet by octet where it arrives.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::netns::Namespace;
use crate::noise::Noise;

/// Streams that go on until the program ends.
#[derive(Debug, Default)]
pub struct Streams {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    paused: AtomicBool,
    /// Transfers that are under way.
    running: AtomicUsize,
    finished: AtomicU64,
    octets: AtomicU64,
}

impl Streams {
    /// Adds transfers from one namespace to another, of lengths and contents that follow from `seed`.
    #[track_caller]
    pub fn add(&self, name: &str, from: &Namespace, to: &Namespace, address: Ipv4Addr, seed: u64) {
        let listener = to.within(|| TcpListener::bind((address, 0))).expect("bind a TCP listener");
        let target = listener.local_addr().expect("a bound address");
        let called = name.to_owned();
        std::thread::spawn(move || receive(&listener, &called, Noise::seeded(seed)));
        let (shared, called, path) = (Arc::clone(&self.shared), name.to_owned(), from.path());
        std::thread::spawn(move || {
            crate::netns::enter(&path);
            send(target, &called, Noise::seeded(seed), &shared);
        });
    }

    /// Begins no other transfer, and waits for the end of those that are under way. Panics if that takes
    /// longer than `limit`: a connection hangs.
    #[track_caller]
    pub fn pause(&self, limit: Duration) {
        self.shared.paused.store(true, Ordering::SeqCst);
        let start = Instant::now();
        while self.shared.running.load(Ordering::SeqCst) > 0 {
            assert!(start.elapsed() < limit, "a transfer does not come to its end in {limit:?}");
            std::thread::sleep(POLL);
        }
    }

    /// Goes on.
    pub fn resume(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
    }

    /// Finished transfers, and their octets.
    #[must_use]
    pub fn done(&self) -> (u64, u64) {
        (self.shared.finished.load(Ordering::Acquire), self.shared.octets.load(Ordering::Acquire))
    }
}

fn send(target: SocketAddr, name: &str, mut noise: Noise, shared: &Shared) {
    let fail = |what: &str, error: std::io::Error| -> ! { panic!("{name}: {what}: {error}") };
    loop {
        let length = length(&mut noise);
        shared.running.fetch_add(1, Ordering::SeqCst);
        while shared.paused.load(Ordering::SeqCst) {
            shared.running.fetch_sub(1, Ordering::SeqCst);
            std::thread::sleep(POLL);
            shared.running.fetch_add(1, Ordering::SeqCst);
        }
        let mut stream = connect(target).unwrap_or_else(|error| fail("connect", error));
        let mut left = length;
        while left > 0 {
            let block = noise.octets(BLOCK.min(left));
            stream.write_all(&block).unwrap_or_else(|error| fail("send", error));
            left -= block.len();
            std::thread::sleep(PACE);
        }
        stream.shutdown(Shutdown::Write).unwrap_or_else(|error| fail("shut down", error));
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap_or_else(|error| fail("wait for the answer", error));
        assert_eq!(answer, ANSWER, "{name}: the answer");
        shared.octets.fetch_add(length as u64, Ordering::AcqRel);
        shared.finished.fetch_add(1, Ordering::AcqRel);
        shared.running.fetch_sub(1, Ordering::SeqCst);
        std::thread::sleep(PAUSE);
    }
}

fn receive(listener: &TcpListener, name: &str, mut noise: Noise) {
    loop {
        let (mut stream, _) = listener.accept().unwrap_or_else(|error| panic!("{name}: accept: {error}"));
        stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
        let mut left = length(&mut noise);
        let mut block = vec![0; BLOCK];
        while left > 0 {
            let block = &mut block[..BLOCK.min(left)];
            stream.read_exact(block).unwrap_or_else(|error| panic!("{name}: receive: {error}"));
            assert!(*block == noise.octets(block.len()), "{name}: a block was changed on its way");
            left -= block.len();
        }
        assert_eq!(stream.read(&mut block).ok(), Some(0), "{name}: more than was sent");
        stream.write_all(ANSWER).unwrap_or_else(|error| panic!("{name}: answer: {error}"));
    }
}

/// A host that has lost its way for a moment says so, and is asked again.
fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect_timeout(&target, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn length(noise: &mut Noise) -> usize {
    BLOCK + (noise.number() >> 32) as usize % LONGEST
}

/// Octets of a transfer.
const LONGEST: usize = 4 << 20;
/// Octets written at a time: several segments.
const BLOCK: usize = 64 << 10;
const ANSWER: &[u8] = b"all here";
/// Between two blocks: there is to be time for the rest.
const PACE: Duration = Duration::from_millis(4);
const PAUSE: Duration = Duration::from_millis(100);
const POLL: Duration = Duration::from_millis(5);
/// A connection that stands still for longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
