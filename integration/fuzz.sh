#!/bin/bash
# Runs every fuzz target, two at a time, from the corpus that is in the repository; what is found on the way is
# kept below target/fuzz, and goes on from there next time.
# Usage: fuzz.sh SECONDS [none|address] [TARGET…]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
sanitizer=${2:-none}
shift $(($# < 2 ? $# : 2))
# Every compiler has the sanitizers, but a stable one does not offer them by itself.
if [ "$sanitizer" != none ]; then export RUSTC_BOOTSTRAP=1; fi
build=target/fuzz/$sanitizer
programs=$build/$(rustc -vV | sed -n 's/^host: //p')/release
for package in overlay control; do
    cargo fuzz build --fuzz-dir $package/fuzz --target-dir "$build" -s "$sanitizer"
done

run() {
    local source=$1 name log corpus
    name=$(basename "$source" .rs)
    corpus=target/fuzz/corpus/$name log=target/fuzz/$name.log
    mkdir -p "$corpus" target/fuzz/found
    # Leaks are no matter: the targets keep what they share until the end.
    if "$programs/$name" "$corpus" "${source%%/*}/fuzz/corpus/$name" -max_total_time="$seconds" \
        -timeout=20 -rss_limit_mb=2048 -detect_leaks=0 -artifact_prefix="target/fuzz/found/$name-" >"$log" 2>&1
    then
        echo "$name: $(sed -n 's/^Done \([0-9]*\) runs in \([0-9]*\) .*/\1 executions in \2 s/p' "$log")," \
            "coverage $(sed -n 's/.*DONE *cov: \([0-9]*\) .*/\1/p' "$log")"
    else
        tail -n 40 "$log"
        echo "$name: failed; the input is in target/fuzz/found" >&2
        return 255
    fi
}
export -f run
export seconds programs

for source in overlay/fuzz/targets/*.rs control/fuzz/targets/*.rs; do
    name=$(basename "$source" .rs)
    if [ $# = 0 ] || [[ " $* " == *" $name "* ]]; then echo "$source"; fi
done | xargs -P 2 -I{} bash -c 'run {}'
