#!/bin/bash
# Whether this machine can boot hosts in systemd-nspawn, as `make e2e` does. Says why not.
set -euo pipefail

if [ "$(id -u)" != 0 ]; then exec sudo -E "$0"; fi
# This machine's own programs, as they are, with the settings that hosts are booted with.
if ! said=$(SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 systemd-nspawn --quiet --register=no --keep-unit --capability=all \
    --system-call-filter="add_key keyctl bpf" --bind=/dev/net/tun --private-network \
    --volatile=yes --directory=/ --machine="bootable-$$" /usr/bin/true 2>&1); then
    echo "systemd-nspawn: $said" >&2
    exit 1
fi
