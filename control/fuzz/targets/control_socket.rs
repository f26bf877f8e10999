//! The control socket, served for real: whatever is sent, it answers in HTTP or hangs up, and goes on.
#![no_main]

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::Router;
use libfuzzer_sys::fuzz_target;
use overlay_api::status::Status;
use overlay_leases::membership::View;
use overlay_node::Node;
use overlayd::socket::{ControlSocket, Facts, Source};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// A socket being served.
struct Service {
    runtime: Runtime,
    path: PathBuf,
    _socket: ControlSocket,
    _directory: TempDir,
}

static SERVICE: LazyLock<Service> = LazyLock::new(|| {
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("run/flannel0.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let socket = runtime
        .block_on(ControlSocket::serve(&path, Arc::new(Rebuilding), Router::new()))
        .expect("it is served");
    Service { runtime, path, _socket: socket, _directory: directory }
});

/// A daemon that has no data plane just now.
struct Rebuilding;

impl Source for Rebuilding {
    fn status(&self) -> Option<Status> {
        None
    }

    fn node(&self) -> Option<Arc<Node>> {
        None
    }

    fn view(&self) -> Option<View> {
        None
    }

    fn facts(&self) -> Option<Arc<Facts>> {
        None
    }
}

/// A request that every daemon answers.
const GOOD: &[u8] = b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

fuzz_target!(|data: &[u8]| {
    let Service { runtime, path, .. } = &*SERVICE;
    runtime.block_on(async {
        let ask = async |request: &[u8]| -> io::Result<Vec<u8>> {
            let mut stream = UnixStream::connect(path).await?;
            let mut answer = Vec::new();
            // It may hang up before all has been sent.
            if stream.write_all(request).await.is_ok() && stream.shutdown().await.is_ok() {
                let _ = timeout(Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
            }
            Ok(answer)
        };
        let answer = ask(data).await.expect("it is served");
        // To whom begins so, it speaks HTTP/2: its answers begin with a frame of settings, which is of type 4.
        let settings = data.starts_with(b"PRI * HTTP/2.0") && answer.get(3) == Some(&4);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.") || settings, "{}", answer.escape_ascii());
        let answer = ask(GOOD).await.expect("it is served still");
        assert!(answer.starts_with(b"HTTP/1.1 503"), "{}", answer.escape_ascii());
    });
});
