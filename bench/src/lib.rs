//! `overlay-bench`: the same traffic over overlayd, over what it is compared with, and beside them.
//!
//! ```text
//! cli      what was asked for
//! plan     places, subjects, scenarios: what there is to measure
//! ground   hosts, routers and pods, in network namespaces    ┐ one subject at a time:
//! subject  the overlay between them, brought up              ┘ nothing else runs
//! server   what answers in one pod, or on an installed host  ┐ nothing here knows of
//! client   what asks in the other                            ┘ namespaces
//! wire     what the client's host puts on the wire itself
//! hogs     what else keeps the processors busy
//! run      subjects taking turns, round by round
//! record   samples, and their summary by `stats`
//! goals    the speed to reach, where that was asked for
//! report   terminal, JSON, Markdown, HTML
//! ```

pub mod cli;
pub mod client;
pub mod goals;
pub mod ground;
pub mod hogs;
pub mod lookup;
pub mod machine;
pub mod plan;
pub mod process;
pub mod record;
pub mod report;
pub mod run;
pub mod server;
pub mod stats;
pub mod subject;
pub mod wire;
