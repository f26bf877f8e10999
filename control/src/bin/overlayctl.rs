//! The operator's tool: asks the daemon of this host over its control socket.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use control::socket::{client, path};
use control::status::Status;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Asks the overlayd of this host, or of the network namespace that it is run in.
#[derive(Debug, Parser)]
#[command(name = "overlayctl", version)]
struct Arguments {
    /// The overlay device whose daemon is asked; needed where several run.
    #[arg(long, global = true, value_name = "NAME")]
    device: Option<String>,

    /// The control socket itself, if it is not in the usual place.
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "device")]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show lease, peers, device, traffic and drops.
    Status {
        /// As JSON, with every counter.
        #[arg(long)]
        json: bool,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments).await {
        Ok(text) => match io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            // The reader has seen enough, as in `overlayctl status | head`.
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            let _ = writeln!(io::stderr(), "overlayctl: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<String, String> {
    let socket = match arguments.socket {
        Some(socket) => socket,
        None => find(arguments.device.as_deref())?,
    };
    let Command::Status { json } = arguments.command;
    let body = client::get(&socket, "/v1/status").await.map_err(|error| error.to_string())?;
    if json {
        return Ok(String::from_utf8_lossy(&body).into_owned() + "\n");
    }
    let status: Status = serde_json::from_slice(&body).map_err(|error| {
        format!("the daemon's answer is not understood: {error} (is it of another version? try --json)")
    })?;
    Ok(status.to_text())
}

/// The socket of `device`'s daemon, or of the only daemon there is.
fn find(device: Option<&str>) -> Result<PathBuf, String> {
    let directory = path::directory().map_err(|error| format!("cannot read /proc/self/ns/net: {error}"))?;
    let join = |device: &str| directory.join(format!("{device}.sock"));
    match (device, path::devices(&directory).as_slice()) {
        (Some(device), _) => Ok(join(device)),
        (None, [only]) => Ok(join(only)),
        (None, []) => Err(none(&directory)),
        (None, several) => {
            let mut live = several.iter().filter(|device| listens(&join(device)));
            match (live.next(), live.next()) {
                (Some(only), None) => Ok(join(only)),
                _ => {
                    Err(format!("several daemons run here, choose one with --device: {}", several.join(", ")))
                }
            }
        }
    }
}

/// Whether a daemon has the socket open: one that was killed leaves it behind.
fn listens(socket: &Path) -> bool {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    !UnixStream::connect(socket).is_err_and(refused)
}

fn none(directory: &Path) -> String {
    format!(
        "no overlayd runs in this network namespace, or it waits for its network configuration (no socket in {})",
        directory.display()
    )
}
