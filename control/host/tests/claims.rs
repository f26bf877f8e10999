//! Who may keep a device's rules and routes, in namespaces of their own.

mod namespace;

use std::io::{BufRead, BufReader};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Command, Stdio};

use namespace::Namespace;
use overlay_support::claim::{Claim, Claimed};

#[test]
fn one_process_has_a_device_in_a_namespace_and_another_has_it_afterwards() {
    let (host, elsewhere) = (Namespace::new(), Namespace::new());
    let take = |host: &Namespace, device: &'static str| host.run(move || Claim::take(device));
    let first = take(&host, "10.1.0.0").unwrap();
    for _ in 0..5 {
        let claimed = take(&host, "10.1.0.0").unwrap_err();
        assert_eq!(claimed, Claimed { device: "10.1.0.0".to_owned(), pid: claimed.pid });
        assert!(claimed.to_string().contains("of 10.1.0.0 on this host: stop it"), "{claimed}");
    }
    assert!(take(&host, "10.2.0.0").is_ok(), "another network");
    assert!(take(&elsewhere, "10.1.0.0").is_ok(), "another host");
    assert_eq!(first.device(), "10.1.0.0");
    drop(first);
    assert!(take(&host, "10.1.0.0").is_ok());
}

#[test]
fn a_user_cannot_keep_a_daemon_from_starting() {
    let host = Namespace::new();
    let (mut squatter, claim) = host.run(|| {
        let name = SocketAddr::from_abstract_name("overlayd/flannel.1").unwrap();
        let taken = UnixListener::bind_addr(&name).unwrap();
        let as_owner = Claim::take("flannel.1");
        assert!(as_owner.is_err(), "root has it");
        drop(taken);
        let script = "\
             socket(my $s, AF_UNIX, SOCK_STREAM, 0) or die; \
             bind($s, pack('S', AF_UNIX) . \"\\0overlayd/flannel.1\") or die; \
             listen($s, 1) or die; $| = 1; print \"there\\n\"; <STDIN>";
        let mut child = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "perl", "-MSocket", "-e", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "there\n");
        (child, Claim::take("flannel.1"))
    });
    drop(squatter.stdin.take());
    squatter.wait().unwrap();
    assert!(claim.is_ok(), "{claim:?}");
}
