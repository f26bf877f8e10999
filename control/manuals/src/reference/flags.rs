//! The command lines of `overlayd` and `overlayctl`.

use clap::{Arg, Command, CommandFactory as _};
use overlay_flags::Flags;
use overlayctl::arguments::Arguments;

use super::{WRITTEN, cell, code, table};

pub(super) fn document() -> String {
    let mut text = format!("# Flags\n\n{WRITTEN}\n## overlayd\n{OVERLAYD}");
    let command = Flags::definition();
    let mut headings: Vec<&str> = Vec::new();
    // The flags of one heading need not follow each other.
    for heading in command.get_arguments().map(heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for wanted in headings {
        text += &format!("\n### {wanted}\n");
        text += &arguments(command.get_arguments().filter(|argument| heading(argument) == wanted));
    }
    let command = Arguments::command();
    text += "\n## overlayctl\n\nEach command takes these two:\n";
    text += &arguments(command.get_arguments());
    for subcommand in command.get_subcommands() {
        text += &section(subcommand);
    }
    text
}

fn section(command: &Command) -> String {
    let about = command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
    let about = about.trim().trim_end_matches('.');
    let mut text = format!("\n### overlayctl {}\n\n{about}.\n", command.get_name());
    if command.get_arguments().next().is_some() {
        text += &arguments(command.get_arguments());
    }
    text
}

fn heading(argument: &Arg) -> &str {
    argument.get_help_heading().unwrap_or("General")
}

fn arguments<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    table(
        ["flag", "default", "what it does"],
        arguments.map(|argument| {
            let defaults: Vec<_> =
                argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            let default = if defaults.is_empty() { String::new() } else { code(&defaults.join(",")) };
            [code(&usage(argument)), default, help(argument)]
        }),
    )
}

/// As one writes it: `-w, --watch[=SECONDS]`, `FILE`.
fn usage(argument: &Arg) -> String {
    let names: Vec<&str> =
        argument.get_value_names().into_iter().flatten().map(|name| name.as_str()).collect();
    let value = match names.is_empty() {
        true => argument.get_id().as_str().to_uppercase(),
        false => names.join(" "),
    };
    let short = argument.get_short().map(|short| format!("-{short}"));
    let flags: Vec<String> =
        short.into_iter().chain(argument.get_long().map(|long| format!("--{long}"))).collect();
    let optional = argument.get_num_args().is_some_and(|range| range.min_values() == 0);
    match (flags.is_empty(), argument.get_action().takes_values(), optional) {
        (true, _, true) => format!("[{value}]"),
        (true, _, false) => value,
        (false, false, _) => flags.join(", "),
        (false, true, true) => format!("{}[={value}]", flags.join(", ")),
        (false, true, false) => format!("{}={value}", flags.join(", ")),
    }
}

fn help(argument: &Arg) -> String {
    // clap leaves out the full stop at the end.
    let sentences = |text: &str| format!("{}.", cell(text.trim_end().trim_end_matches('.')));
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let values = match argument.get_action().takes_values() && !argument.is_hide_possible_values_set() {
        true => argument.get_possible_values(),
        false => Vec::new(),
    };
    match values.is_empty() {
        true => sentences(&help),
        false => {
            let values: Vec<String> = values.iter().map(|value| code(value.get_name())).collect();
            format!("{} One of {}.", sentences(&help), values.join(", "))
        }
    }
}

const OVERLAYD: &str = "
A flag takes one dash or two, and its value after `=` or as the next argument; a switch (`BOOL`) takes its value after
`=` only. Each can also be given in the environment, as `FLANNELD_` and its name in capitals with underscores:
`FLANNELD_ETCD_ENDPOINTS`. The command line wins. An empty value (`-iface=`) counts as not given.
[Operate](../operate.md#flags) says which of flanneld's flags are refused or change nothing.
";
