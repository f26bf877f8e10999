#!/bin/bash
# Installs what building, demonstrating, measuring and testing need: packages of Debian or its
# relatives, and cargo's tools. What is there already is left alone.
# Usage: setup.sh all|all-full|all-demo|all-bench|all-fuzz|all-lint|all-e2e|all-package|all-image [STORE]
set -euo pipefail

build=(gcc pkg-config protobuf-compiler libprotobuf-dev)
demo=(iproute2 iputils-ping iperf3 nftables iptables procps)
etcd=(etcd-server etcd-client)
tests=("${demo[@]}" "${etcd[@]}" docker.io tcpdump ethtool curl prometheus)

case "${1:-all}" in
all-demo)
    packages=("${build[@]}" "${demo[@]}")
    if [ "${2:-dir}" = etcd ]; then packages+=("${etcd[@]}"); fi
    tools=()
    ;;
all-full)
    packages=("${build[@]}" "${tests[@]}" chromium)
    tools=(cargo-nextest)
    ;;
all-bench)
    packages=("${build[@]}" "${demo[@]}" ethtool)
    tools=()
    ;;
all-fuzz)
    packages=("${build[@]}" g++)
    tools=(cargo-fuzz)
    ;;
all-e2e)
    packages=("${build[@]}" "${tests[@]}" debootstrap systemd-container)
    tools=(cargo-deb)
    ;;
all-image)
    packages=("${build[@]}" dpkg debootstrap)
    tools=(cargo-deb)
    ;;
all-package)
    packages=("${build[@]}" dpkg)
    tools=(cargo-deb)
    ;;
all-lint)
    packages=("${build[@]}" shellcheck)
    tools=(cargo-deny)
    ;;
*)
    packages=("${build[@]}" "${tests[@]}")
    tools=(cargo-nextest)
    ;;
esac

# Brings the lists of packages up to date. A host that has just booted may be doing so itself, and apt waits for its
# other locks only (DPkg::Lock::Timeout).
update() {
    local waited=0
    while ! said=$("${as_root[@]}" env LC_ALL=C apt-get -o DPkg::Lock::Timeout=300 update -q 2>&1); do
        if ! grep -q 'Could not get lock' <<<"$said" || [ "$waited" -ge 300 ]; then
            echo "$said" >&2
            return 1
        fi
        if [ "$waited" = 0 ]; then echo "another apt-get is at work on the lists of packages: waiting for it"; fi
        sleep 1
        waited=$((waited + 1))
    done
}

missing=()
for package in "${packages[@]}"; do
    if [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
        missing+=("$package")
    fi
done

if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
    echo "installing ${missing[*]}"
    # The tests start etcd and docker themselves, in namespaces: no service is to come up on this host.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
        "${as_root[@]}" chmod +x "$policy"
        trap '"${as_root[@]}" rm -f "$policy"' EXIT
    fi
    update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -qy --no-install-recommends "${missing[@]}"
fi

for tool in "${tools[@]}"; do
    if ! cargo "${tool#cargo-}" --version >/dev/null 2>&1; then
        cargo install --locked "$tool"
    fi
done
