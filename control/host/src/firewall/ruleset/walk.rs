//! The way of a packet through the base chains of its hooks, and what rules do to it there.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::mark::Mark;
use super::packet::{Destinations, Device, Holds, Packet, Way};
use super::{Base, Chain, Hook, Rule, Ruleset, Statement, Table, ebtables, nft, saved};

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

impl Layer {
    /// Whether a packet that passes one of `devices` comes to this base chain.
    fn has(self, chain: &Chain, base: &Base, devices: &[&str]) -> Holds {
        let here = match (self, chain.table.family.as_str()) {
            (Self::Ip, "ip" | "inet") => !base.hook.is_a_devices(),
            (Self::Bridge, "bridge") => true,
            (Self::Device | Self::Below, "netdev" | "inet") => base.hook.is_a_devices(),
            _ => false,
        };
        let is_meant = |wanted: &String| devices.iter().any(|device| nft::is_named(wanted, device));
        match (self, &base.devices) {
            _ if !here => Holds::Never,
            (Self::Ip | Self::Bridge, _) => Holds::Always,
            (_, Some(wanted)) if !wanted.iter().any(is_meant) => Holds::Never,
            (Self::Device, Some(_)) => Holds::Always,
            _ => Holds::Unknown,
        }
    }
}

/// One hook on a packet's way.
struct Stage<'a> {
    layer: Layer,
    hook: Hook,
    iif: &'a str,
    oif: &'a str,
    /// Whose hook it is, if it is a device's.
    devices: Vec<&'a str>,
}

/// What `ruleset` does to `packet`, in the order in which it would meet it. What comes after a drop is there, too: each
/// of them has to be mended.
///
/// A packet passes a hook only if every base chain lets it, so each is followed to its end, through jumps, gotos
/// and maps, by its own rules, with the mark that those before have given it.
#[must_use]
pub fn acts(ruleset: &Ruleset, packet: &Packet) -> Vec<Act> {
    acts_and_destinations(ruleset, packet).0
}

/// The same, and which parts of the packet's destinations rules tell from the others: first and last address.
pub(in crate::firewall) fn acts_and_destinations(
    ruleset: &Ruleset,
    packet: &Packet,
) -> (Vec<Act>, BTreeSet<(u32, u32)>) {
    let asked = RefCell::default();
    let mut walk = Walk {
        ruleset,
        packet,
        to: Destinations::new(&packet.to, &asked),
        mark: Mark::NONE,
        untracked: Holds::Never,
        acts: Vec::new(),
    };
    for stage in stages(&packet.way) {
        walk.hook(&stage);
    }
    let acts = walk.acts;
    (acts, asked.into_inner())
}

/// The hooks of a packet that this host forwards, sends or receives, in the kernel's order.
fn stages(way: &Way) -> Vec<Stage<'_>> {
    let ip = |hook, iif, oif| Stage { layer: Layer::Ip, hook, iif, oif, devices: Vec::new() };
    match way {
        Way::Forwarded { from, to } => {
            let routed = vec![
                ip(Hook::Prerouting, &from.name, ""),
                ip(Hook::Forward, &from.name, &to.name),
                ip(Hook::Postrouting, &from.name, &to.name),
            ];
            [inwards(from), routed, outwards(to)].into_iter().flatten().collect()
        }
        Way::Sent { by, .. } => {
            let sent = vec![ip(Hook::Output, "", &by.name), ip(Hook::Postrouting, "", &by.name)];
            [sent, outwards(by)].into_iter().flatten().collect()
        }
        Way::Received { by } => {
            let received = vec![ip(Hook::Prerouting, &by.name, ""), ip(Hook::Input, &by.name, "")];
            [inwards(by), received].into_iter().flatten().collect()
        }
    }
}

/// From the wire, or a port of a bridge, up to IP.
fn inwards(Device { name, bridge, below }: &Device) -> Vec<Stage<'_>> {
    let stage = |layer, hook, devices| Stage { layer, hook, iif: name, oif: "", devices };
    let mut stages = vec![stage(Layer::Below, Hook::Ingress, below.iter().map(String::as_str).collect())];
    if *bridge {
        stages.extend([Hook::Prerouting, Hook::Input].map(|hook| stage(Layer::Bridge, hook, Vec::new())));
    }
    stages.push(stage(Layer::Device, Hook::Ingress, vec![name.as_str()]));
    stages
}

