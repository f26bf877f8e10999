//! The command line: what was asked for, checked, and carried out.

use std::net::{IpAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use integration::{Backend, guard};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::goals;
use crate::machine::Machine;
use crate::plan::{HostLoad, Place, Preset, Scenario, Subject, Topology, Wire};
use crate::record::Record;
use crate::report;
use crate::run::{self, Gathered, Turns};
use crate::server::{Ports, Server};
use crate::subject::{Peer, Settings};

/// Measures an overlay side by side with what it is compared with
#[derive(Debug, Parser)]
#[command(name = "overlay-bench", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, in network namespaces of this machine (as root), or against another host with --to
    Run(Box<Run>),
    /// Answer the measurements of another host, until interrupted
    Serve(Serve),
}

#[derive(Debug, Args)]
struct Serve {
    /// The first of four ports to answer on, TCP and UDP
    #[arg(long, value_name = "PORT", default_value_t = PORT, value_parser = clap::value_parser!(u16).range(1..=i64::from(Ports::MAX)))]
    port: u16,
}

#[derive(Debug, Args)]
struct Run {
    /// How much to measure; the options below choose one by one
    #[arg(long, help_heading = "What to measure", value_name = "PRESET", default_value = "short")]
    preset: Preset,
    /// How the hosts are joined
    #[arg(long, help_heading = "What to measure", value_name = "LIST", value_delimiter = ',')]
    topologies: Vec<Topology>,
    /// What the underlay's ports do
    #[arg(long, help_heading = "What to measure", value_name = "LIST", value_delimiter = ',')]
    wires: Vec<Wire>,
    /// Who carries the packets
    #[arg(long, help_heading = "What to measure", value_name = "LIST", value_delimiter = ',')]
    subjects: Vec<Subject>,
    /// What is measured
    #[arg(long, help_heading = "What to measure", value_name = "LIST", value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// How often each subject has its turn
    #[arg(long, help_heading = "What to measure", value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long streams and floods run; all else runs half as long
    #[arg(long, help_heading = "What to measure", value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Datagrams per second where the rate is set
    #[arg(long, help_heading = "What to measure", value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..))]
    udp_rate: u32,
    /// What else the processors of this machine have to do meanwhile
    #[arg(long, help_heading = "What to measure", value_name = "LOAD", default_value = "idle")]
    load: HostLoad,

    /// Flags for overlayd, as in "--offload=off --queues=1"
    #[arg(
        long,
        help_heading = "Subjects",
        value_name = "FLAGS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    overlayd_flags: String,
    /// A program compatible with flanneld, measured beside the others on an etcd of its own
    #[arg(long, help_heading = "Subjects", value_name = "PATH")]
    peer: Option<PathBuf>,
    /// Flags for the peer
    #[arg(
        long,
        help_heading = "Subjects",
        value_name = "FLAGS",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true,
        requires = "peer"
    )]
    peer_flags: String,
    /// The peer's backend
    #[arg(
        long,
        help_heading = "Subjects",
        value_name = "BACKEND",
        default_value = "vxlan",
        requires = "peer"
    )]
    peer_backend: PeerBackend,

    /// Measure against this host, where `overlay-bench serve` runs: its address on the overlay
    #[arg(long, help_heading = "Between installed hosts", value_name = "HOST", conflicts_with_all = ["topologies", "wires", "subjects", "peer", "overlayd_flags", "goals"])]
    to: Option<String>,
    /// Measure by this address of the same host, too: beside the overlay
    #[arg(long, help_heading = "Between installed hosts", value_name = "HOST", requires = "to")]
    beside: Option<String>,
    /// The first of the four ports that are answered there
    #[arg(long, help_heading = "Between installed hosts", value_name = "PORT", default_value_t = PORT, value_parser = clap::value_parser!(u16).range(1..=i64::from(Ports::MAX)))]
    port: u16,

    /// Write every sample and the summary
    #[arg(long, help_heading = "Reports", value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the tables
    #[arg(long, help_heading = "Reports", value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write tables and plots, in one file that needs no other
    #[arg(long, help_heading = "Reports", value_name = "FILE")]
    html: Option<PathBuf>,
    /// Hold the ratios against the project's goals, and measure lookup and memory
    #[arg(long, help_heading = "Reports")]
    goals: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PeerBackend {
    /// flannel's udp
    Udp,
    /// VXLAN
    Vxlan,
}

