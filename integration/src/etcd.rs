//! A real etcd in the router's namespace.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use crate::netns::succeed;
use crate::process::{Process, await_until};
use crate::site::Site;

/// A running etcd server with its own data, and `etcdctl` beside it.
#[derive(Debug)]
pub struct Etcd {
    server: Option<Process>,
    /// What the hosts give as `--etcd-endpoints`.
    pub endpoint: String,
    start: Vec<String>,
    router: String,
    directory: std::path::PathBuf,
}

impl Etcd {
    /// Starts etcd and waits until it answers.
    #[track_caller]
    pub fn start(site: &Site) -> Self {
        let directory = site.directory("etcd");
        let endpoint = format!("http://{}:2379", site.router_address());
        let data = directory.join("data").display().to_string();
        let start = [
            ["--data-dir", &data],
            ["--listen-client-urls", "http://0.0.0.0:2379"],
            ["--advertise-client-urls", &endpoint],
            ["--listen-peer-urls", "http://127.0.0.1:2380"],
        ];
        let start = start.as_flattened().iter().map(|word| word.to_string()).collect();
        let mut etcd = Self { server: None, endpoint, start, router: site.router.name().into(), directory };
        etcd.run();
        etcd
    }

    /// Starts the server again after a [`kill`](Self::kill), with the same data.
    #[track_caller]
    pub fn run(&mut self) {
        let mut command = self.command("etcd");
        command.args(&self.start);
        self.server = Some(Process::spawn("etcd", command, &self.directory));
        await_until(Duration::from_secs(20), "etcd to answer", || {
            self.etcdctl().args(["endpoint", "health"]).output().is_ok_and(|output| output.status.success())
        });
    }

    /// Ends the server at once.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Writes a key, without expiry.
    #[track_caller]
    pub fn put(&self, key: &str, value: &str) {
        succeed(self.etcdctl().args(["put", "--", key, value]));
    }

    /// Removes a key, which must be there.
    #[track_caller]
    pub fn delete(&self, key: &str) {
        assert_eq!(succeed(self.etcdctl().args(["del", key])).trim(), "1", "delete {key}");
    }

    /// All keys below a prefix, with their values.
    #[track_caller]
    pub fn list(&self, prefix: &str) -> BTreeMap<String, String> {
        let text = succeed(self.etcdctl().args(["get", "--prefix", prefix]));
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    }

    /// The lifetime that was granted to a key, in seconds; `None` for a key without expiry.
    #[track_caller]
    pub fn granted_ttl(&self, key: &str) -> Option<u64> {
        let json = succeed(self.etcdctl().args(["get", key, "--write-out=json"]));
        let reply: serde_json::Value = serde_json::from_str(&json).expect("etcdctl's JSON");
        let lease = reply["kvs"][0]["lease"].as_i64()?;
        let text = succeed(self.etcdctl().args(["lease", "timetolive", &format!("{lease:x}")]));
        let granted = text.split("granted with TTL(").nth(1)?.split('s').next()?;
        Some(granted.parse().expect("a number of seconds"))
    }

    fn etcdctl(&self) -> Command {
        let mut command = self.command("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", "http://127.0.0.1:2379"]);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.router, program]);
        command
    }
}
