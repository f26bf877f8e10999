//! overlayctl's tables and their JSON, against daemons that forward.

use std::io::Write as _;
use std::time::Duration;

use integration::overlayd::{await_mesh, program};
use integration::pair::Pair;
use integration::{Backend, Namespace, Overlayd, SOON, Site, Store, await_until, netns, traffic};
use serde_json::Value;

/// What `overlayctl` prints, which must succeed.
#[track_caller]
fn ctl(ns: &Namespace, arguments: &str) -> String {
    ns.ok(&format!("{} {arguments}", program("overlayctl").display()))
}

#[track_caller]
fn json(ns: &Namespace, noun: &str) -> Value {
    let text = ctl(ns, &format!("{noun} --json"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{noun}: {error}\n{text}"))
}

#[test]
fn every_noun_is_told_of_daemons_that_forward() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::etcd(&site, Backend::Vxlan);
    let flags = ["--offload=tso,gso,gro", "--queues=1"];
    let pair = Pair::start([&worker, &master], &store, &flags);
    traffic::ping(&pair.a.ns, pair.b.address);
    let subnet = pair.right.env().base_with_length();

    let peers = json(&worker.ns, "peers");
    let peer = &peers["peers"][0];
    assert_eq!((&peer["subnet"], &peer["public_ip"]), (&subnet.as_str().into(), &"192.168.199.238".into()));
    assert!(peer["traffic"]["egress"]["packets"].as_u64() > Some(0), "{peers}");
    assert!(peer["traffic"]["ingress"]["bytes"].as_u64() > Some(0), "{peers}");
    assert!(peer["last_seen_ms"].as_u64() < Some(60_000), "{peers}");
    let text = ctl(&worker.ns, "peers");
    assert!(text.contains("1 peer by vxlan") && text.contains(&subnet) && text.contains(" ago"), "{text}");

    let leases = json(&worker.ns, "leases");
    let leases = leases["leases"].as_array().unwrap();
    assert_eq!(leases.len(), 2);
    for lease in leases {
        assert!(lease["expires_in_ms"].as_u64() > Some(3_600_000), "{lease}");
        assert_eq!(lease["own"], lease["public_ip"] == "192.168.1.12", "{lease}");
        assert_eq!((&lease["reservation"], &lease["error"]), (&false.into(), &Value::Null));
    }
    store.put_lease("10.1.250.0-24", r#"{"PublicIP":"192.168.50.8"}"#);
    store.put_lease("10.1.251.0-24", "nonsense");
    let text = ctl(&worker.ns, "leases");
    let line =
        |subnet: &str| text.lines().find(|line| line.contains(subnet)).unwrap_or_else(|| panic!("{text}"));
    assert!(line("10.1.250.0/24").contains("never (reservation)"), "{text}");
    assert!(line("10.1.251.0/24").contains("cannot be read"), "{text}");
    assert!(line("192.168.1.12").contains("this node"), "{text}");

    let stats = json(&worker.ns, "stats");
    let workers = stats["workers"].as_array().unwrap();
    let names: Vec<_> = workers.iter().filter_map(|worker| worker["name"].as_str()).collect();
    assert_eq!(names, ["egress-0", "ingress-0"]);
    for worker in workers {
        assert!(worker["packets"].as_u64() > Some(0) && worker["batches"].as_u64() > Some(0), "{worker}");
        assert!(worker["cpu_ms"].is_u64(), "{worker}");
    }
    assert!(ctl(&worker.ns, "stats").contains("ingress-0"));

    let offloads = json(&worker.ns, "offloads");
    let state = |name: &str| offloads.as_array().unwrap().iter().find(|state| state["name"] == name).unwrap();
    assert_eq!((&state("uso")["asked"], &state("uso")["on"]), (&false.into(), &false.into()));
    assert_eq!((&state("tso")["asked"], &state("tso")["on"]), (&true.into(), &true.into()));

    let config = json(&worker.ns, "config");
    assert_eq!(config["network"]["Network"], "10.1.0.0/16");
    let flag =
        |name: &str| config["flags"].as_array().unwrap().iter().find(|flag| flag["name"] == name).unwrap();
    assert_eq!((&flag("queues")["value"], &flag("queues")["given"]), (&"1".into(), &true.into()));
    assert_eq!(flag("spin")["given"], false);

    let route = |state: &str| {
        let routes = json(&worker.ns, "routes");
        let routes = routes.as_array().unwrap().clone();
        routes.into_iter().any(|route| route["destination"] == "10.1.0.0/16" && route["state"] == state)
    };
    assert!(route("ours"));
    assert!(ctl(&worker.ns, "routes").contains("docker0"), "somebody else's route in the network");
}

#[test]
fn what_is_dropped_is_told_with_the_last_offender() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &[]);
    // Nobody has that subnet.
    let sent = pair.a.ns.run("ping -c 1 -W 1 10.1.249.9");
    assert!(!sent.status.success());
    let text = ctl(&worker.ns, "drops");
    let line = text.lines().find(|line| line.contains("no_route")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains(&format!("icmp {} to 10.1.249.9", pair.a.address)), "{text}");
    let drops = json(&worker.ns, "drops");
    let reasons = drops["egress"].as_array().unwrap();
    let no_route = reasons.iter().find(|drop| drop["reason"] == "no_route").unwrap();
    assert_eq!(no_route["last"]["outer"], Value::Null);
    assert_eq!(no_route["last"]["dst"], "10.1.249.9");
    assert!(reasons.iter().any(|drop| drop["reason"] == "too_big" && drop["last"].is_null()), "all reasons");
    // And it is counted as nobody's.
    assert_eq!(json(&worker.ns, "peers")["peers"][0]["traffic"]["egress"]["drops"], 0);
}

