//! What else is on a host's firewall, and that the overlay and it leave each other working: kube-proxy's chains,
//! docker's of several ages, nftables rulesets of others. Under each `--firewall`.

use std::net::Ipv4Addr;
use std::time::Duration;

use integration::overlayd::{Overlayd, await_mesh};
use integration::traffic::{self, Server};
use integration::{Backend, Host, Pod, SOON, Site, Store, SubnetEnv, Wire, await_until};

/// Long enough for a first retransmission: a request that got no answer by then hangs.
const HANGING: Duration = Duration::from_secs(3);

const FIREWALLS: [&str; 2] = ["--firewall=nftables", "--firewall=iptables"];

const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 97, 231, 111);
const NODE_PORT: u16 = 32228;

/// As kube-proxy has them in the cluster of the second seed: a ClusterIP and a NodePort with two endpoints, what
/// comes from outside the pods' network marked, and the mark taken off where it is masqueraded.
fn kube_proxy(host: &Host, endpoints: [Ipv4Addr; 2]) {
    let [a, b] = endpoints;
    // As kubelet does it, so that a pod may be its own service's endpoint where bridges call iptables.
    host.ns.ip("link set pod0 type bridge_slave hairpin on");
    host.ns.feed(
        "iptables-restore --noflush",
        &format!(
            r#"*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SVC-NODEPORT - [0:0]
:KUBE-SEP-A - [0:0]
:KUBE-SEP-B - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-I PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES ! -s 10.1.0.0/16 -d {CLUSTER_IP}/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d {CLUSTER_IP}/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-NODEPORT
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m tcp --dport {NODE_PORT} -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m tcp --dport {NODE_PORT} -j KUBE-SVC-NODEPORT
-A KUBE-SVC-NODEPORT -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A
-A KUBE-SVC-NODEPORT -j KUBE-SEP-B
-A KUBE-SEP-A -s {a}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-A -p tcp -m tcp -j DNAT --to-destination {a}:8080
-A KUBE-SEP-B -s {b}/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-B -p tcp -m tcp -j DNAT --to-destination {b}:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
COMMIT
"#
        ),
    );
}

/// As docker 20 has them with `--ip-masq=true`.
fn docker_20(host: &Host, env: &SubnetEnv) {
    host.ns.feed(
        "iptables-restore --noflush",
        &format!(
            "*nat\n\
             :DOCKER - [0:0]\n\
             -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
             -A POSTROUTING -s {} ! -o docker0 -j MASQUERADE\n\
             -A DOCKER -i docker0 -j RETURN\n\
             COMMIT\n\
             *filter\n\
             :FORWARD DROP [0:0]\n\
             :DOCKER - [0:0]\n\
             :DOCKER-USER - [0:0]\n\
             -A FORWARD -j DOCKER-USER\n\
             -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A FORWARD -o docker0 -j DOCKER\n\
             -A FORWARD -i docker0 ! -o docker0 -j ACCEPT\n\
             -A FORWARD -i docker0 -o docker0 -j ACCEPT\n\
             COMMIT\n",
            env.base_with_length()
        ),
    );
}

/// As docker 28 has them: what is routed to a container is dropped in filter whatever the policy says, and
/// that to a container with a published port also in raw.
fn docker_28(host: &Host, env: &SubnetEnv, pod: &Pod) {
    host.ns.feed(
        "iptables-restore --noflush",
        &format!(
            "*raw\n\
             -A PREROUTING -d {}/32 ! -i docker0 -j DROP\n\
             COMMIT\n\
             *nat\n\
             -A POSTROUTING -s {} ! -o docker0 -j MASQUERADE\n\
             COMMIT\n\
             *filter\n\
             :FORWARD DROP [0:0]\n\
             :DOCKER - [0:0]\n\
             :DOCKER-BRIDGE - [0:0]\n\
             :DOCKER-CT - [0:0]\n\
             :DOCKER-FORWARD - [0:0]\n\
             :DOCKER-USER - [0:0]\n\
             -A FORWARD -j DOCKER-USER\n\
             -A FORWARD -j DOCKER-FORWARD\n\
             -A DOCKER ! -i docker0 -o docker0 -j DROP\n\
             -A DOCKER-BRIDGE -o docker0 -j DOCKER\n\
             -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A DOCKER-FORWARD -j DOCKER-CT\n\
             -A DOCKER-FORWARD -j DOCKER-BRIDGE\n\
             -A DOCKER-FORWARD -i docker0 -j ACCEPT\n\
             COMMIT\n",
            pod.address,
            env.base_with_length()
        ),
    );
}

