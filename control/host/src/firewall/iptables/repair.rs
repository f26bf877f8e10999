//! From what a table has to what it should have: the lines to restore. Pure.

use std::collections::BTreeSet;

use super::rules::{
    COMMENT_PREFIX, Chain, DIRECT, FORWARD, FWD, Hook, MADE, MASQ, NAT_PREFIX, POSTRTG, Place, Shared,
    Traffic, Wanted, direct_by_underlay, forward_chain, nat_chain, tunnel_in_tunnel,
};
use super::save::{Table, negated, same, target, value, words};

/// What to restore so that `table` is as `wanted`; empty if it is. `former` are networks that this daemon had
/// before, whose rules in shared chains go.
pub(super) fn repair(table: &Table, wanted: &Wanted, former: &BTreeSet<String>) -> Vec<String> {
    let mut lines = Vec::new();
    for chain in &wanted.chains {
        let there: Vec<&str> = table.rules(&chain.name).collect();
        lines.extend(match &chain.shared {
            Some(shared) => amend(table, chain, shared, former),
            None if table.has(&chain.name) && equal(&there, &chain.rules) => Vec::new(),
            None => rewrite(&chain.name, &chain.rules),
        });
    }
    let mut built_in: Vec<&'static str> = wanted.hooks.iter().map(|hook| hook.chain).collect();
    built_in.dedup();
    for chain in built_in {
        let mut rules: Vec<String> = table.rules(chain).map(str::to_owned).collect();
        for hook in wanted.hooks.iter().filter(|hook| hook.chain == chain) {
            lines.extend(place(table, &mut rules, hook));
        }
    }
    lines
}

/// What marks a table as one that was not there before.
pub(super) fn mark() -> String {
    format!(":{MADE} - [0:0]")
}

/// What removes the mark that the table was made for us, once `lines` have removed all rules of all daemons.
pub(super) fn unmark_if_last(table: &Table, lines: &[String]) -> Option<String> {
    let goes = |chain: &str, rule: &str| {
        lines.iter().any(|line| {
            line.strip_prefix("-X ") == Some(chain)
                || line.strip_prefix("-D ").and_then(|line| line.split_once(' ')) == Some((chain, rule))
        })
    };
    let is_a_daemons = |rule: &str| {
        let words = words(rule);
        let comment = value(&words, "--comment").unwrap_or_default();
        comment.starts_with(COMMENT_PREFIX) || matches!(comment, MASQ | FORWARD)
    };
    let last = !table.all_rules().any(|(chain, rule)| is_a_daemons(rule) && !goes(chain, rule));
    (table.has(MADE) && last).then(unmark)
}

/// What removes the mark.
pub(super) fn unmark() -> String {
    format!("-X {MADE}")
}

/// Empties or creates a chain of our own, and fills it.
fn rewrite(chain: &str, rules: &[String]) -> Vec<String> {
    let appended = rules.iter().map(|rule| format!("-A {chain} {rule}"));
    std::iter::once(format!(":{chain} - [0:0]")).chain(appended).collect()
}

fn equal(there: &[&str], wanted: &[String]) -> bool {
    there.len() == wanted.len() && there.iter().zip(wanted).all(|(one, other)| same(one, other))
}

/// Puts our rules into a chain that others may be writing to at this moment: theirs may stand before, between and
/// after ours and are never written anew, so that nothing of what they have put since we looked is lost.
fn amend(table: &Table, chain: &Chain, shared: &Shared, former: &BTreeSet<String>) -> Vec<String> {
    let name = &chain.name;
    let there: Vec<&str> = table.rules(name).collect();
    let mut lines = Vec::new();
    if !table.has(name) {
        // Fails if somebody else has just made it: they may have rules there by now.
        lines.push(format!("-N {name}"));
    }
    let theirs = theirs(&there, shared, former);
    let is_first = |rule: &str| shared.first.as_ref().is_some_and(|first| same(rule, first));
    let ours: Vec<&str> = there.iter().copied().filter(|rule| names(rule, &shared.network)).collect();
    let right = equal(&ours, &chain.rules);
    let leads = there.first().is_some_and(|rule| is_first(rule))
        && there.iter().filter(|rule| is_first(rule)).count() == 1;
    for rule in &there {
        let stays = match (is_first(rule), names(rule, &shared.network)) {
            (true, _) => leads,
            (false, true) => right,
            (false, false) => theirs.contains(rule),
        };
        if !stays {
            lines.push(format!("-D {name} {rule}"));
        }
    }
    lines.extend(shared.first.iter().filter(|_| !leads).map(|first| format!("-I {name} 1 {first}")));
    if !right {
        lines.extend(chain.rules.iter().map(|rule| format!("-A {name} {rule}")));
    }
    lines
}

/// What other daemons have in a shared chain.
fn theirs<'a>(there: &[&'a str], shared: &Shared, former: &BTreeSet<String>) -> Vec<&'a str> {
    let is_theirs = |rule: &str| {
        value(&words(rule), "--comment") == Some(shared.comment)
            && !shared.first.as_ref().is_some_and(|first| same(rule, first))
            && !names(rule, &shared.network)
            && !former.iter().any(|network| names(rule, network))
    };
    there.iter().copied().filter(|rule| is_theirs(rule)).collect()
}

