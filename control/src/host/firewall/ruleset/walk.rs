//! The way of a packet through the base chains of its hooks, and what rules do to it there.

use super::packet::{Device, Holds, Packet, Way};
use super::{Base, Chain, Hook, Rule, Ruleset, Statement, Table, nft, saved};

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

/// A rule of a chain, or its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// As `iptables-save` writes it, without `-A CHAIN`.
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
    /// The packet's mark becomes this; `None` if that is not known.
    Mark(Option<u32>),
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
}

/// The mark of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Is(u32),
    /// Some rule may have changed it: the condition of that rule.
    MayBeAnother(Holds),
}

/// Which part of the stack a hook belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Device,
    Bridge,
    Ip,
}

impl Layer {
    fn has(self, chain: &Chain, base: &Base, device: &str) -> Holds {
        let here = match (self, chain.table.family.as_str()) {
            (Self::Ip, "ip" | "inet") => !base.hook.is_a_devices(),
            (Self::Bridge, "bridge") => true,
            (Self::Device, "netdev" | "inet") => base.hook.is_a_devices(),
            _ => false,
        };
        match &base.devices {
            _ if !here => Holds::Never,
            Some(devices) if self == Self::Device => Holds::of(devices.iter().any(|name| name == device)),
            None if self == Self::Device => Holds::Unknown,
            _ => Holds::Always,
        }
    }
}

/// One hook on a packet's way.
struct Stage<'a> {
    layer: Layer,
    hook: Hook,
    iif: &'a str,
    oif: &'a str,
}

/// What `ruleset` does to `packet`, in the order in which it would meet it. What comes after a drop is there, too: each
/// of them has to be mended.
///
/// A packet passes a hook only if every base chain lets it, so each is followed to its end, through jumps, gotos
/// and maps, by its own rules, with the mark that those before have given it.
#[must_use]
pub fn acts(ruleset: &Ruleset, packet: &Packet) -> Vec<Act> {
    let mut walk = Walk { ruleset, packet, mark: Mark::Is(0), acts: Vec::new() };
    for stage in stages(&packet.way) {
        walk.hook(&stage);
    }
    walk.acts
}

/// The hooks of a packet that this host forwards, sends or receives, in the kernel's order.
fn stages(way: &Way) -> Vec<Stage<'_>> {
    let ip = |hook, iif, oif| Stage { layer: Layer::Ip, hook, iif, oif };
    let device = |hook, name| match hook {
        Hook::Ingress => Stage { layer: Layer::Device, hook, iif: name, oif: "" },
        _ => Stage { layer: Layer::Device, hook, iif: "", oif: name },
    };
    let mut stages = Vec::new();
    let bridge = |stages: &mut Vec<Stage<'_>>, Device { bridge, .. }: &Device, hooks: [Hook; 2]| {
        if *bridge {
            // Which port of the bridge it is that a packet comes in or goes out by is not known.
            stages.extend(hooks.map(|hook| Stage { layer: Layer::Bridge, hook, iif: "", oif: "" }));
        }
    };
    let before = [Hook::Prerouting, Hook::Input];
    let after = [Hook::Output, Hook::Postrouting];
    match way {
        Way::Forwarded { from, to } => {
            bridge(&mut stages, from, before);
            stages.extend([
                device(Hook::Ingress, &from.name),
                ip(Hook::Prerouting, &from.name, ""),
                ip(Hook::Forward, &from.name, &to.name),
                ip(Hook::Postrouting, &from.name, &to.name),
                device(Hook::Egress, &to.name),
            ]);
            bridge(&mut stages, to, after);
        }
        Way::Sent { by, .. } => {
            stages.extend([
                ip(Hook::Output, "", &by.name),
                ip(Hook::Postrouting, "", &by.name),
                device(Hook::Egress, &by.name),
            ]);
            bridge(&mut stages, by, after);
        }
        Way::Received { by } => {
            bridge(&mut stages, by, before);
            stages.extend([
                device(Hook::Ingress, &by.name),
                ip(Hook::Prerouting, &by.name, ""),
                ip(Hook::Input, &by.name, ""),
            ]);
        }
    }
    stages
}

/// How a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It goes back, or comes to its end.
    Open,
    /// It has decided, and so has its base chain.
    Decided,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    mark: Mark,
    acts: Vec<Act>,
}

/// What is known while a base chain is followed.
struct Course<'a> {
    base: &'a Chain,
    hook: Hook,
    layer: Layer,
    iif: &'a str,
    oif: &'a str,
    /// Whether the packet is still in this base chain: less sure after each rule that may have decided.
    here: Holds,
    /// Whether a translation ends what later chains of this kind are asked.
    bound: bool,
}

/// The kernel allows 16 jumps; a listing that leads in circles must not hang us.
const DEPTH: usize = 32;

