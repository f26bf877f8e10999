# The two commands that matter: `make demo` and `make test`. Each installs what it needs (Debian and
# its relatives), builds, and leaves nothing behind but the packages and target/.

BACKEND ?= vxlan
STORE   ?= dir
# Network namespaces need root: programs under test run through sudo, cargo itself never does.
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
HOST    := $(shell rustc -vV | sed -n 's/^host: //p')
# (cargo refuses an empty runner, so for root there is none.)
RUNNER  := $(if $(SUDO),CARGO_TARGET_$(shell echo $(HOST) | tr 'a-z-' 'A-Z_')_RUNNER='$(SUDO)')
CARGO   := cargo --locked
BENCH_bench      := --preset short
BENCH_bench-full := --preset full --goals

.PHONY: help demo test test-full lint fmt bench bench-full bench-micro doc setup setup-demo setup-bench setup-lint clean

help:
	@echo 'make demo [BACKEND=vxlan|udp] [STORE=dir|etcd]   two hosts, a router, a pod each, and traffic'
	@echo 'make test                                         every test: unit, integration, documentation'
	@echo 'make test-full                                    the tests that take their time: large transfers, idle'
	@echo 'make lint                                         formatting, clippy, dependencies, scripts'
	@echo 'make bench                                        overlayd beside kernel VXLAN: three minutes, target/bench.html'
	@echo 'make bench-full                                   everything, held against the goals: half an hour'
	@echo 'make bench-micro                                  lookup, checksum, encapsulation, segmentation, coalescing'
	@echo 'make doc                                          the API documentation, in target/doc'

demo: setup-demo
	$(CARGO) build --release --bin overlayd --bin overlayctl --bin overlay-demo
	$(SUDO) env BACKEND=$(BACKEND) STORE=$(STORE) target/release/overlay-demo

test: setup
	$(CARGO) build --bins
	$(CARGO) test --workspace --doc
	$(RUNNER) cargo nextest run --locked --workspace

test-full: setup
	$(CARGO) build --bins
	$(RUNNER) cargo nextest run --locked --workspace --profile full

lint: setup-lint
	cargo fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items
	cargo deny --locked check bans licenses sources
	shellcheck integration/setup.sh .ci/run

fmt:
	cargo fmt --all

bench bench-full: setup-bench
	$(CARGO) build --release --bin overlayd --bin overlayctl --bin overlay-bench
	$(SUDO) target/release/overlay-bench run $(BENCH_$@) \
	    --json target/$@.json --markdown target/$@.md --html target/$@.html

bench-micro:
	$(CARGO) bench -p bench

doc:
	$(CARGO) doc --workspace --no-deps

setup setup-demo setup-bench setup-lint:
	@integration/setup.sh $(patsubst setup%,all%,$@) $(STORE)

clean:
	cargo clean
