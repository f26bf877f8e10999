//! What a worker may do: move packets between descriptors that were opened before it began, and nothing else.
//!
//! Bytes from the wire meet our code in the workers. Should one of them ever come to run something else, it has
//! no capability, and cannot open a file or a socket, start a program or a thread, or make memory executable.
//! It still shares its memory with the rest of the process: this narrows what can be done, it is no wall.

use std::collections::BTreeMap;
use std::io;
use std::thread;

use overlay_sys::seccomp;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// What becomes of a system call that no worker has a use for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SystemCalls {
    /// It is made.
    Allowed,
    /// It is made, and told to the kernel's log.
    Logged,
    /// It fails with `EPERM`, and is told to the kernel's log.
    Refused,
    /// It ends the process with `SIGSYS`.
    Fatal,
}

/// What workers are to be confined to; the default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Confinement {
    filter: Option<BpfProgram>,
    no_capabilities: bool,
}

impl Confinement {
    /// Calls that no worker needs are treated as `others` says, and with `no_capabilities` it has none. A thread
    /// tries it out.
    ///
    /// # Errors
    /// What the kernel, or somebody who confines this process, does not let us do.
    pub fn new(others: SystemCalls, no_capabilities: bool) -> io::Result<Self> {
        let action = match others {
            SystemCalls::Allowed => None,
            SystemCalls::Logged => Some(SeccompAction::Log),
            SystemCalls::Refused => Some(SeccompAction::Errno(libc::EPERM.cast_unsigned())),
            SystemCalls::Fatal => Some(SeccompAction::KillProcess),
        };
        let filter = action.map(compile).transpose().map_err(io::Error::other)?;
        let confinement = Self { filter, no_capabilities };
        let tried = thread::scope(|threads| threads.spawn(|| confinement.enter()).join());
        tried.unwrap_or_else(|_| Err(io::Error::other("the thread that tried it out has panicked")))?;
        Ok(confinement)
    }

    /// Confines the calling thread, for as long as it runs.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn enter(&self) -> io::Result<()> {
        if self.no_capabilities {
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
        }
        if let Some(filter) = &self.filter {
            set_no_new_privs(true)?;
            seccomp::install(filter)?;
        }
        Ok(())
    }
}

/// The program that lets through what workers need and does `action` about the rest.
fn compile(action: SeccompAction) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALWAYS.iter().chain(OF_THIS_PROCESSOR).map(|call| (*call, Vec::new())).collect();
    for (call, argument, condition, value) in conditional() {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, condition, value)?;
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, action, SeccompAction::Allow, architecture)?.try_into()
}

/// Calls that only do with the right argument: its number, and what is compared with what.
fn conditional() -> [(i64, u8, SeccompCmpOp, u64); 5] {
    let without = |flag: libc::c_int| SeccompCmpOp::MaskedEq(u64::from(flag.cast_unsigned()));
    let is = |value: libc::c_int| u64::from(value.cast_unsigned());
    [
        // Memory, but none that can be executed.
        (libc::SYS_mmap, 2, without(libc::PROT_EXEC), 0),
        (libc::SYS_mprotect, 2, without(libc::PROT_EXEC), 0),
        // The allocator names its memory.
        (libc::SYS_prctl, 0, SeccompCmpOp::Eq, is(libc::PR_SET_VMA)),
        // The standard library asks whether what it closes is open, in debug builds.
        (libc::SYS_fcntl, 1, SeccompCmpOp::Eq, is(libc::F_GETFD)),
        // `abort` sends a signal, and to nobody else.
        (libc::SYS_tgkill, 0, SeccompCmpOp::Eq, u64::from(std::process::id())),
    ]
}

/// With any arguments: the kernel remembers which these are, and asks the program about the others only
/// (since Linux 5.11).
const ALWAYS: &[i64] = &[
    // Packets, from and to the device, the sockets and the rings.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    // Waiting, and the time. (With a steady clock, it is asked without a call.)
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    libc::SYS_sched_yield,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    // The end of the thread, and of all it holds.
    libc::SYS_close,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals, a crash above all: what catches it first gives up the catching, and would else be called for ever.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
];

