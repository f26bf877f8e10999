//! One daemon at a time keeps what an overlay has on a host: its rules, routes and device, which bear the device's name.
//! A tunnel's port and device tell of another daemon; `host-gw` and `alloc` have neither.
//!
//! Who keeps it has an abstract Unix socket of the network namespace, named after the device. It goes with the process,
//! however that ends, and needs no directory.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use parking_lot::{Mutex, MutexGuard};
use rustix::net::sockopt::socket_peercred;
use socket2::{Domain, SockAddr, Socket, Type};
use tracing::warn;

use crate::owner;

/// The right to keep what is named after a device, for as long as this lives.
#[derive(Debug)]
pub struct Claim {
    device: String,
    /// `None` where somebody has taken the name who cannot be a daemon.
    _socket: Option<Socket>,
}

/// Another daemon keeps it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "another overlayd{} keeps the rules and routes of {device} on this host: stop it, or give the networks different VNIs or, without a tunnel, different addresses",
    .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
)]
pub struct Claimed {
    /// What is named after it.
    pub device: String,
    /// The other's process, where it can be told.
    pub pid: Option<i32>,
}

impl Claim {
    /// Takes it, if nobody has it in this network namespace.
    ///
    /// # Errors
    /// [`Claimed`].
    pub fn take(device: &str) -> Result<Self, Claimed> {
        let claim = |socket| {
            held().insert(device.to_owned());
            Ok(Self { device: device.to_owned(), _socket: socket })
        };
        let error = match listen(device) {
            Ok(socket) => return claim(Some(socket)),
            Err(error) => error,
        };
        if error.kind() != io::ErrorKind::AddrInUse {
            warn!(%error, device, "whether another overlayd keeps this device cannot be told");
            return claim(None);
        }
        // Whoever is never answered fills the queue of those who ask, and the next one is told nothing.
        let pid = owner(device).or_else(|| {
            let owner = owner::of_abstract_socket(&format!("{PREFIX}{device}"))?;
            i32::try_from(owner.pid).ok()
        });
        match pid.filter(|pid| !may_administer(*pid)) {
            // Anybody may take a name, but nobody may keep us from starting.
            Some(pid) => {
                warn!(
                    pid,
                    device,
                    "a process that cannot be an overlayd has taken the name by which overlayds know of each other"
                );
                claim(None)
            }
            None => Err(Claimed { device: device.to_owned(), pid }),
        }
    }

    /// What it is for.
    #[must_use]
    pub fn device(&self) -> &str {
        &self.device
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        held().remove(&self.device);
    }
}

/// Whether another process keeps what is named after `device`.
pub fn is_anothers(device: &str) -> bool {
    // The list of them tells without a word to whoever has it. `thread-self`: /proc/net shows the network namespace
    // of the main thread.
    let taken = || fs::read_to_string("/proc/thread-self/net/unix").unwrap_or_default();
    // Its last column is the name, with an @ for the first, zero, byte.
    let name = format!(" @{PREFIX}{device}");
    !held().contains(device) && taken().lines().any(|line| line.ends_with(&name))
}

/// What this process has claimed.
fn held() -> MutexGuard<'static, BTreeSet<String>> {
    static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    HELD.lock()
}

fn address(device: &str) -> io::Result<SockAddr> {
    SockAddr::unix(format!("\0{PREFIX}{device}"))
}

fn listen(device: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&address(device)?)?;
    // Nobody is answered: who connects learns whose it is.
    socket.listen(1)?;
    Ok(socket)
}

/// The process that has the name; `None` where that cannot be told, as from another PID namespace.
fn owner(device: &str) -> Option<i32> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    // Others may be waiting there for an answer that does not come.
    socket.set_nonblocking(true).ok()?;
    socket.connect(&address(device).ok()?).ok()?;
    let owner = socket_peercred(&socket).ok()?;
    Some(owner.pid.as_raw_pid()).filter(|pid| *pid > 0)
}

/// Whether a process has the right to change routes and rules. One that cannot be looked at counts as one that has.
fn may_administer(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let rights = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let rights = rights.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    rights.is_none_or(|rights| rights & CAP_NET_ADMIN != 0)
}

/// What the names of all claims begin with.
const PREFIX: &str = "overlayd/";
/// `linux/capability.h`.
const CAP_NET_ADMIN: u64 = 1 << 12;