#[test]
fn watching_goes_on_until_nobody_reads() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    let _daemon: Overlayd<'_> = worker.overlayd(&store).start();
    let ctl = program("overlayctl");
    let mut command = worker.ns.command("sh");
    command.args(["-c", &format!("{} drops --watch 0.1 | head -n 4", ctl.display())]);
    let text = netns::succeed(&mut command);
    assert_eq!(text.lines().filter(|line| *line == "no drops").count(), 2, "{text}");
    let mut command = worker.ns.command("sh");
    command.args(["-c", &format!("{} stats --json -w 0.1 | head -n 3", ctl.display())]);
    let text = netns::succeed(&mut command);
    let at: Vec<u64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["at_ms"].as_u64().unwrap())
        .collect();
    assert!(at.len() == 3 && at.is_sorted() && at[2] >= at[0] + 150, "{at:?}");
}

#[test]
fn a_capture_is_a_file_that_others_read() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--queues=1"]);
    let ctl = program("overlayctl");
    let capture = |name: &str, options: &str, send: &dyn Fn()| {
        let file = worker.directory().join(name);
        let mut command = worker.ns.command(&ctl.display().to_string());
        let mut running = command
            .arg("capture")
            .arg(&file)
            .args(options.split_whitespace())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The head is written once the daemon captures.
        await_until(SOON, "the capture to begin", || {
            assert!(running.try_wait().unwrap().is_none_or(|status| status.success()));
            std::fs::metadata(&file).is_ok_and(|file| file.len() > 0)
        });
        send();
        let status = running.wait().unwrap();
        assert!(status.success(), "{status}");
        (std::fs::read(&file).unwrap(), worker.ns.ok(&format!("tcpdump -nr {}", file.display())))
    };
    let ping = || traffic::ping(&pair.a.ns, pair.b.address);

    let options = format!("-c 2 -t 20 --protocol icmp --host {}", pair.b.address);
    let (_, text) = capture("inner.pcapng", &options, &ping);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].contains(&format!("{} > {}: ICMP echo request", pair.a.address, pair.b.address)),
        "{text}"
    );
    assert!(lines[1].contains("ICMP echo reply"), "{text}");

    // By the pod's address: daemons that ask each other for the path's MTU are on the wire, too.
    let options = format!("--outer -c 2 -t 20 --peer 192.168.199.238 --host {}", pair.b.address);
    let (_, text) = capture("outer.pcapng", &options, &ping);
    assert!(text.contains("192.168.1.12") && text.contains("> 192.168.199.238.8472"), "{text}");
    // tcpdump takes port 8472 for OTV, which has VXLAN's header.
    let inner = format!("IP {} > {}: ICMP echo request", pair.a.address, pair.b.address);
    assert!(text.contains("instance 1") && text.contains(&inner), "{text}");

    let no_route = || {
        pair.a.ns.run("ping -c 1 -W 1 10.1.249.9");
    };
    let again = format!("{} capture {}", ctl.display(), worker.directory().join("outer.pcapng").display());
    let refused = worker.ns.run(&format!("{again} -t 0.1"));
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && text.contains("outer.pcapng exists"), "{text}");
    assert!(worker.ns.ok(&format!("{again} -t 0.1 --force")).contains("bytes written"));
    let (file, text) = capture("drops.pcapng", "--drops -c 1 -t 20 --snaplen 40", &no_route);
    assert!(text.contains("> 10.1.249.9: ICMP echo request"), "{text}");
    let comment = b"egress, inner, dropped: no_route";
    assert!(file.windows(comment.len()).any(|text| text == comment));

    let (_, text) = capture("nothing.pcapng", "-t 0.3 --port 9", &ping);
    assert_eq!(text, "", "nothing fits");
    let mut four: Vec<_> = (0..4)
        .map(|number| {
            let file = worker.directory().join(format!("long{number}.pcapng"));
            let mut long = worker.ns.command(&ctl.display().to_string());
            let long = long.arg("capture").arg(&file).args(["-t", "60"]).spawn().unwrap();
            await_until(SOON, "the capture to begin", || {
                std::fs::metadata(&file).is_ok_and(|file| file.len() > 0)
            });
            (long, file)
        })
        .collect();
    let another = || worker.ns.run(&format!("{} capture - -t 0.1", ctl.display()));
    let refused = another();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("4 captures are running"), "{said}");
    ping();
    for (long, file) in &mut four {
        await_until(SOON, "each of them to have the ping", || {
            // Its last block may not be whole yet.
            let shown = worker.ns.run(&format!("tcpdump -nr {}", file.display())).stdout;
            String::from_utf8_lossy(&shown).contains("ICMP echo reply")
        });
        // Who goes away without a word has wanted it no more.
        long.kill().unwrap();
        long.wait().unwrap();
    }
    await_until(SOON, "the next capture", || another().status.success());
}

