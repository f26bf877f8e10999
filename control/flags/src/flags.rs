//! Every flag: its name, its help, its default, and what its value is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Command, CommandFactory, Parser};
use regex::Regex;

use crate::endpoints::{Endpoints, endpoints};
use crate::go::{self, parse_bool};
use crate::values::{
    LogFormat, OffloadFlag, PriorityFlag, SeccompFlag, SourceCheckFlag, StoreKind, file, group, health_port,
    offload, on_or_off, one_host, page_address, password, regex, store,
};
use overlay_api::config::Setting;
use overlay_host::FirewallKind;
use overlay_host::iface::IfaceSpec;
use overlay_leases::store::Password;
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
    pub(super) version: Option<bool>,

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

    /// How long before its expiry the lease is renewed.
    #[must_use]
    pub fn renew_margin(&self) -> Duration {
        Duration::from_secs(60) * u32::from(self.subnet_lease_renew_margin)
    }
}
