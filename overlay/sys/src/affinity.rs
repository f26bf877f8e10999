//! Which processors a thread runs on.

use std::io;

/// Ties the calling thread to the `index`th of the processors it may run on, counted round.
///
/// # Errors
/// `EINVAL` if that processor has gone offline in between.
pub fn pin_to(index: usize) -> io::Result<()> {
    // SAFETY: `cpu_set_t` is an array of bits, for which all zeros is a valid value.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: writes at most `size` bytes, which `allowed` has.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: CPU_ISSET reads a bit inside the set for any number below CPU_SETSIZE.
    let is_allowed = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &allowed) };
    let cpus: Vec<usize> = (0..libc::CPU_SETSIZE as usize).filter(is_allowed).collect();
    let Some(cpu) = cpus.get(index % cpus.len().max(1)) else { return Ok(()) };
    // SAFETY: as above.
    let mut chosen: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: sets a bit inside the set; `cpu` is below CPU_SETSIZE.
    unsafe { libc::CPU_SET(*cpu, &mut chosen) };
    // SAFETY: reads `size` bytes, which `chosen` has.
    if unsafe { libc::sched_setaffinity(0, size, &raw const chosen) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_thread_stays_on_one_processor() {
        for index in [0, 1, 1000] {
            std::thread::spawn(move || {
                pin_to(index).unwrap();
                assert_eq!(std::thread::available_parallelism().unwrap().get(), 1);
            })
            .join()
            .unwrap();
        }
    }
}
