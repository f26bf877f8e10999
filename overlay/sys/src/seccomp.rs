//! System call filters of the calling thread (`seccomp(2)`).

use std::io;

use seccompiler::sock_filter;

/// Has the kernel ask `program` about each system call of this thread from now on. What it refuses is told to the
/// kernel's log. The thread must have `no_new_privs`.
///
/// # Errors
/// `EINVAL` or `ENOSYS` where the kernel has no filters (`CONFIG_SECCOMP_FILTER`), `EACCES` without `no_new_privs`.
pub fn install(program: &[sock_filter]) -> io::Result<()> {
    let instruction = |i: &sock_filter| libc::sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k };
    let mut program: Vec<libc::sock_filter> = program.iter().map(instruction).collect();
    let len = program.len().try_into().map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // Before Linux 5.16 a filter slows the thread's speculation down, unless asked not to. That is meant for threads
    // that run somebody else's program; a worker runs none.
    let flags = libc::SECCOMP_FILTER_FLAG_LOG | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the call reads one `sock_fprog`, and the instructions that it points to, which outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
