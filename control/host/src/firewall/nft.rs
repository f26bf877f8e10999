//! Which packets keep their source and which get this host's, and what pods may not send: one nftables table per
//! overlay device.
//!
//! The table is replaced in a single transaction, so that no packet sees a host without rules. `nft` is run by
//! us and not by the `nftables` crate, which gives the types: the crate lets go of what `nft` says on failure.

use std::collections::HashSet;

use ipnet::IpNet;
use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField, Prefix,
};
use nftables::schema::{Chain, NfListObject, Nftables, Rule, Table};
use nftables::stmt::{Counter, Match, NAT, NATFlag, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::Value;
use tracing::{debug, warn};

use super::nft_table;
use super::policy::{self, Action, Is};
use crate::command::run;
use crate::{Desired, HostError};

/// Puts our table in place of the one there may be. A kernel may lack what tells whose a source is (`nft_fib`), and would
/// refuse all: there the rules that need it are left out.
pub(super) async fn replace(desired: &Desired) -> Result<(), HostError> {
    let all = ruleset(desired, |_| true);
    let refused = match commit(&all).await {
        Err(error @ HostError::Program { .. }) => error,
        other => return other,
    };
    let without = ruleset(desired, |rule| rule.when.from_this_host.is_none());
    commit(&without).await.map_err(|_| refused)?;
    // Something else may have been in the way, and be over.
    if commit(&all).await.is_ok() {
        return Ok(());
    }
    warn!(
        device = desired.device,
        "the kernel cannot tell whose a packet's source is (nft_fib is missing): what others send to a tunnel's port may be masqueraded"
    );
    Ok(())
}

/// What the table says, as the kernel has it; `None` if there is none. Who has put it, and what its counters have
/// counted, is left out: two that say the same are equal.
pub(super) async fn list(device: &str) -> Result<Option<Value>, HostError> {
    match run("nft", &["-j", "list", "table", "ip", &table_name(device)], "").await {
        Ok(listing) => Ok(Some(said(&listing))),
        // The exit status does not tell a missing table from other failures. Those show again, and are
        // reported, when the table is put anew.
        Err(HostError::Program { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

fn said(listing: &str) -> Value {
    let mut value = serde_json::from_str(listing).unwrap_or_else(|_| Value::String(listing.to_owned()));
    forget_history(&mut value);
    value
}

/// Removes what depends on when something was put.
fn forget_history(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| !matches!(name.as_str(), "handle" | "packets" | "bytes"));
            fields.values_mut().for_each(forget_history);
        }
        Value::Array(values) => values.iter_mut().for_each(forget_history),
        _ => {}
    }
}

/// What tables there are of those wanted, as `nft list tables` prints them.
pub(super) async fn tables(wanted: impl Fn(&str) -> bool) -> Result<Vec<String>, HostError> {
    let listing = match run("nft", &["list", "tables"], "").await {
        // A kernel without nftables has no tables.
        Err(HostError::Program { .. }) => String::new(),
        listing => listing?,
    };
    Ok(listing.lines().map(|line| line.trim().to_owned()).filter(|line| wanted(line)).collect())
}

/// Whether a line of `nft list tables` is our table for `device`.
pub(super) fn is_ours(line: &str, device: &str) -> bool {
    line == format!("table ip {}", table_name(device))
}

/// Whether a line of `nft list tables` is a table of flannel's (0.28, `pkg/trafficmngr/nftables`).
pub(super) fn is_flannels(line: &str) -> bool {
    matches!(line, "table ip flannel-ipv4" | "table ip6 flannel-ipv6")
}

/// Whether a rule of a table, as [`tables`] names it, is about `network`.
pub(super) async fn mentions(table: &str, network: &str) -> Result<bool, HostError> {
    let words = table.split_whitespace();
    let listing = run("nft", &["list"].into_iter().chain(words).collect::<Vec<_>>(), "").await?;
    Ok(listing.split_whitespace().any(|word| word == network))
}

/// Removes tables, as [`tables`] names them, in one transaction.
pub(super) async fn remove(tables: &[String]) -> Result<(), HostError> {
    // Adding one that is there does no harm, and deleting it cannot fail then should it just have gone.
    let script: String = tables.iter().map(|table| format!("add {table}\ndelete {table}\n")).collect();
    run("nft", &["-f", "-"], &script).await.map(|_| ())
}

/// Removes the table `name` of iptables' nft variant if all that it holds are empty chains that accept. Without `nft` it
/// stays, and does nothing there.
pub(super) async fn remove_if_empty(name: &str) -> Result<(), HostError> {
    let listing = match run("nft", &["-j", "list", "table", "ip", name], "").await {
        // Somebody else has removed it.
        Err(HostError::NoProgram { .. } | HostError::Program { .. }) => return Ok(()),
        listing => listing?,
    };
    let Some(chains) = chains_of_empty(&listing) else { return Ok(()) };
    if let Err(error) = nft_table::remove(name, &chains) {
        debug!(%error, table = name, "the table is not empty any more: it stays");
    }
    Ok(())
}

/// The chains of a listed table, if each is a built-in one that accepts and there is nothing else.
fn chains_of_empty(listing: &str) -> Option<Vec<String>> {
    let listing: Value = serde_json::from_str(listing).ok()?;
    let mut chains = Vec::new();
    for object in listing["nftables"].as_array()? {
        let (kind, object) = object.as_object()?.iter().next()?;
        match kind.as_str() {
            "metainfo" | "table" => {}
            "chain" if object["policy"] == "accept" => chains.push(object["name"].as_str()?.to_owned()),
            _ => return None,
        }
    }
    Some(chains)
}

async fn commit(ruleset: &Nftables<'_>) -> Result<(), HostError> {
    let text = serde_json::to_string(ruleset).expect("nft's objects have string keys only");
    run("nft", &["-j", "-f", "-"], &text).await.map(|_| ())
}

/// `nft` accepts every character that a device's name may have.
fn table_name(device: &str) -> String {
    format!("{TABLE_PREFIX}{device}")
}

/// What the name of a table of ours begins with.
pub(crate) const TABLE_PREFIX: &str = "overlayd_";

fn table(device: &str) -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::IP, name: table_name(device).into(), handle: None })
}

