//! `overlayctl bugreport`: one file with all that whoever helps would ask for, and no secret.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use flate2::Compression;
use flate2::write::GzEncoder;
use regex::Regex;
use tokio::process::Command;

use overlay_api::client;

/// What the daemon tells, each in a file of that name.
const RESOURCES: [&str; 10] = [
    "status.json",
    "peers.json",
    "leases.json",
    "routes.json",
    "drops.json",
    "stats.json",
    "config.json",
    "offloads.json",
    "events.json",
    "metrics.txt",
];

/// What programs tell; one that is not installed says so in its file.
const COMMANDS: [(&str, &str); 19] = [
    ("uname", "uname -a"),
    ("os-release", "cat /etc/os-release"),
    ("links", "ip -d -s link show"),
    ("addresses", "ip address show"),
    ("rules", "ip rule show"),
    ("routes", "ip route show table all"),
    ("neighbours", "ip neigh show"),
    ("forwarding-database", "bridge fdb show"),
    ("udp-sockets", "ss -ulnpem"),
    ("nftables", "nft list ruleset"),
    ("iptables", "iptables-save -c"),
    ("iptables-legacy", "iptables-legacy-save -c"),
    ("sysctls", "sysctl -a --pattern ^net\\.(ipv4\\.(ip_forward|conf)|core\\.[rw]mem)"),
    ("subnet-file", "cat /run/flannel/subnet.env"),
    ("docker-options", "cat /run/flannel/docker /run/docker-overlay.env"),
    ("defaults", "cat /etc/default/overlayd /etc/default/flanneld /etc/sysconfig/flanneld"),
    ("unit", "systemctl show overlayd.service docker.service"),
    ("unit-status", "systemctl status --no-pager --full overlayd.service docker.service"),
    ("journal", "journalctl --no-pager --output=short-precise --lines=5000 --unit=overlayd.service"),
];

/// Longer output is cut at its beginning: the latest says most.
const MOST: usize = 4 << 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// Writes the report to `file`, with what the daemon at `socket` says, if there is one, and `check`, the text of
/// a check. It is readable by its owner only.
///
/// # Errors
/// The file cannot be written; one that is there already is left alone.
#[expect(clippy::disallowed_methods, reason = "the archive's files have dates")]
pub async fn write(file: &Path, socket: Option<&Path>, check: &str) -> io::Result<()> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?;
    let mut archive = tar::Builder::new(GzEncoder::new(open, Compression::default()));
    let directory = file.file_name().map(PathBuf::from).unwrap_or_default();
    let directory = directory.to_string_lossy().trim_end_matches(".tar.gz").to_owned();
    let redact = Redact::new();
    let mut add = |name: &str, text: &str| {
        let text = redact.text(text);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o600);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        header.set_mtime(now.as_secs());
        archive.append_data(&mut header, format!("{directory}/{name}"), text.as_bytes())
    };
    add("check.txt", check)?;
    if let Some(socket) = socket {
        for file in RESOURCES {
            let resource = file.split('.').next().unwrap_or_default();
            let answer = client::get(socket, &format!("/v1/{resource}")).await;
            let text =
                answer.map_or_else(|e| e.to_string(), |body| String::from_utf8_lossy(&body).into_owned());
            add(file, &text)?;
        }
    }
    for (name, command) in COMMANDS {
        add(&format!("{name}.txt"), &output(command).await)?;
    }
    archive.into_inner()?.finish()?.sync_all()
}

/// What a command says, on both its outputs, below the command itself.
async fn output(line: &str) -> String {
    let mut text = format!("$ {line}\n");
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let command = Command::new(program).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    match tokio::time::timeout(PATIENCE, command).await {
        Ok(Ok(output)) => {
            text += &tail(&output.stdout);
            text += &tail(&output.stderr);
            if !output.status.success() {
                let _ = writeln!(text, "({})", output.status);
            }
        }
        Ok(Err(error)) => {
            let _ = writeln!(text, "({program}: {error})");
        }
        Err(_) => {
            let _ = writeln!(text, "(no end after {} s)", PATIENCE.as_secs());
        }
    }
    text
}

fn tail(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(MOST);
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}

/// Takes secrets out of text.
struct Redact([(Regex, &'static str); 4]);

impl Redact {
    fn new() -> Self {
        let regex = |text: &str| Regex::new(text).expect("a regular expression of this file");
        Self([
            // A line of an environment file, whose value may be quoted in part, or not at all.
            (
                regex(
                    r"(?im)^(\s*(?:export\s+)?\w*(?:password|passwd|secret|token|authorization|api_?key)\w*=).*$",
                ),
                "$1[removed]",
            ),
            // NAME=VALUE, "name": "value", --flag value; the name says what it is. The value may hold any
            // punctuation.
            (
                regex(
                    r#"(?i)([\w-]*(?:password|passwd|secret|token|authorization|api[_-]?key)[\w-]*"?)(\s*[=:]\s*|\s+)("(?:[^"\\]|\\.)*"|'[^']*'|(?:(?:basic|bearer)\s+)?[^\s"]+)"#,
                ),
                "$1$2[removed]",
            ),
            // The user's part of a URL, up to the last '@'.
            (regex(r#"(?i)([a-z][a-z0-9+.-]*://)[^\s/"]+@"#), "$1[removed]@"),
            (
                regex(r"(?s)-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?-----END ([A-Z ]*PRIVATE KEY)-----"),
                "[removed: $1]",
            ),
        ])
    }

    fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (secret, instead) in &self.0 {
            text = secret.replace_all(&text, *instead).into_owned();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        let redact = Redact::new();
        for (before, after) in [
            (
                "FLANNELD_ETCD_PASSWORD=hunter2\nFLANNELD_IFACE=eth0",
                "FLANNELD_ETCD_PASSWORD=[removed]\nFLANNELD_IFACE=eth0",
            ),
            (
                "FLANNELD_ETCD_PASSWORD=a,b;c}d'e\"f g\nFLANNELD_IFACE=eth0",
                "FLANNELD_ETCD_PASSWORD=[removed]\nFLANNELD_IFACE=eth0",
            ),
            ("overlayd --etcd-password=a,b;c}d'e -v=1", "overlayd --etcd-password=[removed] -v=1"),
            ("https://root:hun@t,e@r2@10.0.0.3:2379", "https://[removed]@10.0.0.3:2379"),
            ("overlayd --etcd-password=hunter2 -v=1", "overlayd --etcd-password=[removed] -v=1"),
            ("overlayd --etcd-password hunter2 -v=1", "overlayd --etcd-password [removed] -v=1"),
            (
                r#"{"etcd_password": "hun\"ter2", "mtu": 1450}"#,
                r#"{"etcd_password": [removed], "mtu": 1450}"#,
            ),
            ("https://root:hunter2@10.0.0.3:2379", "https://[removed]@10.0.0.3:2379"),
            ("Authorization: Bearer hunter2 x", "Authorization: [removed] x"),
            (
                "-----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY-----\nx",
                "[removed: EC PRIVATE KEY]\nx",
            ),
            ("http://10.0.0.3:2379 connected", "http://10.0.0.3:2379 connected"),
        ] {
            assert_eq!(redact.text(before), after);
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_or_fails_says_so() {
        assert!(output("no-such-program-here -x").await.contains("(no-such-program-here: "));
        let failed = output("cat /nowhere").await;
        assert!(failed.starts_with("$ cat /nowhere\n") && failed.contains("No such file"), "{failed}");
    }
}
