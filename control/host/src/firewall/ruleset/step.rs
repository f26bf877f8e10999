//! What a statement of a rule comes to, and what it is evaluated with.

use super::act::What;
use super::mark::Mark;
use super::packet::{Destinations, Holds, Packet};
use super::rules::{Ruleset, Table};

/// What one statement of a rule comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// The rule goes on if this holds.
    Condition(Holds),
    /// Nothing that matters for the packet's fate.
    Nothing,
    /// A verdict.
    Verdict(Verdict),
    /// One of several verdicts, or none.
    Verdicts(Vec<(Holds, Verdict)>),
    /// The packet's mark becomes this.
    Mark(Mark),
    /// The packet belongs to no connection, if conntrack has not seen it yet.
    Untracks,
    /// The packet is changed, and goes on.
    Changes,
    /// An address is translated, if only to itself, or the packet leaves by another way: no later chain of this
    /// kind at this hook is asked.
    Binds { does: Option<What> },
    /// Something that nobody here knows.
    Unclear,
}

/// How a rule, or a map's element, decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Return,
    Continue,
    Jump(String),
    Goto(String),
    /// As for a program in user space, which then decides.
    Unclear,
}

/// What a statement is evaluated with.
pub(super) struct Context<'a> {
    pub(super) packet: &'a Packet,
    /// The packet's destinations.
    pub(super) to: Destinations<'a>,
    pub(super) ruleset: &'a Ruleset,
    /// The table that the rule is in.
    pub(super) table: &'a Table,
    pub(super) layer: Layer,
    /// The device that the packet has come in by; empty where there is none.
    pub(super) iif: &'a str,
    /// The device that it goes out by.
    pub(super) oif: &'a str,
    /// Its mark, as far as it is known.
    pub(super) mark: Mark,
    /// Whether conntrack leaves it out.
    pub(super) untracked: Holds,
}

/// Which part of the stack a hook belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    /// Devices below the one that packets are routed by. Which of them a packet takes is not known.
    Below,
    Device,
    Bridge,
    Ip,
}