#[test]
fn top_shows_a_screen_and_leaves_the_terminal_as_it_was() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let daemons = [worker.overlayd(&store).start(), master.overlayd(&store).start()];
    await_mesh(&[&daemons[0], &daemons[1]]);
    let subnet = daemons[1].env().base_with_length();
    // `script` runs it on a terminal of its own.
    let run = |end: &dyn Fn(&mut std::process::Child, u32)| {
        let shown = worker.directory().join("top.txt");
        let _ = std::fs::remove_file(&shown);
        let ctl = program("overlayctl");
        let inner = format!(
            "stty rows 24 cols 80; {} top --interval 0.25; echo ended with $?; stty -a",
            ctl.display()
        );
        let mut command = worker.ns.command("script");
        let mut script = command
            .args(["--quiet", "--flush", "--command", &inner])
            .arg(&shown)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let text = || String::from_utf8_lossy(&std::fs::read(&shown).unwrap_or_default()).into_owned();
        await_until(SOON, "the screen with the peer on it", || text().contains(&subnet));
        let top = child_of(script.id(), "overlayctl");
        end(&mut script, top);
        let ended = await_until(SOON, "top to end", || text().contains("ended with 0"));
        assert!(ended < Duration::from_secs(10), "at once");
        drop(script.stdin.take());
        script.wait().unwrap();
        let text = text();
        let (enter, leave) = ("\x1b[?1049h", "\x1b[?1049l");
        assert!(text.contains(enter) && text.rfind(leave) > text.rfind(enter), "back to the usual screen");
        assert!(text.contains("\x1b[?25h"), "with a cursor");
        let after = text.split("ended with 0").nth(1).unwrap();
        assert!(after.contains(" icanon") && after.contains(" echo "), "and with echo: {after}");
        text
    };
    let text = run(&|script, _| script.stdin.as_mut().unwrap().write_all(b"q").unwrap());
    assert!(text.contains("egress-0") && text.contains("quit"), "{text}");
    run(&|script, _| script.stdin.as_mut().unwrap().write_all(b"\x03").unwrap());
    for signal in ["TERM", "INT"] {
        run(&|_, top| {
            netns::succeed(
                std::process::Command::new("kill").args([&format!("-{signal}"), &top.to_string()]),
            );
        });
    }
    let refused = worker.ns.run(&format!("{} top", program("overlayctl").display()));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("needs a terminal"), "{refused:?}");
}

/// The process of this name among the descendants of another.
fn child_of(ancestor: u32, name: &str) -> u32 {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let processes = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let comm = |process: u32| std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    let parent = |process: u32| -> Option<u32> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let descends = |process: u32| std::iter::successors(Some(process), |p| parent(*p)).any(|p| p == ancestor);
    let found = processes.filter(|process| comm(*process).trim() == name).find(|process| descends(*process));
    found.unwrap_or_else(|| panic!("no {name} below {ancestor}"))
}
