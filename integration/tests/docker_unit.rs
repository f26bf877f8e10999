//! What docker is started with beside overlayd: the site's own unit, drop-ins and `daemon.json`, and the overlay's
//! options behind them. The scripts are run as systemd and docker's unit run them, below a root of their own, and
//! docker itself says whether it takes what comes of it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A host's files.
struct Site {
    root: TempDir,
}

/// What docker is started with.
#[derive(Debug)]
struct Started {
    /// The `ExecStart=` that counts, as it stands there.
    exec: String,
    /// The same, with variables replaced.
    words: Vec<String>,
    /// What was said before.
    said: String,
}

impl Site {
    fn with(files: &[(&str, &str)]) -> Self {
        Self::within(&std::env::temp_dir(), files)
    }

    fn within(directory: &Path, files: &[(&str, &str)]) -> Self {
        let site = Self { root: tempfile::tempdir_in(directory).expect("a temporary directory") };
        site.write("run/flannel/subnet.env", SUBNET_FILE);
        site.write("lib/systemd/system/docker.service.d/overlayd.conf", &deployed("docker/overlayd.conf"));
        for (path, text) in files {
            site.write(path, text);
        }
        site
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("make a directory");
        fs::write(&path, text).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
    }

    /// Runs the generator. Returns the lines of its drop-in, if it has made one.
    fn generated(&self) -> Option<String> {
        self.generated_by(Command::new(script("docker-generator")))
    }

    fn generated_by(&self, mut command: Command) -> Option<String> {
        let directory = self.path("run/systemd/generator");
        command.env("OVERLAYD_ROOT", self.root.path()).args([&directory; 3]);
        let output = command.output().expect("run the generator");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        fs::read_to_string(directory.join("docker.service.d/zzz-overlayd.conf")).ok()
    }

    /// Runs what docker's unit runs before docker, with what the unit has in its environment.
    fn options(&self, environment: &BTreeMap<String, String>) -> Output {
        let mut command = Command::new(script("docker-options"));
        command.env("OVERLAYD_ROOT", self.root.path());
        command.envs(environment).env("MK_DOCKER_OPTS", script("mk-docker-opts.sh"));
        if environment.get("DOCKER_OVERLAY_CONFIG").is_none_or(String::is_empty) {
            command.env("DOCKER_OVERLAY_CONFIG", self.path("etc/docker/daemon.json"));
        }
        command.output().expect("run the script")
    }

    /// Starts docker as systemd would, as far as its reading of what it is given.
    fn start(&self, environment: &[(&str, &str)]) -> Started {
        let drop_in = self.generated().expect("a drop-in");
        let mut variables: BTreeMap<String, String> =
            environment.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let assignments =
            drop_in.lines().find_map(|line| line.strip_prefix("Environment=")).expect("variables");
        variables.extend(assignments.split('"').filter_map(|part| part.split_once('=')).map(owned));
        let output = self.options(&variables);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let file = fs::read_to_string(self.path("run/docker-overlay.env")).expect("docker's options");
        let (name, value) = file.trim().split_once('=').expect("a variable");
        variables.insert(name.to_owned(), value.trim_matches('"').to_owned());

        let exec = drop_in.lines().rfind(|line| line.starts_with("ExecStart=")).unwrap_or_default();
        let exec = exec.trim_start_matches("ExecStart=").to_owned();
        let words = exec.split_whitespace().flat_map(|word| match word.strip_prefix('$') {
            Some(name) => {
                let value = variables.get(name.trim_matches(['{', '}'])).cloned().unwrap_or_default();
                value.split_whitespace().map(str::to_owned).collect()
            }
            None => vec![word.to_owned()],
        });
        Started { words: words.collect(), exec, said }
    }

