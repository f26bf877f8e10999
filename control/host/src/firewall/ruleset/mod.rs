//! The host's whole ruleset as data, and what it does to a packet: nftables of all families, and iptables and ebtables
//! of both variants.
//!
//! [`Listings::read`] takes what `nft`, `iptables-save` and `ebtables` say; the rest is pure: [`acts`] follows a described [`Packet`]
//! through its hooks. What a rule asks that cannot be evaluated here is [`Holds::Unknown`], and stays so in what is
//! told of it: nobody is said to pass who may be dropped.
//!
//! `nft` shows what iptables' nft variant keeps, too, but not the matches and targets that are iptables' own: where a
//! rule has one, its text is taken from `iptables-save`.

mod act;
mod ebtables;
mod mark;
mod nft;
mod packet;
mod read;
mod rules;
mod saved;
mod step;
#[cfg(test)]
mod tests;
mod walk;

pub use self::act::{Act, Place, What};
pub use self::packet::{Connection, Device, Holds, Packet, Protocol, Way, within};
pub use self::read::Listings;
pub use self::rules::{Hook, Ruleset, Table, Which};
pub use self::walk::acts;

pub(super) use self::ebtables::PROGRAM as EBTABLES;
pub(super) use self::walk::acts_and_destinations;
