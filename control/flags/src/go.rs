//! Go's way of writing flags (package `flag`), turned into clap's, and flanneld's environment.

use std::any::TypeId;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

/// A flag of flanneld's that is none of ours.
struct Foreign {
    name: &'static str,
    is_switch: bool,
    /// Why it is refused when it asks for something; `None` if it may as well be ignored.
    refusal: Option<&'static str>,
    /// The value that it has in flannel without being given, which asks for nothing.
    default: &'static str,
}

const KUBERNETES: Option<&str> = Some(
    "overlayd does not speak to Kubernetes, it takes its lease from etcd (--etcd-endpoints) or a directory (--store)",
);
/// Ignoring it would let an operator believe that IPv6 is carried.
const IPV6: Option<&str> = Some("overlayd carries IPv4 only");

/// What Kubernetes and IPv6 need is refused, never ignored. Where logs go and what they look like harms nobody.
static FOREIGN: [Foreign; 20] = [
    Foreign::valued("kube-annotation-prefix", KUBERNETES).or("flannel.alpha.coreos.com"),
    Foreign::valued("kube-api-url", KUBERNETES),
    Foreign::switch("kube-subnet-mgr", KUBERNETES),
    Foreign::valued("kubeconfig-file", KUBERNETES),
    Foreign::valued("net-config-path", KUBERNETES).or("/etc/kube-flannel/net-conf.json"),
    Foreign::switch("set-node-network-unavailable", KUBERNETES),
    Foreign::valued("public-ipv6", IPV6),
    Foreign::switch("add_dir_header", None),
    Foreign::switch("alsologtostderr", None),
    Foreign::valued("alsologtostderrthreshold", None),
    Foreign::valued("log_backtrace_at", None),
    Foreign::valued("log_dir", None),
    Foreign::valued("log_file", None),
    Foreign::valued("log_file_max_size", None),
    Foreign::switch("logtostderr", None),
    Foreign::switch("one_output", None),
    Foreign::switch("skip_headers", None),
    Foreign::switch("skip_log_headers", None),
    Foreign::valued("stderrthreshold", None),
    Foreign::valued("vmodule", None),
];

impl Foreign {
    const fn valued(name: &'static str, refusal: Option<&'static str>) -> Self {
        Self { name, is_switch: false, refusal, default: "" }
    }

    const fn switch(name: &'static str, refusal: Option<&'static str>) -> Self {
        Self { name, is_switch: true, refusal, default: "" }
    }

    const fn or(self, default: &'static str) -> Self {
        Self { default, ..self }
    }

    /// Whether it changes nothing that it is given with `value`: `Ok(true)` if that is worth a word.
    fn accept(&self, value: &str) -> Result<bool, FlagError> {
        let asks = match self.is_switch && !value.is_empty() {
            true => parse_bool(value).map_err(|allowed| {
                syntax(format!("invalid value '{value}' for the flag --{}: {allowed}", self.name))
            })?,
            false => !value.is_empty() && value != self.default,
        };
        match self.refusal {
            None => Ok(true),
            Some(_) if !asks => Ok(false),
            Some(reason) => Err(syntax(format!(
                "the flag --{} is not supported: {reason}; run without it, or stay with flanneld on this node",
                self.name
            ))),
        }
    }
}

