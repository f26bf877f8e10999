//! What the daemon was told, by flags and by the store: `GET /v1/config`. Secrets are left out.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Show;
use overlay_support::text::{Align, table};

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The daemon's version.
    pub version: String,
    /// Every flag with its value, be it given or the default.
    pub flags: Vec<Setting>,
    /// The network configuration that is in use, as it stands in the store.
    pub network: Value,
}

/// A flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Its name.
    pub name: String,
    /// Its value; nothing if it has none.
    pub value: Option<String>,
    /// Whether it was given, on the command line or in the environment.
    pub given: bool,
}

impl Show for Config {
    const RESOURCE: &'static str = "/v1/config";

    fn to_text(&self, _earlier: Option<&Self>) -> String {
        let rows = self.flags.iter().map(|Setting { name, value, given }| {
            let value = value.clone().unwrap_or_else(|| "-".to_owned());
            vec![name.clone(), value, if *given { "given" } else { "default" }.to_owned()]
        });
        let mut out = format!("overlayd {}\n\n", self.version);
        out += &table(&[("FLAG", Align::Left), ("VALUE", Align::Left), ("", Align::Left)], rows.collect());
        let network = serde_json::to_string_pretty(&self.network).unwrap_or_default();
        let _ = writeln!(out, "\nnetwork configuration\n{network}");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_flags_are_told_from_defaults() {
        let setting = |name: &str, value: Option<&str>, given| Setting {
            name: name.into(),
            value: value.map(str::to_owned),
            given,
        };
        let config = Config {
            version: "1".into(),
            flags: vec![setting("iface", Some("eth0"), true), setting("public-ip", None, false)],
            network: serde_json::json!({"Network": "10.1.0.0/16"}),
        };
        let text = config.to_text(None);
        assert!(text.contains("  iface      eth0   given\n"), "{text}");
        assert!(text.contains("  public-ip  -      default\n"), "{text}");
        assert!(text.contains("\"Network\": \"10.1.0.0/16\""), "{text}");
    }
}
