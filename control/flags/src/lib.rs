//! The command line and environment of `overlayd`, exactly as given: flanneld's flags, and ours.

mod endpoints;
mod go;
mod settings;
mod store;
mod values;

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser};

use regex::Regex;

pub use endpoints::Endpoints;
pub use go::{FlagError, parse_bool};
pub use store::ConnectError;
pub use values::{LogFormat, OffloadFlag, PriorityFlag, SeccompFlag, SourceCheckFlag, StoreKind};

use endpoints::endpoints;
use values::{file, group, health_port, offload, on_or_off, one_host, page_address, password, regex, store};

use overlay_api::config::Setting;
use overlay_host::FirewallKind;
use overlay_host::iface::IfaceSpec;
use overlay_leases::store::{Access, IdentityFiles, Password, User};
use overlay_node::io::Io;

/// Userspace overlay router, drop-in for flanneld.
///
/// Flags take one dash or two, and their value after '=' or as the next argument; a switch takes
/// its value after '=' only. Each can also be given in the environment, as FLANNELD_ and its name
/// in upper case with underscores; the command line wins.
#[derive(Debug, Clone, Parser)]
#[command(name = "overlayd", version, disable_version_flag = true, max_term_width = 110)]
pub struct Flags {
    /// Print the version and exit.
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,

