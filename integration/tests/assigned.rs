//! A lease manager that no store is behind: a node's subnet is assigned to it, and the daemon does the rest.

use std::future::pending;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use async_trait::async_trait;
use integration::{Backend, Host, SOON, Site, Store, SubnetEnv, await_until, netns, traffic};
use ipnet::Ipv4Net;
use overlay_flags::{Connected, Flags};
use overlay_leases::lease::{Ground, Lease, LeaseAttrs};
use overlay_leases::manager::{LeaseList, LeaseManager, Links, Nodes, Released};
use overlay_leases::membership::{MembershipError, Question, View};
use overlay_leases::netconf::NetworkConfig;
use overlay_leases::store::{StoreError, StoreId};
use overlayd::events::Events;
use tokio::sync::oneshot;

/// Subnets as somebody has assigned them, by the public addresses of their nodes.
#[derive(Clone)]
struct Assigned {
    config: String,
    leases: Vec<Lease>,
}

#[async_trait]
impl LeaseManager for Assigned {
    fn id(&self) -> StoreId {
        StoreId::read("assigned")
    }

    fn how_to_configure(&self, config: &str) -> String {
        format!("assign {config}")
    }

    async fn config(&self) -> Result<Option<String>, StoreError> {
        Ok(Some(self.config.clone()))
    }

    async fn nodes(&self) -> Result<Nodes, StoreError> {
        let public_ips = self.leases.iter().map(|lease| lease.attrs.public_ip).collect();
        Ok(Nodes { leases: self.leases.len(), public_ips })
    }

    async fn leases(&self, _view: &View, _most_asked: usize) -> Result<LeaseList, StoreError> {
        Ok(LeaseList::default())
    }

    async fn release(&self, _lease: &Lease, _dry_run: bool) -> Result<Released, StoreError> {
        Ok(Released::Nothing)
    }

    async fn take_part(&self, links: Links) -> MembershipError {
        let config = NetworkConfig::parse(&self.config).expect("a network configuration");
        let (answer, answered) = oneshot::channel();
        let question = Question { config: config.clone(), answer };
        links.questions.send(question).await.expect("the daemon listens");
        answered.await.expect("an answer").expect("this host can run the network");

        let public_ip = links.terms.public_ip;
        let ours = |lease: &&Lease| lease.attrs.public_ip == public_ip;
        let lease = self.leases.iter().find(ours).expect("a subnet for this node").clone();
        let host = links.host.borrow().clone();
        let ground = Ground { config: &config, own: Some(lease.subnet), public_ip, host: &host };
        let peers = ground.judge_saved(self.leases.clone());
        let view = View::unconfirmed((self.config.clone(), config), lease, peers, host);
        links.views.send_replace(Some(View { held: true, connected: true, ..view }));
        pending().await
    }
}

#[test]
fn a_node_whose_subnet_is_assigned_reaches_one_that_has_chosen_its_own() {
    let (site, worker, master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Udp);
    store.put_lease("10.1.77.0-24", r#"{"PublicIP":"192.168.1.12","PublicIPv6":null}"#);
    let m = master.overlayd(&store).start();

    let lease = |subnet: &str, public_ip: Ipv4Addr| {
        let value = format!(r#"{{"PublicIP":"{public_ip}"}}"#);
        let subnet = subnet.parse::<Ipv4Net>().unwrap();
        Lease { subnet, attrs: LeaseAttrs::from_json(value.as_bytes()).unwrap() }
    };
    let leases =
        vec![lease("10.1.77.0/24", worker.public_ip), lease(&m.env().base_with_length(), master.public_ip)];
    let manager = Assigned { config: Backend::Udp.config(), leases };
    let file = worker.directory().join("assigned.env");
    let daemon = InProcess::start(&worker, manager, &file);
    await_until(SOON, "the subnet file", || file.exists());
    let env = SubnetEnv::read(&file);
    assert_eq!(env.base_with_length(), "10.1.77.0/24");
    let (a, b) = (worker.bridge_and_pod(&env), master.bridge_and_pod(&m.env()));
    traffic::ping(&a.ns, b.address);
    traffic::ping(&b.ns, a.address);
    daemon.stop();
}

/// A daemon on a thread of this process, in the namespace of its host.
struct InProcess {
    stop: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl InProcess {
    fn start(host: &Host, manager: Assigned, file: &Path) -> Self {
        let arguments = ["--iface=eth0".into(), format!("--subnet-file={}", file.display())];
        let flags = Flags::parse_from(arguments.map(Into::into), |_| None).expect("flags");
        let path = host.ns.path();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            netns::enter(&path);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let connect = async move |_: &Flags, _: &_| {
                Ok::<Connected, _>((Arc::new(manager) as Arc<dyn LeaseManager>, Ok(())))
            };
            let ended = runtime.block_on(async {
                tokio::select! {
                    ended = overlayd::daemon::run_with(flags, Events::default(), connect) => Some(ended),
                    _ = stopped => None,
                }
            });
            assert!(ended.is_none(), "{ended:?}");
        });
        Self { stop, thread }
    }

    fn stop(self) {
        // It may have ended, which the thread tells.
        let _ = self.stop.send(());
        self.thread.join().expect("the daemon");
    }
}
