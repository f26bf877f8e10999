//! What the daemon says of a bridge of docker's that is in an earlier subnet.

use integration::{Backend, Overlayd, SOON, Site, Store, await_until};

#[test]
fn a_bridge_outside_of_the_subnet_is_a_problem_until_docker_has_been_restarted() {
    let (site, worker, _master) = Site::two_hosts();
    let store = Store::dir(&site, Backend::Vxlan);
    let daemon = worker.overlayd(&store).start();
    let now = daemon.env();
    let earlier = if now.subnet == "10.1.250.1/24" { "10.1.251.1/24" } else { "10.1.250.1/24" };
    // Another network's bridge is not ours to judge.
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
}

#[track_caller]
fn await_problems(daemon: &Overlayd<'_>, wanted: impl Fn(&[&str]) -> bool) {
    await_until(SOON, "the status to say so", || {
        let status = daemon.status();
        let problems = status.0["host"]["problems"].as_array().expect("a list of problems");
        wanted(&problems.iter().filter_map(|problem| problem.as_str()).collect::<Vec<_>>())
    });
}