    /// etcd endpoints, separated by commas. One without a scheme is https where certificates are given, else http.
    #[arg(
        long,
        help_heading = "Lease store",
        value_name = "URL,…",
        value_parser = endpoints,
        default_value = "http://127.0.0.1:4001,http://127.0.0.1:2379"
    )]
    pub etcd_endpoints: Endpoints,

    /// Where in etcd the network's keys are.
    #[arg(long, help_heading = "Lease store", value_name = "PREFIX", default_value = "/coreos.com/network")]
    pub etcd_prefix: String,

    /// PEM file of the authorities that may vouch for an https endpoint; those of the system if not given.
    #[arg(long, help_heading = "Lease store", value_name = "FILE", value_parser = file())]
    pub etcd_cafile: Option<PathBuf>,

    /// PEM file of the certificate that etcd knows this node by; with --etcd-keyfile.
    #[arg(long, help_heading = "Lease store", value_name = "FILE", value_parser = file())]
    pub etcd_certfile: Option<PathBuf>,

    /// PEM file of that certificate's private key.
    #[arg(long, help_heading = "Lease store", value_name = "FILE", value_parser = file())]
    pub etcd_keyfile: Option<PathBuf>,

    /// etcd user; with --etcd-password.
    #[arg(long, help_heading = "Lease store", value_name = "NAME")]
    pub etcd_username: Option<String>,

    /// That user's password. Better given in the environment, which other users of the host cannot see.
    #[arg(long, help_heading = "Lease store", value_name = "PASSWORD", value_parser = password)]
    pub etcd_password: Option<Password>,

    /// Where configuration and leases live: 'etcd', or 'dir:PATH' for a directory of files.
    #[arg(long, help_heading = "Lease store", value_name = "STORE", default_value = "etcd", value_parser = store)]
    pub store: StoreKind,

    /// How long before its expiry the lease is renewed, in minutes.
    #[arg(
        long,
        help_heading = "Lease store",
        value_name = "MINUTES",
        default_value_t = 60,
        value_parser = clap::value_parser!(u16).range(1..=1439)
    )]
    pub subnet_lease_renew_margin: u16,

    /// For how long a lease is taken, in seconds.
    #[arg(
        long,
        help_heading = "Lease store",
        value_name = "SECONDS",
        default_value_t = 86_400,
        value_parser = clap::value_parser!(u32).range(5..)
    )]
    pub subnet_lease_ttl: u32,

    /// Interface to the other nodes, by name or IPv4 address; repeat it to try several in turn.
    /// Without any flag that says which, it is that of the default route.
    #[arg(long, help_heading = "Interface", value_name = "NAME|ADDRESS", action = ArgAction::Append)]
    pub iface: Vec<String>,

    /// Regular expression for the interface's address or, if it matches none, its name; repeat it to
    /// try several in turn, after --iface.
    #[arg(long, help_heading = "Interface", value_name = "REGEX", action = ArgAction::Append, value_parser = regex)]
    pub iface_regex: Vec<Regex>,

    /// The interface, and its address, by which the kernel would reach this address; tried after
    /// --iface and --iface-regex.
    #[arg(long, help_heading = "Interface", value_name = "ADDRESS", value_parser = one_host)]
    pub iface_can_reach: Option<Ipv4Addr>,

    /// Address that the other nodes send to, if it is not the interface's own.
    #[arg(long, help_heading = "Interface", value_name = "ADDRESS", value_parser = one_host)]
    pub public_ip: Option<Ipv4Addr>,

    /// File that tells docker, or whoever makes the containers' bridge, the subnet and the MTU.
    #[arg(long, help_heading = "Host", value_name = "FILE", default_value = "/run/flannel/subnet.env")]
    pub subnet_file: PathBuf,

    /// What the firewall's rules are made with: 'nftables', a table of overlayd's own; 'iptables', flannel's
    /// chains; 'auto', the former where nft works, else the latter; 'none', no rules at all. Without it,
    /// nftables if the network configuration has EnableNFTables, else auto.
    #[arg(long, help_heading = "Host", value_name = "KIND", hide_possible_values = true)]
    pub firewall: Option<FirewallKind>,

    /// Masquerade what containers send out of the network, and what comes into it from outside.
    #[arg(long, help_heading = "Host", value_name = "BOOL", default_value_t = false, value_parser = parse_bool, action = ArgAction::Set)]
    pub ip_masq: bool,

    /// Keep source ports where possible when masquerading, instead of choosing them at random.
    #[arg(long, help_heading = "Host", value_name = "BOOL", default_value_t = false, value_parser = parse_bool, action = ArgAction::Set)]
    pub ip_masq_fully_random_disable: bool,

    /// Masquerade what leaves through the overlay with a source outside the network, so that the
    /// answer comes back the same way.
    #[arg(long, help_heading = "Host", value_name = "BOOL", default_value_t = true, value_parser = parse_bool, action = ArgAction::Set)]
    pub return_path_masq: bool,

    /// Have the host's firewall accept forwarding from and to the network, and drop what pods send to the tunnel's port
    /// of a host.
    #[arg(long, help_heading = "Host", value_name = "BOOL", default_value_t = true, value_parser = parse_bool, action = ArgAction::Set)]
    pub iptables_forward_rules: bool,

    /// Give up, once started, the capabilities that are not needed, and the way to get them back; the data plane's
    /// threads keep none.
    #[arg(long, help_heading = "Host", value_name = "BOOL", default_value_t = true, value_parser = parse_bool, action = ArgAction::Set)]
    pub drop_privileges: bool,

    /// Group whose members may ask the daemon by its control socket, as overlayctl does; by name or number. Without
    /// it, that is the group that the daemon runs as.
    #[arg(long, help_heading = "Host", value_name = "GROUP", value_parser = group)]
    pub control_socket_group: Option<u32>,

    /// Drop here what is sent to this node's subnet and to none of its containers.
    #[arg(long, help_heading = "Host", value_name = "BOOL", default_value_t = false, value_parser = parse_bool, action = ArgAction::Set)]
    pub ip_blackhole_route: bool,

    /// How often device, route and firewall rules are checked and put back, in seconds.
    #[arg(
        long,
        help_heading = "Host",
        value_name = "SECONDS",
        default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    pub iptables_resync: u32,

    /// Address at which /healthz and /readyz are served.
    #[arg(long, help_heading = "Health", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub healthz_ip: IpAddr,

    /// Port at which /healthz and /readyz are served, and /metrics unless --metrics-port is given; 0 for
    /// none.
    #[arg(long, help_heading = "Health", value_name = "PORT", default_value_t = 0, value_parser = health_port, allow_hyphen_values = true)]
    pub healthz_port: u16,

    /// Address at which /metrics is served if --metrics-port is given.
    #[arg(long, help_heading = "Health", value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub metrics_ip: IpAddr,

    /// Port at which /metrics is served, for Prometheus; it may be that of --healthz-port. Without it,
    /// /metrics is beside /healthz; 0 is for not at all.
    #[arg(long, help_heading = "Health", value_name = "PORT")]
    pub metrics_port: Option<u16>,

    /// How many peers with traffic have metrics of their own; the others are summed up in one series.
    #[arg(long, help_heading = "Health", value_name = "N", default_value_t = 100)]
    pub metrics_peers: usize,

    /// Where a status page for browsers is served, read-only: a port, which only this host can reach, or an
    /// address with a port, as in 192.168.1.12:8080. What it shows is for whoever can reach it.
    #[arg(long, help_heading = "Health", value_name = "[ADDRESS:]PORT", value_parser = page_address)]
    pub http: Option<SocketAddr>,

    /// What is asked of the source of packets from the wire: 'strict', a known node and its own
    /// subnet or public address; 'loose', a known node; 'off', neither.
    #[arg(long, help_heading = "Data plane", value_name = "CHECK", default_value = "strict")]
    pub source_check: SourceCheckFlag,

    /// Queues of the overlay device, with one thread each in each direction; one for each CPU, up
    /// to 8, if not given.
    #[arg(long, help_heading = "Data plane", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub queues: Option<u16>,

    /// What the kernel is asked to do for the data plane: 'auto', all that it can; 'off', nothing; or a
    /// list of 'tso' (TCP super-packets by the overlay device), 'uso' (UDP ones), 'gso' (segmentation
    /// by the sockets), 'gro' (joining by the sockets), 'tunnel-gso' (TCP super-packets whole, in VXLAN
    /// on virtual wires).
    #[arg(long, help_heading = "Data plane", value_name = "LIST", default_value = "auto", value_parser = offload)]
    pub offload: OffloadFlag,

    /// Let flows leave by different source ports, so that routers, network cards and the receiver's workers can
    /// spread them; 'off' sends from the backend's own port, for firewalls that want it, and then one worker of the
    /// receiver has all that comes from here. Without this flag 'on' for vxlan and 'off' for udp, as in flannel.
    #[arg(long, help_heading = "Data plane", value_name = "on|off", value_parser = on_or_off, action = ArgAction::Set)]
    pub source_port_spread: Option<bool>,

    /// Which way packets take to the wire: 'udp', sockets; 'xdp', past the kernel's stack by AF_XDP where the
    /// interface's driver can, else sockets; 'auto', the former only where the card itself reads and writes
    /// the frames (zero-copy); 'xdp-generic', with any driver, to try it out.
    #[arg(
        long,
        help_heading = "Data plane",
        value_name = "WAY",
        default_value = "udp",
        hide_possible_values = true
    )]
    pub io: Io,

    /// Tie the threads of each queue to one processor.
    #[arg(long, help_heading = "Data plane", value_name = "BOOL", default_value_t = false, value_parser = parse_bool, action = ArgAction::Set)]
    pub pin: bool,

    /// What becomes of a system call that the data plane's threads have no use for, such as opening a file: 'on',
    /// it fails; 'kill', it ends the daemon; 'log', it is told to the kernel's log and done; 'off', it is done.
    #[arg(
        long,
        help_heading = "Data plane",
        value_name = "WHAT",
        default_value = "on",
        hide_possible_values = true
    )]
    pub seccomp: SeccompFlag,

    /// How the data plane's threads stand among the other threads of this host: 'realtime', before all ordinary ones
    /// while those keep the processors busy, though for no more than half of the processors' time, and with three
    /// times an ordinary one's share; 'nice', with that share only; 'none', as this process was started.
    #[arg(
        long,
        help_heading = "Data plane",
        value_name = "WHAT",
        default_value = "realtime",
        hide_possible_values = true
    )]
    pub priority: PriorityFlag,

    /// How long a worker that finds nothing to do looks again before it sleeps, in microseconds. What others take
    /// of its processor meanwhile does not count, up to twenty times that; 0 sleeps at once.
    #[arg(
        long,
        help_heading = "Data plane",
        value_name = "MICROSECONDS",
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(..=1000)
    )]
    pub spin: u32,

    /// How much is logged: 0 what an operator needs, 1 the reasons too, 2 every change, 3 all.
    ///
    /// Logs go to standard error. flanneld's other flags about them (vmodule, log_backtrace_at,
    /// stderrthreshold, log_dir, logtostderr and their like) are accepted and change nothing.
    #[arg(long = "v", help_heading = "Log", value_name = "LEVEL", default_value_t = 0)]
    pub verbosity: u8,

    /// What a line of the log is: 'text' for people, in colours on a terminal; 'json' for programs;
    /// 'journald', with the priority in front; 'auto', which is 'journald' where standard error is the
    /// journal, else 'text'.
    #[arg(
        long,
        help_heading = "Log",
        value_name = "FORMAT",
        default_value = "auto",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,

    /// The flags, from wherever, that are accepted for flanneld's sake and change nothing.
    #[arg(skip)]
    pub without_effect: Vec<&'static str>,

    /// Every flag as it is in effect, for people; without secrets.
    #[arg(skip)]
    pub settings: Vec<Setting>,
}