/// Whether `rule` is about sources in, or destinations in or out of, `network`.
fn names(rule: &str, network: &str) -> bool {
    words(rule).windows(2).any(|two| matches!(two[0], "-s" | "-d") && two[1] == network)
}

/// Brings `hook` to its place among `rules`, those of its chain.
fn place(table: &Table, rules: &mut Vec<String>, hook: &Hook) -> Vec<String> {
    let Hook { chain, rule, place } = hook;
    let hook_words = words(rule);
    let out = value(&hook_words, "-o");
    let at = rules.iter().position(|other| same(other, rule));
    let copies = rules.iter().filter(|other| same(other, rule)).count();
    let mut others: Vec<String> = rules.iter().filter(|other| !same(other, rule)).cloned().collect();
    if table.is_unread(chain) {
        // What stands there is not known, only whether ours does.
        let first = format!("-I {chain} 1 {rule}");
        return if copies == 0 { vec![first] } else { Vec::new() };
    }
    let limit = others.iter().position(|other| must_follow(table, other, place, out));

    let wanted = limit.is_some() || !matches!(place, Place::BeforeDockersRefusal);
    // `limit` counts the others only: as many of them may precede a single rule of ours.
    let right = copies == usize::from(wanted)
        && (!wanted || at.is_some_and(|at| limit.is_none_or(|limit| at <= limit)));
    if right {
        return Vec::new();
    }
    let mut lines = vec![format!("-D {chain} {rule}"); copies];
    if wanted {
        let to = limit.unwrap_or(others.len());
        lines.push(match limit {
            Some(limit) => format!("-I {chain} {} {rule}", limit + 1),
            None => format!("-A {chain} {rule}"),
        });
        others.insert(to, rule.clone());
    }
    *rules = others;
    lines
}

/// Whether a rule of `place`, for what leaves through `out`, must stand before `other`.
fn must_follow(table: &Table, other: &str, place: &Place, out: Option<&str>) -> bool {
    match place {
        Place::Anywhere => false,
        Place::BeforeDrops(traffic) => may_drop(table, other, traffic),
        Place::BeforeTranslation => may_translate(table, other, out),
        Place::BeforeDockersRefusal => table.leads_to(other, &is_dockers_refusal),
        Place::Before(rule) => same(other, rule),
    }
}

/// Whether `rule`, or a rule of a chain that it leads to, drops or rejects something that goes from pod to pod.
///
/// Not counted are the chains of those who have the last word on what containers and pods may exchange: what
/// a site writes into DOCKER-USER, docker's isolation, and the network policies of kube-router and Calico. They keep
/// themselves first, and contending with them would undo what the operator wants.
fn may_drop(table: &Table, rule: &str, traffic: &Traffic) -> bool {
    let concerns = |words: &[&str]| traffic.may_match(words);
    let respected = |chain: &str| RESPECTED.iter().any(|prefix| chain.starts_with(prefix));
    let drops = |words: &[&str]| matches!(target(words), Some("DROP" | "REJECT"));
    table.leads_through(rule, &|words| concerns(words) && !target(words).is_some_and(respected), &drops)
}

/// What the chains of docker, kube-proxy, kube-router and Calico begin with.
const RESPECTED: [&str; 3] = ["DOCKER", "KUBE-", "cali-"];

/// kube-proxy translates what it has marked only, and other daemons like us what leaves by their own device;
/// whoever of these comes first makes no difference, and contending for it would never end.
fn may_translate(table: &Table, rule: &str, out: Option<&str>) -> bool {
    let words = words(rule);
    let elsewhere = out.zip(value(&words, "-o")).is_some_and(|(ours, theirs)| ours != theirs);
    let harmless = target(&words).is_some_and(|to| to == KUBE_PROXYS || to.starts_with(NAT_PREFIX));
    !elsewhere && !harmless && table.leads_to(rule, &translates)
}

fn translates(words: &[&str]) -> bool {
    matches!(target(words), Some("MASQUERADE" | "SNAT" | "NETMAP"))
}

/// `-d CONTAINER ! -i BRIDGE -j DROP` in raw, `! -i BRIDGE -o BRIDGE -j DROP` in filter.
fn is_dockers_refusal(words: &[&str]) -> bool {
    let bridge = negated(words, "-i");
    bridge.is_some()
        && target(words) == Some("DROP")
        && value(words, "-p").is_none()
        && (value(words, "-d").is_some() || value(words, "-o") == bridge)
}

/// Whether this variant's nat table translates sources of others' packets.
pub(super) fn translates_sources(nat: &Table) -> bool {
    let mut rules = nat.all_rules().filter(|(chain, _)| !chain.starts_with(NAT_PREFIX) && *chain != POSTRTG);
    rules.any(|(_, rule)| translates(&words(rule)))
}

