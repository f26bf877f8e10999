//! A table of iptables, as `iptables-save` writes it.

use std::collections::BTreeSet;

/// One table of one variant.
#[derive(Debug, Default)]
pub(in crate::firewall) struct Table {
    /// Each chain with its policy, `-` for those that are not built in.
    chains: Vec<(String, String)>,
    /// Each rule with its chain, in order, without the `-A CHAIN `.
    rules: Vec<(String, String)>,
    /// Whether its chains were asked for one by one.
    piecemeal: bool,
    /// Chains whose rules cannot be told.
    unread: BTreeSet<String>,
}

impl Table {
    /// Reads the table `name` from what `iptables-save` wrote; empty if it is not there.
    pub(in crate::firewall) fn parse(name: &str, saved: &str) -> Self {
        let mut table = Self::default();
        let begin = format!("*{name}");
        let lines = saved.lines().skip_while(|line| *line != begin).skip(1);
        lines.take_while(|line| *line != "COMMIT").for_each(|line| table.take(line));
        table
    }

    /// Takes what `iptables -S CHAIN` says of one chain.
    pub(super) fn take_chain(&mut self, listing: &str) {
        listing.lines().for_each(|line| self.take(line));
    }

    fn take(&mut self, line: &str) {
        let two = |rest: &str| rest.split_once(' ').map(|(one, other)| (one.to_owned(), other.to_owned()));
        if let Some((chain, rest)) = line.strip_prefix(':').or(line.strip_prefix("-P ")).and_then(two) {
            let policy = rest.split(' ').next().unwrap_or_default().to_owned();
            self.chains.push((chain, policy));
        } else if let Some(chain) = line.strip_prefix("-N ") {
            self.chains.push((chain.to_owned(), "-".to_owned()));
        } else if let Some(rule) = line.strip_prefix("-A ").and_then(two) {
            self.rules.push(rule);
        }
    }

    /// Whether its chains were asked for one by one.
    pub(super) fn is_piecemeal(&self) -> bool {
        self.piecemeal
    }

    /// One whose chains are still to be asked for.
    pub(super) fn piecemeal() -> Self {
        Self { piecemeal: true, ..Self::default() }
    }

    /// From now on it is known that the rules of `chain` are not.
    pub(super) fn leave_unread(&mut self, chain: &str) {
        self.unread.insert(chain.to_owned());
    }

    /// Whether `chain` may be there, with rules that cannot be told.
    pub(super) fn is_unread(&self, chain: &str) -> bool {
        self.unread.contains(chain)
    }

    /// Adds a rule that is known to be in `chain`, wherever it stands.
    pub(super) fn found(&mut self, chain: &str, rule: &str) {
        self.rules.push((chain.to_owned(), rule.to_owned()));
    }

    /// Whether nothing is in it. `iptables-save` says the same of a table that is not there.
    pub(super) fn is_empty(&self) -> bool {
        !self.piecemeal && self.rules.is_empty() && self.chains.iter().all(|(_, policy)| policy == "ACCEPT")
    }

    /// Whether there is a chain of this name.
    pub(super) fn has(&self, chain: &str) -> bool {
        self.chains.iter().any(|(name, _)| name == chain)
    }

    /// What becomes of a packet that reaches the end of a built-in chain.
    pub(super) fn policy(&self, chain: &str) -> Option<&str> {
        self.chains.iter().find(|(name, _)| name == chain).map(|(_, policy)| policy.as_str())
    }

    /// The rules of `chain`, in order.
    pub(super) fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.rules.iter().filter(move |(name, _)| name == chain).map(|(_, rule)| rule.as_str())
    }

    /// Each chain with its policy, `-` for those that are not built in.
    pub(in crate::firewall) fn chains(&self) -> impl Iterator<Item = (&str, &str)> {
        self.chains.iter().map(|(chain, policy)| (chain.as_str(), policy.as_str()))
    }

    /// Each rule with its chain.
    pub(in crate::firewall) fn all_rules(&self) -> impl Iterator<Item = (&str, &str)> {
        self.rules.iter().map(|(chain, rule)| (chain.as_str(), rule.as_str()))
    }

    /// Whether `rule`, or a rule of a chain that it leads to, is one that `wanted` names.
    pub(super) fn leads_to(&self, rule: &str, wanted: &dyn Fn(&[&str]) -> bool) -> bool {
        self.leads_through(rule, &|_| true, wanted)
    }

    /// The same, by rules alone that `through` names. A chain that could not be read may hold anything.
    pub(super) fn leads_through(
        &self,
        rule: &str,
        through: &dyn Fn(&[&str]) -> bool,
        wanted: &dyn Fn(&[&str]) -> bool,
    ) -> bool {
        self.leads_on(rule, through, wanted, &mut BTreeSet::new())
    }

    fn leads_on<'a>(
        &'a self,
        rule: &'a str,
        through: &dyn Fn(&[&str]) -> bool,
        wanted: &dyn Fn(&[&str]) -> bool,
        seen: &mut BTreeSet<&'a str>,
    ) -> bool {
        let words = words(rule);
        through(&words)
            && (wanted(&words)
                || target(&words).is_some_and(|chain| {
                    self.is_unread(chain)
                        || seen.insert(chain)
                            && self.rules(chain).any(|next| self.leads_on(next, through, wanted, seen))
                }))
    }
}

