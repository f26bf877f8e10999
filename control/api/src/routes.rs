//! The kernel's routes for the network: `GET /v1/routes`.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::Show;
use overlay_support::text::{Align, table};

/// The answer: the routes that lie in the network or cover it, the default route left out, and those missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Routes(pub Vec<Route>);

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Net,
    /// By which gateway.
    pub via: Option<Ipv4Addr>,
    /// Through which device.
    pub device: Option<String>,
    /// Its metric.
    pub metric: u32,
    /// Whose it is, or whether it is missing.
    pub state: RouteState,
}

/// Whose a route is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteState {
    /// The daemon's.
    Ours,
    /// Somebody else's: docker's for its bridge, or one that may be in the way.
    Foreign,
    /// It should be there and is not.
    Missing,
}

impl Show for Routes {
    const RESOURCE: &'static str = "/v1/routes";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        let rows = self.0.iter().map(|Route { destination, via, device, metric, state }| {
            vec![
                destination.to_string(),
                via.map_or_else(|| "-".to_owned(), |via| via.to_string()),
                device.clone().unwrap_or_else(|| "-".to_owned()),
                metric.to_string(),
                match state {
                    RouteState::Ours => "overlayd's",
                    RouteState::Foreign => "somebody else's",
                    RouteState::Missing => "MISSING",
                }
                .to_owned(),
            ]
        });
        const COLUMNS: [(&str, Align); 5] = [
            ("DESTINATION", Align::Left),
            ("VIA", Align::Left),
            ("DEVICE", Align::Left),
            ("METRIC", Align::Right),
            ("", Align::Left),
        ];
        if self.0.is_empty() { "no routes\n".to_owned() } else { table(&COLUMNS, rows.collect()) }
    }
}
