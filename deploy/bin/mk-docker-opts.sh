#!/bin/sh
# Turns the subnet file of overlayd (or flanneld) into what dockerd is started with.
set -eu

usage() {
    cat <<EOF
Usage: $0 [-f FILE] [-d FILE] [-i] [-c] [-m] [-k KEY]

Reads the subnet file and writes docker's options to another, which a unit of
systemd takes as its EnvironmentFile.

  -f FILE  the subnet file                          (where overlayd's unit has it,
                                                    or /run/flannel/subnet.env)
  -d FILE  where docker's options go                (/run/docker_opts.env)
  -i       write each option under a key of its own: DOCKER_OPT_BIP,
           DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
  -c       write all options together under one key
  -k KEY   that key                                 (DOCKER_OPTS)
  -m       leave --ip-masq out
  -h       show this

With neither -i nor -c, both are written. Options that the environment holds stay:
those of KEY come first, and each DOCKER_OPT_* is one more option.
EOF
}

fail() {
    echo "$0: $*" >&2
    exit 1
}

# flanneld-start says where the subnet file is, if it is not where flannel has it.
subnet_file=$(readlink "${OVERLAYD_ROOT:-}/run/overlayd/subnet.env" || echo /run/flannel/subnet.env)
docker_file=/run/docker_opts.env
key=DOCKER_OPTS
each=false
together=false
ip_masq=true

while getopts f:d:k:icmh option; do
    case $option in
    f) subnet_file=$OPTARG ;;
    d) docker_file=$OPTARG ;;
    k) key=$OPTARG ;;
    i) each=true ;;
    c) together=true ;;
    m) ip_masq=false ;;
    h)
        usage
        exit 0
        ;;
    *)
        usage >&2
        exit 1
        ;;
    esac
done
shift $((OPTIND - 1))
[ $# = 0 ] || fail "'$1' is not an option (see -h)"
case $key in
'' | [0-9]* | *[!A-Za-z0-9_]*) fail "-k '$key': a key has letters, digits and underscores, and no digit first" ;;
esac
if ! $each && ! $together; then
    each=true
    together=true
fi

[ -r "$subnet_file" ] || fail "cannot read $subnet_file: is overlayd running? (see systemctl status overlayd)"

# Read, not sourced: what stands in the file is data.
while IFS='=' read -r name value || [ -n "$name" ]; do
    value=${value#[\"\']}
    value=${value%[\"\']}
    case $name in
    FLANNEL_SUBNET) FLANNEL_SUBNET=$value ;;
    FLANNEL_MTU) FLANNEL_MTU=$value ;;
    FLANNEL_IPMASQ) FLANNEL_IPMASQ=$value ;;
    esac
done <"$subnet_file"

# They become words of docker's command line, which is root's.
case ${FLANNEL_SUBNET:=} in
*[!0-9./]*) fail "in $subnet_file, FLANNEL_SUBNET is '$FLANNEL_SUBNET': it is an address and a length" ;;
esac
case ${FLANNEL_MTU:=} in
*[!0-9]*) fail "in $subnet_file, FLANNEL_MTU is '$FLANNEL_MTU': it is a number" ;;
esac
if [ -n "$FLANNEL_SUBNET" ]; then export DOCKER_OPT_BIP="--bip=$FLANNEL_SUBNET"; fi
if [ -n "$FLANNEL_MTU" ]; then export DOCKER_OPT_MTU="--mtu=$FLANNEL_MTU"; fi
# Who masquerades? If the overlay does, docker must not, and the other way round.
if $ip_masq && [ -n "${FLANNEL_IPMASQ:=}" ]; then
    case $FLANNEL_IPMASQ in
    true) export DOCKER_OPT_IPMASQ=--ip-masq=false ;;
    false) export DOCKER_OPT_IPMASQ=--ip-masq=true ;;
    *) fail "in $subnet_file, FLANNEL_IPMASQ is '$FLANNEL_IPMASQ': it is true or false" ;;
    esac
fi

# A line as shells and systemd read it.
line() {
    printf '%s="%s"\n' "$1" "$(printf '%s' "$2" | sed 's/[\\"]/\\&/g')"
}

# All options there are, ours among those that the environment holds, as flannel has it.
names=$(env | LC_ALL=C sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p' | LC_ALL=C sort -u)
options() {
    eval "all=\${$key:-}"
    all=${all:+$all }
    for name in $names; do
        eval "value=\${$name:-}"
        if $each; then line "$name" "$value"; fi
        all="$all $value"
    done
    if $together; then line "$key" "$all"; fi
}

# Where the file of the subnet is that of docker's options, too, its other lines stay.
others() {
    written=$(options | sed -n 's/^\([A-Za-z0-9_]*\)=.*/^\1=/p')
    grep -v -e "$written" "$subnet_file" || true
}

# Whole or not at all: docker may be starting at this moment.
mkdir -p "$(dirname "$docker_file")"
temporary=$(mktemp "$docker_file.XXXXXX")
trap 'rm -f "$temporary"' EXIT
{
    # shellcheck disable=SC3013 # dash, busybox and bash have it.
    if [ "$docker_file" -ef "$subnet_file" ]; then others; fi
    options
} >"$temporary"
chmod 0644 "$temporary"
mv -f "$temporary" "$docker_file"
