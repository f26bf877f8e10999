//! Whether somebody keeps this machine's clock.

use std::io;

/// Whether the kernel's clock is being kept in step with a better one, as by NTP (`adjtimex(2)`).
///
/// # Errors
/// What the kernel said; asking needs no privilege.
pub fn is_synchronized() -> io::Result<bool> {
    // SAFETY: a `timex` is plain data, of which all zeros is a value: `modes` 0 asks and changes nothing.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to the `timex` that it is given, which is live and ours alone.
    match unsafe { libc::adjtimex(&mut timex) } {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0),
    }
}