#[cfg(target_arch = "x86_64")]
const OF_THIS_PROCESSOR: &[i64] = &[libc::SYS_poll];
#[cfg(not(target_arch = "x86_64"))]
const OF_THIS_PROCESSOR: &[i64] = &[];

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;
    use std::time::{Duration, Instant};

    use overlay_sys::wake::{StopFlag, Woken, wait_readable};
    use rustix::thread::capabilities;

    use super::*;

    /// Runs `work` in a thread that is confined.
    fn confined<T: Send>(others: SystemCalls, work: impl FnOnce() -> T + Send) -> T {
        let confinement = Confinement::new(others, false).unwrap();
        let run = || {
            confinement.enter().unwrap();
            work()
        };
        thread::scope(|threads| threads.spawn(run).join().unwrap())
    }

    #[test]
    fn a_worker_opens_nothing_and_starts_nothing() {
        let denied = |result: io::Result<()>| result.unwrap_err().raw_os_error() == Some(libc::EPERM);
        confined(SystemCalls::Refused, || {
            assert!(denied(File::open("/dev/null").map(drop)), "a file");
            assert!(denied(std::fs::create_dir("/tmp/made-by-a-worker")), "a directory");
            assert!(denied(UdpSocket::bind("127.0.0.1:0").map(drop)), "a socket");
            assert!(denied(Command::new("/bin/true").status().map(drop)), "a program");
            assert!(denied(thread::Builder::new().spawn(|| ()).map(drop)), "a thread");
        });
        // The others may still.
        File::open("/dev/null").unwrap();
    }

    #[test]
    fn a_worker_does_its_work() {
        let (mut reader, mut writer) = io::pipe().unwrap();
        let (sender, receiver) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let to = receiver.local_addr().unwrap();
        let stop = StopFlag::new().unwrap();
        confined(SystemCalls::Refused, move || {
            writer.write_all(b"packet").unwrap();
            assert_eq!(wait_readable(reader.as_fd(), &stop).unwrap(), Woken::Readable);
            let mut buffer = [0; 6];
            reader.read_exact(&mut buffer).unwrap();
            sender.send_to(&buffer, to).unwrap();
            receiver.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer, b"packet");
            // More than an allocator keeps in reserve.
            let memory: Vec<Vec<u8>> = (0..64).map(|i| vec![i; 1 << 20]).collect();
            assert!(
                memory.iter().enumerate().all(|(i, block)| block.iter().all(|byte| usize::from(*byte) == i))
            );
            let start = Instant::now();
            thread::sleep(Duration::from_millis(1));
            thread::yield_now();
            assert!(start.elapsed() >= Duration::from_millis(1));
        });
    }

    #[test]
    fn what_is_only_logged_is_done() {
        confined(SystemCalls::Logged, || File::open("/dev/null").map(drop)).unwrap();
        confined(SystemCalls::Allowed, || File::open("/dev/null").map(drop)).unwrap();
    }

    #[test]
    fn a_fatal_call_ends_the_process() {
        const VICTIM: &str = "OVERLAY_TEST_IS_THE_VICTIM";
        if std::env::var_os(VICTIM).is_some() {
            let result = confined(SystemCalls::Fatal, || File::open("/dev/null"));
            panic!("it went on: {result:?}");
        }
        let mut victim = Command::new(std::env::current_exe().unwrap());
        victim.args(["--exact", "confine::tests::a_fatal_call_ends_the_process"]).env(VICTIM, "1");
        assert_eq!(victim.output().unwrap().status.signal(), Some(libc::SIGSYS));
    }

    #[test]
    fn a_worker_has_no_capability() {
        let confinement = Confinement::new(SystemCalls::Allowed, true).unwrap();
        let before = capabilities(None).unwrap();
        let inside = thread::scope(|threads| {
            let look = || {
                confinement.enter().unwrap();
                capabilities(None).unwrap()
            };
            threads.spawn(look).join().unwrap()
        });
        assert!(inside.permitted.is_empty() && inside.effective.is_empty() && inside.inheritable.is_empty());
        assert_eq!(capabilities(None).unwrap(), before, "the others keep theirs");
    }
}
