//! The command line and environment of `overlayd`, exactly as given: flanneld's flags, and ours.

mod endpoints;
mod flags;
mod go;
mod reading;
mod settings;
mod store;
mod values;

pub use endpoints::Endpoints;
pub use flags::Flags;
pub use go::{FlagError, parse_bool};
pub use store::{ConnectError, Connected};
pub use values::{LogFormat, OffloadFlag, PriorityFlag, SeccompFlag, SourceCheckFlag, StoreKind};
