//! The status page: what it is told, what it may do, and what a browser makes of it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use integration::netns::{Namespace, succeed};
use integration::{Backend, Pair, SOON, Site, Store, await_until, http, traffic};

const PORT: u16 = 8080;

#[test]
fn the_page_is_for_this_host_alone_unless_an_address_is_given_and_may_load_nothing() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let outside = SocketAddr::from((worker.public_ip, PORT));
    let w = worker.overlayd(&store).flag("--http=8080").start();
    let page = http::get(&worker.ns, PORT, "/").expect("an answer");
    assert_eq!(page.code, 200);
    let head = page.head.to_lowercase();
    let policy =
        head.lines().find_map(|line| line.strip_prefix("content-security-policy: ")).expect("a policy");
    assert!(policy.starts_with("default-src 'none'") && policy.contains("connect-src 'self'"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains('*') && !policy.contains("http"), "{policy}");
    let nonce = policy.split("'nonce-").nth(1).and_then(|rest| rest.split('\'').next()).expect("a nonce");
    assert!(page.body.contains(&format!("<script nonce=\"{nonce}\">")), "the script may run");
    let again = http::get(&worker.ns, PORT, "/").expect("an answer");
    assert!(!again.head.contains(nonce), "each page has a nonce of its own");
    for line in ["x-content-type-options: nosniff", "cache-control: no-store", "x-frame-options: deny"] {
        assert!(head.contains(line), "no {line} in {head}");
    }
    assert_eq!(http::get_with(&worker.ns, outside, "/", ""), None, "nobody else reaches it");
    // A name of somebody else's that leads here.
    let local = SocketAddr::from(([127, 0, 0, 1], PORT));
    for (host, code) in [("localhost:8080", 200), ("evil.example:8080", 421)] {
        for path in ["/", "/summary.json", "/v1/events"] {
            let answer = http::get_with(&worker.ns, local, path, &format!("Host: {host}\r\n"));
            assert_eq!(answer.map(|answer| answer.code), Some(code), "{path} by {host}");
        }
    }
    let post =
        worker.ns.ok("curl -s -o /dev/null -w %{http_code} -X POST http://127.0.0.1:8080/summary.json");
    assert_eq!(post, "405");
    w.stop();

    let w = worker.overlayd(&store).flag(&format!("--http={outside}")).start();
    assert_eq!(http::get_with(&worker.ns, outside, "/", "").map(|answer| answer.code), Some(200));
    w.stop();
}

#[test]
fn the_page_is_told_the_node_its_peers_and_their_traffic() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--http=127.0.0.1:8080"]);
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 2);
    let summary: serde_json::Value =
        serde_json::from_str(&http::get(&worker.ns, PORT, "/summary.json").expect("an answer").body).unwrap();
    assert_eq!(summary["status"]["lease"]["state"], "held");
    assert_eq!((&summary["problems"], &summary["store_connected"]), (&serde_json::json!([]), &true.into()));
    let peer = &summary["peers"][0];
    assert_eq!(peer["subnet"], pair.right.env().base_with_length());
    assert!(
        peer["egress"]["bytes"].as_u64() > Some(2 << 20) && peer["ingress"]["packets"].as_u64() > Some(0)
    );
    assert!(peer["last_seen"].as_f64() < Some(30.0));
    assert!(summary["lease"]["expires"].is_null() && summary["lease"]["taken"].is_number());
}

#[test]
fn full_a_browser_shows_it_light_and_dark_and_nothing_that_others_wrote_is_run() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let pair = Pair::start([&worker, &master], &store, &["--http=8080"]);
    traffic::transfer(&pair.a.ns, &pair.b.ns, pair.b.address, 2);
    // In a lease that cannot be read, and in one that is read and cannot be reached as it should.
    let hostile =
        r#"{"PublicIP":"<img src=x onerror=document.title='pwned'><script>document.title='pwned'</script>"}"#;
    store.put_lease("10.1.177.0-24", hostile);
    let told = || http::get(&worker.ns, PORT, "/v1/events").expect("an answer").body.contains("pwned");
    await_until(SOON, "the event", told);

    let directory = site.directory("browser");
    let dom = browse(&worker.ns, &directory, &["--dump-dom", "--virtual-time-budget=9000"]);
    let subnet = pair.right.env().base_with_length();
    for part in [
        subnet.as_str(),
        "192.168.199.238",
        "lease held",
        "store connected",
        "forwarding",
        "<svg",
        "flannel.1",
    ] {
        assert!(dom.contains(part), "no {part} in {dom}");
    }
    assert!(dom.contains("&lt;img src=x onerror="), "the hostile text is shown: {dom}");
    assert!(!dom.contains("<img") && !dom.contains("<title>pwned"), "and is text only: {dom}");
    assert!(dom.contains("data-looks=\""), "the script has run");

    for (name, size, scheme, bright) in [
        ("light", "1280,1000", "1", true),
        ("dark", "1280,1000", "0", false),
        ("phone", "500,1400", "1", true),
    ] {
        let file = directory.join(format!("{name}.png"));
        browse(
            &worker.ns,
            &directory,
            &[
                &format!("--screenshot={}", file.display()),
                &format!("--window-size={size}"),
                &format!("--blink-settings=preferredColorScheme={scheme}"),
                "--virtual-time-budget=9000",
                "--hide-scrollbars",
            ],
        );
        let brightness = brightness(&file);
        assert_eq!(brightness > 0.5, bright, "{name}: {brightness}");
        if let Some(kept) = std::env::var_os("SCREENSHOTS") {
            std::fs::copy(&file, PathBuf::from(kept).join(format!("{name}.png"))).unwrap();
        }
    }
}

/// What a browser in the namespace prints about the page.
#[track_caller]
fn browse(ns: &Namespace, directory: &Path, flags: &[&str]) -> String {
    let profile = tempfile::tempdir_in(directory).unwrap();
    let mut command = ns.command("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-sync",
    ]);
    command.args(["--disable-background-networking", "--disable-component-update"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.env("HOME", profile.path());
    succeed(command.args(flags).arg("http://127.0.0.1:8080/"))
}

/// The mean of all pixels of a picture, from 0 for black to 1.
fn brightness(file: &Path) -> f64 {
    let file = std::io::BufReader::new(std::fs::File::open(file).expect("a screenshot"));
    let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
    let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
    let frame = reader.next_frame(&mut pixels).expect("a frame");
    let pixels = &pixels[..frame.buffer_size()];
    let colours = pixels.chunks(frame.color_type.samples()).flat_map(|pixel| &pixel[..3]);
    let (sum, count) = colours.fold((0.0, 0.0), |(sum, count), value| (sum + f64::from(*value), count + 1.0));
    sum / count / 255.0
}
