//! Subjects taking turns, round by round.

use std::net::IpAddr;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use integration::traffic::await_listening;

use crate::client::{self, Measured, Target};
use crate::ground::Ground;
use crate::hogs::Hogs;
use crate::plan::{HostLoad, Load, Place, Scenario, Subject};
use crate::process::Daemons;
use crate::record::{Cost, Failure, Key, Meter, Sample};
use crate::server::{Ports, Server};
use crate::subject::{Running, Settings};
use crate::wire;

/// How each scenario is run.
#[derive(Debug, Clone)]
pub struct Turns {
    /// What to run.
    pub scenarios: Vec<Scenario>,
    /// How often.
    pub rounds: u32,
    /// How long streams and floods run, in seconds.
    pub seconds: f64,
    /// Datagrams per second where the rate is set.
    pub udp_rate: u32,
    /// The server's ports.
    pub ports: Ports,
    /// What else the processors have to do.
    pub load: HostLoad,
    /// How many processors there are.
    pub processors: usize,
}

/// What a run has gathered.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Measurements.
    pub samples: Vec<Sample>,
    /// Those that could not be made.
    pub failures: Vec<Failure>,
    /// What was not as it was asked for.
    pub remarks: Vec<String>,
}

/// Measures in namespaces. Everything is built anew for each turn of each subject, so that nothing
/// but the subject at hand runs, and no run inherits the state of another.
#[must_use]
pub fn in_namespaces(places: &[Place], subjects: &[Subject], settings: &Settings, turns: &Turns) -> Gathered {
    let mut progress = Progress::new(turns, places.len() * subjects.len());
    let mut gathered = Gathered::default();
    for place in places {
        for round in 1..=turns.rounds {
            for subject in subjects {
                progress.turn(&place.to_string(), &subject.to_string(), round);
                let ground = Ground::build(*place);
                let running = Running::start(*subject, &ground, settings);
                gathered.remark(ground.flaws.iter().map(|flaw| format!("{place} is not plain: {flaw}")));
                gathered.turn(
                    turns,
                    &running,
                    &format!("{place}"),
                    &subject.to_string(),
                    round,
                    &mut progress,
                );
            }
        }
    }
    progress.done();
    gathered
}

/// Measures against a server that runs on another host, by each of the named addresses in turn.
#[must_use]
pub fn to_host(addresses: &[(&str, IpAddr)], turns: &Turns) -> Gathered {
    let mut progress = Progress::new(turns, addresses.len());
    let mut gathered = Gathered::default();
    for round in 1..=turns.rounds {
        for (subject, address) in addresses {
            progress.turn(INSTALLED, subject, round);
            let _hogs = turns.hogs();
            for scenario in &turns.scenarios {
                progress.scenario(*scenario);
                let result = client::measure(*scenario, &turns.target(*address));
                gathered.add(key(INSTALLED, subject, *scenario), round, result, None);
            }
        }
    }
    progress.done();
    gathered
}

impl Turns {
    /// The load of the host, for as long as it is held.
    fn hogs(&self) -> Hogs {
        Hogs::start(self.load, self.processors).unwrap_or_else(|error| panic!("load the host: {error:#}"))
    }

    fn target(&self, address: IpAddr) -> Target {
        Target { address, ports: self.ports, seconds: self.seconds, udp_rate: self.udp_rate }
    }
}

impl Gathered {
    /// All scenarios of one subject in one round.
    fn turn(
        &mut self,
        turns: &Turns,
        running: &Running<'_>,
        place: &str,
        subject: &str,
        round: u32,
        progress: &mut Progress,
    ) {
        let server = running.server.ns.within(|| Server::start(turns.ports));
        let _server = server.unwrap_or_else(|error| panic!("start the server: {error:#}"));
        await_listening(&running.server.ns, turns.ports.iperf3());
        let target = turns.target(running.server.address.into());
        let _hogs = turns.hogs();
        for scenario in &turns.scenarios {
            progress.scenario(*scenario);
            let (result, cost) = metered(&running.daemons, || {
                let client = &running.client.ns;
                match scenario.load() {
                    Load::Wire { len, flows } => wire::measure(running, len, flows, &target),
                    _ => client.within(|| client::measure(*scenario, &target)),
                }
            });
            self.add(key(place, subject, *scenario), round, result, cost);
        }
    }

    fn add(&mut self, key: Key, round: u32, result: anyhow::Result<Measured>, cost: Option<Cost>) {
        match result {
            Ok(measured) => self.samples.push(Sample { key, round, measured, cost }),
            Err(error) => self.failures.push(Failure { key, round, error: format!("{error:#}") }),
        }
    }

    /// The same remark is made once.
    fn remark(&mut self, remarks: impl Iterator<Item = String>) {
        for remark in remarks {
            if !self.remarks.contains(&remark) {
                self.remarks.push(remark);
            }
        }
    }
}

fn metered<T>(daemons: &Daemons, work: impl FnOnce() -> T) -> (T, Option<Cost>) {
    let meter = Meter::begin(daemons);
    let result = work();
    (result, meter.end())
}

fn key(place: &str, subject: &str, scenario: Scenario) -> Key {
    Key { place: place.into(), subject: subject.into(), scenario: scenario.to_string() }
}

/// A bar on a terminal; elsewhere a line for each turn.
struct Progress {
    bar: ProgressBar,
    turn: String,
}

impl Progress {
    fn new(turns: &Turns, subjects: usize) -> Self {
        let steps = subjects as u64 * u64::from(turns.rounds) * turns.scenarios.len() as u64;
        let bar = ProgressBar::new(steps);
        let style = "{elapsed_precise} {bar:30.cyan/dim} {pos}/{len}  {msg}  (about {eta} left)";
        bar.set_style(ProgressStyle::with_template(style).expect("a valid template"));
        bar.enable_steady_tick(Duration::from_secs(1));
        Self { bar, turn: String::new() }
    }

    fn turn(&mut self, place: &str, subject: &str, round: u32) {
        self.turn = format!("{place}  round {round}  {subject}");
        self.bar.set_message(self.turn.clone());
        if self.bar.is_hidden() {
            eprintln!("{}", self.turn);
        }
    }

    fn scenario(&mut self, scenario: Scenario) {
        self.bar.set_message(format!("{}  {scenario}", self.turn));
        self.bar.inc(1);
    }

    fn done(self) {
        self.bar.finish_and_clear();
    }
}

/// The place of measurements between installed hosts.
const INSTALLED: &str = "installed";