/// A flag or its value is not acceptable, or a text was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FlagError {
    /// Not to be read at all.
    #[error("{0}")]
    Syntax(String),
    /// Refused by clap; or the text of `--help` or `--version`.
    #[error("{}", told(.0))]
    Clap(#[from] clap::Error),
    /// A variable of the environment stands for a flag of flanneld's that is refused.
    #[error("in the environment variable {variable}: {error}")]
    Variable {
        /// The variable's name.
        variable: String,
        /// What is said of the flag.
        error: Box<FlagError>,
    },
    /// A value from the environment was refused.
    #[error("in the environment variable {variable}: {}", told(error))]
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

/// What clap says, without the pointer to `--help` that only some of its errors end with.
fn told(error: &clap::Error) -> String {
    let text = error.to_string();
    match text.find("\n\nFor more information") {
        Some(end) if error.use_stderr() => text[..end].to_owned(),
        _ => text,
    }
}

/// A command line that clap reads.
pub(super) struct Translated {
    pub args: Vec<OsString>,
    /// The flags that were accepted and are not in `args`.
    pub without_effect: Vec<&'static str>,
}

/// Rewrites Go-style `args` so that clap reads them, and adds what the environment says of flags
/// that `args` does not mention.
pub(super) fn to_clap(
    command: &Command,
    args: impl IntoIterator<Item = OsString>,
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<Translated, FlagError> {
    let mut out = vec![OsString::from(command.get_name())];
    let mut given = Vec::new();
    let mut without_effect = Vec::new();
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
            out.push(if name == "h" { "-h".into() } else { format!("--{name}").into() });
            continue;
        }
        let definition = find(command, name)?;
        let value = match value {
            Some(value) => value,
            None if definition.is_switch() => "true".to_owned(),
            None => match args.next() {
                Some(value) => utf8(value)?,
                None => return Err(syntax(format!("the flag --{name} needs a value: --{name}=VALUE"))),
            },
        };
        given.push(name.to_owned());
        let definition = match definition {
            Definition::Ours(definition) => definition,
            Definition::Foreign(foreign) => {
                if foreign.accept(&value)? && !without_effect.contains(&foreign.name) {
                    without_effect.push(foreign.name);
                }
                continue;
            }
        };
        // Go lets the last of several win; clap wants to see one, unless they add up.
        if !matches!(definition.get_action(), ArgAction::Append) {
            out.retain(|earlier| !is_flag(earlier, name));
        }
        // As flanneld takes it: units made from templates give what they have no value for.
        if !(value.is_empty() && is_text(definition)) {
            out.push(format!("--{name}={value}").into());
        }
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
    for foreign in FOREIGN.iter().filter(|foreign| !given.iter().any(|given| given == foreign.name)) {
        let variable = variable_of(foreign.name);
        let Some(value) = env(&variable).filter(|value| !value.is_empty()) else { continue };
        match foreign.accept(&utf8(value)?) {
            Ok(true) => without_effect.push(foreign.name),
            Ok(false) => {}
            Err(error) => return Err(FlagError::Variable { variable, error: Box::new(error) }),
        }
    }
    Ok(Translated { args: out, without_effect })
}

/// Those of `variables` that look like a flag's and are none's, each with what may be meant.
pub(super) fn unknown_variables(
    command: &Command,
    variables: impl IntoIterator<Item = OsString>,
) -> Vec<(String, Option<String>)> {
    let names = command.get_arguments().filter_map(Arg::get_long);
    let known: Vec<String> =
        names.chain(FOREIGN.iter().map(|foreign| foreign.name)).map(variable_of).collect();
    let variables = variables.into_iter().filter_map(|name| name.into_string().ok());
    let unknown = variables.filter(|name| name.starts_with("FLANNELD_") && !known.contains(name));
    unknown.map(|name| (nearest(&name, &known), name)).map(|(meant, name)| (name, meant)).collect()
}

/// The one of `known` that `name` is a slip of the fingers away from.
fn nearest(name: &str, known: &[String]) -> Option<String> {
    let distance = |known: &String| strsim::damerau_levenshtein(name, known);
    known.iter().min_by_key(|known| distance(known)).filter(|known| distance(known) <= 2).cloned()
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

/// What is known of a flag.
enum Definition<'a> {
    Ours(&'a Arg),
    Foreign(&'static Foreign),
}

impl Definition<'_> {
    fn is_switch(&self) -> bool {
        match self {
            Self::Ours(arg) => is_switch(arg),
            Self::Foreign(foreign) => foreign.is_switch,
        }
    }
}

fn find<'a>(command: &'a Command, name: &str) -> Result<Definition<'a>, FlagError> {
    let ours = command.get_arguments().find(|arg| arg.get_long() == Some(name)).map(Definition::Ours);
    let foreign = || FOREIGN.iter().find(|foreign| foreign.name == name).map(Definition::Foreign);
    ours.or_else(foreign).ok_or_else(|| {
        let names = command.get_arguments().filter_map(Arg::get_long).map(str::to_owned).collect::<Vec<_>>();
        let meant = nearest(name, &names).map(|meant| format!(" (is --{meant} meant?)"));
        syntax(format!("there is no flag --{name}{}: see overlayd --help", meant.unwrap_or_default()))
    })
}

/// The variable of the environment that stands for the flag `name`.
fn variable_of(name: &str) -> String {
    format!("FLANNELD_{}", name.replace('-', "_").to_uppercase())
}

/// Whether a flag's value is a text, which may be empty and says nothing then; numbers and switches may not.
fn is_text(arg: &Arg) -> bool {
    let of = arg.get_value_parser().type_id();
    let numbers = [TypeId::of::<u8>(), TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<usize>()];
    !is_switch(arg) && !numbers.into_iter().any(|number| of == number)
}

/// Whether a flag may be given without a value.
pub(super) fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set) && arg.get_value_parser().type_id() == TypeId::of::<bool>()
}

fn is_flag(arg: &OsString, name: &str) -> bool {
    let rest = arg.to_str().and_then(|text| text.strip_prefix("--")?.strip_prefix(name));
    rest.is_some_and(|rest| rest.starts_with('='))
}

fn switch_hint(given: &[String], command: &Command) -> String {
    match given.last() {
        Some(name) if find(command, name).is_ok_and(|flag| flag.is_switch()) => {
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