impl Flags {
    /// Reads the command line (without the program's name) and the environment.
    ///
    /// # Errors
    /// A flag that does not exist or is not supported, or a value that is not allowed, named;
    /// also the texts of `--help` and `--version`, which are to be printed as they are.
    pub fn parse_from(
        args: impl IntoIterator<Item = OsString>,
        env: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, FlagError> {
        let command = Self::definition();
        let go::Translated { args, without_effect } = go::to_clap(&command, args, env)?;
        let matches = command.try_get_matches_from(args)?;
        let settings = settings::of(&Self::definition(), &matches);
        let mut flags = Self { without_effect, settings, ..Self::from_arg_matches(&matches)? };
        let access = flags.etcd_access()?;
        flags.etcd_endpoints.settle(access.wants_tls());
        Ok(flags)
    }

    /// Those of `variables`, names of the environment's, that are no flag's though they look like it, each with the one
    /// that may be meant.
    #[must_use]
    pub fn unknown_variables(variables: impl IntoIterator<Item = OsString>) -> Vec<(String, Option<String>)> {
        go::unknown_variables(&Self::definition(), variables)
    }

    /// What clap knows of the flags, with every switch as Go has it: alone, or its value after '='.
    #[must_use]
    pub fn definition() -> Command {
        Self::command().mut_args(|arg| match go::is_switch(&arg) {
            true => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
            false => arg,
        })
    }

    /// Which interface they ask for.
    #[must_use]
    pub fn iface_spec(&self) -> IfaceSpec {
        IfaceSpec {
            iface: self.iface.clone(),
            regex: self.iface_regex.clone(),
            can_reach: self.iface_can_reach,
            public_ip: self.public_ip,
            earlier: None,
        }
    }

    /// What the connection to etcd is secured with.
    ///
    /// # Errors
    /// A flag without the one that belongs to it.
    pub fn etcd_access(&self) -> Result<Access, FlagError> {
        // Given as nothing, as units made from templates do, is not given.
        let file = |flag: &Option<PathBuf>| flag.clone().filter(|path| !path.as_os_str().is_empty());
        let name = self.etcd_username.clone().filter(|name| !name.is_empty());
        let password = self.etcd_password.clone().filter(|password| !password.0.is_empty());
        let certificate = ("etcd-certfile", file(&self.etcd_certfile));
        let identity = together(certificate, ("etcd-keyfile", file(&self.etcd_keyfile)))?;
        let user = together(("etcd-username", name), ("etcd-password", password))?;
        Ok(Access {
            ca: file(&self.etcd_cafile),
            identity: identity.map(|(certificate, key)| IdentityFiles { certificate, key }),
            user: user.map(|(name, password)| User { name, password }),
        })
    }

    /// The same with the store that is described as `store` ([`describe`](overlay_leases::store::LeaseStore::describe)); nothing
    /// if they name one themselves.
    #[must_use]
    pub fn with_store(&self, store: &str) -> Option<Self> {
        let names_store = |setting: &Setting| {
            setting.given && matches!(setting.name.as_str(), "store" | "etcd-endpoints" | "etcd-prefix")
        };
        if self.settings.iter().any(names_store) {
            return None;
        }
        let mut flags = self.clone();
        match store.split_once(' ')? {
            ("dir", path) => flags.store = StoreKind::Dir(path.into()),
            ("etcd", place) => {
                let (urls, prefix) = place.split_once(' ')?;
                flags.etcd_endpoints = endpoints(urls).ok()?;
                prefix.clone_into(&mut flags.etcd_prefix);
            }
            _ => return None,
        }
        Some(flags)
    }

    /// How long before its expiry the lease is renewed.
    #[must_use]
    pub fn renew_margin(&self) -> Duration {
        Duration::from_secs(60) * u32::from(self.subnet_lease_renew_margin)
    }
}

/// Both or neither of two flags.
fn together<A, B>(
    (one, a): (&str, Option<A>),
    (other, b): (&str, Option<B>),
) -> Result<Option<(A, B)>, FlagError> {
    let alone = |given: &str, missing: &str| {
        FlagError::Syntax(format!("the flag --{given} is given without --{missing}: they belong together"))
    };
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (None, None) => Ok(None),
        (Some(_), None) => Err(alone(one, other)),
        (None, Some(_)) => Err(alone(other, one)),
    }
}