impl Walk<'_> {
    fn hook(&mut self, stage: &Stage<'_>) {
        let device = if stage.hook == Hook::Egress { stage.oif } else { stage.iif };
        let mut bound = false;
        for (chain, base) in self.ruleset.base_chains(stage.hook) {
            let here = stage.layer.has(chain, base, device);
            if here == Holds::Never || bound && base.translates {
                continue;
            }
            let mut course = Course {
                base: chain,
                hook: stage.hook,
                layer: stage.layer,
                iif: stage.iif,
                oif: stage.oif,
                here,
                bound: false,
            };
            let end = self.chain(chain, &mut course, Holds::Always, 0);
            bound |= course.bound;
            if end == End::Open && base.drops {
                self.note(What::Drops, course.here, &course, chain, Which::Policy);
            }
        }
    }

    /// Follows `chain`, which the packet has reached if `reached` holds; says how it ends for all that have.
    fn chain(&mut self, chain: &Chain, course: &mut Course<'_>, reached: Holds, depth: usize) -> End {
        // Whether the packet is still in this chain: less sure after each rule that may have sent it back.
        let mut still = Holds::Always;
        for rule in &chain.rules {
            for (holds, verdict) in self.rule(rule, chain, course, reached.and(still)) {
                let sure = reached.and(still).and(course.here).and(holds);
                let end = match &verdict {
                    Verdict::Continue | Verdict::Return => End::Open,
                    Verdict::Accept => End::Decided,
                    Verdict::Drop => {
                        self.note(What::Drops, sure, course, chain, rule.which());
                        End::Decided
                    }
                    Verdict::Unclear => {
                        self.note(What::Unclear, sure, course, chain, rule.which());
                        End::Decided
                    }
                    Verdict::Jump(name) | Verdict::Goto(name) => match self.ruleset.beside(chain, name) {
                        Some(next) if depth < DEPTH => {
                            self.chain(next, course, reached.and(still).and(holds), depth + 1)
                        }
                        _ => {
                            self.note(What::Unclear, sure, course, chain, rule.which());
                            End::Open
                        }
                    },
                };
                let goes_back = matches!(verdict, Verdict::Return | Verdict::Goto(_));
                match (end, holds) {
                    (End::Open, Holds::Always) if goes_back => return End::Open,
                    (End::Open, _) if goes_back => still = still.and(holds),
                    (End::Open, _) => {}
                    (end, Holds::Always) if still == Holds::Always => return end,
                    (_, Holds::Always) => {
                        // Only those are left that have gone back before.
                        course.here = course.here.and(still);
                        return End::Open;
                    }
                    _ => course.here = course.here.and(holds),
                }
            }
        }
        End::Open
    }

    /// Follows a rule's statements. Returns how it decides, and for which packets.
    fn rule(
        &mut self,
        rule: &Rule,
        chain: &Chain,
        course: &mut Course<'_>,
        reached: Holds,
    ) -> Vec<(Holds, Verdict)> {
        let mut holds = Holds::Always;
        for statement in rule.statements() {
            let context = Context {
                packet: self.packet,
                ruleset: self.ruleset,
                table: &chain.table,
                layer: course.layer,
                iif: course.iif,
                oif: course.oif,
                mark: self.mark,
            };
            let step = match &statement {
                Statement::Expression(expression) => nft::step(expression, &context),
                Statement::Conditions(words) => Step::Condition(saved::holds(words, &context)),
                Statement::Target(words) => saved::target(words, &context),
            };
            let sure = reached.and(course.here).and(holds);
            match step {
                Step::Condition(Holds::Never) => return Vec::new(),
                Step::Condition(more) => holds = holds.and(more),
                Step::Nothing => {}
                Step::Verdict(verdict) => return vec![(holds, verdict)],
                Step::Verdicts(verdicts) => {
                    return verdicts.into_iter().map(|(more, verdict)| (holds.and(more), verdict)).collect();
                }
                Step::Mark(value) => self.set_mark(value, sure, course, chain, rule),
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

    fn set_mark(&mut self, value: Option<u32>, sure: Holds, course: &Course<'_>, chain: &Chain, rule: &Rule) {
        if matches!((value, self.mark), (Some(new), Mark::Is(old)) if new == old) {
            return;
        }
        self.note(What::Changes, sure, course, chain, rule.which());
        self.mark = match value {
            Some(value) if sure == Holds::Always => Mark::Is(value),
            Some(_) => Mark::MayBeAnother(sure),
            None => Mark::MayBeAnother(Holds::Unknown),
        };
    }

    fn note(&mut self, what: What, sure: Holds, course: &Course<'_>, chain: &Chain, rule: Which) {
        let place = Place {
            table: chain.table.clone(),
            chain: chain.name.clone(),
            base: course.base.name.clone(),
            hook: course.hook,
            rule,
        };
        self.acts.push(Act { what, sure, place });
    }
}