/// Whether a forwarded packet may be dropped: by policy, or by a rule of a chain that FORWARD may lead to.
pub(super) fn drops_forwarded(filter: &Table) -> bool {
    let mut rules = filter.all_rules().filter(|(chain, _)| !matches!(*chain, "INPUT" | "OUTPUT"));
    filter.policy("FORWARD") == Some("DROP")
        || rules.any(|(_, rule)| matches!(target(&words(rule)), Some("DROP" | "REJECT")))
}

/// The networks whose rules in shared chains are the daemon's of this device, as its own chain says.
pub(super) fn networks_of(nat: &Table, device: &str) -> BTreeSet<String> {
    networks_in(nat, |chain| chain == nat_chain(device))
}

/// The networks of all other daemons.
pub(super) fn networks_of_others(nat: &Table, device: &str) -> BTreeSet<String> {
    networks_in(nat, |chain| chain.starts_with(NAT_PREFIX) && chain != nat_chain(device))
}

/// The networks of all daemons.
pub(super) fn networks_of_all(nat: &Table) -> BTreeSet<String> {
    networks_in(nat, |chain| chain.starts_with(NAT_PREFIX))
}

fn networks_in(nat: &Table, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
    let rules = nat.all_rules().filter(|(chain, _)| wanted(chain));
    rules.filter_map(|(_, rule)| value(&words(rule), "-d").map(str::to_owned)).collect()
}

/// The networks that the rules of flannel's chains name.
pub(super) fn networks_in_shared_chains(table: &Table) -> BTreeSet<String> {
    let rules = SHARED.into_iter().flat_map(|chain| table.rules(chain));
    rules.filter_map(|rule| value(&words(rule), "-s").map(str::to_owned)).collect()
}

/// What to restore so that nothing of `device` is left in a table, except the chains that `keep` names and
/// the rules of built-in chains that it holds. `networks` are those of its rules in shared chains.
pub(super) fn removal(
    table: &Table,
    device: &str,
    networks: &BTreeSet<String>,
    keep: &[String],
) -> Vec<String> {
    let kept = |name: &str| keep.iter().any(|keep| keep == name);
    let mut lines = Vec::new();
    for chain in [nat_chain(device), forward_chain(device)] {
        if table.has(&chain) && !kept(&chain) {
            lines.extend(remove_chain(table, &chain));
        }
    }
    for chain in SHARED {
        let theirs = |rule: &str| !networks.iter().any(|network| names(rule, network));
        if !kept(chain) && table.rules(chain).any(|rule| !theirs(rule)) {
            lines.extend(reduce_chain(table, chain, theirs));
        }
    }
    lines.extend(unlink(table, |rule| {
        let words = words(rule);
        let comment = value(&words, "--comment");
        let ours = comment == Some(DIRECT) && value(&words, "-i") == Some(device)
            || comment == Some(&direct_by_underlay(device))
            || comment == Some(&tunnel_in_tunnel(device));
        ours && !keep.iter().any(|keep| same(keep, rule))
    }));
    lines
}

/// What to restore so that flannel's rules are gone, except those about the networks of `owned`.
pub(super) fn removal_of_flannels(table: &Table, owned: &BTreeSet<String>) -> Vec<String> {
    let is_owned = |rule: &str| owned.iter().any(|network| names(rule, network));
    let mut lines = Vec::new();
    for chain in SHARED.into_iter().filter(|chain| table.has(chain)) {
        if table.rules(chain).any(|rule| !is_owned(rule) && names_any(rule))
            || !table.rules(chain).any(is_owned)
        {
            lines.extend(reduce_chain(table, chain, is_owned));
        }
    }
    // Before 0.20 flannel had no chains of its own.
    lines.extend(unlink(table, |rule| {
        let words = words(rule);
        matches!(value(&words, "--comment"), Some(MASQ | FORWARD))
            && !target(&words).is_some_and(|to| SHARED.contains(&to))
    }));
    lines
}

fn names_any(rule: &str) -> bool {
    words(rule).iter().any(|word| matches!(*word, "-s" | "-d"))
}

/// Takes from a shared chain all that is not to be kept; with the last network's rules the chain itself goes.
fn reduce_chain(table: &Table, chain: &str, keep: impl Fn(&str) -> bool) -> Vec<String> {
    let stays = |rule: &&str| !names_any(rule) || keep(rule);
    if table.rules(chain).any(|rule| names_any(rule) && keep(rule)) {
        let gone = table.rules(chain).filter(|rule| !stays(rule));
        gone.map(|rule| format!("-D {chain} {rule}")).collect()
    } else {
        remove_chain(table, chain)
    }
}

fn remove_chain(table: &Table, chain: &str) -> Vec<String> {
    let mut lines = unlink(table, |rule| target(&words(rule)) == Some(chain));
    lines.extend([format!("-F {chain}"), format!("-X {chain}")]);
    lines
}

/// Deletes rules from the chains that are built in.
fn unlink(table: &Table, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let rules =
        table.all_rules().filter(|(chain, _)| table.policy(chain).is_some_and(|policy| policy != "-"));
    rules.filter(|(_, rule)| wanted(rule)).map(|(chain, rule)| format!("-D {chain} {rule}")).collect()
}

const SHARED: [&str; 2] = [POSTRTG, FWD];

const KUBE_PROXYS: &str = "KUBE-POSTROUTING";
