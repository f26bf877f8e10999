//! Reads the ruleset: `nft -j list ruleset`, and what `iptables-save` of each variant and ebtables-legacy say.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::ebtables;
use super::rules::{Base, Chain, Hook, Lasts, Rule, Ruleset, Set, Table};
use crate::HostError;
use crate::command::run;
use crate::firewall::iptables::{self, Saved};

/// What the programs say of all rules of a network namespace.
#[derive(Debug, Default)]
pub struct Listings {
    /// `nft -j list ruleset`, if there is an `nft`: without it nobody has any rules but by iptables.
    rules: Option<String>,
    /// `nft list chains`, where it says what older versions leave out of the other.
    chains: Option<String>,
    saved: Vec<Saved>,
    /// Of ebtables-legacy, by table.
    bridged: Vec<(&'static str, Option<String>)>,
}

impl Listings {
    /// Runs the programs.
    ///
    /// # Errors
    /// The rules cannot be read, as by a user who is not root.
    pub async fn read() -> Result<Self, HostError> {
        let rules = match run("nft", &["-j", "list", "ruleset"], "").await {
            Ok(listing) => Some(listing),
            Err(HostError::NoProgram { .. }) => None,
            Err(error) => return Err(error),
        };
        let has = |text: &str| rules.as_ref().is_some_and(|rules| rules.contains(text));
        let chains = match has("\"hook\": \"ingress\"") || has("\"hook\": \"egress\"") {
            true => Some(run("nft", &["list", "chains"], "").await?),
            false => None,
        };
        let of_iptables = TABLES.iter().any(|name| has(&format!("\"table\": \"{name}\"")));
        let saved = iptables::saved(|legacy| legacy || rules.is_none() || of_iptables).await?;
        Ok(Self { rules, chains, saved, bridged: ebtables::listings().await? })
    }
}

impl Ruleset {
    /// The rules of this network namespace. What cannot be read of them is said by [`Ruleset::unread`].
    ///
    /// # Errors
    /// As [`Listings::read`].
    pub async fn read() -> Result<Self, HostError> {
        Listings::read().await.map(|listings| Self::parse(&listings))
    }

    /// What the programs have said, understood. Takes its time where there are tens of thousands of rules.
    #[must_use]
    pub fn parse(listings: &Listings) -> Self {
        let mut ruleset = Self::default();
        if let Some(rules) = &listings.rules {
            ruleset.add_listing(rules);
        }
        if let Some(chains) = &listings.chains {
            ruleset.add_devices(chains);
        }
        for saved in &listings.saved {
            ruleset.add_saved(saved, listings.rules.is_some());
        }
        for (table, listing) in &listings.bridged {
            ruleset.add_ebtables(table, listing.as_deref());
        }
        ruleset
    }

    /// Adds what `nft -j list ruleset` says.
    pub(in crate::firewall) fn add_listing(&mut self, listing: &str) {
        match serde_json::from_str::<Listing>(listing) {
            Ok(objects) => self.add_objects(objects.nftables, &changing_sets(listing)),
            Err(error) => {
                self.unread.push(format!("what 'nft -j list ruleset' says is not understood: {error}"));
            }
        }
    }

    /// Adds what a variant's `iptables-save` says. What `nft` `shows`, too, is given its text only.
    pub(in crate::firewall) fn add_saved(&mut self, saved: &Saved, shows: bool) {
        if saved.text.is_empty() {
            self.unread.push(format!("{} has rules here, and {0}-save is not installed", saved.program));
        } else if saved.legacy || !shows {
            self.add_tables(saved);
        } else {
            self.add_texts(saved);
        }
    }

    fn add_objects(&mut self, objects: Vec<Object>, changing: &HashSet<&str>) {
        let mut rules: HashMap<(Table, String), Vec<Rule>> = HashMap::new();
        let mut chains = Vec::new();
        for Object { chain, rule, set, map } in objects {
            if let Some(chain) = chain {
                chains.push(chain);
            }
            if let Some(rule) = rule {
                let key = (table(rule.family, rule.table), rule.chain);
                let rule = Rule { handle: rule.handle, expressions: rule.expr, text: None };
                rules.entry(key).or_default().push(rule);
            }
            if let Some(set) = set.or(map) {
                let lasts = match (changing.contains(set.name.as_str()), set.expires()) {
                    (true, _) => Lasts::Changes,
                    (_, true) => Lasts::Shrinks,
                    _ => Lasts::ForGood,
                };
                let key = (table(set.family, set.table), set.name);
                self.sets.insert(key, Set { elements: set.elem, lasts });
            }
        }
        for chain in chains {
            let base = chain.hook.as_deref().and_then(Hook::named).map(|hook| Base {
                hook,
                priority: chain.prio.unwrap_or(0),
                drops: chain.policy.as_deref() == Some("drop"),
                translates: chain.kind.as_deref() == Some("nat"),
                devices: devices(&chain.dev),
            });
            let table = table(chain.family, chain.table);
            let rules = rules.remove(&(table.clone(), chain.name.clone())).unwrap_or_default();
            self.add(Chain { table, name: chain.name, base, rules });
        }
    }

