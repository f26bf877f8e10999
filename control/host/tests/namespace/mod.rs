//! Network namespaces for tests: anonymous ones, each held by a thread of its own, so that the kernel removes
//! them and all that is in them when the test ends, however it ends.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use serde_json::Value;

use overlay_host::{Desired, FirewallKind, Masquerade};

/// What a usual host is to have; a test changes what it is about.
pub fn desired() -> Desired {
    Desired {
        device: "flannel.1".to_owned(),
        direct: None,
        mtu: 1450,
        address: [10, 1, 9, 0].into(),
        network: "10.1.0.0/16".parse().unwrap(),
        pod_subnet: "10.1.9.0/24".parse().unwrap(),
        masquerade: Masquerade { return_path: true, ip_masq: false, fully_random: true },
        forward_rules: true,
        firewall: FirewallKind::Auto,
        underlay: "eth0".to_owned(),
        tunnel_port: Some(8472),
        blackhole: false,
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, with its loopback up, reverse-path filter and forwarding off.
pub struct Namespace {
    /// What `ip link set … netns` takes for this namespace.
    tid: i32,
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    pub fn new() -> Self {
        let (jobs, queue): (Sender<Job>, Receiver<Job>) = channel();
        let (ready, started) = channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (these tests need root)");
            ready.send(gettid().as_raw()).expect("the test waits");
            for job in queue {
                job();
            }
        });
        let tid = started.recv().expect("the namespace's thread");
        let namespace = Self { tid, jobs: Some(jobs), thread: Some(thread) };
        namespace.sh(
            "ip link set lo up
             sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 net.ipv4.ip_forward=0",
        );
        namespace
    }

    /// Runs `job` on the namespace's thread and returns what it returns, or panics as it does.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            done.send(outcome).expect("the test waits");
        });
        self.jobs.as_ref().expect("alive").send(job).expect("the namespace's thread");
        match result.recv().expect("the namespace's thread") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `future` on a runtime of the namespace's thread.
    pub fn block_on<T, F>(&self, future: impl FnOnce() -> F + Send + 'static) -> T
    where
        F: Future<Output = T>,
        T: Send + 'static,
    {
        self.run(|| {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(future())
        })
    }

    /// Runs a shell script in the namespace, which must succeed; returns its standard output.
    pub fn sh(&self, script: &str) -> String {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &script]).output().expect("sh");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{script}\n{said}");
            String::from_utf8(output.stdout).expect("UTF-8")
        })
    }

    /// The same, and reads its output as JSON.
    pub fn json(&self, script: &str) -> Value {
        serde_json::from_str(&self.sh(script)).expect("JSON")
    }

    /// From now on, for what runs in here, the programs of /usr/sbin that `patterns` name are not installed.
    pub fn hide_programs(&self, patterns: &str) {
        self.run(|| unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace"));
        self.sh(&format!(
            "mount --make-rprivate /
             mount -t tmpfs none /mnt
             cp -a /usr/sbin/nft /usr/sbin/*tables* /mnt
             cd /mnt && rm {patterns} && cd /
             mount --move /mnt /usr/sbin"
        ));
    }

    /// From now on, for what runs in here, `nft` refuses rules by `nft_fib` as a kernel without that does, or only the
    /// first time if it is to do so `once`.
    pub fn lack_fib(&self, once: bool) {
        self.run(|| unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace"));
        self.sh(&format!("{}\n[ {once} = false ] || sed -i '2i [ ! -e /usr/sbin/refused ] || exec nft-of-a-newer-kernel \"$@\"' /usr/sbin/nft", r#"mount --make-rprivate /
             mount -t tmpfs none /mnt
             cp -a /usr/sbin/*tables* /usr/sbin/xtables* /mnt
             cp /usr/sbin/nft /mnt/nft-of-a-newer-kernel
             cat > /mnt/nft <<'END'
#!/bin/sh
[ "$*" = "-j -f -" ] || exec nft-of-a-newer-kernel "$@"
rules=$(cat)
case $rules in *'"fib"'*) : > /usr/sbin/refused; echo "Error: Could not process rule: No such file or directory" >&2; exit 1;; esac
printf %s "$rules" | exec nft-of-a-newer-kernel -j -f -
END
             chmod +x /mnt/nft
             mount --move /mnt /usr/sbin"#));
    }

    /// From now on, for what runs in here, `iptables` is its legacy variant.
    pub fn make_legacy_the_default(&self) {
        self.run(|| unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace"));
        self.sh("mount --make-rprivate /
             mount -t tmpfs none /mnt
             cp -a /usr/sbin/nft /usr/sbin/*tables* /usr/sbin/xtables-legacy-multi /mnt
             for suffix in '' -save -restore; do ln -sf iptables-legacy$suffix /mnt/iptables$suffix; done
             mount --move /mnt /usr/sbin");
    }

    /// Makes a veth pair: `ours` in here, `theirs` in `other`.
    pub fn join(&self, ours: &str, other: &Namespace, theirs: &str) {
        self.sh(&format!("ip link add {ours} type veth peer name {theirs} netns {}", other.tid));
    }

    /// A UDP socket of this namespace, which gives up reading after two seconds.
    pub fn udp(&self, address: &str) -> UdpSocket {
        let address = address.to_owned();
        let socket = self.run(move || UdpSocket::bind(&address).expect("bind"));
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been passed on to the test already.
            let _ = thread.join();
        }
    }
}

/// Sends one datagram from `from` and returns the source it arrives with at `to`; `None` if it does not.
pub fn source_seen(from: &UdpSocket, to: &UdpSocket) -> Option<Ipv4Addr> {
    from.send_to(b"who am I?", to.local_addr().expect("bound")).expect("send");
    match to.recv_from(&mut [0; 64]) {
        Ok((_, SocketAddr::V4(source))) => Some(*source.ip()),
        Ok((_, other)) => panic!("an IPv4 source, not {other}"),
        Err(_) => None,
    }
}
