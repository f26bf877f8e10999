//! The installed variants of iptables, and what their tables hold.

use std::fs;

use super::piecemeal;
use super::save::{self, Table};
use crate::HostError;
use crate::command::run;
use overlay_support::reserve::reading;

/// One of the two: over the kernel's own tables, or over those of nftables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Variant {
    pub(super) program: &'static str,
    /// Whether it is the one called `iptables`.
    pub(super) default: bool,
    pub(super) legacy: bool,
    pub(super) random_fully: bool,
    /// The file that names legacy's loaded tables.
    loaded: &'static str,
}

/// The installed variants of `iptables`.
///
/// # Errors
/// [`HostError::NoProgram`] without any.
pub(super) async fn installed() -> Result<Vec<Variant>, HostError> {
    variants("iptables", "iptables-nft", "iptables-legacy", LOADED).await
}

/// The same of `ip6tables`.
pub(super) async fn installed_ipv6() -> Result<Vec<Variant>, HostError> {
    variants("ip6tables", "ip6tables-nft", "ip6tables-legacy", LOADED_IPV6).await
}

async fn variants(
    default: &'static str,
    nft: &'static str,
    legacy: &'static str,
    loaded: &'static str,
) -> Result<Vec<Variant>, HostError> {
    let version = run(default, &["--version"], "").await?;
    let is_legacy = !version.contains("nf_tables");
    let random_fully = has_random_fully(&version);
    let other = if is_legacy { nft } else { legacy };
    let variant = |program, default, legacy| Variant { program, default, legacy, random_fully, loaded };
    Ok(vec![variant(default, true, is_legacy), variant(other, false, !is_legacy)])
}

/// Whether the legacy variant has tables here. It tells nobody when its rules change.
pub(in crate::firewall) fn legacy_in_use() -> bool {
    !loaded_tables(LOADED).is_empty()
}

impl Variant {
    /// The tables of these names; those that are not there are empty. Of one that cannot be listed, the chains that
    /// lead on from where our rules are hooked, and those named `own`.
    pub(super) async fn read(
        &self,
        names: &[&'static str],
        own: &[String],
    ) -> Result<Vec<(&'static str, Table)>, HostError> {
        // Merely asking iptables-legacy for a table would load its kernel module: it writes all that there are,
        // in one go. iptables-nft is asked for each, since others may be long.
        let saved = if self.legacy {
            let loaded = loaded_tables(self.loaded);
            let needed = names.iter().any(|name| loaded.iter().any(|loaded| loaded == name));
            Some(if needed { self.save(&[]).await? } else { String::new() })
        } else {
            None
        };
        let mut tables = Vec::new();
        for name in names {
            let table = match &saved {
                Some(saved) => Table::parse(name, saved),
                None => match self.save(&["-t", name]).await? {
                    saved if save::is_withheld(name, &saved) => {
                        piecemeal::read(self.program, name, own).await?
                    }
                    saved => Table::parse(name, &saved),
                },
            };
            tables.push((*name, table));
        }
        Ok(tables)
    }

    /// What its `-save` writes; nothing if this is not the default variant and not installed.
    pub(super) async fn save(&self, arguments: &[&str]) -> Result<String, HostError> {
        match run(&format!("{}-save", self.program), arguments, "").await {
            Err(HostError::NoProgram { .. }) if !self.default => Ok(String::new()),
            saved => saved,
        }
    }
}

fn loaded_tables(file: &str) -> Vec<String> {
    reading(|| fs::read_to_string(file)).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// iptables has `--random-fully` since 1.6.2, as flannel asks too.
fn has_random_fully(version: &str) -> bool {
    let number = version.split_once(" v").map_or("", |(_, rest)| rest);
    let number = number.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts >= vec![1, 6, 2]
}

// `thread-self`, since /proc/net shows the network namespace of the main thread.
const LOADED: &str = "/proc/thread-self/net/ip_tables_names";
const LOADED_IPV6: &str = "/proc/thread-self/net/ip6_tables_names";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::iptables::rules;
    use crate::{Desired, Masquerade};

    #[test]
    fn random_ports_are_asked_of_those_that_know_them() {
        for (version, knows) in [
            ("iptables v1.8.9 (nf_tables)\n", true),
            ("iptables v1.6.2\n", true),
            ("iptables v1.6.1\n", false),
            ("iptables v1.4.21\n", false),
            ("gibberish", false),
        ] {
            assert_eq!(has_random_fully(version), knows, "{version}");
        }
        let masquerade = Masquerade { return_path: true, ip_masq: true, fully_random: true };
        let desired = Desired { masquerade, ..Desired::example() };
        assert!(!format!("{:?}", rules::nat(&desired, false, true)).contains("random"));
    }
}
