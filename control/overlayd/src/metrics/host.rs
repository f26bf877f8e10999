//! What is counted where this host is put right.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What others had removed or changed, and how often the data plane was built.
#[derive(Debug, Clone, Default)]
pub struct HostMeter {
    repairs: Family<[(&'static str, &'static str); 1], Counter>,
    builds: Counter,
}

/// What of the host is put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repaired {
    /// The overlay device was gone.
    Device,
    /// An address, MTU, setting or route was.
    Link,
    /// Firewall rules were.
    Rules,
}

impl HostMeter {
    /// Has `registry` tell it.
    pub fn register(&self, registry: &mut Registry) {
        let Self { repairs, builds } = self;
        registry.register(
            "host_repairs",
            "What others had removed or changed on this host and was put back",
            repairs.clone(),
        );
        registry.register("data_plane_starts", "How often the data plane was started", builds.clone());
    }

    /// Something was put back.
    pub fn repaired(&self, what: Repaired) {
        let kind = match what {
            Repaired::Device => "device",
            Repaired::Link => "link",
            Repaired::Rules => "rules",
        };
        self.repairs.get_or_create(&[("kind", kind)]).inc();
    }

    /// The data plane was started.
    pub fn built(&self) {
        self.builds.inc();
        // All kinds are there from then on, so that a first repair shows as a change.
        for kind in ["device", "link", "rules"] {
            drop(self.repairs.get_or_create(&[("kind", kind)]));
        }
    }
}
