//! Small things that every part of the control plane uses; none of them knows of leases.

pub mod backoff;
pub mod claim;
pub mod files;
pub mod json;
pub mod overlap;
pub mod owner;
pub mod patient;
pub mod problem;
pub mod reserve;
pub mod text;
pub mod unit;
