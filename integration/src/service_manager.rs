//! The service manager's part in a test: what a daemon tells it, and the descriptors that it keeps from one
//! process of a service to the next, by systemd's protocol (`sd_notify(3)`, `sd_listen_fds(3)`).

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::netns::Namespace;

/// The notification socket of one service, and its store of descriptors.
#[derive(Debug)]
pub struct ServiceManager {
    socket: UnixDatagram,
    path: PathBuf,
    stored: Vec<(String, OwnedFd)>,
}

impl ServiceManager {
    /// Binds the socket. A service of the same name may have run before.
    #[track_caller]
    pub fn new(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let socket = UnixDatagram::bind(path).expect("bind the notification socket");
        Self { socket, path: path.into(), stored: Vec::new() }
    }

    /// Keeps descriptors for the next process, as if an earlier one had stored them.
    pub fn keep(&mut self, descriptors: impl IntoIterator<Item = OwnedFd>) {
        self.stored.extend(descriptors.into_iter().map(|fd| ("kept".to_owned(), fd)));
    }

    /// How many descriptors it keeps.
    pub fn stored(&self) -> usize {
        self.stored.len()
    }

    /// A command that starts `program` inside, with the socket and what is stored handed over; and the
    /// descriptors that it inherits, which are to be closed once it has been spawned.
    #[track_caller]
    pub fn command(&self, ns: &Namespace, program: &Path) -> (Command, Vec<OwnedFd>) {
        let program = program.display().to_string();
        let copy = |(_, fd): &(String, OwnedFd)| rustix::io::dup(fd).expect("duplicate a descriptor");
        let inheritable: Vec<OwnedFd> = self.stored.iter().map(copy).collect();
        let mut command = if inheritable.is_empty() {
            ns.command(&program)
        } else {
            // In a shell: descriptors must have the numbers from 3 on, and the process must know its own id.
            let moves: Vec<String> = inheritable
                .iter()
                .enumerate()
                .map(|(index, fd)| format!("{}<&{}", FIRST + index as RawFd, fd.as_raw_fd()))
                .collect();
            let mut shell = ns.command("bash");
            shell.arg("-c").arg(format!("exec {}; LISTEN_PID=$$ exec \"$@\"", moves.join(" ")));
            shell.args(["bash", &program]).env("LISTEN_FDS", self.stored.len().to_string());
            shell
        };
        command.env("NOTIFY_SOCKET", &self.path);
        (command, inheritable)
    }

    /// Takes in the next message, waiting for `limit` at most, and returns its lines.
    #[track_caller]
    pub fn next(&mut self, limit: Duration) -> Option<Vec<String>> {
        self.socket.set_read_timeout(Some(limit)).expect("set a timeout");
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let slices = &mut [IoSliceMut::new(&mut buffer)];
        let message = match recvmsg(&self.socket, slices, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message,
            Err(Errno::AGAIN) => return None,
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
        if lines.iter().any(|line| line == "FDSTOREREMOVE=1") {
            self.stored.retain(|(stored, _)| stored != name);
        }
        if lines.iter().any(|line| line == "FDSTORE=1") {
            self.stored.extend(descriptors.into_iter().map(|fd| (name.to_owned(), fd)));
        }
        Some(lines)
    }
}

/// Descriptors that come in one message (`SCM_MAX_FD` is 253).
const MOST: usize = 64;
/// The number of the first descriptor that is handed over.
const FIRST: RawFd = 3;