/// Whether `iptables-save` says that there is a table `name` that it cannot list: somebody has put something into
/// one of its chains, by `nft`, that iptables has no words for.
pub(super) fn is_withheld(name: &str, saved: &str) -> bool {
    let says = |line: &str| {
        line.starts_with('#')
            && line.contains("is incompatible")
            && [format!("`{name}'"), format!("'{name}'")].iter().any(|quoted| line.contains(quoted))
    };
    saved.lines().any(says)
}

/// A rule's words; a comment counts as one, without its quotes.
pub(in crate::firewall) fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let end = quoted
                    .char_indices()
                    .scan(false, |escaped, (at, letter)| {
                        let ends = letter == '"' && !*escaped;
                        *escaped = letter == '\\' && !*escaped;
                        Some((at, ends))
                    })
                    .find_map(|(at, ends)| ends.then_some(at));
                let end = end.unwrap_or(quoted.len());
                (&quoted[..end], quoted.get(end + 1..).unwrap_or_default())
            }
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

/// Where a rule sends its packets: a chain, or a target such as `DROP`.
pub(super) fn target<'a>(words: &[&'a str]) -> Option<&'a str> {
    value(words, "-j").or_else(|| value(words, "-g"))
}

/// The value of an option that is not negated.
pub(in crate::firewall) fn value<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == option)?;
    (at == 0 || words[at - 1] != "!").then(|| words.get(at + 1).copied()).flatten()
}

/// The value of a negated option.
pub(super) fn negated<'a>(words: &[&'a str], option: &str) -> Option<&'a str> {
    words.windows(3).find(|three| three[0] == "!" && three[1] == option).map(|three| three[2])
}

/// Whether two rules are one, whatever quotes they are written with.
pub(super) fn same(one: &str, other: &str) -> bool {
    words(one) == words(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "# Generated by iptables-save\n*nat\n:POSTROUTING ACCEPT [0:0]\nCOMMIT\n*filter\n\
        :FORWARD DROP [7:588]\n:A - [0:0]\n:B - [0:0]\n-A FORWARD -m comment --comment \"say \\\"-j B\\\" twice\" -j A\n\
        -A FORWARD -i eth0 -g B\n-A A -j B\n-A B -j A\n-A B ! -i docker0 -o docker0 -j DROP\nCOMMIT\n";

    #[test]
    fn a_table_is_read_without_its_neighbours() {
        let table = Table::parse("filter", SAVED);
        assert_eq!(table.policy("FORWARD"), Some("DROP"));
        assert!(table.has("A") && !table.has("POSTROUTING"));
        assert_eq!(table.rules("FORWARD").count(), 2);
        assert_eq!(Table::parse("nat", SAVED).all_rules().count(), 0);
        assert_eq!(Table::parse("raw", SAVED).policy("PREROUTING"), None);
    }

    #[test]
    fn words_keep_a_comment_together() {
        let table = Table::parse("filter", SAVED);
        let rule = table.rules("FORWARD").next().unwrap();
        let words = words(rule);
        assert_eq!(words, ["-m", "comment", "--comment", "say \\\"-j B\\\" twice", "-j", "A"]);
        assert_eq!(target(&words), Some("A"));
        assert!(same("-m comment --comment \"one\" -j X", "-m comment --comment one -j X"));
    }

    #[test]
    fn a_rule_is_followed_through_chains_even_in_circles() {
        let table = Table::parse("filter", SAVED);
        let drops = |words: &[&str]| negated(words, "-i") == Some("docker0") && value(words, "-i").is_none();
        for rule in table.rules("FORWARD") {
            assert!(table.leads_to(rule, &drops), "{rule}");
            assert!(!table.leads_to(rule, &|words| target(words) == Some("REJECT")), "{rule}");
        }
    }
}