/// From IP down to the wire, or to a port of a bridge.
fn outwards(Device { name, bridge, below }: &Device) -> Vec<Stage<'_>> {
    let stage = |layer, hook, devices| Stage { layer, hook, iif: "", oif: name, devices };
    let mut stages = vec![stage(Layer::Device, Hook::Egress, vec![name.as_str()])];
    if *bridge {
        stages.extend([Hook::Output, Hook::Postrouting].map(|hook| stage(Layer::Bridge, hook, Vec::new())));
    }
    stages.push(stage(Layer::Below, Hook::Egress, below.iter().map(String::as_str).collect()));
    stages
}

/// Which of the packets that have come to a chain are left in it: less sure after each rule that may have decided.
#[derive(Debug, Clone, Copy)]
struct Left {
    /// Whether packets come to the chain at all.
    entered: Holds,
    /// Of those, whether no rule has accepted them, here or in a chain that this one leads to.
    unaccepted: Holds,
    /// Whether none has sent them back.
    unreturned: Holds,
    /// Nobody is left.
    over: bool,
}

impl Left {
    fn of(entered: Holds) -> Self {
        Self { entered, unaccepted: Holds::Always, unreturned: Holds::Always, over: false }
    }

    /// Whether a rule that `holds` for packets in the chain is one that they come to.
    fn meet(&self, holds: Holds) -> Holds {
        self.entered.and(self.unaccepted).and(self.unreturned).and(holds)
    }

    fn accept(&mut self, holds: Holds) {
        self.unaccepted = self.unaccepted.and(self.unreturned.and(holds).negated());
        self.over |= holds == Holds::Always;
    }

    /// Those that are dropped count as left unless all are: a rule behind that drops all then says so.
    fn drop(&mut self, holds: Holds) {
        self.over |= holds == Holds::Always;
    }

    fn give_back(&mut self, holds: Holds) {
        self.unreturned = self.unreturned.and(holds.negated());
        self.over |= holds == Holds::Always;
    }

    /// What has become of those for which `holds` has led to another chain.
    fn come_back(&mut self, other: &Self, holds: Holds) {
        self.accept(other.unaccepted.negated().and(holds));
        self.over |= holds == Holds::Always && !other.comes_back();
    }

    /// Whether any go on behind the rule that has led to the chain, or come to the base chain's policy.
    fn comes_back(&self) -> bool {
        !self.over || self.unreturned != Holds::Always
    }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    to: Destinations<'a>,
    mark: Mark,
    untracked: Holds,
    acts: Vec<Act>,
}

/// What is known while a base chain is followed.
struct Course<'a> {
    base: &'a Chain,
    stage: &'a Stage<'a>,
    /// Whether conntrack sees the packet after this base chain.
    before_conntrack: Holds,
    /// Whether a translation ends what later chains of this kind are asked.
    bound: bool,
}

/// The kernel allows 16 jumps; a listing that leads in circles must not hang us.
const DEPTH: usize = 32;

/// When conntrack is called (linux/netfilter_ipv4.h: `NF_IP_PRI_CONNTRACK`).
const CONNTRACK: i64 = -200;

