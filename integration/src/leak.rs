//! Whether packets of pods leave a host in the clear, by its interface and without an outer header.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::netns::Namespace;
use crate::process::{SOON, await_until};
use crate::site::{Host, Pod};

/// A pod that sends without a pause, and a rule of its host's that counts what of it leaves in the clear.
#[derive(Debug)]
pub struct Leak {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Leak {
    /// `pod` of `host` sends datagrams to `other` from now on.
    #[must_use]
    pub fn watched(host: &Host, pod: &Pod, other: &Pod) -> Self {
        host.ns.ok(&format!("iptables -t mangle -A POSTROUTING -o eth0 -d {}", other.address));
        let socket = pod.ns.within(|| UdpSocket::bind("0.0.0.0:0")).expect("bind a UDP socket");
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, count, to) = (Arc::clone(&stop), Arc::clone(&sent), (other.address, 9));
        let sender = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Where their way ends on this host, the kernel refuses some.
                let _ = socket.send_to(b"a datagram", to);
                count.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
            }
        });
        Self { stop, sent, sender: Some(sender) }
    }

    /// Ends the traffic; how many datagrams have left `host` in the clear. At least one has been sent since the call.
    #[must_use]
    pub fn count(mut self, host: &Namespace) -> u64 {
        let before = self.sent.load(Ordering::Relaxed);
        await_until(SOON, "another datagram", || self.sent.load(Ordering::Relaxed) > before + 1);
        self.end();
        let rules = host.ok("iptables -t mangle -nvxL POSTROUTING");
        let rule = rules.lines().find(|line| line.contains("eth0")).expect("the rule that counts");
        rule.split_whitespace().next().and_then(|count| count.parse().ok()).expect("a count")
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sender) = self.sender.take() {
            let _ = sender.join();
        }
    }
}

impl Drop for Leak {
    fn drop(&mut self) {
        self.end();
    }
}
