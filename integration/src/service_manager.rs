//! The service manager's part in a test: what a daemon tells it, and the descriptors that it keeps from one
//! process of a service to the next, by systemd's protocol (`sd_notify(3)`, `sd_listen_fds(3)`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::cmsg_space;
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::netns::Namespace;

/// The notification socket of one service, and its store of descriptors.
#[derive(Debug)]
pub struct ServiceManager {
    path: PathBuf,
    store: Store,
    stop: Arc<AtomicBool>,
    /// Takes in what comes, as systemd does: a daemon must never have to wait for it.
    thread: Option<JoinHandle<()>>,
    messages: mpsc::Receiver<Vec<String>>,
}

/// What is stored, each under its name.
type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

impl ServiceManager {
    /// Binds the socket. A service of the same name may have run before.
    #[track_caller]
    pub fn new(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("bind the notification socket");
        socket.set_read_timeout(Some(POLL)).expect("set a timeout");
        let (sender, messages) = mpsc::channel();
        let (store, stop) = (Store::default(), Arc::<AtomicBool>::default());
        let (stored, stopped) = (Arc::clone(&store), Arc::clone(&stop));
        let take_in = move || {
            loop {
                match receive(&socket, &stored) {
                    // Nobody may want to know.
                    Some(lines) => _ = sender.send(lines),
                    None if stopped.load(Ordering::Acquire) => return,
                    None => {}
                }
            }
        };
        Self { path: path.into(), store, stop, thread: Some(std::thread::spawn(take_in)), messages }
    }

    /// Keeps descriptors for the next process, as if an earlier one had stored them under this name.
    pub fn keep(&mut self, name: &str, descriptors: impl IntoIterator<Item = OwnedFd>) {
        let mut store = self.store.lock();
        store.extend(descriptors.into_iter().map(|fd| (name.to_owned(), fd)));
    }

    /// How many descriptors it keeps.
    pub fn stored(&self) -> usize {
        self.store.lock().len()
    }

    /// A manager for the next process, with what this one keeps of a process that has ended.
    #[track_caller]
    pub fn next_process(mut self) -> Self {
        self.settle();
        let next = Self::new(&self.path);
        std::mem::swap(&mut *next.store.lock(), &mut *self.store.lock());
        next
    }

    /// A command that starts `program` inside, with the socket and what is stored handed over; and the
    /// descriptors that it inherits, which are to be closed once it has been spawned.
    #[track_caller]
    pub fn command(&self, ns: &Namespace, program: &Path) -> (Command, Vec<OwnedFd>) {
        let program = program.display().to_string();
        let copy = |(_, fd): &(String, OwnedFd)| {
            // Far from the numbers that they are moved to.
            let copy = fcntl_dupfd_cloexec(fd, 200).expect("duplicate a descriptor");
            fcntl_setfd(&copy, FdFlags::empty()).expect("let a descriptor be inherited");
            copy
        };
        let inheritable: Vec<OwnedFd> = self.store.lock().iter().map(copy).collect();
        let mut command = if inheritable.is_empty() {
            ns.command(&program)
        } else {
            // In a shell: descriptors must have the numbers from 3 on, and the process must know its own id. One by
            // one: with several at once, bash closes some from 10 on, where it has put what it might put back.
            let moves: Vec<String> = inheritable
                .iter()
                .enumerate()
                .map(|(index, fd)| format!("exec {}<&{}-; ", FIRST + index as RawFd, fd.as_raw_fd()))
                .collect();
            let mut shell = ns.command("bash");
            shell.arg("-c").arg(format!("{}LISTEN_PID=$$ exec \"$@\"", moves.concat()));
            shell.args(["bash", &program]).env("LISTEN_FDS", inheritable.len().to_string());
            shell
        };
        command.env("NOTIFY_SOCKET", &self.path);
        (command, inheritable)
    }

    /// The lines of the next message, waiting for `limit` at most.
    pub fn next(&self, limit: Duration) -> Option<Vec<String>> {
        self.messages.recv_timeout(limit).ok()
    }

    /// Takes in what has been sent, and no more.
    fn settle(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // If it has panicked, that was said, and the test fails by what it misses.
            let _ = thread.join();
        }
    }
}

impl Drop for ServiceManager {
    fn drop(&mut self) {
        self.settle();
    }
}

/// Takes in one message, if there is one, and returns its lines.
fn receive(socket: &UnixDatagram, store: &Store) -> Option<Vec<String>> {
    let mut buffer = [0; 4096];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let slices = &mut [IoSliceMut::new(&mut buffer)];
    let message = match recvmsg(socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
        Ok(message) => message,
        Err(Errno::AGAIN | Errno::INTR) => return None,
        Err(error) => panic!("read the notification socket: {error}"),
    };
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let text = String::from_utf8_lossy(&buffer[..message.bytes]);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored");
    let mut store = store.lock();
    if lines.iter().any(|line| line == "FDSTOREREMOVE=1") {
        store.retain(|(stored, _)| stored != name);
    }
    if lines.iter().any(|line| line == "FDSTORE=1") {
        store.extend(descriptors.into_iter().map(|fd| (name.to_owned(), fd)));
    }
    Some(lines)
}

/// Descriptors that come in one message (`SCM_MAX_FD` is 253).
const MOST: usize = 64;
/// The number of the first descriptor that is handed over.
const FIRST: RawFd = 3;
/// How often the thread looks whether it is to stop.
const POLL: Duration = Duration::from_millis(20);