/// Two hosts with a pod each, which answers with the source that it sees, and no daemon yet.
struct Ground {
    site: Site,
    worker: Host,
    master: Host,
    store: Store,
    /// What the subnet files will say.
    envs: [SubnetEnv; 2],
    /// The worker's and the master's.
    pods: [Pod; 2],
    _servers: [Server; 2],
}

impl Ground {
    fn new(store: impl Fn(&Site) -> Store) -> Self {
        Self::on(Site::two_hosts(), store)
    }

    fn on((site, worker, master): (Site, Host, Host), store: impl Fn(&Site) -> Store) -> Self {
        let store = store(&site);
        // The subnets are agreed beforehand, so that pods and rules can be there first.
        let envs = [(&worker, "10.1.163"), (&master, "10.1.177")].map(|(host, subnet)| {
            let env = SubnetEnv::of(subnet, 1500 - Backend::Vxlan.overhead());
            store.put_lease(&env.key(), &format!(r#"{{"PublicIP":"{}"}}"#, host.public_ip));
            env
        });
        let pods = [worker.bridge_and_pod(&envs[0]), master.bridge_and_pod(&envs[1])];
        let servers = pods.each_ref().map(|pod| Server::http(&pod.ns, 8080));
        Self { site, worker, master, store, envs, pods, _servers: servers }
    }

    fn vxlan() -> Self {
        Self::new(|site| Store::dir(site, Backend::Vxlan))
    }

    /// Starts both daemons with these flags.
    fn start(&self, flags: &[&str]) -> [Overlayd<'_>; 2] {
        let daemons = [&self.worker, &self.master].map(|host| {
            let launch = host.overlayd(&self.store).flag("--iptables-resync=1");
            flags.iter().fold(launch, |launch, flag| launch.flag(flag)).start()
        });
        await_mesh(&[&daemons[0], &daemons[1]]);
        daemons
    }

    /// The source under which one pod sees the other; `None` if nothing gets through.
    fn seen(&self, from: usize, to: usize, limit: Duration) -> Option<String> {
        traffic::fetch(&self.pods[from].ns, self.pods[to].address, 8080, limit).ok()
    }

    fn assert_pods_reach_each_other(&self, when: &str) {
        for (from, to) in [(0, 1), (1, 0)] {
            let own = Some(self.pods[from].address.to_string());
            assert_eq!(self.seen(from, to, SOON), own, "{when}: from {from} to {to}");
        }
    }

    fn await_pods_reaching_each_other(&self, when: &str) {
        await_until(SOON, when, || {
            let own = |from: usize| Some(self.pods[from].address.to_string());
            let soon = Duration::from_secs(1);
            self.seen(0, 1, soon) == own(0) && self.seen(1, 0, soon) == own(1)
        });
    }
}

fn stop(daemons: [Overlayd<'_>; 2]) {
    daemons.into_iter().for_each(Overlayd::stop);
}

#[test]
fn cluster_ips_and_node_ports_of_kube_proxy_work_with_nftables() {
    cluster_ips_and_node_ports_work("--firewall=nftables");
}

#[test]
fn cluster_ips_and_node_ports_of_kube_proxy_work_with_iptables() {
    cluster_ips_and_node_ports_work("--firewall=iptables");
}

/// Whichever endpoint is drawn, on this node or the other, the request is answered, and the pod sees the source
/// that kube-proxy would have it see.
fn cluster_ips_and_node_ports_work(firewall: &str) {
    let ground = Ground::vxlan();
    let Ground { site, worker, master, envs, pods: [a, b], .. } = &ground;
    docker_20(worker, &envs[0]);
    docker_20(master, &envs[1]);
    kube_proxy(worker, [a.address, b.address]);
    // What kube-proxy masquerades has the address of the interface that it leaves by.
    let (overlay, bridge) = (envs[0].base().to_string(), envs[0].bridge_address().to_string());
    let (of_hosts, of_pods) = ([&overlay, &bridge], [&a.address.to_string(), &bridge]);
    for ip_masq in ["--ip-masq=false", "--ip-masq=true"] {
        let daemons = ground.start(&[firewall, ip_masq]);
        for _ in 0..8 {
            for (from, address, port, sources) in [
                (&worker.ns, CLUSTER_IP, 80, of_hosts),
                (&site.router, worker.public_ip, NODE_PORT, of_hosts),
                (&a.ns, CLUSTER_IP, 80, of_pods),
            ] {
                let seen = traffic::fetch(from, address, port, SOON);
                let seen = seen.unwrap_or_else(|e| panic!("{ip_masq}: {} to {address}: {e}", from.name()));
                assert!(sources.contains(&&seen), "{ip_masq}: {} to {address}: {seen}", from.name());
            }
        }
        ground.assert_pods_reach_each_other(ip_masq);
        stop(daemons);
    }
}

#[test]
fn pods_reach_each_other_where_docker_28_refuses_what_is_routed_to_containers() {
    let ground = Ground::vxlan();
    docker_28(&ground.worker, &ground.envs[0], &ground.pods[0]);
    docker_28(&ground.master, &ground.envs[1], &ground.pods[1]);
    for firewall in FIREWALLS {
        let daemons = ground.start(&[firewall]);
        ground.assert_pods_reach_each_other(firewall);
        // Docker's word on everybody else stands.
        ground
            .site
            .router
            .ip(&format!("route replace {} via {}", ground.pods[0].address, ground.worker.public_ip));
        let stranger = traffic::fetch(&ground.site.router, ground.pods[0].address, 8080, HANGING);
        assert!(stranger.is_err(), "{firewall}: {stranger:?}");
        stop(daemons);
    }
}

#[test]
fn pods_reach_each_other_by_plain_routes_where_docker_28_refuses_what_is_routed_to_containers() {
    let config = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"host-gw"}}"#;
    let ground =
        Ground::on(Site::two_hosts_on_one_link(Wire::Virtual), |site| Store::dir_with(site, "store", config));
    let hosts = [&ground.worker, &ground.master];
    for (number, host) in hosts.into_iter().enumerate() {
        docker_28(host, &ground.envs[number], &ground.pods[number]);
        host.ns.ok("iptables -t nat -I POSTROUTING -o eth0 -j MASQUERADE");
    }
    let before = hosts.map(|host| host.ns.ok("iptables-save -t raw") + &host.ns.ok("iptables -S"));
    for firewall in FIREWALLS {
        let daemons = ground.start(&[firewall]);
        ground.assert_pods_reach_each_other(firewall);
        stop(daemons);
    }
    stop(ground.start(&["--firewall=none"]));
    for (host, before) in hosts.into_iter().zip(before) {
        for line in host.ns.ok("iptables-save").lines() {
            assert!(!line.contains("overlayd") && !line.contains("OVERLAYD"), "{line}\nbefore:\n{before}");
        }
    }
}

#[test]
fn flushing_anybodys_rules_does_not_part_the_pods_for_long() {
    let ground = Ground::vxlan();
    for firewall in FIREWALLS {
        let daemons = ground.start(&[firewall, "--ip-masq"]);
        for flush in ["nft flush ruleset", "iptables -F", "iptables -t nat -F"] {
            for (host, env) in [&ground.worker, &ground.master].into_iter().zip(&ground.envs) {
                host.ns.ok(flush);
                docker_20(host, env);
            }
            ground.await_pods_reaching_each_other(&format!("the pods after {flush} with {firewall}"));
            for host in [&ground.worker, &ground.master] {
                host.ns.ok("nft flush ruleset");
            }
        }
        stop(daemons);
    }
}

#[test]
fn whatever_others_put_before_the_accepts_pods_reach_each_other_and_sites_keep_their_say() {
    let ground = Ground::vxlan();
    for firewall in FIREWALLS {
        let daemons = ground.start(&[firewall]);
        for rules in [
            "iptables -N ufw-reject\niptables -A ufw-reject -j REJECT\niptables -I FORWARD -j ufw-reject",
            "iptables -I FORWARD -m conntrack --ctstate NEW -j DROP",
            "iptables -I FORWARD -i docker0 -j DROP",
            "iptables -I FORWARD ! -i lo -j DROP",
            "iptables -I FORWARD -p tcp -j DROP",
            "iptables -I FORWARD -d 10.0.0.0/8 -j REJECT",
            "iptables -F FORWARD\niptables -A FORWARD -p tcp --dport 22 -j ACCEPT\niptables -A FORWARD -j REJECT",
        ] {
            rules.lines().for_each(|rule| drop(ground.worker.ns.ok(rule)));
            ground.await_pods_reaching_each_other(&format!("the pods after {rules} with {firewall}"));
        }
        ground.worker.ns.ok("iptables -N DOCKER-USER");
        ground.worker.ns.ok("iptables -I FORWARD -j DOCKER-USER");
        ground.worker.ns.ok("iptables -A DOCKER-USER -p tcp --dport 8080 -j DROP");
        assert_eq!(ground.seen(1, 0, HANGING), None, "{firewall}: what the site says in DOCKER-USER holds");
        stop(daemons);
        for line in ["iptables -F", "iptables -X"] {
            ground.worker.ns.ok(line);
        }
    }
}

#[test]
fn the_network_configuration_chooses_nftables_and_the_flag_overrules_it() {
    let config = r#"{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#;
    let ground = Ground::new(|site| Store::dir_with(site, "nftables", config));
    for (flags, table, chain) in [
        (&["--ip-masq"][..], true, false),
        (&["--ip-masq", "--firewall=iptables"], false, true),
        (&["--ip-masq", "--firewall=none"], false, false),
    ] {
        let daemons = ground.start(flags);
        let tables = ground.worker.ns.ok("nft list tables");
        assert_eq!(tables.contains("overlayd_flannel.1"), table, "{flags:?}: {tables}");
        let saved = ground.worker.ns.ok("iptables-save");
        assert_eq!(saved.contains("FLANNEL-POSTRTG"), chain, "{flags:?}: {saved}");
        if flags.contains(&"--firewall=none") {
            assert!(!saved.contains("OVERLAYD"), "{saved}");
        }
        stop(daemons);
    }
}

/// Two rulesets as an administrator and as firewalld write them; the latter's chain rejects by its last rule.
#[test]
fn what_drops_in_anothers_nftables_is_told_with_its_remedy_once() {
    let ground = Ground::vxlan();
    ground.worker.ns.feed(
        "nft -f -",
        "table inet fw {\n\
           chain forward { type filter hook forward priority filter; policy drop; ct state established accept; }\n\
         }\n\
         table inet firewalld {\n\
           chain filter_FORWARD {\n\
             type filter hook forward priority filter + 10; policy accept;\n\
             ct state { established, related } accept\n\
             reject with icmpx admin-prohibited\n\
           }\n\
         }\n",
    );
    let daemons = ground.start(&[]);
    assert_eq!(ground.seen(1, 0, HANGING), None, "no rule of ours overrules it");
    // Several checks, each with something to look at.
    for number in 0..2 {
        ground.worker.ns.ok(&format!("nft add table ip unrelated{number}"));
        ground.worker.ns.ok("nft flush table ip overlayd_flannel.1");
        await_until(SOON, "the rules to be put back", || {
            ground.worker.ns.ok("nft list table ip overlayd_flannel.1").contains("snat")
        });
    }
    for (chain, remedy) in [
        (
            "inet fw forward",
            "nft insert rule inet fw forward ip saddr 10.1.0.0/16 ip daddr 10.1.0.0/16 accept",
        ),
        (
            "inet firewalld filter_FORWARD",
            "firewall-cmd --permanent --zone=trusted --add-interface=flannel.1",
        ),
    ] {
        let told = || {
            daemons[0]
                .log()
                .lines()
                .filter(|line| line.contains(chain))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        await_until(SOON, "the chain to be told", || !told().is_empty());
        let lines = told();
        assert!(lines.len() == 1 && lines[0].contains(remedy), "{chain}: {lines:?}");
    }

    // The remedy helps; for firewalld, what its command comes to.
    for chain in ["inet fw forward", "inet firewalld filter_FORWARD"] {
        ground.worker.ns.ok(&format!("nft insert rule {chain} ip saddr 10.1.0.0/16 accept"));
        ground.worker.ns.ok(&format!("nft insert rule {chain} ip daddr 10.1.0.0/16 accept"));
    }
    ground.assert_pods_reach_each_other("with the remedy");
    stop(daemons);
    let daemons = ground.start(&[]);
    let log = daemons[0].log();
    assert_eq!(log.matches("inet fw forward ip saddr").count(), 1, "nothing to say after a restart:\n{log}");
    stop(daemons);
}
