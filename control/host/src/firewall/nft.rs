//! Which packets keep their source and which get this host's, and what pods may not send: one nftables table per
//! overlay device.
//!
//! The table is replaced in a single transaction, so that no packet sees a host without rules. `nft` is run by
//! us and not by the `nftables` crate, which gives the types: the crate lets go of what `nft` says on failure.

use std::collections::HashSet;

use ipnet::Ipv4Net;
use nftables::batch::Batch;
use nftables::expr::{
    BinaryOperation, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload,
    PayloadField, Prefix,
};
use nftables::schema::{Chain, NfListObject, Nftables, Rule, Table};
use nftables::stmt::{Counter, Match, NAT, NATFlag, Operator, Statement};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};
use serde_json::Value;

use crate::command::run;
use crate::{Desired, HostError};

/// Puts our table in place of the one there may be.
pub(super) async fn replace(desired: &Desired) -> Result<(), HostError> {
    commit(&ruleset(desired)).await
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

/// Whether iptables' nft variant has no table `name` yet. Without `nft` that cannot be told.
pub(super) async fn is_missing(name: &str) -> Result<bool, HostError> {
    match run("nft", &["list", "tables", "ip"], "").await {
        Err(HostError::NoProgram { .. } | HostError::Program { .. }) => Ok(false),
        listing => Ok(!listing?.lines().any(|line| line.trim() == format!("table ip {name}"))),
    }
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
    // A chain that has got a rule since cannot be deleted, and the whole transaction fails.
    let mut script: String = chains.iter().map(|chain| format!("delete chain ip {name} {chain}\n")).collect();
    script.push_str(&format!("delete table ip {name}\n"));
    match run("nft", &["-f", "-"], &script).await {
        Err(HostError::Program { .. }) => Ok(()),
        removed => removed.map(|_| ()),
    }
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

fn ruleset(desired: &Desired) -> Nftables<'static> {
    let mut batch = Batch::new();
    clear(&mut batch, &desired.device);
    batch.add(table(&desired.device));
    let mut chain = |name: &'static str, kind, hook, priority, rules: Rules| {
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
        for (expr, comment) in rules {
            batch.add(NfListObject::Rule(Rule {
                family: NfFamily::IP,
                table: table_name(&desired.device).into(),
                chain: name.into(),
                expr: expr.into(),
                comment: Some(comment.into()),
                ..Rule::default()
            }));
        }
    };
    chain("postrouting", NfChainType::NAT, NfHook::Postrouting, BEFORE_IPTABLES, rules(desired));
    let refused = from_pods_to_a_tunnel(desired);
    if !refused.is_empty() {
        chain("forward", NfChainType::Filter, NfHook::Forward, FILTER, refused);
    }
    batch.to_nftables()
}

/// Each rule with its comment.
type Rules = Vec<(Vec<Statement<'static>>, &'static str)>;

