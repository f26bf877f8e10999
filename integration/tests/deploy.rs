//! The scripts that stand between flannel's files and docker's, run as systemd runs them.

use std::collections::BTreeSet;
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
fn options_that_the_environment_holds_stay() {
    let files = Files::with(SUBNET_FILE);
    let overlays = "--bip=172.33.68.1/24 --ip-masq=true --mtu=1500";
    let run = |variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = Command::new(script("mk-docker-opts.sh"));
        command.arg("-f").arg(files.path("subnet.env")).arg("-d").arg(files.path("docker")).args(arguments);
        assert!(command.envs(variables.iter().copied()).status().expect("run the script").success());
        fs::read_to_string(files.path("docker")).expect("read what was written")
    };
    let held = [("DOCKER_OPTS", "--log-driver=syslog"), ("DOCKER_OPT_X", "--debug"), ("DOCKER_OPT_A", "-D")];
    let x = "DOCKER_OPT_X=\"--debug\"\n";
    let a = "DOCKER_OPT_A=\"-D\"\n";
    // As flannel's script writes them: all by name, behind what the key holds already.
    let all = format!("DOCKER_OPTS=\"--log-driver=syslog  -D {overlays} --debug\"\n");
    for (variables, arguments, wanted) in [
        (&held[..], &["-c"][..], all.clone()),
        (&held, &["-i"], format!("{a}{BIP}{IP_MASQ}{MTU}{x}")),
        (&held, &[], format!("{a}{BIP}{IP_MASQ}{MTU}{x}{all}")),
        (&held, &["-c", "-m"], all.replace(" --ip-masq=true", "")),
        (&held, &["-c", "-k", "OTHER"], format!("OTHER=\" -D {overlays} --debug\"\n")),
        (&[("NET", "-g /data")], &["-c", "-k", "NET"], format!("NET=\"-g /data  {overlays}\"\n")),
        (&[("DOCKER_OPT_MTU", "--mtu=9")], &["-i"], format!("{BIP}{IP_MASQ}{MTU}")),
        (
            &[("DOCKER_OPTS", r#"--label="a b" \"#)],
            &["-c"],
            format!("DOCKER_OPTS=\"--label=\\\"a b\\\" \\\\  {overlays}\"\n"),
        ),
    ] {
        assert_eq!(run(variables, arguments), wanted, "{variables:?} {arguments:?}");
    }
}

#[test]
fn one_file_may_hold_the_subnet_and_dockers_options() {
    let files = Files::with(&format!("{SUBNET_FILE}# the site's\nOTHER=1\n"));
    let once = |key: &str| {
        let mut command = Command::new(script("mk-docker-opts.sh"));
        command.arg("-f").arg(files.path("subnet.env")).arg("-d").arg(files.path("subnet.env"));
        assert!(command.args(["-c", "-k", key]).status().expect("run the script").success());
        fs::read_to_string(files.path("subnet.env")).expect("read the file")
    };
    let line = |key: &str| format!("{key}=\" --bip=172.33.68.1/24 --ip-masq=true --mtu=1500\"\n");
    let one = format!("{SUBNET_FILE}# the site's\nOTHER=1\n{}", line("ONE"));
    assert_eq!(once("ONE"), one);
    assert_eq!(once("ONE"), one, "once more");
    assert_eq!(once("TWO"), one.clone() + &line("TWO"));
}

/// What overlayd is started with, as words, and what is said before: with the variables that systemd reads from
/// these lines of a file, and the file itself.
fn started(file: &str, arguments: &[&str]) -> (String, String) {
    started_among(&Files::with(""), file, arguments)
}

fn started_among(files: &Files, file: &str, arguments: &[&str]) -> (String, String) {
    let joined = file.replace("\\\n", "");
    let variables = joined.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let variables = variables.filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.contains(' '));
    let variables = variables.map(|(name, value)| {
        let quoted = value.strip_prefix(['"', '\'']).and_then(|value| value.strip_suffix(['"', '\'']));
        (name, quoted.unwrap_or(value))
    });
    started_with(files, file, &variables.collect::<Vec<_>>(), arguments)
}

