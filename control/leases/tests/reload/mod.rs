//! Another network configuration: what runs stays until that can be had, and a word to apply it is kept.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::memory::Memory;
use overlay_leases::membership::{
    Membership, MembershipError, Question, Refusal, Running, Standing, Terms, View,
};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::store::LeaseStore;
use overlay_support::problem::Problem;

const CONFIG: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
const ONE_SUBNET: &str =
    r#"{"Network":"10.1.0.0/16","SubnetMin":"10.1.66.0","SubnetMax":"10.1.66.0","Backend":{"Type":"vxlan"}}"#;
const OTHER_VNI: &str = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan","VNI":5}}"#;
const KEY: &str = "10.1.9.0-24";

/// A member, and what it tells and hears.
struct Member {
    store: Arc<Memory>,
    views: watch::Receiver<Option<View>>,
    standing: watch::Receiver<Standing>,
    reload: Arc<Notify>,
    /// Whether this host says that it can run a network.
    host: watch::Sender<bool>,
    /// Which network it says it runs.
    running: watch::Sender<Option<Running>>,
    task: JoinHandle<MembershipError>,
}

impl Member {
    /// Of a network in memory, on a host that can run it or not.
    fn join(store: Memory, host_can: bool) -> Self {
        let store = Arc::new(store);
        let terms = Terms {
            public_ip: Ipv4Addr::new(192, 168, 1, 12),
            previous: Some("10.1.9.0/24".parse().unwrap()),
            vtep_mac: None,
            ttl: Duration::from_secs(3600),
            renew_margin: Duration::from_secs(10),
        };
        let (out, views) = watch::channel(None);
        let (stand, standing) = watch::channel(Standing::default());
        let (ask, mut questions) = mpsc::channel::<Question>(1);
        let (host, can) = watch::channel(host_can);
        let (running, runs) = watch::channel(None);
        let told = views.clone();
        tokio::spawn(async move {
            while let Some(Question { answer, .. }) = questions.recv().await {
                let forwarding = told.borrow().is_some();
                let refusal = || Refusal { problem: Problem::new("port", "the port is taken"), forwarding };
                let _ = answer.send(if *can.borrow() { Ok(()) } else { Err(refusal()) });
            }
        });
        let reload = Arc::<Notify>::default();
        let membership = Membership::new(Arc::clone(&store) as Arc<dyn LeaseStore>, terms, None, out)
            .reloading(Arc::clone(&reload))
            .asking(ask)
            .once_it_runs(runs)
            .telling(stand);
        Self { store, views, standing, reload, host, running, task: tokio::spawn(membership.run()) }
    }

    async fn running() -> Self {
        let mut member = Self::join(Memory::new(CONFIG), true);
        member.view_that(|view| view.connected && view.held).await;
        member
    }

    async fn view_that(&mut self, wanted: impl Fn(&View) -> bool) -> View {
        let view = self.views.wait_for(|view| view.as_ref().is_some_and(&wanted));
        timeout(Duration::from_secs(600), view).await.expect("such a view").unwrap().clone().unwrap()
    }

    /// Why another configuration is not applied.
    async fn problem(&mut self) -> String {
        let refused = self.standing.wait_for(|standing| standing.not_applied.is_some());
        let standing = timeout(Duration::from_secs(600), refused).await.expect("a problem").unwrap().clone();
        standing.not_applied.unwrap().text().to_owned()
    }

    /// This host runs `config` with `subnet` from now on.
    fn runs(&self, config: &str, subnet: &str) {
        self.running.send_replace(Some((NetworkConfig::parse(config).unwrap(), subnet.parse().unwrap())));
    }

    fn apply(&self, config: &str) {
        self.store.set_config(config);
        self.reload.notify_one();
    }

    /// Nothing has changed but for the peers, which others still change.
    async fn is_as_before(&mut self, lease: &str) {
        assert_eq!(self.store.value(KEY).as_deref(), Some(lease));
        self.store.put("10.1.70.0-24", lease_of("192.168.1.70").as_str(), Some(1));
        let view = self
            .view_that(|view| view.peers.iter().any(|peer| peer.subnet.to_string() == "10.1.70.0/24"))
            .await;
        assert!(view.held && view.config_text == CONFIG, "{view:?}");
    }
}

