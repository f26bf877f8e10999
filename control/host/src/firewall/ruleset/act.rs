//! What a rule does to packets, and where it stands.

use super::packet::Holds;
use super::rules::{Hook, Table, Which};

/// What a rule does to the packets, or may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Act {
    /// What.
    pub what: What,
    /// To all of the packets, to some, or perhaps to none. Never [`Holds::Never`].
    pub sure: Holds,
    /// Where the rule stands.
    pub place: Place,
}

/// What can be done to a packet beside letting it pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It ends here.
    Drops,
    /// It gets another destination, or leaves by another way.
    Diverts,
    /// It is changed: its source, a field of its headers, its mark or its connection's.
    Changes,
    /// Nobody here knows.
    Unclear,
}

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The table.
    pub table: Table,
    /// The chain that it is in.
    pub chain: String,
    /// The base chain that has led there.
    pub base: String,
    /// The base chain's hook.
    pub hook: Hook,
    /// Which rule of the chain.
    pub rule: Which,
}

impl Place {
    /// Whether the rule goes by what packets of any connection may have: their length, the time, chance. What drops by
    /// that drops some of everybody's.
    #[must_use]
    pub fn concerns_any_connection(&self) -> bool {
        match &self.rule {
            Which::Text(text) => text.split_whitespace().any(|word| word == "-f"),
            Which::Handle(_, expressions) => OF_ANY.iter().any(|asked| expressions.contains(asked)),
            Which::Policy => false,
        }
    }
}

/// What such a rule asks for, as `nft` writes it in JSON.
const OF_ANY: [&str; 7] = [
    r#""key":"length""#,
    r#""field":"length""#,
    r#""key":"hour""#,
    r#""key":"day""#,
    r#""key":"time""#,
    r#""key":"random""#,
    r#""key":"cpu""#,
];