/// Deleting a table that is not there would fail the transaction; adding one that is there does not.
fn clear(batch: &mut Batch<'static>, device: &str) {
    batch.add(table(device));
    batch.delete(table(device));
}

/// All of our table, with those of the rules that `wanted` picks.
fn ruleset(desired: &Desired, wanted: impl Fn(&policy::Rule) -> bool) -> Nftables<'static> {
    let mut batch = Batch::new();
    clear(&mut batch, &desired.device);
    batch.add(table(&desired.device));
    let mut chain = |name: &'static str, kind, hook, priority, rules: Vec<policy::Rule>| {
        batch.add(NfListObject::Chain(Chain {
            family: NfFamily::IP,
            table: table_name(&desired.device).into(),
            name: name.into(),
            _type: Some(kind),
            hook: Some(hook),
            prio: Some(priority),
            policy: Some(NfChainPolicy::Accept),
            ..Chain::default()
        }));
        for rule in rules.into_iter().filter(&wanted) {
            batch.add(NfListObject::Rule(Rule {
                family: NfFamily::IP,
                table: table_name(&desired.device).into(),
                chain: name.into(),
                expr: statements(&rule, desired.masquerade.fully_random).into(),
                comment: Some(rule.why.into()),
                ..Rule::default()
            }));
        }
    };
    chain("postrouting", NfChainType::NAT, NfHook::Postrouting, BEFORE_IPTABLES, sources(desired));
    let refused = policy::from_pods_to_a_tunnel(desired);
    if !refused.is_empty() {
        chain("forward", NfChainType::Filter, NfHook::Forward, FILTER, refused);
    }
    batch.to_nftables()
}

/// Which sources are kept and which translated, in this order.
///
/// A connection's first packet goes through them. `return` leaves the say to the NAT chains that come later,
/// docker's among them; a translation, also one to the same address, ends it.
fn sources(desired: &Desired) -> Vec<policy::Rule> {
    let mut rules = vec![policy::left_to_kube_proxy()];
    rules.extend(policy::from_others_to_a_tunnel(desired));
    rules.push(policy::pod_to_pod(desired));
    rules.extend(policy::pod_to_pod_directly(desired));
    rules.extend(policy::return_path(desired));
    rules.extend(policy::flannels_masquerade(desired));
    rules
}

/// A rule in the words of nftables.
fn statements(rule: &policy::Rule, fully_random: bool) -> Vec<Statement<'static>> {
    let policy::Match { source, destination, arrives, leaves, udp_port, marked, from_this_host } =
        rule.when.clone();
    let interface = |key, is: Is<String>| {
        let (op, name) = operator(is);
        matches(named(NamedExpression::Meta(Meta { key })), op, Expression::String(name.into()))
    };
    let mut statements: Vec<Statement<'static>> = Vec::new();
    statements.extend(arrives.map(|is| interface(MetaKey::Iifname, is)));
    statements.extend(leaves.map(|is| interface(MetaKey::Oifname, is)));
    statements.extend(source.map(|is| address("saddr", is)));
    statements.extend(destination.map(|is| address("daddr", is)));
    statements.extend(
        udp_port.map(|port| matches(field("udp", "dport"), Operator::EQ, Expression::Number(port.into()))),
    );
    statements.extend(marked.map(kube_proxy_mark));
    statements.extend(from_this_host.map(|is| {
        let kind = Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Saddr]) };
        matches(named(NamedExpression::Fib(kind)), is_or_not(is), Expression::String("local".into()))
    }));
    match rule.then {
        Action::Return => statements.push(Statement::Return(None)),
        Action::KeepSource => statements.push(keep_source()),
        Action::Masquerade => statements.push(masquerade(fully_random)),
        Action::Accept => statements.push(Statement::Accept(None)),
        Action::Drop => {
            statements.extend([Statement::Counter(Counter::Anonymous(None)), Statement::Drop(None)]);
        }
    }
    statements
}

