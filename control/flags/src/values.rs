//! What values of flags are, and how they are read.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::ValueEnum;
use clap::builder::{OsStringValueParser, TypedValueParser};
use nix::unistd::Group;
use overlay::offload::Offload;
use regex::Regex;

use crate::go::parse_bool;
use overlay_leases::lease::is_one_host;
use overlay_leases::store::Password;

/// What a line of the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
pub enum LogFormat {
    /// `Journald` where standard error is the journal, else `Text`.
    Auto,
    /// For people: time, level, message, fields; in colours on a terminal.
    Text,
    /// For programs: an object a line.
    Json,
    /// For the journal, which has its own clock: the priority in front, as `sd-daemon(3)` has it.
    Journald,
}

/// Which kind of store, and where if that is not in flags of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreKind {
    /// etcd v3, at `--etcd-endpoints` under `--etcd-prefix`.
    Etcd,
    /// A directory.
    Dir(PathBuf),
}

/// The value of `--offload`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffloadFlag(pub Vec<Offload>);

/// The values of `--source-check`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
#[allow(missing_docs)]
pub enum SourceCheckFlag {
    Strict,
    Loose,
    Off,
}

/// The values of `--seccomp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
#[allow(missing_docs)]
pub enum SeccompFlag {
    On,
    Kill,
    Log,
    Off,
}

/// The values of `--priority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "lower")]
#[allow(missing_docs)]
pub enum PriorityFlag {
    Realtime,
    Nice,
    None,
}

/// A path, which may be empty.
pub(super) fn file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

#[allow(clippy::unnecessary_wraps, reason = "what clap asks of a parser")]
pub(super) fn password(text: &str) -> Result<Password, String> {
    Ok(Password(text.to_owned()))
}

pub(super) fn store(text: &str) -> Result<StoreKind, String> {
    match text.strip_prefix("dir:") {
        _ if text == "etcd" => Ok(StoreKind::Etcd),
        Some(path) if !path.is_empty() => Ok(StoreKind::Dir(path.into())),
        _ => Err("it is 'etcd' or 'dir:PATH'".to_owned()),
    }
}

/// An address that others can send to, as a lease must have it.
pub(super) fn one_host(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse::<Ipv4Addr>() {
        Ok(address) if is_one_host(address) => Ok(address),
        _ => Err("it is one host's IPv4 address".to_owned()),
    }
}

/// Without an address, it is for this host alone.
pub(super) fn page_address(text: &str) -> Result<SocketAddr, String> {
    let on_this_host =
        || text.trim_start_matches(':').parse().ok().map(|port| (Ipv4Addr::LOCALHOST, port).into());
    let address: Option<SocketAddr> = text.parse().ok().or_else(on_this_host);
    address.filter(|address| address.port() != 0).ok_or_else(|| {
        "it is a port, or an address and a port, as in 127.0.0.1:8080 or [::1]:8080".to_owned()
    })
}

/// A group's number, from that or its name.
pub(super) fn group(text: &str) -> Result<u32, String> {
    match (text.parse(), Group::from_name(text)) {
        (Ok(number), _) => Ok(number),
        (_, Ok(Some(group))) => Ok(group.gid.as_raw()),
        (_, Ok(None)) => Err("there is no such group on this host".to_owned()),
        (_, Err(error)) => Err(format!("this host's groups cannot be looked up: {error}")),
    }
}

pub(super) fn regex(text: &str) -> Result<Regex, String> {
    // The error draws the expression over several lines; the last one says what is wrong with it.
    Regex::new(text).map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default();
        format!("it is not a regular expression: {}", reason.trim_start_matches("error: "))
    })
}

pub(super) fn offload(text: &str) -> Result<OffloadFlag, String> {
    let find = |name: &str| {
        Offload::ALL.into_iter().find(|offload| offload.label() == name).ok_or_else(|| {
            format!("there is no offload '{name}': it is 'auto', 'off', or of tso, uso, gso, gro, tunnel-gso, separated by commas")
        })
    };
    match text {
        "auto" => Ok(OffloadFlag(Offload::ALL.into())),
        "off" => Ok(OffloadFlag(Vec::new())),
        list => list.split(',').map(find).collect::<Result<_, _>>().map(OffloadFlag),
    }
}

pub(super) fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        other => parse_bool(other).map_err(|_| "it is 'on' or 'off'".to_owned()),
    }
}

/// flanneld serves nothing at a port of 0 or less.
pub(super) fn health_port(text: &str) -> Result<u16, String> {
    let port: i32 = text.parse().map_err(|_| "it is a port, or 0 for none".to_owned())?;
    u16::try_from(port.max(0)).map_err(|_| "it is a port of up to 65535, or 0 for none".to_owned())
}
