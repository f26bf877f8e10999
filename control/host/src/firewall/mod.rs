//! The firewall's part: which packets keep their source and which get this host's, and that forwarded packets
//! are accepted where others would drop them.
//!
//! Sources are a matter of [`nft`], one table per device, or of [`iptables`], with flannel's chains and text;
//! `--firewall` says which. Forwarding is accepted in iptables either way, if there is one: that is where
//! docker drops. What drops elsewhere ([`verdict`]) can only be told.
//!
//! All is brought to the wanted state by [`Firewall::sync`], at once and whenever somebody may have changed it.
//! It compares before it writes, and asks for the ruleset's [`generation`] before it compares: while nobody
//! has touched anything, that is all it costs. Only iptables' legacy variant has no such number, and its rules,
//! if there are any, are read each time.
//!
//! Others write, too, also between our reading and our writing. What fails then is read and tried again, a few
//! times at once; and what somebody undoes for ever is put back less and less often ([`contest`]).

mod contest;
pub(super) mod generation;
mod iptables;
mod nft;
mod nft_table;
mod policy;
pub mod ruleset;
pub mod verdict;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use serde_json::Value;
use tracing::{debug, info, warn};

pub(super) use self::nft::TABLE_PREFIX;

use self::contest::Contest;
use self::iptables::{Change, Role, Variants};
use super::command::run;
use super::{Desired, FirewallKind, HostError};

/// Keeps the rules of one overlay device in the kernel.
pub struct Firewall {
    desired: Desired,
    /// With what they are kept; known when it has been found out.
    tool: Option<Tool>,
    /// The kernel's listing of our nftables table just after we had put it there: if it still says so, it is right,
    /// whoever has put it. (What we send and what is listed differ in spelling, so the two cannot be compared.)
    listing: Option<Value>,
    variants: Option<Variants>,
    /// Whether what an earlier life left in other places has been removed.
    tidied: bool,
    /// The ruleset's generation at which all was found in place.
    settled: Option<u32>,
    /// Whether the last sync failed: then there is nobody in between whose changes were met.
    failed: bool,
    contest: Contest,
    /// What has been said, and need not be at each [`sync`](Self::sync).
    said: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Nftables,
    Iptables,
    None,
}

impl Firewall {
    /// Nothing is done before [`sync`](Self::sync).
    pub fn new(desired: Desired) -> Self {
        Self {
            desired,
            tool: None,
            listing: None,
            variants: None,
            tidied: false,
            settled: None,
            failed: false,
            contest: Contest::new(Instant::now()),
            said: Vec::new(),
        }
    }

    /// What it keeps.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Puts what is missing or changed; returns whether anything was. At first it always puts the nftables
    /// table, in place of an earlier life's and without a moment in between, and removes what is left of a
    /// life with other options.
    ///
    /// # Errors
    /// [`HostError::NoProgram`] or [`HostError::NoFirewall`] without the tools; [`HostError::Contested`] while somebody
    /// keeps changing the rules; otherwise what `nft` or iptables refused. Sources and forwarding do not wait for each
    /// other: one that fails does not keep the other from being put.
    pub async fn sync(&mut self) -> Result<bool, HostError> {
        let mut pauses = PAUSES.into_iter();
        let mut again = self.failed;
        let outcome = loop {
            let outcome = self.bring(again).await;
            again = true;
            let met = !self.failed && outcome.as_ref().is_err_and(is_refusal);
            let Some(pause) = pauses.next().filter(|_| met) else { break outcome };
            debug!(error = ?outcome, "the firewall's rules cannot be put: others may have changed them, trying again");
            // Several daemons that have met once must not meet again.
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
        };
        self.failed = outcome.as_ref().is_err_and(is_refusal);
        if let Some(times) = self.contest.news(Instant::now()) {
            warn!(
                times,
                device = self.desired.device,
                "somebody keeps changing the firewall's rules, so often in the last minute: ours are put back less often (see who does, as by 'nft monitor')"
            );
        }
        outcome
    }

    /// Does what [`sync`](Self::sync) is for, once, or `again` after it could not be done.
    async fn bring(&mut self, again: bool) -> Result<bool, HostError> {
        let generation = generation::current();
        if self.is_settled(generation) {
            return self.unless_contested(false);
        }
        let untouched = self.is_untouched(generation);
        let tool = self.tool().await?;
        if tool == Tool::None {
            let removed = !self.tidied && remove_all(&self.desired.device).await?;
            (self.tidied, self.settled) = (true, generation);
            return Ok(removed);
        }

        let nft = tool == Tool::Nftables && !untouched && !self.has_nft().await?;
        let changes = self.changes(tool, untouched).await;
        let differs = nft || changes.as_ref().is_ok_and(|changes| !changes.is_empty());
        if differs && self.tidied && !again && !self.contest.may_repair(Instant::now()) {
            return Err(HostError::Contested);
        }
        let mut outcomes = Vec::new();
        if nft {
            outcomes.push(self.put_nft().await);
        }
        outcomes.push(match changes {
            Ok(changes) => make(&changes).await,
            Err(error) => Err(error),
        });
        if tool == Tool::Iptables && !self.tidied && outcomes.iter().all(Result::is_ok) {
            outcomes.push(or_without_program(remove_nft(&self.desired.device).await, false));
        }

        let changed = all(outcomes)?;
        self.tidied = true;
        // What has changed since the generation was asked for is looked at the next time.
        self.settled = generation.filter(|_| !changed);
        self.unless_contested(changed)
    }

