# The two commands that matter: `make demo` and `make test`. Each installs what it needs (Debian and
# its relatives), builds, and leaves nothing behind but the packages and target/.

BACKEND ?= vxlan
STORE   ?= dir
FUZZ_MINUTES ?= 10
# Network namespaces need root: programs under test run through sudo, cargo itself never does.
SUDO    := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
HOST    := $(shell rustc -vV | sed -n 's/^host: //p')
# (cargo refuses an empty runner, so for root there is none.)
RUNNER  := $(if $(SUDO),CARGO_TARGET_$(shell echo $(HOST) | tr 'a-z-' 'A-Z_')_RUNNER='$(SUDO)')
CARGO   := cargo --locked
PREFIX  ?= /usr/local
NEXT    := 99.0.0-1
UNITS   := systemd/overlayd.service:/etc/systemd/system/overlayd.service \
    systemd/overlayd-prepare.service:/etc/systemd/system/overlayd-prepare.service \
    sysusers/overlayd.conf:/etc/sysusers.d/overlayd.conf \
    docker/overlayd.conf:/etc/systemd/system/docker.service.d/overlayd.conf
GENERATOR := /etc/systemd/system-generators/overlayd-docker
# Below share/overlayd.
MONITORING := $(patsubst deploy/%,%,$(wildcard deploy/prometheus/*.yml deploy/grafana/*.json))
# What overlay-manuals writes below share/.
MANUALS := man/man8/overlayd.8 man/man8/overlayctl*.8 \
    $(foreach name,overlayd overlayctl,bash-completion/completions/$(name) zsh/site-functions/_$(name) \
    fish/vendor_completions.d/$(name).fish)
SANITIZED := RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=address --cfg sanitized' CARGO_BUILD_TARGET=$(HOST) \
    CARGO_TARGET_DIR=target/sanitize ASAN_OPTIONS=detect_leaks=0
# Those in which the daemon does with the kernel what it does by unsafe code.
SANITIZED_TESTS := first_light spoofing restart tunnel_gso xdp
AARCH64 := aarch64-unknown-linux-gnu
# Crates whose modules use each other in no circle.
ACYCLIC := $(patsubst %/src/lib.rs,%,$(filter-out %/fuzz/src/lib.rs,$(wildcard overlay/*/src/lib.rs control/*/src/lib.rs)))
BENCH_bench      := --preset short
BENCH_bench-full := --preset full --goals

.PHONY: help demo test test-full soak e2e package image manuals reference lint fmt fuzz-smoke fuzz sanitize bench bench-full \
    bench-micro doc install uninstall setup setup-full setup-demo setup-bench setup-fuzz setup-lint setup-e2e setup-package setup-image clean

help:
	@echo 'make demo [BACKEND=vxlan|udp] [STORE=dir|etcd]   two hosts, a router, a pod each, and traffic'
	@echo 'make test                                         every test: unit, integration, documentation'
	@echo 'make test-full                                    the tests that take their time: large transfers, idle'
	@echo 'make soak [MINUTES=3] [SEED=n] [FLAGS=]           traffic while daemons, etcd, links and leases come and go'
	@echo 'make e2e                                          whole hosts: systemd, docker, the package, restarts'
	@echo 'make package                                      the Debian package, in target/debian'
	@echo 'make image                                        a container image for docker import, in target'
	@echo 'make manuals                                      manual pages and completions, in target/manuals'
	@echo 'make reference                                    docs/reference, written anew from the code'
	@echo 'make lint                                         formatting, clippy, dependencies, modules, scripts'
	@echo 'make fuzz-smoke                                   every fuzz target for 15 seconds'
	@echo 'make fuzz [FUZZ_MINUTES=10]                       the same for longer, under AddressSanitizer'
	@echo 'make sanitize                                     what is unsafe, and the daemon at work, under AddressSanitizer'
	@echo 'make bench                                        overlayd beside kernel VXLAN: three minutes, target/bench.html'
	@echo 'make bench-full                                   everything, held against the goals: half an hour'
	@echo 'make bench-micro                                  lookup, checksum, encapsulation, segmentation, coalescing'
	@echo 'make doc                                          the API documentation, in target/doc'
	@echo 'make install [PREFIX=/usr/local] [DESTDIR=]       programs, units, alerts, dashboard; uninstall removes them'

demo: setup-demo
	$(CARGO) build --release --bin overlayd --bin overlayctl --bin overlay-demo
	$(SUDO) env BACKEND=$(BACKEND) STORE=$(STORE) target/release/overlay-demo

test: setup
	$(CARGO) build --bins
	$(CARGO) test --workspace --doc
	$(RUNNER) cargo nextest run --locked --workspace

test-full: setup-full
	$(CARGO) build --bins
	$(RUNNER) cargo nextest run --locked --workspace --profile full
	$(CARGO) build --release --bin overlayd --bin overlayctl
	$(RUNNER) cargo nextest run --locked --release --test idle --profile full-release

soak: setup
	$(CARGO) build --release --bin overlayd --bin overlayctl --bin overlay-soak
	$(SUDO) env SOAK_MINUTES=$(MINUTES) SOAK_SEED=$(SEED) target/release/overlay-soak $(FLAGS)

# The same programs once more as the next version: what is upgraded to. (cargo-deb clears its own directory.)
e2e: setup-e2e package
	$(CARGO) build --release --bin overlay-e2e
	$(SUDO) integration/root.sh target/e2e/root
	rm -f target/e2e/*.deb && mv target/debian/overlayd_*.deb target/e2e/
	cargo deb --locked --no-build --no-strip -p overlayd --deb-version $(NEXT) -o target/e2e/next.deb
	$(SUDO) deploy/image/build.sh target/e2e/overlayd_*.deb target/overlayd-image.tar
	$(SUDO) target/release/overlay-e2e target/e2e/root target/e2e/overlayd_*.deb target/e2e/next.deb \
	    target/overlayd-image.tar

package: setup-package manuals
	$(CARGO) build --release --bin overlayd --bin overlayctl
	rm -f target/debian/overlayd_*.deb
	cargo deb --locked --no-build --no-strip -p overlayd

image: setup-image package
	$(SUDO) deploy/image/build.sh target/debian/overlayd_*.deb target/overlayd-image.tar

manuals:
	$(CARGO) build --release --bin overlay-manuals
	rm -rf target/manuals
	target/release/overlay-manuals target/manuals

# A test says when it has to be written anew.
reference:
	$(CARGO) run --quiet -p overlay-manuals -- --reference docs/reference

# Where the standard library for aarch64 is installed (`rustup target add`), the packet path has to compile for it, too.
lint: setup-lint
	cargo fmt --all --check
	[ ! -d "$$(rustc --print target-libdir --target $(AARCH64))" ] || $(CARGO) clippy -p overlay-simd -p overlay-sys -p overlay-wire -p overlay --target $(AARCH64) -- -D warnings
	for package in overlay control; do \
	    cargo fmt --manifest-path $$package/fuzz/Cargo.toml --check && \
	    $(CARGO) clippy --manifest-path $$package/fuzz/Cargo.toml --target-dir target -- -D warnings && \
	    cargo deny --locked --manifest-path $$package/fuzz/Cargo.toml --config deny.toml \
	        check bans licenses sources || exit; \
	done
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) run --quiet -p module-cycles -- $(ACYCLIC)
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items
	cargo deny --locked check bans licenses sources
	shellcheck integration/*.sh .ci/run deploy/bin/* deploy/image/*.sh

fmt:
	cargo fmt --all
	for package in overlay control; do cargo fmt --manifest-path $$package/fuzz/Cargo.toml; done

fuzz-smoke: setup-fuzz
	integration/fuzz.sh 15

fuzz: setup-fuzz
	integration/fuzz.sh $$(($(FUZZ_MINUTES) * 60)) address

# Every compiler has the sanitizer, but a stable one does not offer it by itself. The daemon leaves its allocator out
# then, so that the heap is watched, too; what it keeps until its end is no leak.
sanitize: setup
	$(SANITIZED) $(CARGO) build --bins
	$(SANITIZED) $(RUNNER) cargo nextest run --locked -p overlay-simd -p overlay-sys -p overlay-wire -p overlay -p integration --lib --test inner_ipv6 \
	    --test offload_round_trip $(addprefix --test ,$(SANITIZED_TESTS))

bench bench-full: setup-bench
	$(CARGO) build --release --bin overlayd --bin overlayctl --bin overlay-bench
	$(SUDO) target/release/overlay-bench run $(BENCH_$@) \
	    --json target/$@.json --markdown target/$@.md --html target/$@.html

bench-micro:
	$(CARGO) bench -p bench

doc:
	$(CARGO) doc --workspace --no-deps

# Built by you, installed by root: `cargo build --release --locked && sudo make install`.
install:
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin target/release/overlayd target/release/overlayctl
	umask 022 && target/release/overlay-manuals $(DESTDIR)$(PREFIX)/share
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec/overlayd deploy/bin/flanneld-start deploy/bin/docker-options
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec/flannel deploy/bin/mk-docker-opts.sh
	for file in $(UNITS); do \
	    install -d $(DESTDIR)$$(dirname $${file#*:}) && \
	    sed 's#/usr/\(bin/overlayd\|libexec/\)#$(PREFIX)/\1#' deploy/$${file%%:*} > $(DESTDIR)$${file#*:} && \
	    chmod 0644 $(DESTDIR)$${file#*:} || exit; \
	done
	install -D -m 0755 deploy/bin/docker-generator $(DESTDIR)$(GENERATOR)
	for file in $(MONITORING); do \
	    install -D -m 0644 deploy/$$file $(DESTDIR)$(PREFIX)/share/overlayd/$$file || exit; \
	done
	sed -i 's#/usr/\(bin/overlayd\|libexec/\)#$(PREFIX)/\1#' $(DESTDIR)$(PREFIX)/libexec/overlayd/*
	[ -n "$(DESTDIR)" ] || systemd-sysusers overlayd.conf
	[ -e $(DESTDIR)/etc/default/overlayd ] || install -D -m 0644 deploy/etc/overlayd $(DESTDIR)/etc/default/overlayd

# What an operator may have written stays: /etc/default/overlayd.
uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/overlayd bin/overlayctl libexec/overlayd/flanneld-start \
	    libexec/overlayd/docker-options libexec/flannel/mk-docker-opts.sh $(addprefix share/,$(MANUALS)) \
	    $(addprefix share/overlayd/,$(MONITORING))) \
	    $(DESTDIR)$(GENERATOR) \
	    $(foreach file,$(UNITS),$(DESTDIR)$(lastword $(subst :, ,$(file))))

setup setup-full setup-demo setup-bench setup-fuzz setup-lint setup-e2e setup-package setup-image:
	@integration/setup.sh $(patsubst setup%,all%,$@) $(STORE)

clean:
	cargo clean
