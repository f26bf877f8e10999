//! What the daemon says of a bridge of docker's that is in an earlier subnet.

use integration::{Backend, Overlayd, SOON, Site, Store, await_until};

#[test]
fn a_bridge_outside_of_the_subnet_is_a_problem_until_docker_has_been_restarted() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let mut daemon = worker.overlayd(&store).start();
    let now = daemon.env();
    let earlier = if now.subnet == "10.1.250.1/24" { "10.1.251.1/24" } else { "10.1.250.1/24" };
    // Nobody is on it, and it was never the overlay's.
    worker.ns.ip("link add docker0 type bridge\naddress add 172.17.0.1/16 dev docker0\nlink set docker0 up");
    await_problems(&daemon, |problems| problems.is_empty());

    worker.ns.ip(&format!("address del 172.17.0.1/16 dev docker0\naddress add {earlier} dev docker0"));
    let told = format!(
        "docker0 still has {earlier}, but this node's subnet is {} now: the other nodes do not reach its containers. \
         Give docker the new one: systemctl restart docker",
        now.base_with_length()
    );
    await_problems(&daemon, |problems| problems == [told.as_str()]);
    assert!(daemon.log().contains(&told), "{}", daemon.log());

    worker.ns.ip(&format!("address del {earlier} dev docker0\naddress add {} dev docker0", now.subnet));
    await_problems(&daemon, |problems| problems.is_empty());

    // The network becomes another, and docker0 stays where it is; or docker has never heard of the subnet.
    store.put_config(r#"{"Network":"10.2.0.0/16","Backend":{"Type":"vxlan"}}"#);
    daemon.process().signal(rustix::process::Signal::HUP);
    await_until(SOON, "the subnet of another network", || daemon.env().network == "10.2.0.0/16");
    await_until(SOON, "it to forward again", || {
        let log = daemon.log();
        log.rfind("forwarding device=") > log.rfind("reading the network configuration again")
    });
    let earlier = format!("docker0 still has {}", now.subnet);
    await_problems(&daemon, |problems| problems.len() == 1 && problems[0].starts_with(&earlier));
    worker.ns.ip(&format!("address del {} dev docker0\naddress add 172.17.0.1/16 dev docker0", now.subnet));
    await_problems(&daemon, |problems| problems.is_empty());
    worker.ns.ip("link add pod0 type veth peer name pod1\nlink set pod0 master docker0 up\nlink set pod1 up");
    await_problems(&daemon, |problems| {
        problems.len() == 1
            && problems[0].starts_with("docker0 has 172.17.0.1/16, and no bridge has an address of")
    });
}

#[track_caller]
fn await_problems(daemon: &Overlayd<'_>, wanted: impl Fn(&[&str]) -> bool) {
    await_until(SOON, "the status to say so", || {
        let status = daemon.status();
        let problems = status.0["host"]["problems"].as_array().expect("a list of problems");
        wanted(&problems.iter().filter_map(|problem| problem.as_str()).collect::<Vec<_>>())
    });
}