    /// Adds the tables of a variant that `nft` does not show.
    fn add_tables(&mut self, saved: &Saved) {
        for (name, rules) in saved.tables() {
            if !TABLES.contains(&name) {
                continue;
            }
            let table =
                Table { family: "ip".to_owned(), name: name.to_owned(), program: Some(saved.program) };
            let mut texts = texts(&rules);
            for (chain, policy) in rules.chains() {
                let hook = Hook::named(chain).filter(|_| policy != "-");
                let base = hook.map(|hook| Base {
                    hook,
                    priority: priority(name, hook),
                    drops: policy == "DROP",
                    translates: name == "nat",
                    devices: None,
                });
                let rule = |text: &str| Rule { handle: 0, expressions: None, text: Some(text.to_owned()) };
                let rules = texts.remove(chain).unwrap_or_default().into_iter().map(rule).collect();
                self.add(Chain { table: table.clone(), name: chain.to_owned(), base, rules });
            }
        }
    }

    /// Gives the rules that `nft` does not tell all of the text that `iptables-save` has for them.
    fn add_texts(&mut self, saved: &Saved) {
        for (name, rules) in saved.tables() {
            let table = table("ip".to_owned(), name.to_owned());
            for (chain, texts) in texts(&rules) {
                let Some(place) = self.places.get(&(table.clone(), chain.to_owned())) else { continue };
                let known = &mut self.chains[*place].rules;
                // Otherwise somebody has changed it meanwhile, and it will be read again.
                if known.len() == texts.len() {
                    for (rule, text) in known.iter_mut().zip(texts) {
                        rule.text = Some(text.to_owned());
                    }
                }
            }
        }
    }

    /// Adds which devices chains are for, from `nft list chains`: older versions say it there only.
    fn add_devices(&mut self, listing: &str) {
        let (mut table, mut chain) = (None, None);
        for line in listing.lines().map(str::trim) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["table", family, name, "{"] => table = Some(self::table(family.to_owned(), name.to_owned())),
                ["chain", name, "{"] => chain = Some(name.to_owned()),
                ["type", ..] => {
                    let key = table.clone().zip(chain.clone());
                    let place = key.and_then(|key| self.places.get(&key).copied());
                    let base = place.and_then(|place| self.chains[place].base.as_mut());
                    if let Some(base) = base.filter(|base| base.hook.is_a_devices()) {
                        let quoted = line.split('"').skip(1).step_by(2).map(str::to_owned);
                        base.devices = Some(quoted.collect()).filter(|names: &Vec<_>| !names.is_empty());
                    }
                }
                _ => {}
            }
        }
    }
}

/// The rules of each chain, in order.
fn texts(rules: &iptables::Table) -> HashMap<&str, Vec<&str>> {
    let mut texts: HashMap<&str, Vec<&str>> = HashMap::new();
    for (chain, rule) in rules.all_rules() {
        texts.entry(chain).or_default().push(rule);
    }
    texts
}

/// The names of sets and maps that rules add to: those of statements, not of matches.
fn changing_sets(listing: &str) -> HashSet<&str> {
    let after = |mark: &'static str| listing.split(mark).skip(1).filter_map(|rest| rest.split('"').next());
    ["\"set\": \"@", "\"set\":\"@", "\"map\": \"@", "\"map\":\"@"].into_iter().flat_map(after).collect()
}

fn table(family: String, name: String) -> Table {
    Table { family, name, program: None }
}

/// One device, or several; none if the version of `nft` does not tell.
fn devices(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(name) => Some(vec![name.clone()]),
        Value::Array(names) => Some(names.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        _ => None,
    }
}

impl Table {
    /// Whether it is one that iptables' nft variant keeps, or would.
    pub(in crate::firewall) fn is_of_iptables(&self) -> bool {
        self.family == "ip" && TABLES.contains(&self.name.as_str())
    }
}

/// The tables of iptables.
const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// When a table of iptables is called at a hook (linux/netfilter_ipv4.h).
fn priority(table: &str, hook: Hook) -> i64 {
    match (table, hook) {
        ("raw", _) => -300,
        ("mangle", _) => -150,
        ("nat", Hook::Prerouting | Hook::Output) => -100,
        ("nat", _) => 100,
        ("security", _) => 50,
        _ => 0,
    }
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Object>,
}

/// One of many kinds, of which these matter.
#[derive(Deserialize)]
struct Object {
    chain: Option<ChainObject>,
    rule: Option<RuleObject>,
    set: Option<SetObject>,
    map: Option<SetObject>,
}

#[derive(Deserialize)]
struct ChainObject {
    family: String,
    table: String,
    name: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    hook: Option<String>,
    prio: Option<i64>,
    policy: Option<String>,
    #[serde(default)]
    dev: Value,
}

#[derive(Deserialize)]
struct RuleObject {
    family: String,
    table: String,
    chain: String,
    #[serde(default)]
    handle: u64,
    expr: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct SetObject {
    family: String,
    table: String,
    name: String,
    #[serde(default)]
    flags: Value,
    timeout: Option<u64>,
    #[serde(default)]
    elem: Value,
}

impl SetObject {
    /// Whether its elements have a time to live.
    fn expires(&self) -> bool {
        let flagged = match &self.flags {
            Value::Array(flags) => flags.iter().any(|flag| flag == TIMEOUT),
            flag => flag == TIMEOUT,
        };
        flagged || self.timeout.is_some()
    }
}

/// The flag of a set whose elements may have a time to live.
const TIMEOUT: &str = "timeout";
