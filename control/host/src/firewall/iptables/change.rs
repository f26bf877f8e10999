//! What is to be changed in a variant of iptables.

use super::programs::{restore, tell};
use super::repair;
use super::rules::Hook;
use crate::HostError;
use crate::firewall::nft;

/// One transaction for one variant.
#[derive(Debug)]
pub(in crate::firewall) struct Change {
    program: &'static str,
    /// Rules in chains that cannot be listed, by table and chain: deleted first, as often as they are there.
    unseen: Vec<(&'static str, Hook)>,
    /// What its `-restore` reads.
    script: String,
    /// Tables that go if nothing is left in them, since this daemon has made them.
    made: Vec<&'static str>,
}

impl Change {
    /// One for `program` that has `lines` restored in each table, if there is anything to do.
    pub(super) fn of(
        program: &'static str,
        unseen: Vec<(&'static str, Hook)>,
        lines: Vec<(&'static str, Vec<String>)>,
    ) -> Option<Self> {
        let unmark = repair::unmark();
        let made = lines.iter().filter(|(_, lines)| lines.contains(&unmark)).map(|(name, _)| *name).collect();
        let script = script(lines);
        (!unseen.is_empty() || !script.is_empty()).then_some(Self { program, unseen, script, made })
    }

    /// Makes it: all of a table or nothing.
    pub(in crate::firewall) async fn make(&self) -> Result<(), HostError> {
        for (table, hook) in &self.unseen {
            while tell(self.program, table, "-D", hook).await? {}
        }
        if !self.script.is_empty() {
            restore(self.program, &self.script).await?;
        }
        for table in &self.made {
            nft::remove_if_empty(table).await?;
        }
        Ok(())
    }

    /// The variant's program.
    pub(in crate::firewall) fn program(&self) -> &'static str {
        self.program
    }

    /// Each line, with the program and the table that it is for.
    pub(in crate::firewall) fn describe(&self) -> Vec<String> {
        let mut table = "";
        let unseen = self.unseen.iter();
        let mut lines: Vec<String> = unseen
            .map(|(table, Hook { chain, rule, .. })| format!("{} -t {table} -D {chain} {rule}", self.program))
            .collect();
        for line in self.script.lines() {
            match line.strip_prefix('*') {
                Some(name) => table = name,
                None if line == "COMMIT" => {}
                None => lines.push(format!("{} -t {table} {line}", self.program)),
            }
        }
        lines.extend(self.made.iter().map(|table| format!("nft delete table ip {table} if it is empty")));
        lines
    }
}

/// What a variant's `-restore` is to read, if anything.
fn script(tables: impl IntoIterator<Item = (&'static str, Vec<String>)>) -> String {
    let tables = tables.into_iter().filter(|(_, lines)| !lines.is_empty());
    tables.map(|(table, lines)| format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::iptables::rules;

    #[test]
    fn a_change_is_told_line_by_line() {
        let forward = rules::jumps_of("flannel.1").find(|hook| hook.chain == "FORWARD").unwrap();
        let nat = [":A - [0:0]", "-A A -j RETURN", "-X OVERLAYD-MADE"].map(str::to_owned).into();
        let lines = vec![("nat", nat), ("filter", vec!["-F B".to_owned()]), ("raw", Vec::new())];
        let change = Change::of("iptables", vec![("filter", forward)], lines).unwrap();
        assert_eq!(
            change.describe(),
            [
                "iptables -t filter -D FORWARD -m comment --comment overlayd-forward -j OVERLAYD-FWD-flannel.1",
                "iptables -t nat :A - [0:0]",
                "iptables -t nat -A A -j RETURN",
                "iptables -t nat -X OVERLAYD-MADE",
                "iptables -t filter -F B",
                "nft delete table ip nat if it is empty",
            ]
        );
    }
}
