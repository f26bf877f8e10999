//! The way of a packet through the base chains of its hooks, and what rules do to it there.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::act::{Act, Place, What};
use super::mark::Mark;
use super::packet::{Destinations, Device, Holds, Packet, Way};
use super::rules::{Base, Chain, Hook, Rule, Ruleset, Statement, Which};
use super::step::{Context, Layer, Step, Verdict};
use super::{ebtables, nft, saved};

/// One hook on a packet's way.
struct Stage<'a> {
    layer: Layer,
    hook: Hook,
    iif: &'a str,
    oif: &'a str,
    /// Whose hook it is, if it is a device's.
    devices: Vec<&'a str>,
}

impl Stage<'_> {
    /// Whether a packet that comes here comes to this base chain.
    fn calls(&self, chain: &Chain, base: &Base) -> Holds {
        let here = match (self.layer, chain.table.family.as_str()) {
            (Layer::Ip, "ip" | "inet") => !base.hook.is_a_devices(),
            (Layer::Bridge, "bridge") => true,
            (Layer::Device | Layer::Below, "netdev" | "inet") => base.hook.is_a_devices(),
            _ => false,
        };
        let is_meant = |wanted: &String| self.devices.iter().any(|device| nft::is_named(wanted, device));
        match (self.layer, &base.devices) {
            _ if !here => Holds::Never,
            (Layer::Ip | Layer::Bridge, _) => Holds::Always,
            (_, Some(wanted)) if !wanted.iter().any(is_meant) => Holds::Never,
            (Layer::Device, Some(_)) => Holds::Always,
            _ => Holds::Unknown,
        }
    }
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
            let mut here = stage.calls(chain, base);
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