/// The rules in their order, each with the comment that `nft list` shows.
///
/// A connection's first packet goes through them. `return` leaves the say to the NAT chains that come later,
/// docker's among them; a translation, also one to the same address, ends it.
fn rules(desired: &Desired) -> Rules {
    let Desired { network, pod_subnet: pods, masquerade: wanted, .. } = desired;
    let out = || leaves(Operator::EQ, &desired.device);
    let masquerade = || masquerade(wanted.fully_random);

    // flannel's rule 1, before everything of ours.
    let mut rules = vec![(
        vec![kube_proxy_mark(Operator::EQ), Statement::Return(None)],
        "marked by kube-proxy, which masquerades it itself: twice would stall the connection",
    )];

    rules.extend(from_others_to_a_tunnel(desired));

    // How binding agrees with the six rules below: 1 comes first. 2 returns the same packets, without keeping
    // docker's later rule from them. 3 concerns what leaves for a pod of ours, through docker0 and not through
    // this device. 4 and 6 concern sources outside the network, which are not bound. 5 masquerades what comes
    // from elsewhere in the network than from our pods (containers of a former subnet, say, whose replies
    // would go to its new owner): with `ip_masq` that is left to it, and only our own pods are bound.
    let bound = desired.bound();
    rules.push((
        vec![out(), source(Operator::EQ, &bound), destination(Operator::EQ, network), keep_source()],
        "pod to pod: bound to its own source, else docker's MASQUERADE would rewrite it",
    ));

    // The same for what needs no tunnel. Nothing else that leaves by the underlay is touched.
    if let Some(direct) = &desired.direct {
        let out = leaves(Operator::EQ, direct);
        rules.push((
            vec![out, source(Operator::EQ, &bound), destination(Operator::EQ, network), keep_source()],
            "pod to pod on the underlay's own link: bound to its own source likewise",
        ));
    }

    // Rule 4 would return what goes to our own pods; through this device nothing does, they are not behind it.
    if wanted.return_path {
        rules.push((
            vec![out(), source(Operator::NEQ, network), masquerade()],
            "from outside the network into the overlay: replies come back through the overlay too",
        ));
    }

    if wanted.ip_masq {
        rules.extend([
            (
                vec![source(Operator::EQ, pods), destination(Operator::EQ, network), Statement::Return(None)],
                "our pods to the network: as they are",
            ),
            (
                vec![source(Operator::EQ, network), destination(Operator::EQ, pods), Statement::Return(None)],
                "the network to our pods: as it is",
            ),
            (
                vec![
                    source(Operator::NEQ, network),
                    destination(Operator::EQ, pods),
                    Statement::Return(None),
                ],
                "from outside to our pods: this node owns them, so replies come this way anyhow",
            ),
            (
                vec![source(Operator::EQ, network), destination(Operator::NEQ, &MULTICAST), masquerade()],
                "pods to the outside, but not multicast: nobody outside has a route back to them",
            ),
            (
                vec![source(Operator::NEQ, network), destination(Operator::EQ, network), masquerade()],
                "from outside to pods of other nodes: replies come back through this node",
            ),
        ]);
    }
    rules
}

/// What pods send to the tunnel's port of a host is dropped, wherever that host is, in the network or not: masqueraded,
/// by whomever, it would have this node's address, and be taken for a packet of the overlay. Another pod may have that
/// port: what goes into the overlay, or stays here, is not masqueraded into a packet of this node's.
fn from_pods_to_a_tunnel(desired: &Desired) -> Rules {
    let Desired { device, network, pod_subnet: pods, .. } = desired;
    let Some(port) = desired.tunnel_port.filter(|_| desired.forward_rules) else { return Vec::new() };
    let mut rules = Vec::new();
    if let Some(direct) = &desired.direct {
        // Nodes in the network get it, too; from a pod's address none takes it for the overlay's.
        let expr = vec![
            leaves(Operator::EQ, direct),
            source(Operator::EQ, &desired.bound()),
            destination(Operator::EQ, network),
            to_port(port),
            kube_proxy_mark(Operator::NEQ),
            Statement::Accept(None),
        ];
        rules.push((
            expr,
            "pod to pod on the underlay's own link: bound to its own source, so it passes as nobody else's",
        ));
    }
    let expr = vec![
        source(Operator::EQ, network),
        destination(Operator::NEQ, pods),
        leaves(Operator::NEQ, device),
        to_port(port),
        Statement::Counter(Counter::Anonymous(None)),
        Statement::Drop(None),
    ];
    rules
        .push((expr, "from pods to the tunnel's port of a host: translated, it would pass as the overlay's"));
    rules
}

