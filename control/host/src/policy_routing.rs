//! Rules of policy routing (`ip rule`) by which the tunnel's packets may go another way than the kernel tells a
//! program that asks it for one.
//!
//! `bpf_fib_lookup` goes by addresses, protocol, ports and incoming device, as a socket's packet does, and by mark
//! and type of service zero, as ours have them. It does not go by the user.

use futures::TryStreamExt;
use rtnetlink::IpVersion;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleMessage};

use super::HostError;
use super::netlink::{Netlink, refused};

/// A rule by which packets of `user` may be routed otherwise than a program's look-up says, for people.
///
/// # Errors
/// [`HostError::Netlink`] if the rules cannot be listed.
pub async fn acting_on(user: u32) -> Result<Option<String>, HostError> {
    let netlink = Netlink::open()?;
    let rules: Vec<RuleMessage> = netlink
        .handle
        .rule()
        .get(IpVersion::V4)
        .execute()
        .try_collect()
        .await
        .map_err(|error| refused("list the routing rules", &error))?;
    Ok(rules.iter().find(|rule| differs(rule, user)).map(describe))
}

/// Whether `rule` may hold for one of the two and not for the other.
fn differs(rule: &RuleMessage, user: u32) -> bool {
    rule.attributes.iter().any(|attribute| match attribute {
        // A look-up is root's.
        RuleAttribute::UidRange(range) => {
            let holds = |user| (range.start..=range.end).contains(&user);
            holds(user) != holds(0)
        }
        RuleAttribute::Other(_) => true,
        _ => false,
    })
}

fn describe(rule: &RuleMessage) -> String {
    let value = |wanted: fn(&RuleAttribute) -> Option<String>| rule.attributes.iter().find_map(wanted);
    let priority = value(|attribute| match attribute {
        RuleAttribute::Priority(priority) => Some(priority.to_string()),
        _ => None,
    });
    let users = value(|attribute| match attribute {
        RuleAttribute::UidRange(range) => Some(format!(" uidrange {}-{}", range.start, range.end)),
        _ => None,
    });
    format!(
        "the routing rule {}{} (ip rule)",
        priority.unwrap_or_else(|| "0".to_owned()),
        users.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::rule::RuleUidRange;

    use super::*;

    #[test]
    fn rules_count_that_a_look_up_does_not_go_by() {
        let with = |attributes: &[RuleAttribute]| {
            let mut rule = RuleMessage::default();
            rule.attributes.extend_from_slice(attributes);
            rule
        };
        let users = |start, end| RuleAttribute::UidRange(RuleUidRange { start, end });
        for (attributes, user, counts) in [
            (vec![], 998, false),
            (vec![RuleAttribute::FwMark(1)], 998, false),
            (vec![users(998, 998)], 998, true),
            (vec![users(1000, 2000)], 998, false),
            (vec![users(0, 2000)], 998, false),
            (vec![users(0, 0)], 998, true),
            (vec![users(0, 0)], 0, false),
        ] {
            assert_eq!(differs(&with(&attributes), user), counts, "{attributes:?}, user {user}");
        }
    }
}
