//! Go's way of writing flags (package `flag`), turned into clap's, and flanneld's environment.

use std::any::TypeId;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// What of flanneld's flags there is not yet. Refused by name, since ignoring one could open a
/// connection without the certificates that were asked for.
const NOT_SUPPORTED: [&str; 11] = [
    "kube-annotation-prefix",
    "kube-api-url",
    "kube-subnet-mgr",
    "kubeconfig-file",
    "log_backtrace_at",
    "log_dir",
    "net-config-path",
    "public-ipv6",
    "set-node-network-unavailable",
    "stderrthreshold",
    "vmodule",
];

/// A flag or its value is not acceptable, or a text was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// Not to be read at all.
    #[error("{0}")]
    Syntax(String),
    /// Refused by clap; or the text of `--help` or `--version`.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// A variable of the environment stands for a flag that is not supported.
    #[error("in the environment variable {variable}: {error}")]
    Variable {
        /// The variable's name.
        variable: String,
        /// What is said of the flag.
        error: Box<FlagError>,
    },
    /// A value from the environment was refused.
    #[error("in the environment variable {variable}: {error}")]
    Environment {
        /// The variable's name.
        variable: String,
        /// What is wrong with the flag it stands for.
        error: clap::Error,
    },
}

impl FlagError {
    /// Whether this is a text that was asked for, not an error.
    #[must_use]
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Clap(error) if !error.use_stderr())
    }
}

/// Rewrites Go-style `args` so that clap reads them, and adds what the environment says of flags
/// that `args` does not mention.
pub(super) fn to_clap(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Vec<OsString>, FlagError> {
    let mut out = vec![OsString::from(command.get_name())];
    let mut given = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let text = utf8(arg)?;
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')) else {
            return Err(syntax(format!("'{text}' is not a flag{}", switch_hint(&given, command))));
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        if matches!(name, "h" | "help" | "version") {
            out.push(format!("--{}", if name == "h" { "help" } else { name }).into());
            continue;
        }
        let definition = find(command, name)?;
        let value = match value {
            Some(value) => value,
            None if is_switch(definition) => "true".to_owned(),
            None => match args.next() {
                Some(value) => utf8(value)?,
                None => return Err(syntax(format!("the flag --{name} needs a value: --{name}=VALUE"))),
            },
        };
        given.push(name.to_owned());
        // Go lets the last of several win; clap wants to see one, unless they add up.
        if !matches!(definition.get_action(), ArgAction::Append) {
            out.retain(|earlier| !is_flag(earlier, name));
        }
        out.push(format!("--{name}={value}").into());
    }

    for definition in command.get_arguments() {
        let Some(name) = definition.get_long() else { continue };
        if matches!(name, "help" | "version") || given.iter().any(|given| given == name) {
            continue;
        }
        let variable = variable_of(name);
        let Some(value) = env(&variable).filter(|value| !value.is_empty()) else { continue };
        let arg = format!("--{name}={}", utf8(value)?);
        // Tried alone first, so that an error names where the value stands.
        let alone = command.clone().try_get_matches_from([command.get_name(), &arg]);
        alone.map_err(|error| FlagError::Environment { variable, error })?;
        out.push(arg.into());
    }
    for name in NOT_SUPPORTED {
        let variable = variable_of(name);
        if env(&variable).is_some_and(|value| !value.is_empty()) {
            return Err(FlagError::Variable { variable, error: Box::new(not_supported(name)) });
        }
    }
    Ok(out)
}

/// A switch's value as Go reads it.
///
/// # Errors
/// The values allowed, if `text` is none of them.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it is 'true' or 'false'".to_owned()),
    }
}

fn find<'a>(command: &'a Command, name: &str) -> Result<&'a Arg, FlagError> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name)).ok_or_else(|| {
        if NOT_SUPPORTED.contains(&name) {
            not_supported(name)
        } else {
            syntax(format!("there is no flag --{name}: see overlayd --help"))
        }
    })
}

fn not_supported(name: &str) -> FlagError {
    syntax(format!(
        "the flag --{name} is not supported yet: run without it, or stay with flanneld on this node"
    ))
}

/// The variable of the environment that stands for the flag `name`.
fn variable_of(name: &str) -> String {
    format!("FLANNELD_{}", name.replace('-', "_").to_uppercase())
}

fn is_switch(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == TypeId::of::<bool>()
}

fn is_flag(arg: &OsString, name: &str) -> bool {
    let rest = arg.to_str().and_then(|text| text.strip_prefix("--")?.strip_prefix(name));
    rest.is_some_and(|rest| rest.starts_with('='))
}

fn switch_hint(given: &[String], command: &Command) -> String {
    match given.last() {
        Some(name) if find(command, name).is_ok_and(is_switch) => {
            format!(" (the value of a switch follows '=', as in --{name}=false)")
        }
        _ => String::new(),
    }
}

fn utf8(arg: OsString) -> Result<String, FlagError> {
    arg.into_string().map_err(|arg| syntax(format!("{arg:?} is not UTF-8")))
}

fn syntax(text: String) -> FlagError {
    FlagError::Syntax(text)
}
