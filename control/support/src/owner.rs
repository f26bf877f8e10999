//! Which process has what is wanted: a UDP port, a TUN device, a name. Only an error says so; it is looked for in `/proc`.

use std::fs;
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::reserve::reading;

/// A process of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its number.
    pub pid: u32,
}

/// Who has a socket that keeps others from the UDP port of `listen`; nobody where this process may not see it.
#[must_use]
pub fn of_udp_port(listen: SocketAddrV4) -> Option<Owner> {
    // `thread-self`: /proc/net shows the network namespace of the main thread.
    let sockets = |table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
    let inodes = [sockets("udp"), sockets("udp6")].concat();
    let inodes: Vec<String> = inodes.lines().filter_map(|line| inode_at(line, listen)).collect();
    let has_it = |link: &Path, _: &Path| link.to_str().is_some_and(|link| inodes.iter().any(|it| it == link));
    if inodes.is_empty() { None } else { find(has_it) }
}

/// Who listens at the abstract Unix socket of this name.
#[must_use]
pub fn of_abstract_socket(name: &str) -> Option<Owner> {
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
    let of_name = |line: &str| {
        let mut columns = line.split_whitespace().skip(6);
        let (inode, path) = (columns.next()?, columns.next()?);
        (path.strip_prefix('@') == Some(name)).then(|| format!("socket:[{inode}]"))
    };
    let inode = sockets.lines().find_map(of_name)?;
    find(|link: &Path, _: &Path| link == Path::new(&inode))
}

/// Who has the TUN device of this name open.
#[must_use]
pub fn of_tun(device: &str) -> Option<Owner> {
    let line = format!("iff:\t{device}");
    let has_it = |link: &Path, info: &Path| {
        link == Path::new("/dev/net/tun")
            && fs::read_to_string(info).is_ok_and(|text| text.lines().any(|it| it == line))
    };
    find(has_it)
}

/// Numbers of the other processes of this network namespace.
pub fn processes_here() -> impl Iterator<Item = u32> {
    // A network namespace has files of its own below `net`, too, and those take no right to look into the process.
    let namespace = |process: PathBuf| fs::metadata(process.join("net/dev")).map(|meta| meta.ino()).ok();
    let own = namespace("/proc/thread-self".into());
    let all = fs::read_dir("/proc").ok().into_iter().flatten().flatten();
    all.filter_map(move |entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        (pid != std::process::id() && namespace(entry.path()) == Some(own?)).then_some(pid)
    })
}

/// The name of a process, as `ps` shows it.
pub fn name_of(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// The first process with a descriptor for which `has_it` holds. It gets the target of the link in `/proc/PID/fd`, and the
/// path of its `fdinfo`.
fn find(has_it: impl Fn(&Path, &Path) -> bool) -> Option<Owner> {
    let has = |pid: &u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok().into_iter().flatten().flatten();
        let mut descriptors = descriptors.filter_map(|entry| {
            let info = format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_str()?);
            Some((fs::read_link(entry.path()).ok()?, PathBuf::from(info)))
        });
        descriptors.any(|(link, info)| has_it(&link, &info))
    };
    // What a daemon of ours holds is for those to see that may do as much as it may.
    let pid = reading(|| processes_here().find(has))?;
    Some(Owner { name: name_of(pid)?, pid })
}

/// What a descriptor of the socket links to that a line of `/proc/net/udp` tells of, if that is bound where `listen` is
/// or at all addresses (`proc(5)`).
fn inode_at(line: &str, listen: SocketAddrV4) -> Option<String> {
    let mut columns = line.split_whitespace();
    let (address, port) = columns.nth(1)?.split_once(':')?;
    let ours = format!("{:08X}", u32::from_ne_bytes(listen.ip().octets()));
    let is_there = address == ours || address.bytes().all(|digit| digit == b'0');
    let inode = columns.nth(7)?;
    (u16::from_str_radix(port, 16) == Ok(listen.port()) && is_there).then(|| format!("socket:[{inode}]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_known_by_its_line() {
        let line = |local: &str| {
            format!(
                " 1183: {local} 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4242 2 0 0"
            )
        };
        let listen = "192.168.1.12:8472".parse().unwrap();
        let ours = format!("{:08X}:2118", u32::from_ne_bytes([192, 168, 1, 12]));
        let other = format!("{:08X}:2118", u32::from_ne_bytes([192, 168, 1, 13]));
        for (local, is_it) in [
            (ours.as_str(), true),
            ("00000000:2118", true),
            ("00000000000000000000000000000000:2118", true),
            (&other, false),
            ("00000000:2119", false),
        ] {
            let found = inode_at(&line(local), listen);
            assert_eq!(found, is_it.then(|| "socket:[4242]".to_owned()), "{local}");
        }
        assert_eq!(inode_at("   sl  local_address rem_address   st tx_queue rx_queue", listen), None);
    }
}