    fn unless_contested(&mut self, changed: bool) -> Result<bool, HostError> {
        if self.contest.is_contested(Instant::now()) { Err(HostError::Contested) } else { Ok(changed) }
    }

    /// Whether all is as it should be. Nothing is written; before the first [`sync`](Self::sync) nothing is in
    /// place.
    ///
    /// # Errors
    /// The rules cannot be read.
    pub async fn in_place(&mut self) -> Result<bool, HostError> {
        let generation = generation::current();
        if self.is_settled(generation) {
            return Ok(true);
        }
        if !self.tidied {
            return Ok(false);
        }
        let tool = self.tool().await?;
        let untouched = self.is_untouched(generation);
        let nft = tool != Tool::Nftables || untouched || self.has_nft().await?;
        let in_place = nft && (tool == Tool::None || self.changes(tool, untouched).await?.is_empty());
        self.settled = generation.filter(|_| in_place);
        Ok(in_place)
    }

    fn is_settled(&self, generation: Option<u32>) -> bool {
        let none = self.tool == Some(Tool::None) && self.tidied;
        none || self.is_untouched(generation) && !iptables::legacy_in_use()
    }

    /// Whether nobody has changed anything but legacy's rules since all was in place.
    fn is_untouched(&self, generation: Option<u32>) -> bool {
        generation.is_some() && self.settled == generation
    }

    async fn tool(&mut self) -> Result<Tool, HostError> {
        if let Some(tool) = self.tool {
            return Ok(tool);
        }
        let tool = match self.desired.firewall {
            FirewallKind::Auto => choose().await?,
            FirewallKind::Nftables => Tool::Nftables,
            FirewallKind::Iptables => Tool::Iptables,
            FirewallKind::None => Tool::None,
        };
        Ok(*self.tool.insert(tool))
    }

    /// Whether our nftables table is as we have put it.
    async fn has_nft(&self) -> Result<bool, HostError> {
        Ok(self.listing.is_some() && self.listing == nft::list(&self.desired.device).await?)
    }

    async fn put_nft(&mut self) -> Result<bool, HostError> {
        let device = &self.desired.device;
        if self.listing.take().is_some() {
            debug!(device, "the NAT rules were changed or removed: putting them back");
        }
        nft::replace(&self.desired).await?;
        self.listing = nft::list(device).await?;
        Ok(true)
    }

    /// What is to be changed in iptables, or in its legacy variant only.
    async fn changes(&mut self, tool: Tool, legacy_only: bool) -> Result<Vec<Change>, HostError> {
        let role = match tool {
            Tool::Iptables => Role::Everything,
            Tool::Nftables if self.desired.forward_rules => Role::Forwarding,
            _ => Role::Nothing,
        };
        let mut variants = match self.variants.take() {
            Some(variants) => variants,
            None => match Variants::find().await {
                Err(HostError::NoProgram { .. }) if role != Role::Everything => {
                    self.say(
                        || info!("iptables is not installed: no forwarding rules are needed"),
                        "iptables",
                    );
                    return Ok(Vec::new());
                }
                found => found?,
            },
        };
        let changes = variants.changes(role, &self.desired, !self.tidied, legacy_only).await;
        for table in variants.unlisted() {
            let warning = || {
                warn!(
                    table,
                    "iptables cannot list this table, into which somebody has put rules by nft: ours are looked for one by one, and put first where others' cannot be read"
                );
            };
            self.say(warning, table);
        }
        self.variants = Some(variants);
        changes
    }

    fn say(&mut self, event: impl Fn(), about: &str) {
        if !self.said.iter().any(|said| said == about) {
            event();
            self.said.push(about.to_owned());
        }
    }
}

/// Removes all rules of `device`, of nftables and of all variants of iptables; returns whether there were any.
/// Goes through to its end, whatever fails; a program that is not installed is no failure.
///
/// # Errors
/// [`HostError::Several`] with all that failed.
pub async fn remove_all(device: &str) -> Result<bool, HostError> {
    let nft = or_without_program(remove_nft(device).await, false);
    let iptables = match in_iptables(device).await {
        Ok(changes) => make(&changes).await,
        Err(error) => Err(error),
    };
    all(vec![nft, iptables])
}

