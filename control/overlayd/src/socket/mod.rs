//! The control socket: HTTP with JSON over a Unix socket, one for each daemon.
//!
//! `curl --unix-socket /run/overlayd/flannel0.sock http://localhost/v1/status` works too.

mod answers;
pub mod capture;
pub mod ping;
mod source;
pub mod trace;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::connections::{self, Limits};

pub use source::{Facts, Source};

/// A control socket being served. Dropping it ends the service and removes the file.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl ControlSocket {
    /// Serves what `source` tells, and what `others` answer, at `path`; its directory is made if need be. A
    /// socket that a daemon left behind when it died is replaced.
    ///
    /// # Errors
    /// `AddrInUse` if another daemon answers there; otherwise what the file system said.
    pub async fn serve(path: &Path, source: Arc<dyn Source>, others: Router) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            tokio::fs::create_dir_all(directory).await?;
        }
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon serves it"));
        }
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        // What it tells is for the host's administrators, and for those whom they have put into its group.
        tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).await?;
        let router = answers::router(source).merge(others);
        let task = tokio::spawn(connections::serve(listener, router, Limits::ADMINISTRATORS));
        Ok(Self { path: path.to_owned(), task })
    }

    /// Lets the members of `group` use it, instead of those of this process's.
    ///
    /// # Errors
    /// `EPERM` if this process is no member.
    pub fn give_to(&self, group: u32) -> io::Result<()> {
        std::os::unix::fs::chown(&self.path, None, Some(group))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.task.abort();
        // Already gone, or in a directory that is: then there is nothing to remove.
        let _ = std::fs::remove_file(&self.path);
        // A network namespace's directory goes with its last socket; with others in it, it stays.
        if let Some(directory) = self.path.parent() {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use overlay_api::status::Status;
    use overlay_leases::membership::View;
    use overlay_node::Node;

    struct Nothing;

    impl Source for Nothing {
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

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/flannel0.sock");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());

        let first = ControlSocket::serve(&path, Arc::new(Nothing), Router::new()).await.unwrap();
        let error = ControlSocket::serve(&path, Arc::new(Nothing), Router::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.parent().unwrap().exists(), "the empty directory goes too");
        ControlSocket::serve(&path, Arc::new(Nothing), Router::new()).await.unwrap();
    }

    #[tokio::test]
    async fn a_daemon_without_data_plane_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flannel0.sock");
        let _socket = ControlSocket::serve(&path, Arc::new(Nothing), Router::new()).await.unwrap();
        for noun in ["status", "peers", "leases", "routes", "drops", "stats", "config", "offloads", "capture"]
        {
            let error =
                overlay_api::client::get(&path, &format!("/v1/{noun}")).await.unwrap_err().to_string();
            assert!(error.contains("503") && error.contains("rebuilt"), "{noun}: {error}");
        }
        let asked = overlay_api::client::post_json::<overlay_api::trace::Answer>;
        let error = asked(&path, "/v1/trace?direction=egress&src=10.1.9.3&dst=10.1.63.2").await.unwrap_err();
        assert!(error.to_string().contains("503"), "{error}");
    }
}
