//! What is served over TCP: each part at the address that its flags name, parts of one address together.

use std::io;
use std::net::SocketAddr;

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::info;

use crate::connections::{self, Limits};

/// Something to be served.
#[derive(Debug)]
pub struct Service {
    /// What it is, as the log and an error have it: `/metrics`.
    pub what: &'static str,
    /// The flag that names its address.
    pub flag: &'static str,
    /// Where it is served.
    pub address: SocketAddr,
    /// Its answers.
    pub router: Router,
}

/// Services of one address.
#[derive(Debug)]
pub struct Group {
    what: String,
    flag: &'static str,
    address: SocketAddr,
    router: Router,
}

/// Services being served, until this is dropped.
#[derive(Debug)]
pub struct Listener(JoinHandle<()>);

/// A service cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {what} at {address}: {source} ({remedy})")]
pub struct ListenError {
    what: String,
    address: SocketAddr,
    source: io::Error,
    remedy: String,
}

impl ListenError {
    /// What the system said.
    #[must_use]
    pub fn system(&self) -> &io::Error {
        &self.source
    }
}

/// `services` by address: those with the same one are served on one port.
#[must_use]
pub fn groups(services: Vec<Service>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for Service { what, flag, address, router } in services {
        match groups.iter_mut().find(|group| group.address == address) {
            Some(group) => {
                group.what += &format!(", {what}");
                group.router = std::mem::take(&mut group.router).merge(router);
            }
            None => groups.push(Group { what: what.to_owned(), flag, address, router }),
        }
    }
    groups
}

impl Group {
    /// The flag that names the address.
    #[must_use]
    pub fn flag(&self) -> &'static str {
        self.flag
    }

    /// Serves them.
    ///
    /// # Errors
    /// The address cannot be had.
    pub async fn serve(&self) -> Result<Listener, ListenError> {
        let Self { what, flag, address, router } = self;
        let listener = TcpListener::bind(address).await.map_err(|source| {
            let remedy = remedy(&source, flag);
            ListenError { what: what.clone(), address: *address, source, remedy }
        })?;
        info!(%address, "serving {what}");
        let serving = connections::serve(listener, router.clone(), Limits::STRANGERS);
        Ok(Listener(tokio::spawn(serving)))
    }
}

fn remedy(error: &io::Error, flag: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "is a flanneld or another daemon using the port? 'ss -ltnp' shows who; choose another with --{flag}"
        ),
        io::ErrorKind::AddrNotAvailable => {
            format!("no interface of this host has that address: choose another with --{flag}")
        }
        io::ErrorKind::PermissionDenied => {
            format!("ports below 1024 need CAP_NET_BIND_SERVICE: choose another with --{flag}")
        }
        _ => format!("choose another with --{flag}"),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    fn service(what: &'static str, address: SocketAddr) -> Service {
        let router = Router::new().route(what, get(move || async move { what }));
        Service { what, flag: "healthz-port", address, router }
    }

    #[tokio::test]
    async fn what_has_one_address_shares_its_port() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let groups = groups(vec![service("/one", address), service("/two", address)]);
        assert_eq!(groups.len(), 1);
        let _listener = groups[0].serve().await.unwrap();
        for path in ["/one", "/two"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.0 200") && answer.ends_with(path), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = groups(vec![service("/healthz", address)])[0].serve().await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--healthz-port"), "{error}");
    }
}
