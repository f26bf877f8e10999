//! Flags read from the command line and the environment.

use std::ffi::OsString;

use clap::FromArgMatches;

use crate::flags::Flags;
use crate::go::{self, FlagError};
use crate::settings;

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
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use overlay::offload::Offload;

    use super::*;
    use crate::values::StoreKind;

    pub(crate) fn parse(args: &[&str], env: &[(&str, &str)]) -> Result<Flags, String> {
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
