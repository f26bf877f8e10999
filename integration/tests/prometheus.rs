//! What is deployed for Prometheus and Grafana, against a real Prometheus that scrapes two real daemons: every
//! query of the dashboard finds something, every metric that an alert speaks of is there, and alerts fire.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use integration::netns::succeed;
use integration::packets::{Injector, mac, udp_packet, vxlan_frame};
use integration::process::Process;
use integration::traffic::{self, Server};
use integration::{Backend, Pair, SOON, Site, Store, await_until, http};
use serde_json::Value;

#[test]
fn the_rules_are_valid_and_each_fires_when_it_should_and_only_then() {
    let rules = deployed("prometheus/overlayd.rules.yml");
    succeed(std::process::Command::new("promtool").args(["check", "rules"]).arg(&rules));
    let test = deployed("prometheus/overlayd.rules.test.yml");
    succeed(std::process::Command::new("promtool").args(["test", "rules"]).arg(&test));
    let (rules, test) = (read(&rules), read(&test));
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        assert!(
            test.matches(&format!("{alert} ")).count() + test.matches(&format!("{alert}\"")).count() >= 2,
            "{alert} is not tried"
        );
    }
}

#[test]
fn every_query_finds_something_and_alerts_fire() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--metrics-port=9100"]);
    let prometheus = Prometheus::start(&site, &[worker.public_ip, master.public_ip]);

    // Traffic in both directions, from before the first scrape to after the last.
    let _echo = Server::udp_echo(&pair.b.ns, 7);
    let mut said = 0;
    let mut talk = || {
        said += 1;
        traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 1);
        traffic::echo(&pair.a.ns, pair.b.address, 7, 1200);
    };
    await_until(SOON, "both daemons to be scraped twice", || {
        talk();
        prometheus.query("min(count_over_time(up{job=\"overlayd\"}[1m])) >= 3").len() == 1
            && prometheus.query("up{job=\"overlayd\"} == 1").len() == 2
    });

    let dashboard: Value = serde_json::from_str(&read(&deployed("grafana/overlayd.json"))).unwrap();
    let queries = queries(&dashboard);
    assert!(queries.len() > 25, "only {}", queries.len());
    for query in &queries {
        let mut found = 0;
        await_until(SOON, &format!("something found by {query}"), || {
            found = prometheus.query(query).len();
            found > 0
        });
    }
    let known: BTreeSet<String> = prometheus.names();
    for name in metrics_in(&read(&deployed("prometheus/overlayd.rules.yml"))) {
        assert!(known.contains(&name), "an alert speaks of {name}, which nobody tells");
    }

    // (A store on a busy machine may be slow.)
    let well = || prometheus.firing().iter().all(|alert| alert == "OverlaydStoreSlow");
    await_until(SOON, "all to be well", well);
    let vtep = mac(pair.left.status().0["backend"]["vtep_mac"].as_str().unwrap());
    let forged = vxlan_frame(1, vtep, &udp_packet(pair.a.address, pair.a.address, 9, b"forged"));
    Injector::new(&master.ns, worker.public_ip, Backend::Vxlan.port()).send(&forged);
    await_until(SOON, "an alert on the forged packet", || {
        prometheus.firing().contains("OverlaydSpoofedSource")
    });
    store.server().kill();
    await_until(SOON, "an alert on the store", || prometheus.firing().contains("OverlaydStoreDown"));
    pair.left.stop();
    await_until(SOON, "an alert on the daemon", || prometheus.firing().contains("OverlaydDown"));
}

/// A running Prometheus on the site's router.
struct Prometheus<'s> {
    site: &'s Site,
    _process: Process,
}

impl<'s> Prometheus<'s> {
    fn start(site: &'s Site, hosts: &[Ipv4Addr]) -> Self {
        let directory = site.directory("prometheus");
        // As deployed, but in no time.
        let rules = read(&deployed("prometheus/overlayd.rules.yml"));
        let hasty: Vec<&str> = rules
            .lines()
            .map(|line| if line.trim().starts_with("for: ") { "        for: 1s" } else { line })
            .collect();
        std::fs::write(directory.join("rules.yml"), hasty.join("\n")).unwrap();
        let targets: Vec<String> = hosts.iter().map(|host| format!("\"{host}:9100\"")).collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: overlayd\n    static_configs: [ {{ targets: [{}] }} ]\n",
            targets.join(", ")
        );
        std::fs::write(directory.join("prometheus.yml"), config).unwrap();
        let mut command = site.router.command("prometheus");
        command.arg(format!("--config.file={}", directory.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("data").display()));
        command.args(["--web.listen-address=127.0.0.1:9090", "--log.level=warn"]);
        let process = Process::spawn("prometheus", command, &directory);
        let prometheus = Self { site, _process: process };
        await_until(SOON, "Prometheus to be ready", || {
            http::get(&site.router, 9090, "/-/ready").is_some_and(|answer| answer.code == 200)
        });
        prometheus
    }

    /// The series that a query finds now.
    #[track_caller]
    fn query(&self, query: &str) -> Vec<Value> {
        let answer = self.ask(&format!("/api/v1/query?query={}", encoded(query)));
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().cloned().unwrap_or_default()
    }

    fn names(&self) -> BTreeSet<String> {
        let answer = self.ask("/api/v1/label/__name__/values");
        answer["data"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    fn firing(&self) -> BTreeSet<String> {
        let alerts = self.ask("/api/v1/alerts");
        let alerts = alerts["data"]["alerts"].as_array().unwrap().iter();
        let firing =
            alerts.filter(|alert| alert["state"] == "firing" && alert["labels"]["severity"] != "info");
        firing.map(|alert| alert["labels"]["alertname"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 9090));
        let answer = http::get_with(&self.site.router, address, path, "Host: localhost\r\n");
        let body = answer.unwrap_or_else(|| panic!("no answer to {path}")).body;
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{path}: {error}: {body}"))
    }
}

/// The queries of a dashboard, with its variables as they are at first.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| {
            assert_eq!(target["datasource"]["uid"], "${datasource}");
            let query = target["expr"].as_str().expect("a query");
            query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$job", "overlayd")
        })
        .collect()
}

/// The names of overlayd's metrics in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let expressions =
        text.lines().filter(|line| !line.contains("summary:") && !line.contains("description:"));
    let words = expressions.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words
        .filter(|word| word.starts_with("overlayd_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn deployed(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
