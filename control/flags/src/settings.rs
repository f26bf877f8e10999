//! The flags as they are in effect, to be shown: names and values, without secrets.

use clap::parser::ValueSource;
use clap::{ArgMatches, Command};

use overlay_api::config::Setting;

/// What `matches` say of each flag of `command`, in the order of its help.
pub(super) fn of(command: &Command, matches: &ArgMatches) -> Vec<Setting> {
    let shown = command.get_arguments().filter_map(|arg| Some((arg, arg.get_long()?)));
    let shown = shown.filter(|(_, name)| !matches!(*name, "help" | "version"));
    shown
        .map(|(arg, name)| {
            let id = arg.get_id().as_str();
            let values = matches.get_raw(id).map(|values| {
                let values: Vec<_> = values.map(|value| value.to_string_lossy().into_owned()).collect();
                values.join(",")
            });
            let value = values.map(|value| match name {
                "etcd-password" => HIDDEN.to_owned(),
                _ => without_users(&value),
            });
            let given = matches.value_source(id).is_some_and(|source| source != ValueSource::DefaultValue);
            Setting { name: name.to_owned(), value, given }
        })
        .collect()
}

/// URLs may carry a user and password.
fn without_users(value: &str) -> String {
    let url = |url: &str| match url.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://{HIDDEN}@{host}"),
            None => url.to_owned(),
        },
        None => url.to_owned(),
    };
    value.split(',').map(url).collect::<Vec<_>>().join(",")
}

const HIDDEN: &str = "***";
