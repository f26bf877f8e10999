#!/bin/bash
# Makes the root of the booted hosts, for `make e2e`: Debian's minimum, systemd, docker and what checks
# need. Made once; remove the directory to have it made anew.
# Usage: root.sh DIRECTORY
set -euo pipefail

root=$1
if [ -e "$root/.complete" ]; then exit 0; fi
rm -rf "$root"
mkdir -p "$(dirname "$root")"
# shellcheck source=/dev/null
. /etc/os-release
packages=systemd,systemd-sysv,dbus,iproute2,iputils-ping,procps,nftables,iptables,docker.io,busybox-static,ca-certificates
debootstrap --variant=minbase --include="$packages" "$VERSION_CODENAME" "$root" >"$root.log" 2>&1 || {
    tail -20 "$root.log" >&2
    exit 1
}
# A container's init cannot write to its control groups unless they are mounted anew; docker must.
cat >"$root/etc/systemd/system/cgroups.service" <<'EOF'
[Unit]
Description=Writable control groups, which docker needs
DefaultDependencies=no
Before=docker.service containerd.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for c in $(awk "/cgroup/{print \$2}" /proc/mounts); do mount -o remount,rw,bind $c; done'

[Install]
WantedBy=multi-user.target
EOF
mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/var/lib/image/bin"
ln -sf ../cgroups.service "$root/etc/systemd/system/multi-user.target.wants/cgroups.service"
# The containers' image: busybox alone.
cp "$root/bin/busybox" "$root/var/lib/image/bin/"
# Their addresses come with the namespaces they are booted in.
rm -f "$root/etc/resolv.conf"
touch "$root/.complete"
