//! Runs the firewall's own programs, and says what they said when they fail.

use std::io::ErrorKind;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::HostError;

/// Runs `program` with `input` on its standard input and returns its standard output.
///
/// # Errors
/// [`HostError::NoProgram`] if it is not installed; [`HostError::Program`] with its standard error if it fails.
pub(super) async fn run(program: &str, args: &[&str], input: &str) -> Result<String, HostError> {
    let failed =
        |reason: String| HostError::Program { command: format!("{program} {}", args.join(" ")), reason };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                HostError::NoProgram { program: program.to_owned(), package: package_of(program) }
            }
            _ => failed(e.to_string()),
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that refuses its arguments ends before it has read its input: its own words, below,
        // say more than the broken pipe.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn package_of(program: &str) -> &'static str {
    if program == "nft" { "nftables" } else { "iptables" }
}