    /// What docker says to these arguments and this host's `daemon.json`. A last argument that it cannot take keeps it
    /// from starting when it has taken all others.
    fn docker_takes(&self, started: &Started) {
        let mut command = Command::new("dockerd");
        command.args(&started.words[1..]).arg("--config-file").arg(self.path("etc/docker/daemon.json"));
        let output = command.arg("--max-concurrent-downloads=-1").output().expect("run dockerd");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            said.contains("invalid max concurrent downloads"),
            "docker refuses {:?}: {said}",
            started.words
        );
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn deployed(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bin").join(name)
}

const SUBNET_FILE: &str =
    "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
const OVERLAYS: &str = "--bip=10.1.9.1/24 --ip-masq=true --mtu=1450";

const LIB: &str = "lib/systemd/system/docker.service";
const ETC: &str = "etc/systemd/system/docker.service";
const DEBIANS: &str = "[Unit]\nAfter=docker.socket\n[Service]\nEnvironmentFile=-/etc/default/docker\n\
    ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS\n";
const DOCKERS: &str = "[Service]\nExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock\n\
    [Install]\nWantedBy=multi-user.target\n";
const OVERRIDE: &str = "[Service]\nExecStart=\nExecStart=/usr/bin/dockerd -H fd:// -H tcp://0.0.0.0:2375\n";

#[test]
fn docker_keeps_the_sites_command_line_and_gets_the_subnet() {
    let own =
        "[Service]\nExecStart=/usr/bin/dockerd --data-root=/data/docker --insecure-registry 10.0.0.0/8\n";
    let centos = "[Service]\nExecStart=/usr/bin/dockerd-current \\\n          --exec-opt native.cgroupdriver=systemd \\\n\
        # a comment in between\n          $OPTIONS \\\n          $DOCKER_NETWORK_OPTIONS\nExecReload=/bin/kill -s HUP $MAINPID\n";
    let override_at = |name: &str| format!("etc/systemd/system/docker.service.d/{name}");
    let [edited, hosts, late] = ["override.conf", "10-hosts.conf", "zz-site.conf"].map(override_at);
    for (what, files, environment, wanted) in [
        (
            "docker.io's unit",
            vec![(LIB, DEBIANS)],
            ("DOCKER_OPTS", "--dns 8.8.8.8"),
            "/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock --dns 8.8.8.8",
        ),
        (
            "docker-ce's",
            vec![(LIB, DOCKERS)],
            ("NONE", ""),
            "/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock",
        ),
        (
            "docker-ce's, with options that the first versions' drop-in gave it",
            vec![(LIB, DOCKERS)],
            ("DOCKER_OPTS", "--debug"),
            "/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock --debug",
        ),
        (
            "a unit of the site's own",
            vec![(LIB, DEBIANS), (ETC, own)],
            ("NONE", ""),
            "/usr/bin/dockerd --data-root=/data/docker --insecure-registry 10.0.0.0/8",
        ),
        (
            "systemctl edit",
            vec![(LIB, DEBIANS), (&edited, OVERRIDE)],
            ("NONE", ""),
            "/usr/bin/dockerd -H fd:// -H tcp://0.0.0.0:2375",
        ),
        (
            "a drop-in that comes before the package's",
            vec![(LIB, DEBIANS), (&hosts, OVERRIDE)],
            ("NONE", ""),
            "/usr/bin/dockerd -H fd:// -H tcp://0.0.0.0:2375",
        ),
        (
            "one that comes late",
            vec![(LIB, DEBIANS), (&hosts, own), (&late, OVERRIDE)],
            ("NONE", ""),
            "/usr/bin/dockerd -H fd:// -H tcp://0.0.0.0:2375",
        ),
        (
            "one that only sets limits",
            vec![(LIB, DOCKERS), (&edited, "[Service]\nLimitNOFILE=65536\n")],
            ("NONE", ""),
            "/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock",
        ),
        (
            "CentOS's, over several lines",
            vec![(LIB, centos)],
            ("OPTIONS", "--log-driver=journald"),
            "/usr/bin/dockerd-current --exec-opt native.cgroupdriver=systemd --log-driver=journald",
        ),
        (
            "a path found by env",
            vec![(LIB, "[Service]\nExecStart=-/usr/bin/env PATH=/opt/bin dockerd -D\n")],
            ("NONE", ""),
            "-/usr/bin/env PATH=/opt/bin dockerd -D",
        ),
    ] {
        let site = Site::with(&files);
        site.write("etc/docker/daemon.json", r#"{"storage-driver": "vfs"}"#);
        let started = site.start(&[environment]);
        assert_eq!(started.words.join(" "), format!("{wanted} {OVERLAYS}"), "{what}");
        assert_eq!(started.said, "", "{what}");
        if !wanted.contains("env") {
            site.docker_takes(&started);
        }
    }
}

#[test]
fn what_the_site_says_of_dockers_network_stays_and_is_told() {
    let mtu_and_masq = "--ip-masq=true --mtu=1450";
    for (config, exec, wanted, told) in [
        (r#"{"hosts": ["unix:///run/docker.sock"], "bip": ""}"#, "", mtu_and_masq, "has a bip"),
        (r#"{"hosts": ["unix:///run/docker.sock"]}"#, "", OVERLAYS, ""),
        (r#"{"bip": "10.9.9.1/24"}"#, "", mtu_and_masq, "reached from other hosts only if it is 10.1.9.1/24"),
        (r#"{"mtu": 1400}"#, "", "--bip=10.1.9.1/24 --ip-masq=true", "the overlay's 1450"),
        ("{\"debug\": true,\n \"ip-masq\"\n:false}", "", "--bip=10.1.9.1/24 --mtu=1450", "it is to be true"),
        (r#"{"bridge": "none", "data-root": "/data"}"#, "", mtu_and_masq, "names a bridge"),
        (r#"{"bip": "10.9.9.1/24", "mtu": 1450, "ip-masq": true}"#, "", "", "has an mtu"),
        // Neither a value, nor a key within another object.
        (
            r#"{"labels": ["bip", "\"mtu\": 3"], "default-network-opts": {"bridge": {"mtu": "9"}}}"#,
            "",
            OVERLAYS,
            "",
        ),
        ("{}", "--bip 10.9.9.1/24", mtu_and_masq, "ExecStart= has a bip"),
        ("{}", "--mtu=1400", "--bip=10.1.9.1/24 --ip-masq=true", "ExecStart= has an mtu"),
        ("{}", "--ip-masq=false", "--bip=10.1.9.1/24 --mtu=1450", "ExecStart= has an ip-masq"),
        ("{}", "-b br0", mtu_and_masq, "ExecStart= names a bridge"),
        // As flannel's guides have it: that is the overlay's own.
        ("{}", "--bip=${FLANNEL_SUBNET}", OVERLAYS, ""),
    ] {
        let unit = format!("[Service]\nExecStart=/usr/bin/dockerd {exec}\n");
        let site = Site::with(&[(LIB, &unit), ("etc/docker/daemon.json", config)]);
        let started = site.start(&[("FLANNEL_SUBNET", "10.1.9.1/24")]);
        let what = format!("{config} {exec}");
        assert!(started.words.join(" ").ends_with(wanted), "{what}: {started:?}");
        assert!(!wanted.is_empty() || started.words.len() == 1, "{what}: {started:?}");
        assert_eq!(started.said.is_empty(), told.is_empty(), "{what}: {}", started.said);
        assert!(started.said.contains(told), "{what}: {}", started.said);
        if !config.contains("labels") && !exec.contains("${") {
            site.docker_takes(&started);
        }
    }
    let elsewhere = "[Service]\nExecStart=/usr/bin/dockerd --config-file=/etc/site.json\n";
    let drop_in = Site::with(&[(LIB, elsewhere)]).generated().expect("a drop-in");
    assert!(drop_in.contains("\"DOCKER_OVERLAY_CONFIG=/etc/site.json\""), "{drop_in}");
}

#[test]
fn a_command_line_that_cannot_be_added_to_is_left_and_told() {
    for exec in ["/usr/local/bin/start-docker.sh", "/bin/sh -c 'exec dockerd'", ":/usr/bin/dockerd -D"] {
        let site = Site::with(&[(LIB, &format!("[Service]\nExecStart={exec}\n"))]);
        let started = site.start(&[]);
        assert_eq!(started.exec, "", "{exec} is left");
        assert!(
            started.said.contains(OVERLAYS) && started.said.contains("$DOCKER_OVERLAY_OPTIONS"),
            "{}",
            started.said
        );
    }
    // Nobody is to start it, or it is not there.
    let masked = Site::with(&[(LIB, DEBIANS)]);
    fs::create_dir_all(masked.path("etc/systemd/system")).expect("make a directory");
    symlink("/dev/null", masked.path(ETC)).expect("mask docker");
    assert_eq!(masked.generated(), None);
    assert_eq!(Site::with(&[]).generated(), None);
    let masked = Site::with(&[(LIB, DEBIANS), ("usr/lib/systemd/system/docker.service.d/x.conf", OVERRIDE)]);
    fs::create_dir_all(masked.path("etc/systemd/system/docker.service.d")).expect("make a directory");
    symlink("/dev/null", masked.path("etc/systemd/system/docker.service.d/x.conf")).expect("mask a drop-in");
    assert!(masked.start(&[]).exec.contains("/usr/sbin/dockerd"), "a masked drop-in does not count");
    // Its own word of before does not count, either.
    let before = masked.generated();
    assert_eq!(masked.generated(), before);
}

#[test]
fn docker_does_not_start_without_a_subnet_and_is_told_of_an_old_unit() {
    let site = Site::with(&[]);
    let output = site.options(&BTreeMap::new());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("systemctl daemon-reload"), "{said}");
    fs::remove_file(site.path("run/flannel/subnet.env")).expect("remove the subnet file");
    let output = site.options(&BTreeMap::new());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("docker has no subnet yet: overlayd has not"),
        "{said}"
    );
}

#[test]
fn docker_starts_with_a_subnet_file_that_is_elsewhere() {
    let site = Site::with(&[]);
    let there = site.path("srv/flannel.env");
    site.write("srv/flannel.env", SUBNET_FILE);
    fs::create_dir_all(site.path("run/overlayd")).expect("make a directory");
    symlink(&there, site.path("run/overlayd/subnet.env")).expect("say where it is");
    fs::remove_file(site.path("run/flannel/subnet.env")).expect("remove flannel's");
    let output = site.options(&BTreeMap::new());
    assert!(output.status.success(), "{output:?}");
    let options = fs::read_to_string(site.path("run/docker-overlay.env")).expect("docker's options");
    assert!(options.contains(OVERLAYS), "{options}");
    fs::remove_file(&there).expect("remove the subnet file");
    let said = String::from_utf8_lossy(&site.options(&BTreeMap::new()).stderr).into_owned();
    assert!(said.contains(&format!("has not written {}", there.display())), "{said}");
}

/// Generators run before anything can be written but in /run, whatever shell there is.
#[test]
fn the_generator_needs_no_place_for_temporary_files() {
    let site = Site::within(Path::new("/dev/shm"), &[(LIB, DEBIANS)]);
    let mut command = Command::new("unshare");
    let read_only =
        "mount -t tmpfs -o ro none /tmp && mount -t tmpfs -o ro none /var/tmp && exec bash \"$@\"";
    command.args(["--mount", "sh", "-c", read_only, "sh"]).arg(script("docker-generator"));
    // As bash does before 5.1; and it would put files into the directory where it is, too.
    command.env("BASH_COMPAT", "50").current_dir("/proc");
    assert_eq!(site.generated_by(command), site.generated());
}

/// What of it systemd reads itself.
#[test]
fn the_drop_in_replaces_nothing() {
    let drop_in = deployed("docker/overlayd.conf");
    assert!(!drop_in.lines().any(|line| line.starts_with("ExecStart=")), "{drop_in}");
    assert!(drop_in.contains("\nEnvironmentFile=-/run/docker-overlay.env\n"), "{drop_in}");
}