#[cfg(test)]
mod tests {
    use overlay::offload::Offload;

    use super::*;

    fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Flags, String> {
        let args = args.iter().map(OsString::from);
        let lookup =
            |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        Flags::parse_from(args, lookup).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_flannelds() {
        let flags = parse(&[], &[]).unwrap();
        assert_eq!(flags.etcd_endpoints.0, ["http://127.0.0.1:4001", "http://127.0.0.1:2379"]);
        assert_eq!(flags.etcd_prefix, "/coreos.com/network");
        assert_eq!(flags.store, StoreKind::Etcd);
        assert_eq!(flags.subnet_file.to_str(), Some("/run/flannel/subnet.env"));
        assert_eq!(flags.renew_margin(), Duration::from_secs(3600));
        assert!(!flags.ip_masq && flags.iptables_forward_rules && flags.return_path_masq);
        assert_eq!((flags.healthz_ip.to_string().as_str(), flags.healthz_port), ("0.0.0.0", 0));
        assert!(flags.firewall.is_none() && !flags.ip_blackhole_route);
    }

    #[test]
    fn the_four_ways_to_write_a_flag() {
        for args in [
            &["-iface=eth2", "-ip-masq"][..],
            &["--iface=eth2", "--ip-masq"],
            &["-iface", "eth2", "-ip-masq=true"],
            &["--iface", "eth2", "--ip-masq=1"],
        ] {
            let flags = parse(args, &[]).unwrap();
            assert_eq!(flags.iface, ["eth2"], "{args:?}");
            assert!(flags.ip_masq, "{args:?}");
        }
    }

    #[test]
    fn repeated_flags_add_up_or_the_last_one_wins() {
        let flags = parse(
            &[
                "-iface=eth1",
                "-iface",
                "eth2",
                "-v=1",
                "-v",
                "2",
                "-etcd-endpoints=http://a:1",
                "-etcd-endpoints=http://b:1",
            ],
            &[],
        )
        .unwrap();
        assert_eq!(flags.etcd_endpoints.0, ["http://b:1"]);
        assert_eq!(flags.iface, ["eth1", "eth2"]);
        assert_eq!(flags.verbosity, 2);
    }

    #[test]
    fn settings_tell_what_is_given_and_no_secret() {
        let env = [("FLANNELD_ETCD_PASSWORD", "hush"), ("FLANNELD_ETCD_USERNAME", "flannel")];
        let args =
            ["-etcd-endpoints=http://a:1,http://me:hush@b:2", "-iface=eth1", "-iface=eth2", "-ip-masq"];
        let settings = parse(&args, &env).unwrap().settings;
        let told = |name: &str| {
            let setting = settings.iter().find(|setting| setting.name == name).unwrap();
            (setting.value.as_deref(), setting.given)
        };
        assert_eq!(told("etcd-endpoints"), (Some("http://a:1,http://***@b:2"), true));
        assert_eq!(told("etcd-password"), (Some("***"), true));
        assert_eq!(told("etcd-username"), (Some("flannel"), true));
        assert_eq!(told("iface"), (Some("eth1,eth2"), true));
        assert_eq!(told("ip-masq"), (Some("true"), true));
        assert_eq!((told("queues"), told("spin")), ((None, false), (Some("50"), false)));
        assert!(settings.iter().all(|setting| !matches!(setting.name.as_str(), "version" | "help")));
        assert!(!format!("{settings:?}").contains("hush"));
    }

    #[test]
    fn offloads_are_all_none_or_listed() {
        let offloads = |value: &str| parse(&[&format!("--offload={value}")], &[]).unwrap().offload.0;
        assert_eq!(offloads("auto"), Offload::ALL);
        assert_eq!(offloads("off"), []);
        assert_eq!(offloads("gso,tso"), [Offload::Gso, Offload::Tso]);
        let spread = |flags: &[&str]| parse(flags, &[]).unwrap().source_port_spread;
        assert_eq!(spread(&[]), None);
        assert_eq!(spread(&["--source-port-spread=off"]), Some(false));
        assert_eq!(spread(&["--source-port-spread=on"]), Some(true));
    }

    #[test]
    fn a_group_is_known_by_name_and_number() {
        let group = |value: &str| parse(&[&format!("--control-socket-group={value}")], &[]).unwrap();
        assert_eq!(group("root").control_socket_group, Some(0));
        assert_eq!(group("4242").control_socket_group, Some(4242));
    }

    #[test]
    fn the_environment_counts_unless_the_command_line_says_otherwise() {
        let env = [
            ("FLANNELD_ETCD_PREFIX", "/kube-centos/network"),
            ("FLANNELD_IP_MASQ", "true"),
            ("FLANNELD_IFACE", ""),
        ];
        let flags = parse(&["-ip-masq=false"], &env).unwrap();
        assert_eq!(flags.etcd_prefix, "/kube-centos/network");
        assert!(!flags.ip_masq);
        assert!(flags.iface.is_empty(), "an empty variable is none");
    }

    #[test]
    fn a_text_given_as_nothing_is_not_given() {
        const NUMBERS: [&str; 9] =
            ["port", "ttl", "margin", "resync", "peers", "queues", "spin", "v", "group"];
        let defaults = format!("{:?}", Flags { settings: Vec::new(), ..parse(&[], &[]).unwrap() });
        let definition = Flags::definition();
        let names = definition.get_arguments().filter_map(clap::Arg::get_long);
        let mut texts = 0;
        for name in names.filter(|name| !matches!(*name, "help" | "version")) {
            let empty = format!("-{name}=");
            let switch =
                definition.get_arguments().any(|arg| arg.get_long() == Some(name) && go::is_switch(arg));
            if switch || NUMBERS.iter().any(|number| name.ends_with(number)) {
                assert!(parse(&[&empty], &[]).unwrap_err().contains(name), "a number or a switch: {empty}");
                continue;
            }
            texts += 1;
            // As flannel has it, the command line's word counts, also if it is none.
            let env = [(format!("FLANNELD_{}", name.replace('-', "_").to_uppercase()), "nonsense")];
            let env = [(env[0].0.as_str(), env[0].1)];
            for args in [vec![empty.as_str()], vec!["-queues=4", &empty, "-queues=2"]] {
                let flags = parse(&args, &env).unwrap_or_else(|error| panic!("{args:?}: {error}"));
                let flags = Flags { settings: Vec::new(), queues: None, ..flags };
                assert_eq!(format!("{flags:?}"), defaults, "{args:?}");
            }
        }
        assert!(texts > 20, "{texts}");
        let flags = parse(&["-iface=", "-iface=eth1", "-public-ip=1.2.3.4", "-public-ip", ""], &[]).unwrap();
        assert_eq!((flags.iface.as_slice(), flags.public_ip), (&["eth1".to_owned()][..], None));
    }

    #[test]
    fn errors_name_flag_value_and_what_is_allowed() {
        for (args, parts) in [
            (&["-no-such-flag=1"][..], &["-no-such-flag", "--help"][..]),
            (&["-kubeconfig-file=/kubeconfig"], &["--kubeconfig-file", "not supported", "Kubernetes"]),
            (&["-kube-subnet-mgr"], &["--kube-subnet-mgr", "not supported", "--etcd-endpoints"]),
            (&["-kube-subnet-mgr=true"], &["--kube-subnet-mgr", "not supported"]),
            (&["-kube-api-url", "https://api"], &["--kube-api-url", "not supported"]),
            (&["-kube-annotation-prefix=x"], &["--kube-annotation-prefix", "not supported"]),
            (&["-net-config-path=/net-conf.json"], &["--net-config-path", "not supported"]),
            (&["-set-node-network-unavailable"], &["--set-node-network-unavailable", "not supported"]),
            (&["-public-ipv6=fd00::1"], &["--public-ipv6", "not supported", "IPv4 only"]),
            (&["-public-ipv6"], &["--public-ipv6", "needs a value"]),
            (&["-logtostderr=perhaps"], &["--logtostderr", "perhaps", "'true' or 'false'"]),
            (&["-vmodule"], &["--vmodule", "needs a value"]),
            (&["-etcd-keyfile=/key.pem"], &["--etcd-keyfile", "without --etcd-certfile"]),
            (&["-etcd-certfile=/cert.pem", "-etcd-keyfile="], &["--etcd-certfile", "without --etcd-keyfile"]),
            (&["-etcd-username=flannel"], &["--etcd-username", "without --etcd-password"]),
            (&["-etcd-password=secret"], &["--etcd-password", "without --etcd-username"]),
            (&["--queues=0"], &["--queues", "'0'", "1..=256"]),
            (&["--source-check=maybe"], &["--source-check", "maybe", "strict", "loose", "off"]),
            (&["--firewall=ufw"], &["--firewall", "ufw", "auto", "nftables", "iptables", "none"]),
            (&["--ip-masq=maybe"], &["--ip-masq", "maybe", "true", "false"]),
            (&["--ip-masq", "true"], &["'true'", "not a flag"]),
            (&["--subnet-lease-renew-margin=1440"], &["1440", "1..=1439"]),
            (&["--iface-regex=eth(0"], &["--iface-regex", "eth(0", "unclosed group"]),
            (&["--iface-can-reach=gateway"], &["--iface-can-reach", "gateway", "IPv4 address"]),
            (&["--public-ip=300.1.2.3"], &["--public-ip", "300.1.2.3", "IPv4 address"]),
            (&["--public-ip=0.0.0.0"], &["--public-ip", "0.0.0.0", "one host"]),
            (&["--public-ip=224.0.0.1"], &["--public-ip", "224.0.0.1", "one host"]),
            (&["--etcd-endpoints=https://"], &["--etcd-endpoints", "https://HOST:PORT"]),
            (&["--etcd-endpoints=,"], &["--etcd-endpoints", "it names no endpoint"]),
            (&["--etcd-endpoints=ftp://e:2379"], &["--etcd-endpoints", "'ftp://e:2379'", "http://HOST:PORT"]),
            (&["--store=zookeeper"], &["--store", "zookeeper", "dir:PATH"]),
            (&["--io=dpdk"], &["--io", "dpdk", "udp", "xdp", "auto"]),
            (&["--seccomp=maybe"], &["--seccomp", "maybe", "on", "kill", "log", "off"]),
            (
                &["--control-socket-group=nobody-has-it"],
                &["--control-socket-group", "nobody-has-it", "no such group"],
            ),
            (&["--offload=tso,lro"], &["--offload", "lro", "tso, uso, gso, gro, tunnel-gso"]),
            (&["--source-port-spread=maybe"], &["--source-port-spread", "maybe", "'on' or 'off'"]),
            (&["--healthz-port=70000"], &["--healthz-port", "70000"]),
            (&["--healthz-ip=everywhere"], &["--healthz-ip", "everywhere"]),
            (&["--iface"], &["--iface", "value"]),
            (&["stray"], &["stray"]),
        ] {
            let error = parse(args, &[]).unwrap_err();
            for part in parts {
                assert!(error.contains(part), "{args:?}: no {part:?} in: {error}");
            }
            assert!(!error.contains("For more information"), "{error}");
        }
        let error = parse(&[], &[("FLANNELD_QUEUES", "many")]).unwrap_err();
        assert!(error.contains("FLANNELD_QUEUES") && error.contains("many"), "{error}");
        let error = parse(&[], &[("FLANNELD_KUBECONFIG_FILE", "/kubeconfig")]).unwrap_err();
        assert!(error.contains("FLANNELD_KUBECONFIG_FILE") && error.contains("not supported"), "{error}");
        assert!(parse(&[], &[("FLANNELD_KUBECONFIG_FILE", "")]).is_ok(), "an empty variable is none");
    }

    #[test]
    fn what_asks_for_nothing_is_accepted_of_any_flag_of_flannelds() {
        let args = [
            "-kube-subnet-mgr=false",
            "-kubeconfig-file=",
            "-public-ipv6",
            "",
            "-kube-api-url",
            "",
            "-kube-annotation-prefix=flannel.alpha.coreos.com",
            "-net-config-path=/etc/kube-flannel/net-conf.json",
        ];
        let flags = parse(&args, &[]).unwrap();
        assert!(flags.without_effect.is_empty(), "nothing worth a word: {:?}", flags.without_effect);
        let env = [("FLANNELD_KUBE_SUBNET_MGR", "false"), ("FLANNELD_PUBLIC_IPV6", "")];
        assert!(parse(&["-v=1"], &env).is_ok());
        let env = [("FLANNELD_KUBE_SUBNET_MGR", "true")];
        assert!(parse(&["-kube-subnet-mgr=false"], &env).is_ok(), "the command line wins");
        for variable in [
            "KUBE_SUBNET_MGR",
            "KUBE_API_URL",
            "KUBE_ANNOTATION_PREFIX",
            "KUBECONFIG_FILE",
            "NET_CONFIG_PATH",
            "SET_NODE_NETWORK_UNAVAILABLE",
            "PUBLIC_IPV6",
        ] {
            let variable = format!("FLANNELD_{variable}");
            let error = parse(&[], &[(&variable, "true")]).unwrap_err();
            assert!(error.contains(&variable) && error.contains("not supported"), "{error}");
        }
    }

    #[test]
    fn flags_of_flannels_log_are_accepted_without_effect() {
        let args = [
            "-logtostderr",
            "--alsologtostderr=false",
            "-vmodule=vxlan=9",
            "-vmodule",
            "udp=9",
            "-log_backtrace_at=main.go:7",
            "--stderrthreshold",
            "2",
            "-log_dir=/var/log",
            "-ip-masq",
        ];
        let flags = parse(&args, &[("FLANNELD_LOG_FILE", "/log"), ("FLANNELD_LOG_DIR", "/tmp")]).unwrap();
        let accepted = [
            "logtostderr",
            "alsologtostderr",
            "vmodule",
            "log_backtrace_at",
            "stderrthreshold",
            "log_dir",
            "log_file",
        ];
        assert_eq!(flags.without_effect, accepted, "each of them once");
        assert!(flags.ip_masq);
        let error = parse(&[], &[("FLANNELD_LOGTOSTDERR", "maybe")]).unwrap_err();
        assert!(error.contains("FLANNELD_LOGTOSTDERR") && error.contains("maybe"), "{error}");
    }

    #[test]
    fn etcd_is_reached_by_certificates_and_a_user() {
        let flags = parse(
            &[
                "-etcd-endpoints=https://a:2379,http://b:2379",
                "-etcd-cafile=/ca.pem",
                "-etcd-certfile",
                "/cert.pem",
            ],
            &[
                ("FLANNELD_ETCD_KEYFILE", "/key.pem"),
                ("FLANNELD_ETCD_USERNAME", "flannel"),
                ("FLANNELD_ETCD_PASSWORD", "secret"),
            ],
        )
        .unwrap();
        assert_eq!(flags.etcd_endpoints.0, ["https://a:2379", "http://b:2379"]);
        let access = flags.etcd_access().unwrap();
        assert_eq!(access.ca, Some("/ca.pem".into()));
        let identity = IdentityFiles { certificate: "/cert.pem".into(), key: "/key.pem".into() };
        assert_eq!(access.identity, Some(identity));
        let user = access.user.unwrap();
        assert_eq!((user.name.as_str(), user.password.0.as_str()), ("flannel", "secret"));
        assert!(!format!("{flags:?}").contains("secret"), "{flags:?}");
        let nothing =
            ["-etcd-cafile=", "-etcd-certfile=", "-etcd-keyfile=", "-etcd-username=", "-etcd-password="];
        assert_eq!(parse(&nothing, &[]).unwrap().etcd_access().unwrap(), Access::default());
    }

    #[test]
    fn health_is_off_at_any_port_that_flanneld_takes_for_none() {
        for (args, port) in [
            (&["-healthz-port=-1"][..], 0),
            (&["--healthz-port=-1"], 0),
            (&["-healthz-port", "-1"], 0),
            (&["-healthz-port=0"], 0),
            (&["-healthz-port=8081"], 8081),
        ] {
            assert_eq!(parse(args, &[]).unwrap().healthz_port, port, "{args:?}");
        }
        assert_eq!(parse(&[], &[("FLANNELD_HEALTHZ_PORT", "-1")]).unwrap().healthz_port, 0);
    }

    #[test]
    fn a_store_that_no_flag_names_may_be_that_of_an_earlier_run() {
        let with = |args: &[&str], store: &str| {
            let flags = parse(args, &[]).unwrap().with_store(store)?;
            Some((flags.store, flags.etcd_endpoints.0.join(","), flags.etcd_prefix))
        };
        let dir = |path: &str| StoreKind::Dir(path.into());
        assert_eq!(with(&[], "dir /var/lib/my overlay").unwrap().0, dir("/var/lib/my overlay"));
        let etcd = "etcd https://a:2379,http://b:2379 /my/net";
        let (kind, urls, prefix) = with(&["-iface=eth0"], etcd).unwrap();
        assert_eq!(kind, StoreKind::Etcd);
        assert_eq!((urls.as_str(), prefix.as_str()), ("https://a:2379,http://b:2379", "/my/net"));
        for args in [["--store=etcd"], ["-etcd-endpoints=http://c:2379"], ["-etcd-prefix=/other"]] {
            assert_eq!(with(&args, etcd), None, "{args:?}");
        }
        for unreadable in ["", "etcd", "consul http://a"] {
            assert_eq!(with(&[], unreadable), None, "{unreadable}");
        }
    }

    #[test]
    fn what_looks_like_a_flag_and_is_none_is_named_with_what_is_meant() {
        let names = [
            "FLANNELD_IFCAE",
            "FLANNELD_IFACE",
            "FLANNELD_KUBE_SUBNET_MGR",
            "FLANNELD_VMODULE",
            "FLANNELD_CONF",
            "FLANNELD_ETCD_ENDPOINT",
            "FLANNEL_IFCAE",
            "HOME",
        ];
        let unknown = Flags::unknown_variables(names.map(OsString::from));
        let unknown: Vec<_> = unknown.iter().map(|(name, meant)| (name.as_str(), meant.as_deref())).collect();
        assert_eq!(
            unknown,
            [
                ("FLANNELD_IFCAE", Some("FLANNELD_IFACE")),
                ("FLANNELD_CONF", None),
                ("FLANNELD_ETCD_ENDPOINT", Some("FLANNELD_ETCD_ENDPOINTS")),
            ]
        );
        let error = parse(&["-etcd-endpoint=http://a:1"], &[]).unwrap_err();
        assert!(error.contains("is --etcd-endpoints meant?"), "{error}");
    }

    #[test]
    fn help_is_had_in_short_and_in_full() {
        let (short, full) = (parse(&["-h"], &[]).unwrap_err(), parse(&["-help"], &[]).unwrap_err());
        assert!(short.contains("--ip-masq[=<BOOL>]") && !short.contains("vmodule"), "{short}");
        assert!(full.contains("--ip-masq[=<BOOL>]") && full.contains("vmodule"), "{full}");
    }

    #[test]
    fn the_definition_is_sound() {
        Flags::definition().debug_assert();
    }
}