/// Carries out the command line of this process. The exit code is 2 if a measurement failed.
///
/// # Errors
/// If something that is needed is not there, or a report cannot be written.
pub fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Serve(options) => serve(Ports(options.port)).map(|()| ExitCode::SUCCESS),
        Command::Run(options) => options.run(),
    }
}

fn serve(ports: Ports) -> anyhow::Result<()> {
    check_installed(&["iperf3"])?;
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("watch for signals")?;
    let mut server = Server::start(ports)?;
    println!("answering on ports {} to {}, until interrupted", ports.iperf3(), ports.control());
    while signals.pending().next().is_none() {
        server.check()?;
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

impl Run {
    fn run(self) -> anyhow::Result<ExitCode> {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let turns = Turns {
            scenarios: or(&self.scenarios, || {
                let all = self.preset.scenarios().into_iter();
                all.filter(|scenario| self.to.is_none() || !scenario.takes_the_host()).collect()
            }),
            rounds: self.rounds,
            seconds: f64::from(self.seconds),
            udp_rate: self.udp_rate,
            ports: Ports(self.port),
            load: self.load,
            processors,
        };
        let date = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let programs = self.programs();
        let programs: Vec<_> =
            programs.iter().map(|(name, path)| (*name, path.display().to_string())).collect();
        let mut machine = Machine::look(&programs);
        let (gathered, baseline) = match &self.to {
            Some(host) => self.to_host(host, &turns)?,
            None => self.in_namespaces(&turns)?,
        };
        machine.look_again();
        ensure!(
            !gathered.samples.is_empty(),
            "nothing could be measured: {}",
            gathered.failures.first().map_or("nothing was asked for", |failure| &failure.error)
        );
        let mut record = Record {
            date,
            command: std::env::args().collect::<Vec<_>>().join(" "),
            machine,
            baseline,
            rounds: turns.rounds,
            seconds: turns.seconds,
            udp_rate: turns.udp_rate,
            load: turns.load,
            samples: gathered.samples,
            failures: gathered.failures,
            remarks: gathered.remarks,
            summary: Vec::new(),
            goals: Vec::new(),
        };
        if record.machine.is_busy() {
            record.remarks.insert(0, report::busy(&record.machine));
        }
        record.summarise();
        if self.goals {
            record.goals = goals::judge(&record);
        }
        self.report(&record)?;
        Ok(if record.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }

    fn in_namespaces(&self, turns: &Turns) -> anyhow::Result<(Gathered, Option<String>)> {
        let subjects = self.subjects()?;
        let mut places = Vec::new();
        for topology in or(&self.topologies, || self.preset.topologies()) {
            for wire in or(&self.wires, || Wire::value_variants().to_vec()) {
                places.push(Place { topology, wire });
            }
        }
        ensure!(rustix::process::geteuid().is_root(), "making network namespaces takes root");
        let mut needed = vec!["ip", "bridge", "ping", "iperf3", "ethtool"];
        if subjects.contains(&Subject::Peer) {
            needed.extend(["etcd", "etcdctl"]);
        }
        check_installed(&needed)?;
        if subjects.iter().any(|subject| subject.uses_overlayd()) || self.goals {
            for name in ["overlayd", "overlayctl"] {
                let path = beside_this(name)?;
                ensure!(
                    path.is_file(),
                    "{} is not there: build it with `cargo build --release`",
                    path.display()
                );
            }
        }
        guard::clean_up_whatever_happens("overlay-bench").context("watch for signals")?;
        let settings = Settings { overlayd_flags: words(&self.overlayd_flags), peer: self.peer_settings()? };
        let gathered = run::in_namespaces(&places, &subjects, &settings, turns);
        let baseline = Subject::KernelVxlan;
        Ok((gathered, subjects.contains(&baseline).then(|| baseline.to_string())))
    }

    fn to_host(&self, host: &str, turns: &Turns) -> anyhow::Result<(Gathered, Option<String>)> {
        check_installed(&["iperf3"])?;
        let mut addresses = vec![("overlay", resolve(host)?)];
        if let Some(beside) = &self.beside {
            addresses.push((BESIDE, resolve(beside)?));
        }
        let gathered = run::to_host(&addresses, turns);
        Ok((gathered, self.beside.as_ref().map(|_| BESIDE.to_owned())))
    }

    fn subjects(&self) -> anyhow::Result<Vec<Subject>> {
        let mut subjects = or(&self.subjects, || self.preset.subjects());
        match (&self.peer, subjects.contains(&Subject::Peer)) {
            (None, true) => bail!("the subject peer needs --peer PATH"),
            (Some(_), false) => subjects.push(Subject::Peer),
            _ => {}
        }
        Ok(subjects)
    }

    fn peer_settings(&self) -> anyhow::Result<Option<Peer>> {
        let Some(path) = &self.peer else { return Ok(None) };
        let path = path.canonicalize().with_context(|| format!("--peer {}", path.display()))?;
        let backend = match self.peer_backend {
            PeerBackend::Udp => Backend::Udp,
            PeerBackend::Vxlan => Backend::Vxlan,
        };
        Ok(Some(Peer { path, flags: words(&self.peer_flags), backend }))
    }

    /// The programs whose versions belong into a report.
    fn programs(&self) -> Vec<(&'static str, PathBuf)> {
        let mut programs = vec![("iperf3", PathBuf::from("iperf3"))];
        if self.to.is_none() {
            programs.extend(beside_this("overlayd").ok().map(|path| ("overlayd", path)));
        }
        programs.extend(self.peer.clone().map(|path| ("peer", path)));
        programs
    }

    fn report(&self, record: &Record) -> anyhow::Result<()> {
        println!("{}", report::terminal(record));
        let write = |file: &Option<PathBuf>, text: &dyn Fn() -> anyhow::Result<String>| {
            let Some(file) = file else { return Ok(()) };
            std::fs::write(file, text()?).with_context(|| format!("write {}", file.display()))
        };
        write(&self.json, &|| Ok(serde_json::to_string_pretty(record)? + "\n"))?;
        write(&self.markdown, &|| Ok(report::markdown(record)))?;
        write(&self.html, &|| report::html(record))
    }
}

/// What was chosen, else what the preset has.
fn or<T: Clone>(chosen: &[T], preset: impl FnOnce() -> Vec<T>) -> Vec<T> {
    if chosen.is_empty() { preset() } else { chosen.to_vec() }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn resolve(host: &str) -> anyhow::Result<IpAddr> {
    let mut addresses = (host, 0).to_socket_addrs().with_context(|| format!("find the host {host}"))?;
    Ok(addresses.next().with_context(|| format!("{host} has no address"))?.ip())
}

/// A program that is built together with this one.
fn beside_this(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program's own path")?;
    Ok(own.parent().unwrap_or(Path::new("/")).join(name))
}

fn check_installed(programs: &[&str]) -> anyhow::Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in programs {
        let found = std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
        ensure!(found, "{name} is not installed");
    }
    Ok(())
}

/// iperf3's own.
const PORT: u16 = 5201;
/// The way that is not the overlay.
const BESIDE: &str = "beside";

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Run, String> {
        let words = ["overlay-bench", "run"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Run(run) => Ok(*run),
            Command::Serve(_) => Err("serve".into()),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_replace_the_presets() {
        let run = parse("--preset full --scenarios tcp-1,udp-64 --subjects overlayd-udp").unwrap();
        assert_eq!(or(&run.scenarios, || run.preset.scenarios()), [Scenario::Tcp1, Scenario::Udp64]);
        assert_eq!(run.subjects().unwrap(), [Subject::OverlaydUdp]);
        assert_eq!(or(&run.topologies, || run.preset.topologies()), [Topology::Link, Topology::Routed]);
    }

    #[test]
    fn a_peer_joins_the_subjects() {
        let run = parse("--peer /bin/true").unwrap();
        assert_eq!(run.subjects().unwrap().last(), Some(&Subject::Peer));
        let run = parse("--subjects peer").unwrap();
        assert!(run.subjects().unwrap_err().to_string().contains("--peer"));
        assert!(parse("--peer-flags=-v=2").is_err());
    }

    #[test]
    fn flags_for_the_daemon_may_begin_with_dashes() {
        let words = ["overlay-bench", "run", "--overlayd-flags", "--offload=off --queues=1"];
        let Command::Run(run) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
        assert_eq!(super::words(&run.overlayd_flags), ["--offload=off", "--queues=1"]);
    }

    #[test]
    fn what_cannot_go_together_is_refused() {
        for (line, named) in [
            ("--beside 10.0.0.1", "--to"),
            ("--to 10.0.0.1 --wires plain", "--wires"),
            ("--to 10.0.0.1 --goals", "--goals"),
            ("--scenarios tcp-2", "tcp-2"),
            ("--rounds 0", "--rounds"),
            ("--port 65533", "--port"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }
}