fn lease_of(public_ip: &str) -> String {
    format!(
        r#"{{"PublicIP":"{public_ip}","BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:07"}}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_up_only_for_another() {
    let mut member = Member::running().await;
    let lease = member.store.value(KEY).unwrap();
    member.store.put("10.1.66.0-24", &lease_of("192.168.1.66"), Some(1));
    member.apply(ONE_SUBNET);
    assert!(member.problem().await.contains("no subnet is free"));
    member.is_as_before(&lease).await;
    member.store.delete("10.1.66.0-24");
    let view = member.view_that(|view| view.config_text == ONE_SUBNET).await;
    assert_eq!((view.lease.subnet.to_string().as_str(), view.held), ("10.1.66.0/24", true));
    assert_eq!(member.standing.borrow().not_applied, None);
    sleep(Duration::from_secs(60)).await;
    assert!(member.store.get(KEY).is_some(), "the earlier network runs yet");
    for (config, subnet) in [(CONFIG, "10.1.66.0/24"), (ONE_SUBNET, "10.1.9.0/24")] {
        member.runs(config, subnet);
        sleep(Duration::from_secs(60)).await;
        assert!(member.store.get(KEY).is_some(), "another runs yet");
    }
    member.runs(ONE_SUBNET, "10.1.66.0/24");
    let given_up = async {
        while member.store.get(KEY).is_some() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(60), given_up).await.expect("the earlier lease to be given up now");
}

#[tokio::test(start_paused = true)]
async fn what_the_store_no_longer_says_is_not_applied_later() {
    for replaced_by in [CONFIG, OTHER_VNI] {
        let mut member = Member::running().await;
        let lease = member.store.value(KEY).unwrap();
        member.store.put("10.1.66.0-24", &lease_of("192.168.1.66"), Some(1));
        member.apply(ONE_SUBNET);
        assert!(member.problem().await.contains("no subnet is free"));
        member.store.set_config(replaced_by);
        let over = member.standing.wait_for(|standing| standing.not_applied.is_none());
        timeout(Duration::from_secs(600), over).await.expect("no problem").unwrap();
        member.store.delete("10.1.66.0-24");
        sleep(Duration::from_secs(600)).await;
        member.is_as_before(&lease).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_host_cannot_run_is_tried_again_later_and_later() {
    let mut member = Member::running().await;
    let lease = member.store.value(KEY).unwrap();
    member.host.send_replace(false);
    member.apply(OTHER_VNI);
    assert!(member.problem().await.contains("the port is taken"));
    sleep(Duration::from_secs(600)).await;
    member.is_as_before(&lease).await;
    member.host.send_replace(true);
    let begun = Instant::now();
    member.view_that(|view| view.config_text == OTHER_VNI && view.held).await;
    assert!(begun.elapsed() <= Duration::from_secs(16), "{:?}", begun.elapsed());
    assert!(member.store.value(KEY).unwrap().contains(r#""VNI":5"#));
}

#[tokio::test(start_paused = true)]
async fn a_word_to_reload_is_kept_while_the_store_does_not_answer() {
    let mut member = Member::running().await;
    // Changes are still followed.
    member.store.refuse_config(true);
    member.apply(OTHER_VNI);
    member.view_that(|view| !view.connected).await;
    member.store.refuse_config(false);
    member.view_that(|view| view.config_text == OTHER_VNI && view.connected).await;
}

#[tokio::test(start_paused = true)]
async fn a_host_that_cannot_run_the_network_takes_no_lease_in_it() {
    let member = Member::join(Memory::new(CONFIG), false);
    let error = timeout(Duration::from_secs(60), member.task).await.expect("an end").unwrap();
    assert!(matches!(&error, MembershipError::Host(why) if why == "the port is taken"), "{error}");
    assert_eq!(member.store.get(KEY), None);
}

#[tokio::test(start_paused = true)]
async fn after_one_that_is_no_configuration_the_next_one_is_applied() {
    for (next, applied) in [(CONFIG, CONFIG), (OTHER_VNI, OTHER_VNI)] {
        let mut member = Member::running().await;
        member.apply("{,}");
        assert!(member.problem().await.contains("cannot be used"));
        member.store.set_config("still none");
        sleep(Duration::from_secs(1)).await;
        assert!(member.problem().await.contains("cannot be used"));
        member.store.set_config(next);
        let over = member.standing.wait_for(|standing| standing.not_applied.is_none());
        timeout(Duration::from_secs(600), over).await.expect("no problem").unwrap();
        member.view_that(|view| view.config_text == applied && view.held).await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_no_configuration_is_a_problem_without_a_word_to_reload_while_the_store_has_it() {
    for next in [Some(CONFIG), Some(OTHER_VNI), None] {
        let mut member = Member::running().await;
        let lease = member.store.value(KEY).unwrap();
        member.store.set_config(r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlam"}}"#);
        let problem = member.problem().await;
        assert!(problem.contains("cannot be used") && problem.contains("vxlam"), "{problem}");
        member.is_as_before(&lease).await;
        match next {
            Some(next) => member.store.set_config(next),
            None => member.store.remove_config(),
        }
        let over = member.standing.wait_for(|standing| standing.not_applied.is_none());
        timeout(Duration::from_secs(600), over).await.expect("no problem").unwrap();
        member.is_as_before(&lease).await;
    }
}
