#!/bin/bash
# Makes a container's root with overlayd and what it runs (nft, iptables), for `docker import`. What is Debian's
# of it is made once, beside the archive; remove the directory to have it made anew.
# Usage: build.sh PACKAGE ARCHIVE
set -euo pipefail

package=$1 archive=$2 base=${2%.tar}.base
if [ ! -e "$base/.complete" ] || [ ! -e "$base/bin/systemd-sysusers" ]; then
    rm -rf "$base"
    mkdir -p "$(dirname "$base")"
    # shellcheck source=/dev/null
    . /etc/os-release
    debootstrap --variant=minbase --include=nftables,iptables,systemd-standalone-sysusers \
        "$VERSION_CODENAME" "$base" >"$base.log" 2>&1 || {
        tail -20 "$base.log" >&2
        exit 1
    }
    # Nobody reads or installs anything there.
    rm -rf "$base"/usr/share/{doc,man,info,locale} "$base"/var/cache/apt/* "$base"/var/lib/apt/lists/*
    touch "$base/.complete"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -a --reflink=auto "$base" "$work/root"
cp "$package" "$work/root/overlayd.deb"
chroot "$work/root" dpkg -i /overlayd.deb >/dev/null
rm -rf "$work/root/overlayd.deb" "$work/root/.complete" "$work"/root/usr/share/{doc,man}
tar -C "$work/root" --numeric-owner -cf "$archive" .
