//! Tables of the documents that list what the code has.

use std::fs;
use std::path::Path;

use overlay_leases::netconf::NetworkConfig;
use overlay_wire::drops::DropReason;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows of the table whose head is `head`.
fn rows<'a>(text: &'a str, head: &str) -> Vec<&'a str> {
    let rows = text.lines().skip_while(|line| *line != head).skip(2);
    rows.take_while(|line| line.starts_with('|')).collect()
}

#[test]
fn every_drop_reason_is_explained_as_the_program_does() {
    let wanted: Vec<String> = DropReason::ALL
        .into_iter()
        .map(|reason| {
            let way = match (DropReason::EGRESS.contains(&reason), DropReason::INGRESS.contains(&reason)) {
                (true, true) => "both",
                (true, false) => "egress",
                _ => "ingress",
            };
            let (label, meaning, remedy) = (reason.label(), reason.meaning(), reason.remedy());
            // Markdown takes angle brackets and bars for its own.
            assert!(!format!("{meaning}{remedy}").contains(['<', '|']), "{label}");
            format!("| `{label}` | {way} | {meaning} | {remedy} |")
        })
        .collect();
    let text = document("DIAGNOSIS.md");
    let found = rows(&text, "| reason | way | means | do this |");
    assert_eq!(found, wanted, "the table in DIAGNOSIS.md should be:\n{}\n", wanted.join("\n"));
}

#[test]
fn every_key_of_the_network_configuration_is_explained() {
    let text = document("README.md");
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
