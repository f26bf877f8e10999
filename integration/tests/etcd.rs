//! A daemon and the etcd it depends on: secured, replaced, cut off, wiped, and too old.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use integration::certificates::Authority;
use integration::etcd::{Ask, write_certificates};
use integration::overlayd::{Launch, await_mesh, program};
use integration::{Backend, Etcd, Overlayd, Pair, SOON, Site, Store, Wire, await_until, http, traffic};
use rustix::process::Signal;

const PREFIX: &str = "/coreos.com/network";
const PEER: &str = r#"{"PublicIP":"192.168.199.238","PublicIPv6":null}"#;
/// For a daemon that has to notice first that its etcd is gone.
const RECOVERY: Duration = Duration::from_secs(40);

#[test]
fn certificates_are_replaced_under_a_running_daemon() {
    let (site, worker, _master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    let etcd = Etcd::start_secured(&site, &files, Ask::Certificate);
    let mut store = Store::of(etcd, Backend::Udp);
    let w = worker.overlayd(&store).flags_of(&files).start();
    let env = w.env();
    let lease = lease_id(&mut store, &env.key());
    store.put_lease("10.1.163.0-24", PEER);
    w.await_peers(&["10.1.163.0/24"]);

    // All of them by another authority: nobody who has kept the old ones can connect.
    store.server().kill();
    write_certificates(&site, &Authority::new(), &files);
    store.server().run();
    store.put_lease("10.1.177.0-24", PEER);
    await_peers(&w, &["10.1.163.0/24", "10.1.177.0/24"]);
    assert_eq!(w.env(), env);
    assert_eq!(lease_id(&mut store, &env.key()), lease, "the lease was taken anew");
    assert_eq!(count(&w, "certificates for etcd have changed"), 1, "{}", w.log());

    // A pair that does not fit together, as between two steps of replacing it, does no harm.
    let key = fs::read(files.join("client-key.pem")).unwrap();
    fs::copy(files.join("server-key.pem"), files.join("client-key.pem")).unwrap();
    store.server().kill();
    await_connected(&w, false);
    fs::write(files.join("client-key.pem"), key).unwrap();
    store.server().run();
    await_connected(&w, true);
}

#[test]
fn pods_ping_each_other_both_ways_with_each_backend() {
    for backend in ["udp", "vxlan", "host-gw"] {
        let (site, worker, master) = Site::two_hosts_on_one_link(Wire::Virtual);
        let files = site.directory("certificates");
        write_certificates(&site, &Authority::new(), &files);
        let store = Store::of(Etcd::start_secured(&site, &files, Ask::Certificate), Backend::Vxlan);
        store.put_config(&format!(r#"{{"Network":"10.1.0.0/16","Backend":{{"Type":"{backend}"}}}}"#));
        let file = |flag: &str, name: &str| format!("-etcd-{flag}={}", files.join(name).display());
        let flags =
            [file("cafile", "ca.pem"), file("certfile", "client.pem"), file("keyfile", "client-key.pem")];
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let pair = Pair::start([&worker, &master], &store, &flags);
        traffic::ping(&pair.a.ns, pair.b.address);
        traffic::ping(&pair.b.ns, pair.a.address);
    }
}

#[test]
fn the_authority_alone_is_enough_where_no_certificate_is_asked_for() {
    let (site, worker, _master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    let store = Store::of(Etcd::start_secured(&site, &files, Ask::Nothing), Backend::Udp);
    let w = worker.overlayd(&store).flag(&format!("-etcd-cafile={}", files.join("ca.pem").display())).start();
    assert_eq!(store.leases().len(), 1);
    w.stop();

    let stranger = site.directory("stranger").join("ca.pem");
    Authority::new().write(&stranger);
    let wrong = worker.overlayd(&store).flag(&format!("--etcd-cafile={}", stranger.display()));
    says(wrong.spawn(), &["https://192.168.1.1:2379", "invalid peer certificate", "--etcd-cafile"]);
    // Without any, the host's own authorities count: there may be none, and none has signed this.
    says(worker.overlayd(&store).spawn(), &["https://192.168.1.1:2379", "--etcd-cafile"]);
    let plain = worker.bare_overlayd().flag("--iface=eth0").flag("--etcd-endpoints=http://192.168.1.1:2379");
    says(plain.flag(&format!("--etcd-cafile={}", stranger.display())).spawn(), &["is https:// meant?"]);
}

#[test]
fn a_certificate_that_is_missing_or_unusable_is_named() {
    let (site, worker, _master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    let etcd = Etcd::start_secured(&site, &files, Ask::Certificate);
    let store = Store::of(etcd, Backend::Udp);

    let missing = worker.overlayd(&store).flag("--etcd-cafile=/no/such/ca.pem").refused();
    assert!(
        missing.contains("--etcd-cafile /no/such/ca.pem") && missing.contains("No such file"),
        "{missing}"
    );
    let garbage = files.join("garbage.pem");
    fs::write(&garbage, "garbage").unwrap();
    for (flag, what) in [("etcd-cafile", "not a PEM certificate"), ("etcd-keyfile", "not a PEM private key")]
    {
        let log = worker
            .overlayd(&store)
            .flags_of(&files)
            .flag(&format!("-{flag}={}", garbage.display()))
            .refused();
        assert!(log.contains(flag) && log.contains(garbage.to_str().unwrap()) && log.contains(what), "{log}");
    }
    let other = format!("-etcd-keyfile={}", files.join("server-key.pem").display());
    let mismatch = worker.overlayd(&store).flags_of(&files).flag(&other).refused();
    assert!(mismatch.contains("KeyMismatch"), "{mismatch}");
    let alone = worker.overlayd(&store).flag("-etcd-keyfile=/key.pem").refused();
    assert!(alone.contains("--etcd-keyfile") && alone.contains("--etcd-certfile"), "{alone}");

    let none = worker.overlayd(&store).flag(&format!("-etcd-cafile={}", files.join("ca.pem").display()));
    says(none.spawn(), &["https://192.168.1.1:2379", "--etcd-certfile"]);
}

#[test]
fn a_node_that_ran_before_forwards_while_its_certificate_is_missing() {
    let (site, worker, _master) = Site::two_hosts();
    let files = site.directory("certificates");
    write_certificates(&site, &Authority::new(), &files);
    let store = Store::of(Etcd::start_secured(&site, &files, Ask::Certificate), Backend::Udp);
    let w = worker.overlayd(&store).flags_of(&files).start();
    let env = w.env();
    w.stop();

    let (there, away) = (files.join("client.pem"), files.join("away.pem"));
    fs::rename(&there, &away).unwrap();
    let w = worker.overlayd(&store).flags_of(&files).start();
    await_until(RECOVERY, "the reason", || count(&w, &format!("--etcd-certfile {}", there.display())) == 1);
    assert_eq!((w.env(), &w.status().0["lease"]["state"]), (env, &"saved".into()));
    fs::rename(&away, &there).unwrap();
    await_until(RECOVERY, "the lease to be confirmed", || w.status().0["lease"]["state"] == "held");
    assert_eq!(count(&w, "does not serve us; trying again"), 1, "{}", w.log());
}

#[test]
fn a_wrong_password_is_said_once_and_no_password_ever() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Udp);
    store.server().enable_auth(PREFIX, "open-sesame");
    let user = |password: &str| {
        let launch = worker.overlayd(&store).flag("--etcd-username=flannel").flag("--v=3");
        launch.env("FLANNELD_ETCD_PASSWORD", password)
    };
    let wrong = user("barley").spawn();
    await_until(RECOVERY, "several attempts", || count(&wrong, "still does not serve us") > 2);
    assert_eq!(count(&wrong, "does not serve us; trying again"), 1, "{}", wrong.log());
    assert_eq!(count(&wrong, "invalid user ID or password"), 1, "{}", wrong.log());
    assert!(wrong.log().contains("--etcd-username=flannel and --etcd-password"), "{}", wrong.log());
    assert!(!wrong.log().contains("barley"));
    drop(wrong);

    let right = user("open-sesame").start();
    assert!(!right.log().contains("open-sesame"));
    right.stop();

    let outside = worker.overlayd(&store).flag("--etcd-prefix=/elsewhere").flag("--etcd-username=flannel");
    let outside = outside.flag("--etcd-password=open-sesame");
    says(outside.spawn(), &["permission denied", "'flannel'", "readwrite"]);
    says(worker.overlayd(&store).spawn(), &["user name is empty", "--etcd-username"]);
}

#[test]
fn a_token_that_etcd_forgets_is_replaced() {
    let (site, worker, _master) = Site::two_hosts();
    // Forgotten a second after its last use, and the lease is renewed every two.
    let mut store = Store::of(Etcd::start_with(&site, &["--auth-token-ttl=1"]), Backend::Udp);
    store.server().enable_auth(PREFIX, "open-sesame");
    let w = worker.overlayd(&store).flag("--etcd-username=flannel").flag("--etcd-password=open-sesame");
    let w = w.flag("--subnet-lease-ttl=6").start();
    let (key, start) = (w.env().key(), Instant::now());
    await_until(SOON, "more than the lease's time to pass", || {
        assert!(store.leases().contains_key(&key), "the lease ended after {:?}", start.elapsed());
        start.elapsed() > Duration::from_secs(9)
    });
    // A restart forgets all tokens.
    store.server().kill();
    store.server().run();
    store.put_lease("10.1.163.0-24", PEER);
    await_peers(&w, &["10.1.163.0/24"]);
    assert_eq!(count(&w, "invalid auth token"), 0, "{}", w.log());
}

#[test]
fn a_cluster_goes_on_without_its_leader() {
    let (site, worker, _master) = Site::two_hosts();
    let mut cluster = Etcd::start_cluster(&site);
    let endpoints: Vec<_> = cluster.iter().map(|etcd| etcd.endpoint.clone()).collect();
    cluster[0].put(&format!("{PREFIX}/config"), &Backend::Udp.config());
    let leader = cluster.iter().position(Etcd::leads).expect("a leader");
    // The daemon is connected to the one that dies.
    let mut order = endpoints.clone();
    order.rotate_left(leader);
    let w = worker.bare_overlayd().flag("--iface=eth0").flag("--subnet-lease-ttl=8");
    let w = w.flag(&format!("--etcd-endpoints={}", order.join(","))).start();
    let own = format!("{PREFIX}/subnets/{}", w.env().key());

    await_connected(&w, true);
    cluster.remove(leader).kill();
    let put = |etcd: &Etcd, key: &str| etcd.put(&format!("{PREFIX}/subnets/{key}"), PEER);
    await_until(RECOVERY, "a new leader", || cluster.iter().any(Etcd::leads));
    put(&cluster[0], "10.1.163.0-24");
    await_peers(&w, &["10.1.163.0/24"]);
    let start = Instant::now();
    await_until(RECOVERY, "more than the lease's time to pass", || {
        assert!(!cluster[0].list(&own).is_empty(), "the lease ended after {:?}", start.elapsed());
        start.elapsed() > Duration::from_secs(10)
    });
    assert_eq!(count(&w, "lease taken"), 1, "{}", w.log());
}

#[test]
fn a_member_that_falls_silent_is_left_for_another() {
    let (site, worker, _master) = Site::two_hosts();
    let mut cluster = Etcd::start_cluster(&site);
    let endpoints: Vec<_> = cluster.iter().map(|etcd| etcd.endpoint.clone()).collect();
    cluster[0].put(&format!("{PREFIX}/config"), &Backend::Udp.config());
    let w = worker.bare_overlayd().flag("--iface=eth0");
    let w = w.flag(&format!("--etcd-endpoints={}", endpoints.join(","))).start();

    await_connected(&w, true);
    // It takes every packet and answers none.
    cluster[0].process().signal(Signal::STOP);
    await_until(RECOVERY, "a leader among the others", || cluster[1..].iter().any(Etcd::leads));
    cluster[1].put(&format!("{PREFIX}/subnets/10.1.163.0-24"), PEER);
    await_peers(&w, &["10.1.163.0/24"]);
    cluster[0].process().signal(Signal::CONT);
}

#[test]
fn what_was_compacted_during_a_partition_is_caught_up_with() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let env = w.env();
    store.put_lease("10.1.163.0-24", PEER);
    store.put_lease("10.1.164.0-24", PEER);
    w.await_peers(&["10.1.163.0/24", "10.1.164.0/24"]);

    site.router.ip("link set lan1 down");
    await_connected(&w, false);
    store.delete_lease("10.1.164.0-24");
    store.put_lease("10.1.177.0-24", PEER);
    store.server().compact();
    site.router.ip("link set lan1 up");
    await_connected(&w, true);
    await_until(RECOVERY, "the new peer", || w.status().peers().contains(&"10.1.177.0/24"));
    // One that is missing may yet come back; it is not kept for ever.
    await_until(Duration::from_secs(90), "the lost peer to be gone", || {
        w.status().peers() == ["10.1.163.0/24", "10.1.177.0/24"]
    });
    assert_eq!(w.env(), env);
    assert_eq!(count(&w, "does not serve us; trying again"), 1, "{}", w.log());
}

#[test]
fn a_store_that_lost_its_data_gets_the_lease_again() {
    let (site, worker, _master) = Site::two_hosts();
    let mut store = Store::etcd(&site, Backend::Udp);
    let w = worker.overlayd(&store).start();
    let env = w.env();
    for _ in 0..20 {
        store.put_config(&Backend::Udp.config());
    }
    store.server().kill();
    store.server().wipe();
    store.server().run();
    store.put_config(&Backend::Udp.config());
    await_until(RECOVERY, "the lease to be back", || store.leases().contains_key(&env.key()));
    store.put_lease("10.1.163.0-24", PEER);
    await_peers(&w, &["10.1.163.0/24"]);
    assert_eq!(w.env(), env);
}

#[test]
fn an_etcd_that_is_full_costs_a_running_node_nothing_and_a_new_one_says_what_it_waits_for() {
    let (site, worker, master) = Site::two_hosts();
    let mut store = Store::of(Etcd::start_with(&site, &["--quota-backend-bytes=4194304"]), Backend::Vxlan);
    let w = worker.overlayd(&store).flag("--subnet-lease-ttl=6").flag("--healthz-port=10256").start();
    let env = w.env();
    store.server().fill("/elsewhere");

    let mut m = master.overlayd(&store).spawn();
    await_until(RECOVERY, "the new node's reason", || {
        let log = m.log();
        ["nothing is forwarded until it does", "database space exceeded", "etcdctl compact"]
            .iter()
            .all(|part| log.contains(part))
    });
    assert_eq!(count(&m, "forwarding goes on"), 0, "{}", m.log());
    let overlayctl = program("overlayctl");
    let told = master.ns.run(&format!("{} status", overlayctl.display()));
    let told = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    for part in ["overlayd waits for the lease store", "database space exceeded", "etcdctl compact"] {
        assert!(told.contains(part), "no {part} in:\n{told}");
    }

    let start = Instant::now();
    await_until(RECOVERY, "more than twice the lease's time to pass", || {
        assert!(store.leases().contains_key(&env.key()), "the lease ended after {:?}", start.elapsed());
        let status = w.status().0;
        assert_eq!(
            (&status["lease"]["state"], &status["store"]["connected"]),
            (&"held".into(), &true.into())
        );
        start.elapsed() > Duration::from_secs(13)
    });
    let ready = http::get(&worker.ns, 10256, "/readyz").expect("an answer");
    assert_eq!(ready.code, 200, "{}", ready.body);
    assert_eq!(count(&w, "does not serve us"), 0, "{}", w.log());

    store.server().make_room();
    m.wait_ready(RECOVERY);
    await_mesh(&[&w, &m]);
    assert_eq!(w.env(), env);
}

#[test]
fn a_configuration_that_only_v2_holds_is_pointed_at() {
    let (site, worker, _master) = Site::two_hosts();
    let etcd = Etcd::start_with(&site, &["--enable-v2"]);
    let w = worker.bare_overlayd().flag("--iface=eth0");
    let mut w = w.flag(&format!("--etcd-endpoints={}", etcd.endpoint)).flag("--v=1").spawn();
    await_until(RECOVERY, "the daemon to wait", || count(&w, "waiting for the network configuration") == 1);
    assert_eq!(count(&w, "v2 store"), 0, "{}", w.log());

    let config = Backend::Udp.config();
    etcd.put_v2(&format!("{PREFIX}/config"), &config);
    await_until(RECOVERY, "the hint", || count(&w, "v2 store") == 1);
    let remedy = format!("ETCDCTL_API=3 etcdctl --endpoints={} put {PREFIX}/config '", etcd.endpoint);
    assert!(w.log().contains(&format!("{remedy}{config}'")), "{}", w.log());
    etcd.put(&format!("{PREFIX}/config"), &config);
    w.wait_ready(SOON);
    assert_eq!(count(&w, "v2 store"), 1, "{}", w.log());
}

trait FlagsOf {
    /// Adds the flags for the files of [`write_certificates`].
    fn flags_of(self, files: &Path) -> Self;
}

impl FlagsOf for Launch<'_> {
    fn flags_of(self, files: &Path) -> Self {
        let all =
            [("etcd-cafile", "ca.pem"), ("etcd-certfile", "client.pem"), ("etcd-keyfile", "client-key.pem")];
        all.into_iter().fold(self, |launch, (flag, name)| {
            launch.flag(&format!("-{flag}={}", files.join(name).display()))
        })
    }
}

/// Waits until a daemon that cannot get into its store has said all these, then ends it.
#[track_caller]
fn says(daemon: Overlayd<'_>, parts: &[&str]) {
    await_until(RECOVERY, &format!("{parts:?}"), || parts.iter().all(|part| daemon.log().contains(part)));
}

fn count(daemon: &Overlayd<'_>, text: &str) -> usize {
    daemon.log().matches(text).count()
}

#[track_caller]
fn await_peers(daemon: &Overlayd<'_>, peers: &[&str]) {
    await_until(RECOVERY, &format!("the peers {peers:?}"), || daemon.status().peers() == peers);
}

#[track_caller]
fn await_connected(daemon: &Overlayd<'_>, connected: bool) {
    await_until(RECOVERY, &format!("connected: {connected}"), || {
        daemon.status().0["store"]["connected"] == connected
    });
}

/// The etcd lease that a subnet's key is attached to.
#[track_caller]
fn lease_id(store: &mut Store, key: &str) -> i64 {
    let json = store.server().ctl(&format!("get {PREFIX}/subnets/{key} --write-out=json"));
    let json: serde_json::Value = serde_json::from_str(&json).expect("etcdctl's JSON");
    json["kvs"][0]["lease"].as_i64().expect("a lease")
}
