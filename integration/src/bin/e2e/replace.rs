//! One process in the place of another, while traffic flows through the host: how long nothing arrived, and what
//! was lost.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;

use integration::datagrams::Order;
use integration::machine::Machine;
use integration::steady::Paced;
use integration::{Pod, await_until, traffic};

use crate::PATIENCE;

/// Every way to replace the daemon; none may lose a packet.
pub fn all(machine: &Machine<'_>, a: &Pod, b: &Pod, next: &Path) {
    overlayd("systemctl restart", machine, a, b, "systemctl restart overlayd");
    overlayd("systemctl reload", machine, a, b, "systemctl reload overlayd");
    overlayd("kill -9", machine, a, b, "kill -9 $(systemctl show --value -p MainPID overlayd)");
    overlayd("the same package again", machine, a, b, "dpkg -i /root/overlayd_*.deb");
    let drop_in = "/run/systemd/system/overlayd.service.d/root.conf";
    machine.write(drop_in, "[Service]\nUser=root\n");
    let restart = "systemctl daemon-reload && systemctl restart overlayd";
    overlayd("restart as root, by a drop-in", machine, a, b, restart);
    assert_eq!(owner(machine), "root root");
    machine.ok(&format!("rm {drop_in}"));
    overlayd("restart as its own user again", machine, a, b, restart);
    assert_eq!(owner(machine), "overlayd overlayd");
    let name = next.file_name().expect("a package's file").to_string_lossy().into_owned();
    std::fs::copy(next, machine.file("/root").join(&name)).expect("copy the package");
    let version = || machine.ok("dpkg-query -W -f '${Version}' overlayd");
    let before = version();
    overlayd("the next version's package", machine, a, b, &format!("apt-get install -qqy /root/{name}"));
    assert_ne!(version(), before, "it is the same version");
}

/// The lines by which it takes over from flanneld. What is in the kernel then has no queue to wait in.
pub fn flanneld(machine: &Machine<'_>, a: &Pod, b: &Pod, lines: &str) {
    let listener = b.ns.within(|| TcpListener::bind((b.address, 0))).expect("bind a TCP listener");
    let target = listener.local_addr().expect("a bound address");
    let mut ours = a.ns.within(|| TcpStream::connect_timeout(&target, PATIENCE)).expect("connect");
    let (mut theirs, _) = listener.accept().expect("accept");
    theirs.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    let mut talk = |text: &[u8; 4]| {
        let mut heard = [0; 4];
        ours.write_all(text)
            .and_then(|()| theirs.read_exact(&mut heard))
            .expect("the connection outlives it");
        assert_eq!(heard, *text);
    };
    talk(b"then");
    under_traffic("overlayd in flanneld's place", a, b, || {
        machine.ok(lines);
        machine.await_active("overlayd");
    });
    talk(b"now!");
}

/// Whose process it is, and whose directory.
fn owner(machine: &Machine<'_>) -> String {
    let process = machine.property("overlayd", "MainPID");
    machine.ok(&format!("echo $(ps -o user= -p {process}) $(stat -c %U /run/flannel)"))
}

pub fn heading() {
    println!("{:<38}{:>12}{:>10}{:>10}", "while datagrams and TCP flow", "longest gap", "sent", "lost");
}

/// Nothing may be lost, nor reordered, and a TCP transfer has to outlive it.
fn overlayd(what: &str, machine: &Machine<'_>, a: &Pod, b: &Pod, action: &str) {
    let process = || machine.property("overlayd", "ExecMainPID");
    std::thread::scope(|scope| {
        let transfer = scope.spawn(|| traffic::transfer(&a.ns, &b.ns, b.address, 1000));
        let streams = under_traffic(what, a, b, || {
            let before = process();
            machine.ok(action);
            if what != "systemctl reload" {
                await_until(PATIENCE, "a new process", || process() != before);
            }
            machine.await_active("overlayd");
        });
        transfer.join().expect("the TCP connection outlives it");
        for Order { sent, received, overtaken, .. } in streams {
            assert_eq!((sent - received, overtaken), (0, 0), "datagrams were lost, or reordered");
        }
    });
}

/// Runs `action` while numbered datagrams flow both ways, and says what became of them: out, in.
fn under_traffic(what: &str, a: &Pod, b: &Pod, action: impl FnOnce()) -> [Order; 2] {
    let streams = [Paced::start(&a.ns, &b.ns, b.address, RATE), Paced::start(&b.ns, &a.ns, a.address, RATE)];
    let some = || streams.iter().for_each(|stream| stream.await_more(u64::from(RATE)));
    some();
    action();
    some();
    let streams = streams.map(Paced::stop);
    for (direction, Order { sent, received, longest_gap, .. }) in ["out", "in"].iter().zip(&streams) {
        println!(
            "  {:<36}{:>9.0} ms{sent:>10}{:>10}",
            format!("{what}, {direction}"),
            longest_gap.as_secs_f64() * 1e3,
            sent - received
        );
    }
    streams
}

/// Datagrams a second in each direction.
const RATE: u32 = 10_000;