fn matches(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Statement<'static> {
    Statement::Match(Match { left, right, op })
}

fn operator<T>(is: Is<T>) -> (Operator, T) {
    match is {
        Is::This(value) => (Operator::EQ, value),
        Is::Not(value) => (Operator::NEQ, value),
    }
}

fn is_or_not(is: bool) -> Operator {
    if is { Operator::EQ } else { Operator::NEQ }
}

fn kube_proxy_mark(marked: bool) -> Statement<'static> {
    let mark = named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
    let bit = || Expression::Number(policy::KUBE_PROXY_MARK);
    let masked = Expression::BinaryOperation(Box::new(BinaryOperation::AND(mark, bit())));
    matches(masked, is_or_not(marked), bit())
}

fn address(name: &'static str, is: Is<IpNet>) -> Statement<'static> {
    let (op, net) = operator(is);
    let prefix = Prefix {
        addr: Box::new(Expression::String(net.addr().to_string().into())),
        len: u32::from(net.prefix_len()),
    };
    let protocol = if net.addr().is_ipv4() { "ip" } else { "ip6" };
    matches(field(protocol, name), op, named(NamedExpression::Prefix(prefix)))
}

fn keep_source() -> Statement<'static> {
    Statement::SNAT(Some(NAT { addr: Some(field("ip", "saddr")), family: None, port: None, flags: None }))
}

fn masquerade(fully_random: bool) -> Statement<'static> {
    let flags = fully_random.then(|| HashSet::from([NATFlag::FullyRandom]));
    Statement::Masquerade(flags.map(|flags| NAT { addr: None, family: None, port: None, flags: Some(flags) }))
}

fn field(protocol: &'static str, name: &'static str) -> Expression<'static> {
    named(NamedExpression::Payload(Payload::PayloadField(PayloadField {
        protocol: protocol.into(),
        field: name.into(),
    })))
}

fn named(expression: NamedExpression<'static>) -> Expression<'static> {
    Expression::Named(expression)
}

/// Before the iptables chains (`srcnat`, 100), in which docker's MASQUERADE stands.
const BEFORE_IPTABLES: i32 = 90;

/// Where filters stand, whose order does not matter to a drop.
const FILTER: i32 = 0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Masquerade;

    fn desired(masquerade: Masquerade) -> Desired {
        Desired { masquerade, ..Desired::example() }
    }

    #[test]
    fn each_option_adds_its_rules_after_the_mark() {
        for (return_path, ip_masq, count) in
            [(false, false, 3), (true, false, 4), (false, true, 8), (true, true, 9)]
        {
            let desired = desired(Masquerade { return_path, ip_masq, fully_random: true });
            let rules = sources(&desired);
            assert_eq!(rules.len(), count);
            assert_eq!(statements(&rules[0], true)[0], kube_proxy_mark(true));
            let direct = Some("eth0".to_owned());
            assert_eq!(sources(&Desired { direct, ..desired.clone() }).len(), count + 1);
        }
    }

    #[test]
    fn a_listing_is_equal_whoever_has_put_it_and_whatever_it_has_counted() {
        let listing = |handle, packets, port| {
            said(&format!(
                r#"{{"nftables":[{{"rule":{{"handle":{handle},"expr":[{{"counter":{{"packets":{packets},"bytes":1}}}},{{"right":{port}}}]}}}}]}}"#
            ))
        };
        assert_eq!(listing(1, 0, 8472), listing(77, 12, 8472));
        assert_ne!(listing(1, 0, 8472), listing(1, 0, 8473));
    }

    #[test]
    fn comments_fit() {
        let all = Masquerade { return_path: true, ip_masq: true, fully_random: true };
        let direct = Some("eth0".to_owned());
        let desired = Desired { direct, ..desired(all) };
        for rule in sources(&desired).into_iter().chain(policy::from_pods_to_a_tunnel(&desired)) {
            // NFTNL_UDATA_COMMENT_MAXLEN, less the final zero.
            assert!(rule.why.len() < 128, "{}", rule.why);
        }
    }
}
