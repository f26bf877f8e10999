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

/// Services being served, until this is dropped.
#[derive(Debug)]
pub struct Listeners(Vec<JoinHandle<()>>);

/// A service cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {what} at {address}: {source} ({remedy})")]
pub struct ListenError {
    what: String,
    address: SocketAddr,
    source: io::Error,
    remedy: String,
}

/// Serves `services`; those with the same address on one port.
///
/// # Errors
/// The first address that cannot be had; nothing is served then.
pub async fn serve(services: Vec<Service>) -> Result<Listeners, ListenError> {
    let mut groups: Vec<(String, &'static str, SocketAddr, Router)> = Vec::new();
    for Service { what, flag, address, router } in services {
        match groups.iter_mut().find(|(_, _, there, _)| *there == address) {
            Some((whats, _, _, routers)) => {
                *whats += &format!(", {what}");
                *routers = std::mem::take(routers).merge(router);
            }
            None => groups.push((what.to_owned(), flag, address, router)),
        }
    }
    let mut listeners = Vec::new();
    for (what, flag, address, router) in groups {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(source) => {
                let remedy = remedy(&source, flag);
                return Err(ListenError { what, address, source, remedy });
            }
        };
        listeners.push((what, address, listener, router));
    }
    let start = |(what, address, listener, router)| {
        info!(%address, "serving {what}");
        tokio::spawn(connections::serve(listener, router, Limits::STRANGERS))
    };
    Ok(Listeners(listeners.into_iter().map(start).collect()))
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

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
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
        let _listeners = serve(vec![service("/one", address), service("/two", address)]).await.unwrap();
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
        let error = serve(vec![service("/healthz", address)]).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--healthz-port"), "{error}");
    }
}
