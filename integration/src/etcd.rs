//! A real etcd in the router's namespace.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use crate::certificates::Authority;
use crate::netns::succeed;
use crate::process::{Process, SOON, await_until};
use crate::site::Site;

/// A running etcd server with its own data, and `etcdctl` beside it.
#[derive(Debug)]
pub struct Etcd {
    server: Option<Process>,
    /// What the hosts give as `--etcd-endpoints`.
    pub endpoint: String,
    start: Vec<String>,
    /// What `etcdctl` is told of how to reach it.
    ctl: Vec<String>,
    router: String,
    directory: std::path::PathBuf,
}

/// What an etcd that speaks TLS asks of its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Nothing: they only have to trust it.
    Nothing,
    /// A certificate by its own authority.
    Certificate,
}

impl Etcd {
    /// Starts etcd and waits until it answers.
    #[track_caller]
    pub fn start(site: &Site) -> Self {
        Self::start_with(site, &[])
    }

    /// The same with more flags.
    #[track_caller]
    pub fn start_with(site: &Site, flags: &[&str]) -> Self {
        let mut etcd = Self::new(site, "etcd", "http", 2379, flags);
        etcd.run();
        etcd
    }

    /// An etcd that speaks TLS only, with the certificates that [`write_certificates`] has put into a
    /// directory.
    #[track_caller]
    pub fn start_secured(site: &Site, certificates: &Path, ask: Ask) -> Self {
        let file = |name: &str| certificates.join(name).display().to_string();
        let mut etcd = Self::new(site, "etcd", "https", 2379, &[]);
        etcd.start.push(format!("--cert-file={}", file("server.pem")));
        etcd.start.push(format!("--key-file={}", file("server-key.pem")));
        if ask == Ask::Certificate {
            etcd.start.push("--client-cert-auth".into());
            etcd.start.push(format!("--trusted-ca-file={}", file("ca.pem")));
        }
        let client = [("cacert", "ca.pem"), ("cert", "client.pem"), ("key", "client-key.pem")];
        etcd.ctl.extend(client.map(|(flag, name)| format!("--{flag}={}", file(name))));
        etcd.run();
        etcd
    }

    /// Three servers that are one cluster.
    #[track_caller]
    pub fn start_cluster(site: &Site) -> Vec<Self> {
        let peer = |port| format!("http://127.0.0.1:{}", port + 1);
        let ports = [2379, 2389, 2399];
        let members = ports.map(|port| format!("etcd{port}={}", peer(port)));
        let cluster = format!("--initial-cluster={}", members.join(","));
        let member = |port: u16| {
            let advertise = format!("--initial-advertise-peer-urls={}", peer(port));
            let name = format!("etcd{port}");
            Self::new(site, &name, "http", port, &[&format!("--name={name}"), &advertise, &cluster])
        };
        let mut etcds: Vec<_> = ports.into_iter().map(member).collect();
        etcds.iter_mut().for_each(Self::spawn);
        etcds.iter().for_each(Self::await_answer);
        etcds
    }

    fn new(site: &Site, name: &str, scheme: &str, port: u16, flags: &[&str]) -> Self {
        let directory = site.directory(name);
        let endpoint = format!("{scheme}://{}:{port}", site.router_address());
        let mut start = vec![
            format!("--data-dir={}", directory.join("data").display()),
            format!("--listen-client-urls={scheme}://0.0.0.0:{port}"),
            format!("--advertise-client-urls={endpoint}"),
            format!("--listen-peer-urls=http://127.0.0.1:{}", port + 1),
        ];
        start.extend(flags.iter().map(|flag| flag.to_string()));
        let ctl = vec![format!("--endpoints={scheme}://127.0.0.1:{port}")];
        Self { server: None, endpoint, start, ctl, router: site.router.name().into(), directory }
    }

    /// Starts the server again after a [`kill`](Self::kill), with the same data.
    #[track_caller]
    pub fn run(&mut self) {
        self.spawn();
        self.await_answer();
    }

    #[track_caller]
    fn spawn(&mut self) {
        let mut command = self.command("etcd");
        command.args(&self.start);
        self.server = Some(Process::spawn("etcd", command, &self.directory));
    }

    #[track_caller]
    fn await_answer(&self) {
        await_until(SOON, "etcd to answer", || {
            self.etcdctl().args(["endpoint", "health"]).output().is_ok_and(|output| output.status.success())
        });
    }

