//! The admission rule: which packets go on, out ([`outward()`]) and in ([`inward()`]), and what becomes of the others.
//!
//! It only decides: the loops ([`crate::egress`], [`crate::ingress`]) act on the decision and count it.

mod hops;
mod inward;
mod outward;

pub use hops::counts_hops;
pub use inward::{SourceCheck, check_encapsulation, inward};
pub use outward::{Refusal, outward};
