//! Runs the programs of a variant of iptables. Those that take the lock of all its users wait for it.

use super::rules::Hook;
use super::save::words;
use crate::HostError;
use crate::command::run;

/// What `-S CHAIN` writes.
pub(super) async fn list(program: &str, table: &str, chain: &str) -> Result<String, HostError> {
    run(program, &["-w", LOCK_WAIT, "-t", table, "-S", chain], "").await
}

/// Has `-restore` read `script`: all of a table is changed, or nothing.
pub(super) async fn restore(program: &str, script: &str) -> Result<(), HostError> {
    run(&format!("{program}-restore"), &["-w", LOCK_WAIT, "--noflush"], script).await.map(drop)
}

/// Has `command`, which takes a rule that is there, done with `hook`; returns whether it was there.
pub(super) async fn tell(
    program: &str,
    table: &str,
    command: &str,
    Hook { chain, rule, .. }: &Hook,
) -> Result<bool, HostError> {
    let mut arguments = vec!["-w", LOCK_WAIT, "-t", table, command, chain];
    arguments.extend(words(rule));
    match run(program, &arguments, "").await {
        Ok(_) => Ok(true),
        Err(HostError::Program { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Seconds to wait for the lock that other users of iptables hold.
const LOCK_WAIT: &str = "5";