    /// Removes the data of a server that was killed.
    #[track_caller]
    pub fn wipe(&self) {
        fs::remove_dir_all(self.directory.join("data")).expect("remove etcd's data");
    }

    /// The server's process.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        self.server.as_mut().expect("a server that runs")
    }

    /// Turns authentication on, for a user `root` and a user `flannel` who may do everything below a prefix.
    #[track_caller]
    pub fn enable_auth(&mut self, prefix: &str, password: &str) {
        for line in [
            "user add root:root",
            "user grant-role root root",
            "role add network",
            &format!("role grant-permission --prefix network readwrite {prefix}/"),
            &format!("user add flannel:{password}"),
            "user grant-role flannel network",
            "auth enable",
        ] {
            self.ctl(line);
        }
        self.ctl.push("--user=root:root".into());
    }

    /// Runs a line of `etcdctl`, cut at white space, which must succeed; returns what it printed.
    #[track_caller]
    pub fn ctl(&self, line: &str) -> String {
        succeed(self.etcdctl().args(line.split_whitespace()))
    }

    /// Whether this server leads its cluster.
    #[track_caller]
    pub fn leads(&self) -> bool {
        let text = self.ctl("endpoint status --write-out=json");
        let status: serde_json::Value = serde_json::from_str(&text).expect("etcdctl's JSON");
        let status = &status[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    }

    /// Writes a key into the old v2 store.
    #[track_caller]
    pub fn put_v2(&self, key: &str, value: &str) {
        let mut command = self.command("etcdctl");
        succeed(command.env("ETCDCTL_API", "2").args(&self.ctl).args(["set", key, value]));
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

    /// Writes a key that ends in so many seconds.
    #[track_caller]
    pub fn put_for(&self, key: &str, value: &str, seconds: u32) {
        let granted = self.ctl(&format!("lease grant {seconds}"));
        let lease = granted.split_whitespace().nth(1).expect("a lease's number");
        succeed(self.etcdctl().args(["put", "--lease", lease, "--", key, value]));
    }

    /// Writes a key until the server, which has a quota, has no room for it any more.
    #[track_caller]
    pub fn fill(&self, key: &str) {
        // As long as an argument may be.
        let value = "x".repeat(100_000);
        let mut put = || self.etcdctl().args(["put", "--", key, &value]).output().expect("etcdctl");
        let refused = std::iter::repeat_with(&mut put).take(1_000).find(|output| !output.status.success());
        let said = refused.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        assert!(said.as_ref().is_some_and(|said| said.contains("database space exceeded")), "{said:?}");
    }

    /// Makes room again in a server that was filled.
    #[track_caller]
    pub fn make_room(&self) {
        self.compact();
        self.ctl("defrag");
        self.ctl("alarm disarm");
    }

    /// Forgets all history.
    #[track_caller]
    pub fn compact(&self) {
        let json: serde_json::Value =
            serde_json::from_str(&self.ctl("get / -w json")).expect("etcdctl's JSON");
        self.ctl(&format!("compact {}", json["header"]["revision"]));
    }

    /// Makes several changes in one transaction: each key gets its value, or is removed without one. etcd takes
    /// 128 of them, unless it is told otherwise.
    #[track_caller]
    pub fn transact(&self, changes: &[(String, Option<String>)]) {
        let operation = |(key, value): &(String, Option<String>)| match value {
            Some(value) => format!("put {key} {value:?}\n"),
            None => format!("del {key}\n"),
        };
        // No conditions, what is done if they hold, and nothing otherwise.
        let text = format!("\n{}\n\n", changes.iter().map(operation).collect::<String>());
        crate::netns::feed(self.etcdctl().arg("txn"), &text);
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
        command.env("ETCDCTL_API", "3").args(&self.ctl);
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.router, program]);
        command
    }
}

/// Puts the certificates of an authority for the site's etcd and for its clients into a directory:
/// `ca.pem`, `server.pem`, `client.pem`, and the keys.
#[track_caller]
pub fn write_certificates(site: &Site, authority: &Authority, directory: &Path) {
    authority.write(&directory.join("ca.pem"));
    let addresses = [IpAddr::V4(site.router_address()), IpAddr::V4(Ipv4Addr::LOCALHOST)];
    authority.sign(directory, "server", &addresses);
    authority.sign(directory, "client", &[]);
}