/// With these variables, whatever the file has.
fn started_with(
    files: &Files,
    file: &str,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> (String, String) {
    fs::write(files.path("flanneld"), file).expect("write a file");
    let mut command = Command::new(script("flanneld-start"));
    command.envs(variables.iter().copied());
    command.env("FLANNEL_FILES", files.path("flanneld")).args(arguments);
    let print = files.path("overlayd");
    fs::write(&print, "#!/bin/sh\nfor word; do printf '[%s]' \"$word\"; done\n").expect("write a program");
    fs::set_permissions(&print, fs::Permissions::from_mode(0o755)).expect("make it one");
    let runtime = ["flannel", "overlayd"].map(|name| files.path("run").join(name).display().to_string());
    runtime.iter().for_each(|directory| fs::create_dir_all(directory).expect("make a directory"));
    command.env("OVERLAYD", &print).env("RUNTIME_DIRECTORY", runtime.join(":"));
    let output = command.output().expect("run the script");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn what_hosts_have_for_flanneld_becomes_flags() {
    for (what, file, wanted) in [
        (
            "CentOS's, as it is now",
            "# Flanneld configuration options\nFLANNEL_ETCD_ENDPOINTS=\"http://172.17.8.101:2379\"\n\
             FLANNEL_ETCD_PREFIX=\"/kube-centos/network\"\nFLANNEL_OPTIONS=\"-iface=eth2\"\n",
            "[-etcd-endpoints=http://172.17.8.101:2379][-etcd-prefix=/kube-centos/network][-iface=eth2]",
        ),
        (
            "and as it was",
            "FLANNEL_ETCD=\"http://a:4001\"\nFLANNEL_ETCD_KEY=\"/old\"\n#FLANNEL_OPTIONS=\"\"\n",
            "[-etcd-endpoints=http://a:4001][-etcd-prefix=/old]",
        ),
        (
            "atomic.io's",
            "FLANNEL_ETCD_ENDPOINTS=http://a:2379\nFLANNEL_ETCD_PREFIX=/atomic.io/network\n\
             FLANNEL_OPTIONS=\"-logtostderr=false -log_dir=/var/log/flannel/ --iface=enp0s8\"\n",
            "[-etcd-endpoints=http://a:2379][-etcd-prefix=/atomic.io/network][-logtostderr=false]\
             [-log_dir=/var/log/flannel/][--iface=enp0s8]",
        ),
        (
            "flags as the values of variables",
            "FLANNEL_ETCD=\"-etcd-endpoints=https://a:2379,https://b:2379 -etcd-cafile=/ca.pem\"\n\
             FLANNEL_ETCD_KEY=\"-etcd-prefix=/x\"\n",
            "[-etcd-endpoints=https://a:2379,https://b:2379][-etcd-cafile=/ca.pem][-etcd-prefix=/x]",
        ),
        (
            "options under flanneld's own name",
            "FLANNELD_OPTIONS=\"--ip-masq=true -iface=eth1\"\nFLANNEL_ETCD_ENDPOINTS=http://a:1\n",
            "[-etcd-endpoints=http://a:1][--ip-masq=true][-iface=eth1]",
        ),
        (
            "etcd's names, and export",
            "ETCD_ENDPOINTS=\"https://a:2379\"\nETCD_PREFIX='/p'\nexport ETCD_CAFILE=\"/etc/ca.pem\"\n\
             \texport ETCD_CERTFILE=/c.pem\nexport ETCD_KEYFILE='/k.pem'\n",
            "[-etcd-endpoints=https://a:2379][-etcd-prefix=/p][-etcd-cafile=/etc/ca.pem][-etcd-certfile=/c.pem]\
             [-etcd-keyfile=/k.pem]",
        ),
        (
            "flannel's names before etcd's",
            "ETCD_ENDPOINTS=http://b:1\nFLANNEL_ETCD_ENDPOINTS=http://a:1\nETCD_PREFIX=/b\nFLANNELD_ETCD_PREFIX=/a\n",
            "[-etcd-endpoints=http://a:1]",
        ),
        (
            "quotes in a value",
            "FLANNEL_OPTIONS=\"-iface-regex='^10\\.1\\.' -v 2 -x='a b'c\"\n",
            "[-iface-regex=^10\\.1\\.][-v][2][-x=a bc]",
        ),
        (
            "one value over several lines, as the guides for binaries have it",
            "FLANNEL_OPTIONS=\"--etcd-endpoints=https://a:2379 \\\n-etcd-cafile=/opt/ca.pem \\\n-etcd-keyfile=/opt/k.pem\"\n",
            "[--etcd-endpoints=https://a:2379][-etcd-cafile=/opt/ca.pem][-etcd-keyfile=/opt/k.pem]",
        ),
        (
            "CoreOS's, all of it overlayd's to read",
            "FLANNELD_IFACE=10.0.0.4\nFLANNELD_ETCD_ENDPOINTS=http://a:1\n",
            "",
        ),
        (
            "other names",
            "FLANNEL_IFACE=eth1\nFLANNEL_PUBLIC_IP=192.168.1.1\n",
            "[-iface=eth1][-public-ip=192.168.1.1]",
        ),
        (
            "comments behind values, as a shell has them",
            "export FLANNEL_ETCD_ENDPOINTS=\"http://a:1\"   # it's rack 1\nexport FLANNEL_ETCD_PREFIX='/x'\t# \"x\n\
             export FLANNEL_IFACE=eth1 # lan\nexport FLANNEL_PUBLIC_IP=1#2\n",
            "[-etcd-endpoints=http://a:1][-etcd-prefix=/x][-iface=eth1][-public-ip=1#2]",
        ),
        (
            "line ends of Windows",
            "FLANNEL_OPTIONS=\"-iface=eth1\"\r\n\r\nexport FLANNEL_ETCD_PREFIX=/x\r\n",
            "[-etcd-prefix=/x][-iface=eth1]",
        ),
        (
            "and its byte order mark",
            "\u{feff}FLANNEL_OPTIONS=-v=1 -iface=eth1\r\nFLANNEL_ETCD_PREFIX=/x\r\n",
            "[-etcd-prefix=/x][-v=1][-iface=eth1]",
        ),
        (
            "several in one line, and over several",
            "export FLANNEL_IFACE=eth1 FLANNEL_ETCD_PREFIX=\"/x\" \\\n  FLANNEL_PUBLIC_IP=1.1.1.1; \
             export\tFLANNEL_OPTIONS='-v=1 \n-w'; # c\n",
            "[-etcd-prefix=/x][-iface=eth1][-public-ip=1.1.1.1][-v=1][-w]",
        ),
        (
            "what a shell takes apart",
            "export FLANNEL_OPTIONS=\"-x=\\\"a b\\\" \\\n-y=\\\\ -z\\w\"\nexport FLANNEL_IFACE=a\\ 'b'\"c\"\n",
            "[-iface=a bc][-x=a b][-y=\\][-z\\w]",
        ),
        (
            "what only a shell would run",
            "export FLANNEL_PUBLIC_IP=$(touch made-by-the-file) FLANNEL_IFACE=`touch made-by-the-file`\n\
             export FLANNEL_ETCD_PREFIX=\"$(touch made-by-the-file)$HOME\"\n",
            "[-etcd-prefix=$(touch made-by-the-file)$HOME][-iface=`touch made-by-the-file`]\
             [-public-ip=$(touch made-by-the-file)]",
        ),
        (
            "the last line of a name, and its export",
            "export FLANNEL_IFACE=a\nexport FLANNEL_IFACE=b\nFLANNEL_ETCD_PREFIX=/x\nexport FLANNEL_ETCD_PREFIX\n",
            "[-etcd-prefix=/x][-iface=b]",
        ),
        ("no end of the last line", "export FLANNEL_IFACE=eth1 \\", "[-iface=eth1]"),
        ("nothing", "FLANNEL_ETCD_ENDPOINTS=\"\"\nFLANNEL_OPTIONS=\n", ""),
        ("no variables at all", "{\"Network\": \"10.1.0.0/16\"}\n", ""),
        ("not to be seen on a command line", "FLANNEL_ETCD_PASSWORD=hush\n", ""),
    ] {
        assert_eq!(started(file, &[]), (wanted.to_owned(), String::new()), "{what}");
    }
    assert!(!Path::new("made-by-the-file").exists());
    // A unit that gives the options as arguments has the last word, also with quotes left on.
    let arguments = ["-iface-regex='^10\\.1\\.'", "-iface=it's", ""];
    let file = "FLANNEL_OPTIONS=-iface=eth1\nFLANNEL_ETCD_PREFIX=/x\n";
    assert_eq!(started(file, &arguments).0, "[-etcd-prefix=/x][-iface-regex=^10\\.1\\.][-iface=it's][]");
}

#[test]
fn what_is_not_understood_in_a_file_of_flannels_is_said_by_name() {
    let file = "FLANNEL_IFASE=eth0\niface=eth1\nexport X Y=2\nSOME=\"a\nb=c\n\"\nexport FLANNELD_IFACE=eth2\n\
        HTTPS_PROXY=http://p\nFLANNEL_IMAGE_TAG=v1\n";
    let (words, said) = started(file, &["-v=1"]);
    assert_eq!(words, "[-v=1]");
    for name in ["FLANNEL_IFASE is not", "iface is not", "Y is not", "SOME is not"] {
        assert_eq!(said.matches(name).count(), 1, "{name}: {said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
}

/// The variables are as systemd 252 has them from these files.
#[test]
fn what_systemd_has_wrong_is_mended_and_said_where_it_is_doubtful() {
    const UNCLOSED: &str = "FLANNEL_OPTIONS is left out: its quote has no end";
    for (file, variables, wanted, said) in [
        // A comment.
        (
            "FLANNEL_ETCD_PREFIX=\"/x\"   # it's old\nTYPO_X=1\n",
            &[("FLANNEL_ETCD_PREFIX", "/x# it's old")][..],
            "[-etcd-prefix=/x]",
            &["TYPO_X is not understood"][..],
        ),
        (
            "FLANNEL_OPTIONS=-v=1 -w # lan\nFLANNEL_IFACE=eth#1\nFLANNEL_PUBLIC_IP= # none\n",
            &[
                ("FLANNEL_OPTIONS", "-v=1 -w # lan"),
                ("FLANNEL_IFACE", "eth#1"),
                ("FLANNEL_PUBLIC_IP", "# none"),
            ],
            "[-iface=eth#1][-v=1][-w]",
            &["a comment follows FLANNEL_OPTIONS", "a comment follows FLANNEL_PUBLIC_IP"],
        ),
        ("FLANNEL_OPTIONS=-x='a # b'\n", &[("FLANNEL_OPTIONS", "-x='a # b'")], "[-x=a # b]", &[]),
        // Another file says otherwise.
        ("FLANNEL_IFACE=eth1 # lan\n", &[("FLANNEL_IFACE", "eth2")], "[-iface=eth2]", &[]),
        // Line ends of Windows within a value.
        (
            "FLANNEL_OPTIONS=\"-v=1 \\\r\n-w\r\n-x\"\r\n",
            &[("FLANNEL_OPTIONS", "-v=1 \\\r\n-w\r\n-x")],
            "[-v=1][-w][-x]",
            &[],
        ),
        // A quote without an end, with no other quote below, with one, and in the last line.
        (
            "FLANNEL_OPTIONS=\"-v=1 \\\n-w\nFLANNEL_IFACE=a\nexport FLANNEL_ETCD_PREFIX=/x\nTYPO_X=1\n",
            &[("FLANNEL_OPTIONS", "-v=1 -w\nFLANNEL_IFACE=a\nexport FLANNEL_ETCD_PREFIX=/x\nTYPO_X=1\n")],
            "[-etcd-prefix=/x][-iface=a]",
            &[UNCLOSED, "TYPO_X is not understood"],
        ),
        (
            "FLANNEL_OPTIONS=\"-v=1\nFLANNEL_ETCD_PREFIX=\"/x\"\nFLANNEL_IFACE=a\n",
            &[("FLANNEL_OPTIONS", "-v=1\nFLANNEL_ETCD_PREFIX=/x\""), ("FLANNEL_IFACE", "a")],
            "[-etcd-prefix=/x][-iface=a]",
            &[UNCLOSED],
        ),
        (
            "export FLANNEL_OPTIONS='-v=1\r\nTYPO_X='1'\r\nexport FLANNEL_IFACE='a'\r\n",
            &[],
            "[-iface=a]",
            &[UNCLOSED, "TYPO_X is not understood"],
        ),
        ("FLANNEL_OPTIONS=\"-v=1", &[("FLANNEL_OPTIONS", "-v=1")], "", &[UNCLOSED]),
        ("[ -n \"$x\" ] && x=\"", &[], "", &["x=' is not understood", "a text is left out"]),
        // What is neither systemd's nor a shell's.
        (
            "export FLANNEL_OPTIONS=-v=1 -w hush hush\nexport FLANNEL_IFACE = a\n",
            &[],
            "[-v=1]",
            &["what follows FLANNEL_OPTIONS is not", "what follows FLANNEL_IFACE is not"],
        ),
        ("FLANNEL_IFACE = a\n", &[("FLANNEL_IFACE", "a")], "[-iface=a]", &[]),
    ] {
        let (words, told) = started_with(&Files::with(""), file, variables, &[]);
        assert_eq!(words, wanted, "{file}");
        assert_eq!(told.lines().count(), said.len(), "{file}: {told}");
        for (line, said) in told.lines().zip(said) {
            assert!(line.contains(said) && line.contains("/flanneld, "), "{file}: {line}");
        }
        assert!(!told.contains("hush"), "{told}");
    }
}

#[test]
fn the_subnet_file_is_found_wherever_the_starter_has_it_written() {
    let files = Files::with(SUBNET_FILE);
    let there = files.path("subnet.env").display().to_string();
    let link = files.path("run/overlayd/subnet.env");
    for (file, arguments, expected) in [
        (format!("FLANNELD_SUBNET_FILE={there}\n"), vec![], Some(there.as_str())),
        (format!("FLANNEL_SUBNET_FILE={there}\n"), vec![], Some(&there)),
        (format!("FLANNEL_OPTIONS=\"-v=1 -subnet-file={there}\"\n"), vec![], Some(&there)),
        (
            format!("FLANNELD_SUBNET_FILE=/x\nFLANNEL_OPTS=\"--subnet-file {there} -v=1\"\n"),
            vec![],
            Some(&there),
        ),
        (
            "FLANNELD_SUBNET_FILE=/x\n".to_owned(),
            vec!["-subnet-file=/y", "-subnet-file", &there],
            Some(&there),
        ),
        ("FLANNELD_SUBNET_FILE=/x\n".to_owned(), vec!["-subnet-file="], Some("/x")),
        ("FLANNELD_SUBNET_FILE=/run/flannel/subnet.env\n".to_owned(), vec![], None),
        (String::new(), vec!["-v=1"], None),
    ] {
        let (_, said) = started_among(&files, &file, &arguments);
        assert_eq!(said, "", "{file}");
        let told = fs::read_link(&link).ok();
        assert_eq!(told.as_deref(), expected.map(Path::new), "{file} {arguments:?}");
        if expected == Some(&there) {
            let mut command = Command::new(script("mk-docker-opts.sh"));
            command.arg("-d").arg(files.path("made/docker")).env("OVERLAYD_ROOT", files.directory.path());
            let output = command.output().expect("run the script");
            assert!(output.status.success(), "{output:?}");
            let made = fs::read_to_string(files.path("made/docker")).expect("docker's options");
            assert!(made.starts_with(BIP), "{made}");
        }
    }
}

/// systemd ends what runs if a command behind its start fails.
#[test]
fn nothing_beside_the_daemon_decides_whether_it_runs() {
    let unit = deployed("systemd/overlayd.service");
    let commands: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ExecStartPost=")).collect();
    assert_eq!(commands.len(), 1);
    assert!(commands[0].starts_with("-/usr/libexec/flannel/mk-docker-opts.sh "), "{commands:?}");
    assert!(!unit.contains("\nExecStartPre=") && !unit.contains("\nRequires="), "{unit}");
}

fn deployed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    fs::read_to_string(path).expect("a file")
}

#[test]
fn the_unit_reads_every_file_that_the_starter_reads() {
    let unit = deployed("systemd/overlayd.service");
    let mut unit: Vec<&str> =
        unit.lines().filter_map(|line| line.strip_prefix("EnvironmentFile=-")).collect();
    unit.retain(|file| *file != "/etc/sysconfig/docker-network");
    let starter = deployed("bin/flanneld-start");
    let list = starter
        .split_once("{FLANNEL_FILES:-\"")
        .and_then(|(_, rest)| rest.split_once('"'))
        .expect("a list")
        .0;
    let starter: Vec<&str> = list.split_whitespace().rev().collect();
    assert_eq!(unit, starter);
}

#[test]
fn what_the_packages_documents_name_is_in_the_package() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let manifest =
        fs::read_to_string(root.join("control/overlayd/Cargo.toml")).expect("read the package's manifest");
    let assets = manifest.lines().filter_map(|line| line.trim().strip_prefix("[\"../../"));
    let assets = assets.filter_map(|line| line.split_once("\", \"usr/share/doc/overlayd/"));
    let mut shipped = BTreeSet::new();
    for (pattern, directory) in assets {
        let directory = directory.split_once('"').expect("a directory").0;
        // Below that go the names from the pattern's first one on.
        let fixed = pattern.find(['*', '[']).unwrap_or(pattern.len());
        let prefix = pattern[..fixed].rfind('/').map_or(0, |slash| slash + 1);
        let listed = Command::new("sh").args(["-c", &format!("ls -d {pattern}")]).current_dir(&root).output();
        let listed = String::from_utf8(listed.expect("list files").stdout).expect("names");
        shipped.extend(listed.lines().map(|file| format!("{directory}{}", &file[prefix..])));
    }
    assert!(shipped.contains("docs/diagnose.md") && shipped.contains("README.md"), "{shipped:?}");
    for document in shipped.iter().filter(|file| file.ends_with(".md")) {
        let text = fs::read_to_string(root.join(document)).expect("read a document");
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        for link in links.filter(|link| !link.is_empty() && !link.contains("://")) {
            let mut path: Vec<&str> = document.split('/').collect();
            path.pop();
            for name in link.split('/') {
                if name == ".." { _ = path.pop() } else { path.push(name) }
            }
            let path = path.join("/");
            let is_there = shipped.iter().any(|file| *file == path || file.starts_with(&format!("{path}/")));
            assert!(is_there, "{document} names {link}, which is not in the package");
        }
    }
}

/// A host that has just booted updates the lists of packages itself, and apt fails at once beside it.
#[test]
fn setting_up_waits_for_another_update_of_the_lists() {
    let files = Files::with("");
    let fake = |name: &str, text: &str| {
        let path = files.path(name);
        fs::write(&path, format!("#!/bin/sh\ncd {}\n{text}", files.directory.path().display()))
            .expect("write a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("make it one");
    };
    let setup = |locked: &str| {
        fake("dpkg-query", "exit 1\n");
        fake("apt-get", locked);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup.sh");
        // What it puts into /usr/sbin meanwhile is not to be seen by others.
        let line = "mount -t tmpfs none /usr/sbin && exec \"$0\" all-demo";
        let mut command = Command::new("unshare");
        command.args(["-m", "sh", "-c", line]).arg(script);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", files.directory.path().display()))
            .output()
            .expect("run the script")
    };
    let held = "echo 'E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)' >&2; exit 100";
    let output = setup(&format!(
        "echo $* >>done\ncase $* in *update*) [ -e tried ] || {{ : >tried; {held}; }} ;; esac\n"
    ));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.contains("waiting for it"), "{output:?}");
    let done = fs::read_to_string(files.path("done")).expect("what was asked of apt");
    assert_eq!(
        done.lines().map(|line| line.contains("update")).collect::<Vec<_>>(),
        [true, true, false],
        "{done}"
    );
    // What is no lock is no reason to wait.
    let output = setup("echo 'E: Failed to fetch' >&2; exit 100\n");
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("Failed to fetch"),
        "{output:?}"
    );
}
