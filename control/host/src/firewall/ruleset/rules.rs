//! The rules of a network namespace as data: tables, their chains, rules and sets.

use std::collections::HashMap;
use std::fmt;

use serde_json::Value;
use serde_json::value::RawValue;

use super::packet::Holds;

/// All rules of a network namespace.
#[derive(Debug, Default)]
pub struct Ruleset {
    pub(super) chains: Vec<Chain>,
    /// Where a chain is in `chains`.
    pub(super) places: HashMap<(Table, String), usize>,
    /// Sets and maps, by table and name.
    pub(super) sets: HashMap<(Table, String), Set>,
    /// What could not be read.
    pub(super) unread: Vec<String>,
}

/// A table of nftables, or one of iptables or ebtables that `nft` does not show.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// `ip`, `inet`, `bridge` and so on; `ip` for iptables.
    pub family: String,
    /// Its name.
    pub name: String,
    /// The program that shows it, if it is not `nft`.
    pub program: Option<&'static str>,
}

/// As in `inet filter`, or `iptables-legacy filter`.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program.unwrap_or(&self.family), self.name)
    }
}

/// Where a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are netfilter's")]
pub enum Hook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Egress,
}

impl Hook {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "ingress" => Self::Ingress,
            "prerouting" => Self::Prerouting,
            "input" => Self::Input,
            "forward" => Self::Forward,
            "output" => Self::Output,
            "postrouting" => Self::Postrouting,
            "egress" => Self::Egress,
            _ => return None,
        })
    }

    /// Its name, as `nft` writes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }

    /// Whether it is called for a device, below bridges and IP.
    pub(super) fn is_a_devices(self) -> bool {
        matches!(self, Self::Ingress | Self::Egress)
    }
}

#[derive(Debug)]
pub(super) struct Chain {
    pub(super) table: Table,
    pub(super) name: String,
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// What makes a chain a base chain.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) hook: Hook,
    pub(super) priority: i64,
    /// Whether what comes to its end is dropped.
    pub(super) drops: bool,
    /// Whether it is one that translates addresses.
    pub(super) translates: bool,
    /// The devices that it is for; `None` for all, or if they are not told.
    pub(super) devices: Option<Vec<String>>,
}

#[derive(Debug)]
pub(super) struct Rule {
    pub(super) handle: u64,
    pub(super) expressions: Option<Box<RawValue>>,
    /// As `iptables-save` or `ebtables` writes it, if it is one of theirs.
    pub(super) text: Option<String>,
}

/// A rule of a chain, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// As `iptables-save` or `ebtables` writes it, without `-A CHAIN`.
    Text(String),
    /// By the handle that `nft` knows it by, with its expressions as JSON.
    Handle(u64, String),
    /// The chain's policy.
    Policy,
}

/// A part of a rule.
pub(super) enum Statement {
    /// Of nftables.
    Expression(Value),
    /// All that a rule of iptables or ebtables asks for.
    Conditions(String),
    /// What it does.
    Target(String),
}

impl Rule {
    /// Parsed only when a packet comes by: a host may have tens of thousands, and most are in chains that it does not.
    ///
    /// What `nft` tells whole counts more than the text: sets are lost in that.
    pub(super) fn statements(&self) -> Vec<Statement> {
        match (&self.expressions, &self.text) {
            (Some(expressions), text) if text.is_none() || !expressions.get().contains("\"xt\"") => {
                match serde_json::from_str(expressions.get()) {
                    Ok(Value::Array(all)) => all.into_iter().map(Statement::Expression).collect(),
                    _ => vec![Statement::Expression(Value::Null)],
                }
            }
            (_, Some(text)) => vec![Statement::Conditions(text.clone()), Statement::Target(text.clone())],
            (_, None) => vec![Statement::Expression(Value::Null)],
        }
    }

    pub(super) fn which(&self) -> Which {
        match (&self.text, &self.expressions) {
            (Some(text), _) => Which::Text(text.clone()),
            (None, Some(expressions)) => Which::Handle(self.handle, expressions.get().to_owned()),
            (None, None) => Which::Handle(self.handle, String::new()),
        }
    }
}

/// The elements of a set, or of a map with their values.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) elements: Value,
    pub(super) lasts: Lasts,
}

/// For how long a set holds what it does, without a word of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasts {
    /// Until somebody changes it.
    ForGood,
    /// Its elements may go.
    Shrinks,
    /// Rules add to it as packets come by: what it holds now says little.
    Changes,
}

impl Lasts {
    /// What becomes of whether an element of it is met.
    pub(super) fn doubt(self, holds: Holds) -> Holds {
        match self {
            Self::ForGood => holds,
            Self::Shrinks => holds.and(Holds::Unknown),
            Self::Changes => Holds::Unknown,
        }
    }
}

impl Ruleset {
    /// What could not be read of it, for people.
    #[must_use]
    pub fn unread(&self) -> &[String] {
        &self.unread
    }

    /// The base chains for ARP that may drop something, for people. ARP carries no packets of the overlay, but finds out
    /// where they go.
    #[must_use]
    pub fn of_arp(&self) -> Vec<String> {
        let chains = self.chains.iter().filter(|chain| chain.table.family == "arp");
        let acting = chains.filter_map(|chain| Some((chain, chain.base.as_ref()?)));
        let acting = acting.filter(|(chain, base)| base.drops || !chain.rules.is_empty());
        let named = acting.map(|(chain, base)| {
            format!("nftables, chain {} {} (hook {})", chain.table, chain.name, base.hook.name())
        });
        named.collect()
    }

    /// The chain `name` of the table that `chain` is in.
    pub(super) fn beside(&self, chain: &Chain, name: &str) -> Option<&Chain> {
        self.places.get(&(chain.table.clone(), name.to_owned())).map(|place| &self.chains[*place])
    }

    pub(super) fn set(&self, table: &Table, name: &str) -> Option<&Set> {
        self.sets.get(&(table.clone(), name.to_owned()))
    }

    /// The base chains of `hook`, in the order in which they are called.
    pub(super) fn base_chains(&self, hook: Hook) -> Vec<(&Chain, &Base)> {
        let base = |chain| Some((chain, Chain::base_of(chain, hook)?));
        let mut chains: Vec<_> = self.chains.iter().filter_map(base).collect();
        chains.sort_by_key(|(_, base)| base.priority);
        chains
    }

    pub(super) fn add(&mut self, chain: Chain) {
        let key = (chain.table.clone(), chain.name.clone());
        self.places.insert(key, self.chains.len());
        self.chains.push(chain);
    }
}

impl Chain {
    fn base_of(&self, hook: Hook) -> Option<&Base> {
        self.base.as_ref().filter(|base| base.hook == hook)
    }
}
