//! The scripts that stand between flannel's files and docker's, run as systemd runs them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A subnet file, and where docker's options go.
struct Files {
    directory: TempDir,
}

impl Files {
    fn with(subnet_file: &str) -> Self {
        let files = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        fs::write(files.path("subnet.env"), subnet_file).expect("write the subnet file");
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(script("mk-docker-opts.sh"));
        command.arg("-f").arg(self.path("subnet.env")).arg("-d").arg(self.path("made/docker"));
        command.args(arguments).output().expect("run the script")
    }

    /// What it writes with these arguments.
    fn written(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(self.path("made/docker")).expect("read what was written")
    }

    /// What it says when it refuses these arguments, writing nothing.
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(!self.path("made/docker").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bin").join(name)
}

const SUBNET_FILE: &str =
    "FLANNEL_NETWORK=172.33.0.0/16\nFLANNEL_SUBNET=172.33.68.1/24\nFLANNEL_MTU=1500\nFLANNEL_IPMASQ=false\n";
const BIP: &str = "DOCKER_OPT_BIP=\"--bip=172.33.68.1/24\"\n";
const IP_MASQ: &str = "DOCKER_OPT_IPMASQ=\"--ip-masq=true\"\n";
const MTU: &str = "DOCKER_OPT_MTU=\"--mtu=1500\"\n";

#[test]
fn dockers_options_are_those_of_flannels_script() {
    let files = Files::with(SUBNET_FILE);
    let all = |key: &str| format!("{key}=\" --bip=172.33.68.1/24 --ip-masq=true --mtu=1500\"\n");
    assert_eq!(
        files.written(&["-k", "DOCKER_NETWORK_OPTIONS"]),
        format!("{BIP}{IP_MASQ}{MTU}{}", all("DOCKER_NETWORK_OPTIONS"))
    );
    assert_eq!(files.written(&["-i"]), format!("{BIP}{IP_MASQ}{MTU}"));
    assert_eq!(files.written(&["-c"]), all("DOCKER_OPTS"));
    assert_eq!(
        files.written(&["-m"]),
        format!("{BIP}{MTU}DOCKER_OPTS=\" --bip=172.33.68.1/24 --mtu=1500\"\n")
    );
    let mode = fs::metadata(files.path("made/docker")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o644, "docker's unit may be read by anyone");
    assert_eq!(fs::read_dir(files.path("made")).expect("the directory").count(), 1, "nothing is left over");
}

#[test]
fn whoever_masquerades_docker_does_the_other_thing() {
    let files = Files::with(&SUBNET_FILE.replace("IPMASQ=false", "IPMASQ=true"));
    assert!(files.written(&[]).contains("--ip-masq=false"));
    let maybe = Files::with(&SUBNET_FILE.replace("IPMASQ=false", "IPMASQ=maybe"));
    let said = maybe.refused(&[]);
    assert!(said.contains("FLANNEL_IPMASQ is 'maybe'") && said.contains("subnet.env"), "{said}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let files = Files::with(SUBNET_FILE);
    for (arguments, named) in [
        (&["-k", "two words"][..], "'two words'"),
        (&["-k", ""], "-k ''"),
        (&["stray"], "'stray'"),
        (&["-x"], "Usage:"),
        (&["-f", "/no/such/file"], "/no/such/file"),
    ] {
        let said = files.refused(arguments);
        assert!(said.contains(named), "{arguments:?}: {said}");
    }
}

#[test]
fn a_value_is_neither_a_command_nor_another_option() {
    for (line, named) in [
        ("FLANNEL_SUBNET=$(touch made-by-the-file)", "FLANNEL_SUBNET is '$(touch made-by-the-file)'"),
        ("FLANNEL_SUBNET=172.33.68.1/24 -H tcp://0.0.0.0:2375", "FLANNEL_SUBNET is '172.33.68.1/24 -H"),
        ("FLANNEL_MTU=1450 --privileged", "FLANNEL_MTU is '1450 --privileged'"),
    ] {
        let said = Files::with(line).refused(&["-i"]);
        assert!(said.contains(named) && said.contains("subnet.env"), "{said}");
    }
    assert!(!Path::new("made-by-the-file").exists());
    let quoted = Files::with("FLANNEL_SUBNET=\"172.33.68.1/24\"\nFLANNEL_MTU='1450'\n");
    assert_eq!(quoted.written(&["-i"]), format!("{BIP}DOCKER_OPT_MTU=\"--mtu=1450\"\n"));
}

#[test]
fn flannels_variables_become_flags_and_arguments_come_last() {
    let start = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(script("flanneld-start"));
        command.env("OVERLAYD", "/bin/echo").envs(variables.iter().copied()).args(arguments);
        String::from_utf8(command.output().expect("run the script").stdout).expect("text")
    };
    let now = [
        ("FLANNEL_ETCD_ENDPOINTS", "http://172.17.8.101:2379"),
        ("FLANNEL_ETCD_PREFIX", "/kube-centos/network"),
    ];
    assert_eq!(
        start(&now, &["-iface=eth2"]),
        "-etcd-endpoints=http://172.17.8.101:2379 -etcd-prefix=/kube-centos/network -iface=eth2\n"
    );
    let old = [("FLANNEL_ETCD", "http://a:4001"), ("FLANNEL_ETCD_KEY", "/old")];
    assert_eq!(start(&old, &[]), "-etcd-endpoints=http://a:4001 -etcd-prefix=/old\n");
    assert_eq!(start(&[], &["-v", "2"]), "-v 2\n");
}
