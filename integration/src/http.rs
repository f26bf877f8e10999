//! Asking a host's services over HTTP, from the host itself.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

use crate::netns::Namespace;
use crate::process::SOON;

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// The lines before the body.
    pub head: String,
    /// The body.
    pub body: String,
}

/// Asks for `path` at a port of the namespace's own; `None` while nobody answers.
pub fn get(ns: &Namespace, port: u16, path: &str) -> Option<Answer> {
    get_with(ns, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), path, "")
}

/// The same at any address, with more header lines, each with its end.
pub fn get_with(ns: &Namespace, address: SocketAddr, path: &str, headers: &str) -> Option<Answer> {
    let mut stream = ns.within(|| TcpStream::connect_timeout(&address, SOON)).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n{headers}\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some(Answer { code, head: head.to_owned(), body: body.to_owned() })
}

/// The value of each series in a page of metrics, by name and labels as they are written there.
#[track_caller]
pub fn series(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
            (series.to_owned(), value.parse().unwrap_or_else(|error| panic!("{line:?}: {error}")))
        })
        .collect()
}
