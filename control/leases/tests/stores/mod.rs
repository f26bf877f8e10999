//! What the tests of the stores share: a real etcd, and a store's contents as an outsider changes them.

use std::io;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Client, PutOptions};
use futures::StreamExt;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use overlay_leases::store::{DirStore, Entry, EtcdStore, Event, EventStream, LeaseStore, Revision};

/// Under which the tests keep their keys.
pub const PREFIX: &str = "/test/network";

/// Long enough for a busy machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A single etcd server on loopback, with its data in a temporary directory; ended on drop.
pub struct Etcd {
    server: Child,
    data: TempDir,
    client_port: u16,
    peer_port: u16,
    flags: Vec<String>,
}

impl Etcd {
    /// Starts a server on free ports and waits until it answers.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more flags.
    pub async fn start_with(flags: &[&str]) -> Self {
        let (client_port, peer_port) = free_ports();
        let data = tempfile::tempdir().expect("a temporary directory");
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let server = spawn(data.path(), client_port, peer_port, &flags);
        let etcd = Self { server, data, client_port, peer_port, flags };
        etcd.ready().await;
        etcd
    }

    /// A server that speaks TLS, as `flags` say. Whether it answers is for the test to find out.
    pub fn start_secured(flags: &[&str]) -> Self {
        let (client_port, peer_port) = free_ports();
        let data = tempfile::tempdir().expect("a temporary directory");
        let url = format!("https://127.0.0.1:{client_port}");
        let mut flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        // The last one counts.
        flags.push(format!("--listen-client-urls={url}"));
        flags.push(format!("--advertise-client-urls={url}"));
        let server = spawn(data.path(), client_port, peer_port, &flags);
        Self { server, data, client_port, peer_port, flags }
    }

    /// Where clients of a server that speaks TLS connect.
    pub fn secured_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.client_port)
    }

    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client_port)
    }

    /// Kills the server as a power cut would.
    pub fn kill(&mut self) {
        self.server.kill().expect("kill etcd");
        self.server.wait().expect("wait for etcd");
    }

    /// Starts the killed server again on the same ports, with its data or, if `wiped`, without.
    pub async fn restart(&mut self, wiped: bool) {
        if wiped {
            self.data = tempfile::tempdir().expect("a temporary directory");
        }
        self.server = spawn(self.data.path(), self.client_port, self.peer_port, &self.flags);
        self.ready().await;
    }

    /// A plain client, for what outsiders do.
    pub async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.expect("an etcd client")
    }

    async fn ready(&self) {
        let mut client = self.client().await;
        let answers = async {
            while client.get("ready", None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, answers).await.expect("etcd answers");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may be dead already, by the test's own hand.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A way to `server` that forwards everything until a request mentions `word`: the server gets that
/// request, the client no answer any more. Gives the URL to connect to.
pub async fn deaf_after(server: &Etcd, word: &'static str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let port = server.client_port;
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.expect("etcd accepts");
            tokio::spawn(forward(client, server, word));
        }
    });
    url
}

async fn forward(mut client: TcpStream, mut server: TcpStream, word: &'static str) -> io::Result<()> {
    let (mut request, mut answer) = ([0; 16_384], [0; 16_384]);
    let mut deaf = false;
    loop {
        tokio::select! {
            length = client.read(&mut request) => match length? {
                0 => return Ok(()),
                length => {
                    deaf |= request[..length].windows(word.len()).any(|part| part == word.as_bytes());
                    server.write_all(&request[..length]).await?;
                }
            },
            length = server.read(&mut answer) => match length? {
                0 => return Ok(()),
                length if !deaf => client.write_all(&answer[..length]).await?,
                _ => {}
            },
        }
    }
}

/// A store together with a back door to what is in it.
#[async_trait]
pub trait Site: Send + Sync {
    /// A store as another daemon would open it.
    async fn open(&self) -> Box<dyn LeaseStore>;
    /// Writes a key, without expiry, the way an operator does: `config` or `subnets/…`.
    async fn put(&self, key: &str, value: &str);
    /// Removes a key.
    async fn delete(&self, key: &str);
}

/// The contents of an etcd server.
pub struct EtcdSite {
    /// The server.
    pub etcd: Etcd,
}

#[async_trait]
impl Site for EtcdSite {
    async fn open(&self) -> Box<dyn LeaseStore> {
        Box::new(EtcdStore::connect(vec![self.etcd.url()], PREFIX.to_owned()).await.expect("a store"))
    }

    async fn put(&self, key: &str, value: &str) {
        let options = PutOptions::new();
        self.etcd.client().await.put(format!("{PREFIX}/{key}"), value, Some(options)).await.expect("put");
    }

    async fn delete(&self, key: &str) {
        self.etcd.client().await.delete(format!("{PREFIX}/{key}"), None).await.expect("delete");
    }
}

/// The contents of a directory.
pub struct DirSite {
    /// The directory.
    pub dir: TempDir,
}

impl DirSite {
    /// A site without any key.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }
}

#[async_trait]
impl Site for DirSite {
    async fn open(&self) -> Box<dyn LeaseStore> {
        Box::new(DirStore::open(self.dir.path()).expect("a store"))
    }

    async fn put(&self, key: &str, value: &str) {
        std::fs::write(self.dir.path().join(key), value).expect("write");
    }

    async fn delete(&self, key: &str) {
        std::fs::remove_file(self.dir.path().join(key)).expect("remove");
    }
}

/// The next event of a watch.
pub async fn next(events: &mut EventStream) -> (Revision, Event) {
    tokio::time::timeout(PATIENCE, events.next())
        .await
        .expect("an event in time")
        .expect("the stream goes on")
        .expect("no error")
}

/// The entry of a `Put`.
pub fn put_of(event: Event) -> Entry {
    match event {
        Event::Put(entry) => entry,
        other => panic!("{other:?} is not a Put"),
    }
}

fn free_ports() -> (u16, u16) {
    // Both held at once, so that they differ.
    let listeners = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    let [client, peer] = listeners.map(|listener| listener.local_addr().expect("an address").port());
    (client, peer)
}

fn spawn(data: &Path, client_port: u16, peer_port: u16, flags: &[String]) -> Child {
    let client = format!("http://127.0.0.1:{client_port}");
    let peer = format!("http://127.0.0.1:{peer_port}");
    Command::new("etcd")
        .arg("--data-dir")
        .arg(data)
        .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .arg(format!("--initial-cluster=default={peer}"))
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd (Debian: etcd-server) can be started")
}
