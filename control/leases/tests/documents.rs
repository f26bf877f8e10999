//! A table of the documents that lists what the code has.

use std::fs;
use std::path::Path;

use overlay_leases::netconf::NetworkConfig;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the table whose head is `head`.
fn rows<'a>(text: &'a str, head: &str) -> Vec<&'a str> {
    let rows = text.lines().skip_while(|line| *line != head).skip(2);
    rows.take_while(|line| line.starts_with('|')).collect()
}

#[test]
fn every_key_of_the_network_configuration_is_explained() {
    let text = document("docs/operate.md");
    let found: Vec<&str> = rows(&text, "| key | type | default | what it does |")
        .into_iter()
        .flat_map(|row| row.split('|').nth(1).unwrap_or_default().split(", "))
        .map(|key| key.trim().trim_matches('`'))
        .collect();
    let options = NetworkConfig::OPTIONS.iter().map(|option| format!("Backend.{option}"));
    let keys = NetworkConfig::KEYS.iter().map(|key| (*key).to_owned());
    let mut wanted: Vec<String> = keys.chain(options).filter(|key| key != "Backend").collect();
    let mut found: Vec<String> = found.into_iter().map(str::to_owned).collect();
    wanted.sort();
    found.sort();
    assert_eq!(found, wanted);
}
