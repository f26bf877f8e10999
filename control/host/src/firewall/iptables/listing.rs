//! All that `iptables-save` says, for who only looks.

use super::save::Table;
use super::variant::{installed, legacy_in_use};
use crate::HostError;

/// What one variant has.
#[derive(Debug)]
pub(in crate::firewall) struct Saved {
    /// The variant's program.
    pub(in crate::firewall) program: &'static str,
    /// Whether its tables are the kernel's own, and none of nftables'.
    pub(in crate::firewall) legacy: bool,
    /// What its `-save` has written.
    pub(in crate::firewall) text: String,
}

impl Saved {
    /// Its tables, with their names.
    pub(in crate::firewall) fn tables(&self) -> impl Iterator<Item = (&str, Table)> {
        let names = self.text.lines().filter_map(|line| line.strip_prefix('*'));
        names.map(|name| (name, Table::parse(name, &self.text)))
    }
}

/// What each installed variant has that is `wanted`, which is told whether it is the legacy one. A legacy variant
/// that has no tables is left alone: asking it would load them.
pub(in crate::firewall) async fn saved(wanted: impl Fn(bool) -> bool) -> Result<Vec<Saved>, HostError> {
    let variants = match installed().await {
        Ok(variants) => variants,
        Err(HostError::NoProgram { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut all = Vec::new();
    for variant in variants.iter().filter(|variant| wanted(variant.legacy)) {
        if variant.legacy && !legacy_in_use() {
            continue;
        }
        let text = variant.save(&[]).await?;
        all.push(Saved { program: variant.program, legacy: variant.legacy, text });
    }
    Ok(all)
}
