//! The operator's tool: asks the daemon of this host over its control socket.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use overlay_api::client::{self, ClientError};
use overlay_api::config::Config;
use overlay_api::drops::Drops;
use overlay_api::events::EventList;
use overlay_api::leases::Leases;
use overlay_api::offloads::OffloadStates;
use overlay_api::path;
use overlay_api::peers::Peers;
use overlay_api::routes::Routes;
use overlay_api::stats::Stats;
use overlay_api::status::Status;
use overlay_flags::{Flags, StoreKind};
use overlayctl::arguments::{Arguments, Bugreport, Check, Cleanup, Command, Events, Ping, Top, Trace};
use overlayctl::ask;
use overlayctl::cleanup;
use overlayctl::diagnose::{self, trace::Question};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(Answer { text, code }) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => code,
            // The reader has seen enough, as in `overlayctl status | head`.
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _ = writeln!(io::stderr(), "overlayctl: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is said to a question.
struct Answer {
    text: String,
    /// For scripts: 0 if it is the answer that one hopes for.
    code: ExitCode,
}

impl Answer {
    fn hoped_for(text: String, hoped_for: bool) -> Self {
        Self { text, code: if hoped_for { ExitCode::SUCCESS } else { ExitCode::FAILURE } }
    }
}

impl From<String> for Answer {
    fn from(text: String) -> Self {
        Self { text, code: ExitCode::SUCCESS }
    }
}

async fn run(arguments: Arguments) -> Result<Answer, String> {
    let Arguments { device, socket, command } = arguments;
    let named = socket.clone();
    let socket = || socket.map_or_else(|| find(device.as_deref()), Ok);
    let live = || match named {
        Some(path) => Ok(Some(path).filter(|path| path::is_alive(path))),
        None => find_live(device.as_deref()),
    };
    match command {
        Command::Status(options) => ask::show::<Status>(&socket()?, &options).await.map(Answer::from),
        Command::Peers(options) => ask::show::<Peers>(&socket()?, &options).await.map(Answer::from),
        Command::Leases(options) => ask::show::<Leases>(&socket()?, &options).await.map(Answer::from),
        Command::Routes(options) => ask::show::<Routes>(&socket()?, &options).await.map(Answer::from),
        Command::Drops(options) => ask::show::<Drops>(&socket()?, &options).await.map(Answer::from),
        Command::Stats(options) => ask::show::<Stats>(&socket()?, &options).await.map(Answer::from),
        Command::Config(options) => ask::show::<Config>(&socket()?, &options).await.map(Answer::from),
        Command::Offloads(options) => {
            ask::show::<OffloadStates>(&socket()?, &options).await.map(Answer::from)
        }
        Command::Top(Top { interval }) => {
            ask::top(&socket()?, Duration::from_secs_f64(interval)).await.map(Answer::from)
        }
        Command::Capture(options) => ask::capture(&socket()?, options).await.map(Answer::from),
        Command::Check(arguments) => {
            // Without a daemon there is something to check all the same.
            let answer = match live() {
                Ok(socket) => check(arguments, socket.as_deref()).await,
                Err(several) => Err(several),
            };
            answer.or_else(|error| {
                let _ = writeln!(io::stderr(), "overlayctl: {error}");
                Ok(Answer { text: String::new(), code: CANNOT_CHECK.into() })
            })
        }
        Command::Ping(arguments) => ping(&arguments, &socket()?).await,
        Command::Trace(arguments) => trace(arguments, &socket()?).await,
        Command::Bugreport(Bugreport { file }) => {
            bugreport(&file, live()?.as_deref()).await.map(Answer::from)
        }
        Command::Events(arguments) => events(&arguments, &socket()?).await.map(Answer::from),
        Command::Cleanup(cleanup) => clean_up(cleanup, device.as_deref()).await.map(Answer::from),
    }
}

/// As monitoring plugins do: 0 to 2 for how bad it is, 3 for "not known".
const CANNOT_CHECK: u8 = 3;

async fn check(arguments: Check, socket: Option<&Path>) -> Result<Answer, String> {
    let Check { json: as_json, flags } = arguments;
    let passed_over = !flags.is_empty();
    let report = match socket {
        Some(socket) => match client::get_json::<Status>(socket, "/v1/status").await {
            Ok(status) => diagnose::check::running(&status, socket).await,
            Err(ClientError::Answer { code: 503, text }) => {
                let problem = format!("overlayd answers, but forwards nothing: {text}");
                Ok(diagnose::check::unready(&problem))
            }
            // It runs, and that is all that it can tell.
            Err(error @ (ClientError::Answer { .. } | ClientError::Silent(_) | ClientError::Http(_))) => {
                Ok(diagnose::check::unready(&error.to_string()))
            }
            Err(error) => return Err(error.to_string()),
        }
        .map(|report| if passed_over { report.without_flags() } else { report }),
        None => {
            let asked_before = !flags.is_empty();
            let flags = Flags::parse_from(flags, |name| std::env::var_os(name)).map_err(|e| e.to_string())?;
            diagnose::check::before_start(&flags, asked_before).await
        }
    };
    let report = report.map_err(|error| error.to_string())?;
    let text = if as_json { json(&report)? } else { report.to_text() };
    Ok(Answer { text, code: (report.worst() as u8).into() })
}

async fn bugreport(file: &Path, socket: Option<&Path>) -> Result<String, String> {
    let check = check(Check { json: false, flags: Vec::new() }, socket).await;
    let check = check.map_or_else(|error| error, |answer| answer.text);
    let written = diagnose::bugreport::write(file, socket, &check).await;
    written.map_err(|error| format!("cannot write {}: {error}", file.display()))?;
    Ok(format!("{} is written: look into it before you give it away\n", file.display()))
}

async fn ping(arguments: &Ping, socket: &Path) -> Result<Answer, String> {
    let tell = |line: &str| {
        if !arguments.json {
            let _ = writeln!(io::stdout(), "{line}");
        }
    };
    let report = diagnose::ping::run(arguments, socket, tell).await.map_err(|error| error.to_string())?;
    let text = if arguments.json { json(&report)? } else { report.summary() };
    Ok(Answer::hoped_for(text, report.any_answered()))
}

async fn events(arguments: &Events, socket: &Path) -> Result<String, String> {
    let Events { json: as_json, follow } = *arguments;
    let (mut since, mut after) = (None, 0);
    loop {
        let resource = format!("/v1/events?after={after}");
        let list: EventList = match client::get_json(socket, &resource).await {
            Ok(list) => list,
            // It is being started again.
            Err(_) if follow && since.is_some() => {
                tokio::time::sleep(EVENTS_EVERY).await;
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        if as_json && !follow {
            return json(&list);
        }
        if since.replace(list.since).is_some_and(|since| since != list.since) && after > 0 {
            // Another daemon, which counts anew.
            after = 0;
            continue;
        }
        after = list.events.last().map_or(after, |event| event.number);
        let line = |event| if as_json { json(event) } else { Ok(format!("{event}\n")) };
        let text: String = list.events.iter().map(line).collect::<Result<_, _>>()?;
        if !follow {
            return Ok(text);
        }
        if io::stdout().write_all(text.as_bytes()).is_err() {
            // The reader has seen enough.
            return Ok(String::new());
        }
        tokio::time::sleep(EVENTS_EVERY).await;
    }
}

async fn trace(arguments: Trace, socket: &Path) -> Result<Answer, String> {
    let Trace { src, dst, carries, size, from, json: as_json } = arguments;
    let status: Status = client::get_json(socket, "/v1/status").await.map_err(|error| error.to_string())?;
    let question = Question { src, dst, carries, size, outer: from };
    let trace =
        diagnose::trace::trace(&question, &status, socket).await.map_err(|error| error.to_string())?;
    let text = if as_json { json(&trace)? } else { trace.to_text() };
    Ok(Answer::hoped_for(text, trace.passes()))
}

fn json(value: &impl serde::Serialize) -> Result<String, String> {
    serde_json::to_string(value).map(|text| text + "\n").map_err(|error| error.to_string())
}

/// Goes through to its end, whatever fails; but if the lease is to be given back and cannot be, nothing is changed.
async fn clean_up(options: Cleanup, device: Option<&str>) -> Result<String, String> {
    let Cleanup { dry_run, release_lease, flags } = options;
    let flags = Flags::parse_from(flags, |name| std::env::var_os(name)).map_err(|error| error.to_string())?;
    let found = cleanup::find(device, &flags.subnet_file).await.map_err(|error| error.to_string())?;
    let mut done = Vec::new();
    let mut failed = Vec::new();
    let mut tell = |what: String, result: Result<(), String>| match result {
        Ok(()) if dry_run => done.push(format!("would remove {what}")),
        Ok(()) => done.push(format!("removed {what}")),
        Err(error) => failed.push(error),
    };
    if release_lease {
        let released = cleanup::release_lease(&flags, device, dry_run).await;
        let lease = released.map_err(|error| {
            let stays = match flags.store {
                StoreKind::Etcd => "which expires, unless it is a reservation",
                StoreKind::Dir(_) => "which stays in its directory until somebody removes it",
            };
            format!(
                "{error}\nnothing has been removed: without --release-lease all but the lease is, {stays}"
            )
        })?;
        if let Some(lease) = lease {
            tell(lease, Ok(()));
        }
    }
    for leftover in &found {
        let result = if dry_run { Ok(()) } else { cleanup::remove(leftover).await };
        tell(leftover.to_string(), result);
    }
    if done.is_empty() && failed.is_empty() {
        return Ok("nothing of overlayd's is left here\n".to_owned());
    }
    let done: String = done.iter().map(|line| format!("{line}\n")).collect();
    if failed.is_empty() { Ok(done) } else { Err(format!("{}\n{done}", failed.join("\noverlayctl: "))) }
}

/// The socket of `device`'s daemon, or of the only daemon there is; also one that nobody listens at, if there is no other.
fn find(device: Option<&str>) -> Result<PathBuf, String> {
    if let Some(live) = find_live(device)? {
        return Ok(live);
    }
    let directory = directory()?;
    match (device, path::devices(&directory).first()) {
        (Some(device), _) => Ok(socket_of(&directory, device)),
        (None, Some(left)) => Ok(socket_of(&directory, left)),
        (None, None) => Err(none(&directory)),
    }
}

/// The socket of `device`'s daemon, or of the only one, if somebody listens at it.
fn find_live(device: Option<&str>) -> Result<Option<PathBuf>, String> {
    let directory = directory()?;
    let devices = device.map_or_else(|| path::devices(&directory), |device| vec![device.to_owned()]);
    let live: Vec<&String> =
        devices.iter().filter(|device| path::is_alive(&socket_of(&directory, device))).collect();
    match live.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(socket_of(&directory, only))),
        several => {
            let several: Vec<&str> = several.iter().map(|device| device.as_str()).collect();
            Err(format!("several daemons run here, choose one with --device: {}", several.join(", ")))
        }
    }
}

fn directory() -> Result<PathBuf, String> {
    path::directory().map_err(|error| format!("cannot read /proc/self/ns/net: {error}"))
}

fn socket_of(directory: &Path, device: &str) -> PathBuf {
    directory.join(format!("{device}.sock"))
}

fn none(directory: &Path) -> String {
    format!(
        "no overlayd runs in this network namespace (nobody serves a control socket in {})",
        directory.display()
    )
}

/// How often a daemon is asked for events to come.
const EVENTS_EVERY: std::time::Duration = std::time::Duration::from_millis(500);
