//! What is to be changed in a variant of iptables.

use super::programs::{restore, tell};
use super::rules::Hook;
use crate::HostError;

/// One transaction for one variant.
#[derive(Debug)]
pub(in crate::firewall) struct Change {
    program: &'static str,
    /// Rules in chains that cannot be listed, by table and chain: deleted first, as often as they are there.
    unseen: Vec<(&'static str, Hook)>,
    /// What its `-restore` reads.
    script: String,
}

impl Change {
    /// One for `program`, if there is anything to do.
    pub(super) fn of(
        program: &'static str,
        unseen: Vec<(&'static str, Hook)>,
        script: String,
    ) -> Option<Self> {
        (!unseen.is_empty() || !script.is_empty()).then_some(Self { program, unseen, script })
    }

    /// Makes it: all of a table or nothing.
    pub(in crate::firewall) async fn make(&self) -> Result<(), HostError> {
        for (table, hook) in &self.unseen {
            while tell(self.program, table, "-D", hook).await? {}
        }
        if self.script.is_empty() { Ok(()) } else { restore(self.program, &self.script).await }
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
        lines
    }
}

/// What a variant's `-restore` is to read, if anything.
pub(super) fn script(tables: impl IntoIterator<Item = (&'static str, Vec<String>)>) -> String {
    let tables = tables.into_iter().filter(|(_, lines)| !lines.is_empty());
    tables.map(|(table, lines)| format!("*{table}\n{}\nCOMMIT\n", lines.join("\n"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::iptables::rules;

    #[test]
    fn a_change_is_told_line_by_line() {
        let script = "*nat\n:A - [0:0]\n-A A -j RETURN\nCOMMIT\n*filter\n-F B\nCOMMIT\n".to_owned();
        let forward = rules::jumps_of("flannel.1").find(|hook| hook.chain == "FORWARD").unwrap();
        let change = Change { program: "iptables", unseen: vec![("filter", forward)], script };
        assert_eq!(
            change.describe(),
            [
                "iptables -t filter -D FORWARD -m comment --comment overlayd-forward -j OVERLAYD-FWD-flannel.1",
                "iptables -t nat :A - [0:0]",
                "iptables -t nat -A A -j RETURN",
                "iptables -t filter -F B",
            ]
        );
    }
}