impl Walk<'_> {
    fn hook(&mut self, stage: &Stage<'_>) {
        let mut bound = false;
        for (chain, base) in self.ruleset.base_chains(stage.hook) {
            let mut here = stage.layer.has(chain, base, &stage.devices);
            if base.translates {
                // Addresses are a connection's, and there is none.
                here = here.and(self.untracked.negated());
            }
            if here == Holds::Never || bound && base.translates {
                continue;
            }
            let before_conntrack = match (stage.layer, stage.hook) {
                (Layer::Ip, Hook::Prerouting | Hook::Output) => match base.priority.cmp(&CONNTRACK) {
                    Ordering::Less => Holds::Always,
                    Ordering::Equal => Holds::Unknown,
                    Ordering::Greater => Holds::Never,
                },
                (Layer::Ip, _) => Holds::Never,
                _ => Holds::Always,
            };
            let mut course = Course { base: chain, stage, before_conntrack, bound: false };
            let left = self.chain(chain, &mut course, here, 0);
            bound |= course.bound;
            if left.comes_back() && base.drops {
                self.note(What::Drops, here.and(left.unaccepted), &course, chain, Which::Policy);
            }
        }
    }

    /// Follows `chain`, to which packets come if `entered` holds; returns what is left of them at its end.
    fn chain(&mut self, chain: &Chain, course: &mut Course<'_>, entered: Holds, depth: usize) -> Left {
        let mut left = Left::of(entered);
        for rule in &chain.rules {
            for (holds, verdict) in self.rule(rule, chain, course, &left) {
                let sure = left.meet(holds);
                match &verdict {
                    Verdict::Continue => {}
                    Verdict::Return => left.give_back(holds),
                    Verdict::Accept => left.accept(holds),
                    Verdict::Drop => {
                        self.note(What::Drops, sure, course, chain, rule.which());
                        left.drop(holds);
                    }
                    Verdict::Unclear => {
                        self.note(What::Unclear, sure, course, chain, rule.which());
                        left.accept(holds);
                    }
                    Verdict::Jump(name) | Verdict::Goto(name) => {
                        let other = match self.ruleset.beside(chain, name) {
                            Some(next) if depth < DEPTH => self.chain(next, course, sure, depth + 1),
                            _ => {
                                self.note(What::Unclear, sure, course, chain, rule.which());
                                Left::of(sure)
                            }
                        };
                        left.come_back(&other, holds);
                        if matches!(verdict, Verdict::Goto(_)) && other.comes_back() {
                            left.give_back(holds);
                        }
                    }
                }
                if left.over {
                    return left;
                }
            }
        }
        left
    }

    /// Follows a rule's statements. Returns how it decides, and for which packets.
    fn rule(
        &mut self,
        rule: &Rule,
        chain: &Chain,
        course: &mut Course<'_>,
        left: &Left,
    ) -> Vec<(Holds, Verdict)> {
        let mut holds = Holds::Always;
        for statement in rule.statements() {
            let context = Context {
                packet: self.packet,
                to: self.to,
                ruleset: self.ruleset,
                table: &chain.table,
                layer: course.stage.layer,
                iif: course.stage.iif,
                oif: course.stage.oif,
                mark: self.mark,
                untracked: self.untracked,
            };
            let step = match &statement {
                Statement::Expression(expression) => nft::step(expression, &context),
                Statement::Conditions(rule) if context.layer == Layer::Bridge => {
                    Step::Condition(ebtables::holds(rule))
                }
                Statement::Target(rule) if context.layer == Layer::Bridge => {
                    ebtables::target(rule, &chain.table.name)
                }
                Statement::Conditions(rule) => Step::Condition(saved::holds(rule, &context)),
                Statement::Target(rule) => saved::target(rule, &context),
            };
            let sure = left.meet(holds);
            match step {
                Step::Condition(Holds::Never) => return Vec::new(),
                Step::Condition(more) => holds = holds.and(more),
                Step::Nothing => {}
                Step::Verdict(verdict) => return vec![(holds, verdict)],
                Step::Verdicts(verdicts) => {
                    return verdicts.into_iter().map(|(more, verdict)| (holds.and(more), verdict)).collect();
                }
                Step::Mark(mark) => self.set_mark(mark, sure, course, chain, rule),
                Step::Untracks => self.untracked = self.untracked.or(sure.and(course.before_conntrack)),
                Step::Changes => self.note(What::Changes, sure, course, chain, rule.which()),
                Step::Binds { does } => {
                    if let Some(what) = does {
                        self.note(what, sure, course, chain, rule.which());
                    }
                    course.bound |= sure == Holds::Always;
                    return vec![(holds, Verdict::Accept)];
                }
                Step::Unclear => {
                    self.note(What::Unclear, sure, course, chain, rule.which());
                    holds = holds.and(Holds::Unknown);
                }
            }
        }
        Vec::new()
    }

    fn set_mark(&mut self, mark: Mark, sure: Holds, course: &Course<'_>, chain: &Chain, rule: &Rule) {
        if mark == self.mark && mark.is_known() {
            return;
        }
        self.note(What::Changes, sure, course, chain, rule.which());
        self.mark = if sure == Holds::Always { mark } else { self.mark.or(mark, sure) };
    }

    fn note(&mut self, what: What, sure: Holds, course: &Course<'_>, chain: &Chain, rule: Which) {
        let place = Place {
            table: chain.table.clone(),
            chain: chain.name.clone(),
            base: course.base.name.clone(),
            hook: course.stage.hook,
            rule,
        };
        self.acts.push(Act { what, sure, place });
    }
}