/// What [`remove_all`] would remove: a line for each table, chain or rule.
///
/// # Errors
/// The rules cannot be read.
pub async fn list_all(device: &str) -> Result<Vec<String>, HostError> {
    let ours = nft::tables(|table| nft::is_ours(table, device)).await;
    let tables = or_without_program(ours, Vec::new())?;
    let mut lines: Vec<String> = tables.iter().map(|table| format!("nft delete {table}")).collect();
    lines.extend(in_iptables(device).await?.iter().flat_map(Change::describe));
    Ok(lines)
}

/// Removes the rules that a stopped flanneld has left, of nftables and of all variants of iptables, for IPv4
/// and IPv6; returns whether there were any. What another overlayd of this host has in flannel's chains stays.
///
/// Called after the first [`Firewall::sync`], it leaves no moment without rules: ours stand by then, and where
/// they are in flannel's chains they are recognised.
///
/// # Errors
/// [`HostError::Several`] with all that failed.
pub async fn remove_flannels() -> Result<bool, HostError> {
    let nft = or_without_program(remove_tables(nft::is_flannels).await, false);
    let iptables = match iptables::removal_of_flannels().await {
        Ok(changes) => make(&changes).await,
        Err(error) => Err(error),
    };
    let removed = all(vec![nft, iptables])?;
    if removed {
        info!("removed the rules that flanneld had left");
    }
    Ok(removed)
}

/// Whether there are rules of flannel's about `network` that are no overlayd's.
///
/// # Errors
/// The rules cannot be read. A program that is not installed has none.
pub async fn flannel_has_rules_for(network: Ipv4Net) -> Result<bool, HostError> {
    let network = network.trunc().to_string();
    let tables = or_without_program(nft::tables(nft::is_flannels).await, Vec::new())?;
    for table in tables {
        if nft::mentions(&table, &network).await? {
            return Ok(true);
        }
    }
    let named = or_without_program(iptables::flannels_networks().await, BTreeSet::new())?;
    Ok(named.contains(&network))
}

async fn remove_nft(device: &str) -> Result<bool, HostError> {
    remove_tables(|table| nft::is_ours(table, device)).await
}

async fn remove_tables(wanted: impl Fn(&str) -> bool) -> Result<bool, HostError> {
    let tables = nft::tables(wanted).await?;
    if !tables.is_empty() {
        nft::remove(&tables).await?;
    }
    Ok(!tables.is_empty())
}

async fn in_iptables(device: &str) -> Result<Vec<Change>, HostError> {
    match Variants::find().await {
        Ok(variants) => variants.removal(device).await,
        Err(HostError::NoProgram { .. }) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// nftables where its tool works, else iptables.
async fn choose() -> Result<Tool, HostError> {
    let why = match run("nft", &["list", "tables"], "").await {
        Ok(_) => {
            info!("firewall: nftables (see --firewall)");
            return Ok(Tool::Nftables);
        }
        Err(error) => error,
    };
    match run("iptables", &["--version"], "").await {
        Ok(_) => {
            info!(%why, "firewall: iptables (see --firewall)");
            Ok(Tool::Iptables)
        }
        Err(HostError::NoProgram { .. }) => Err(HostError::NoFirewall(why.to_string())),
        Err(error) => Err(error),
    }
}

/// Makes all changes, whatever fails; returns whether there were any.
async fn make(changes: &[Change]) -> Result<bool, HostError> {
    let mut outcomes = Vec::new();
    for change in changes {
        debug!(program = change.program(), "putting the rules of iptables as they should be");
        outcomes.push(change.make().await.map(|()| true));
    }
    all(outcomes)
}

/// Whether a program has refused a change, as it does when others have changed the rules since we have read them.
fn is_refusal(error: &HostError) -> bool {
    match error {
        HostError::Program { .. } => true,
        HostError::Several(errors) => errors.iter().any(is_refusal),
        _ => false,
    }
}

/// Before the rules are read and tried again at once; after that it is left to the next look at them.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(20),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

/// Whether anything was changed, or all that failed.
fn all(outcomes: Vec<Result<bool, HostError>>) -> Result<bool, HostError> {
    let mut changed = false;
    let mut failed = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(was) => changed |= was,
            Err(HostError::Several(errors)) => failed.extend(errors),
            Err(error) => failed.push(error),
        }
    }
    match failed.len() {
        0 => Ok(changed),
        1 => Err(failed.remove(0)),
        _ => Err(HostError::Several(failed)),
    }
}

fn or_without_program<T>(outcome: Result<T, HostError>, otherwise: T) -> Result<T, HostError> {
    match outcome {
        Err(HostError::NoProgram { .. }) => Ok(otherwise),
        other => other,
    }
}