/// What others than this node send to the tunnel's port of a host, by whatever bridge they are on, keeps its source:
/// masqueraded, by docker for one, it would have this node's address, and be taken for a packet of the overlay. A drop
/// would also hit the tunnels of nodes for which this host is a router, and before translation nothing tells these apart.
fn from_others_to_a_tunnel(desired: &Desired) -> Option<(Vec<Statement<'static>>, &'static str)> {
    let port = desired.tunnel_port.filter(|_| desired.forward_rules)?;
    let kind =
        named(NamedExpression::Fib(Fib { result: FibResult::Type, flags: HashSet::from([FibFlag::Saddr]) }));
    let expr = vec![
        leaves(Operator::NEQ, &desired.device),
        to_port(port),
        Statement::Match(Match { left: kind, right: Expression::String("local".into()), op: Operator::NEQ }),
        keep_source(),
    ];
    Some((
        expr,
        "from others to the tunnel's port of a host: bound to its own source, so it passes as nobody else's",
    ))
}

fn to_port(port: u16) -> Statement<'static> {
    Statement::Match(Match {
        left: field("udp", "dport"),
        right: Expression::Number(port.into()),
        op: Operator::EQ,
    })
}

fn kube_proxy_mark(op: Operator) -> Statement<'static> {
    let mark = named(NamedExpression::Meta(Meta { key: MetaKey::Mark }));
    Statement::Match(Match {
        left: Expression::BinaryOperation(Box::new(BinaryOperation::AND(
            mark,
            Expression::Number(KUBE_PROXY_MARK),
        ))),
        right: Expression::Number(KUBE_PROXY_MARK),
        op,
    })
}

/// Whether it leaves by `device`.
fn leaves(op: Operator, device: &str) -> Statement<'static> {
    Statement::Match(Match {
        left: named(NamedExpression::Meta(Meta { key: MetaKey::Oifname })),
        right: Expression::String(device.to_owned().into()),
        op,
    })
}

fn source(op: Operator, net: &Ipv4Net) -> Statement<'static> {
    address("saddr", op, net)
}

fn destination(op: Operator, net: &Ipv4Net) -> Statement<'static> {
    address("daddr", op, net)
}

fn address(name: &'static str, op: Operator, net: &Ipv4Net) -> Statement<'static> {
    let net = net.trunc();
    let prefix = Prefix {
        addr: Box::new(Expression::String(net.addr().to_string().into())),
        len: u32::from(net.prefix_len()),
    };
    Statement::Match(Match { left: field("ip", name), right: named(NamedExpression::Prefix(prefix)), op })
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

/// Set by kube-proxy on what it will masquerade (its `--iptables-masquerade-bit`, 14 by default).
const KUBE_PROXY_MARK: u32 = 0x4000;

/// RFC 5771.
const MULTICAST: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 4);

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
            let rules = rules(&desired);
            assert_eq!(rules.len(), count);
            assert_eq!(rules[0].0[0], kube_proxy_mark(Operator::EQ));
            let direct = Some("eth0".to_owned());
            assert_eq!(super::rules(&Desired { direct, ..desired.clone() }).len(), count + 1);
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
    fn only_a_tunnel_has_a_port_to_be_kept_from_pods() {
        assert_eq!(from_pods_to_a_tunnel(&Desired::example()).len(), 1);
        let direct = Some("eth0".to_owned());
        assert_eq!(from_pods_to_a_tunnel(&Desired { direct, ..Desired::example() }).len(), 2);
        for without in [
            Desired { tunnel_port: None, ..Desired::example() },
            Desired { forward_rules: false, ..Desired::example() },
        ] {
            assert!(from_pods_to_a_tunnel(&without).is_empty());
            assert!(from_others_to_a_tunnel(&without).is_none());
        }
    }

    #[test]
    fn comments_fit() {
        let all = Masquerade { return_path: true, ip_masq: true, fully_random: true };
        let direct = Some("eth0".to_owned());
        let desired = Desired { direct, ..desired(all) };
        for (_, comment) in rules(&desired).into_iter().chain(from_pods_to_a_tunnel(&desired)) {
            // NFTNL_UDATA_COMMENT_MAXLEN, less the final zero.
            assert!(comment.len() < 128, "{comment}");
        }
    }
}
