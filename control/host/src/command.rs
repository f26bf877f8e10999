//! Runs the firewall's own programs, and says what they said when they fail.

use std::io::ErrorKind;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostError;

/// Runs `program` with `input` on its standard input and returns its standard output.
///
/// # Errors
/// [`HostError::NoProgram`] if it is not installed; [`HostError::Program`] with its standard error if it fails;
/// [`HostError::Hangs`] if it has not ended in time: then it is killed.
pub(super) async fn run(program: &str, args: &[&str], input: &str) -> Result<String, HostError> {
    let line = || format!("{program} {}", args.join(" "));
    let failed = |reason: String| HostError::Program { command: line(), reason };
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // It returns when the program has been read, wherever that is.
    let child = tokio::task::spawn_blocking(move || command.spawn())
        .await
        .unwrap_or_else(|error| Err(std::io::Error::other(error)))
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                HostError::NoProgram { program: program.to_owned(), package: package_of(program) }
            }
            _ => failed(e.to_string()),
        })?;
    let talk = async move {
        let mut child = child;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that refuses its arguments ends before it has read its input: its own words,
            // below, say more than the broken pipe.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    // It may hang, be it on a lock of iptables.
    let output = tokio::time::timeout(PATIENCE, talk)
        .await
        .map_err(|_| HostError::Hangs { command: line(), seconds: PATIENCE.as_secs() })?
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Thousands of times what these programs take, and still shorter than any lease.
const PATIENCE: Duration = Duration::from_secs(10);

fn package_of(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}
