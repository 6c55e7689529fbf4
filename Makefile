# SPDX-License-Identifier: Apache-2.0
# `make` alone lists what there is. Each target installs what it needs.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PREFIX ?= /usr
DESTDIR ?=
CARGO ?= cargo
CLANG_FORMAT ?= clang-format-19
TARGET := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET)/release

# Packages (by directory, with a test target or whole) whose tests run under other kernels too, and what is passed to them.
KERNEL_TESTS ?= loader tests/e2e:kernels
KERNEL_TEST_ARGS ?=
# Seconds; an emulated machine beside others is slow.
export PILUS_VM_TIMEOUT ?= 900

# Tests and demonstrations need root; building does not, and leaves no file of root's behind.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
HOST_TRIPLE := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
ifneq ($(ROOT),)
export CARGO_TARGET_$(HOST_TRIPLE)_RUNNER := $(ROOT)
endif

C_SOURCES = $(shell find bpf-templates -name '*.[ch]' -not -path '*/generated/*')
SHELL_SOURCES = $(wildcard scripts/*.sh tests/scripts/*.sh examples/*.sh examples/*/*.sh docs/tutorials/*.sh vagrant/*.sh) .ci/run
PROGRAMS = pilus-agent pilus-proxy pilus-netns pilus-cni pilus-docker
UNIT_DIR ?= $(PREFIX)/lib/systemd/system

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install missing Debian packages
	@scripts/deps.sh

.PHONY: deps-runtimes
deps-runtimes: ## Install container runtimes too (Docker's daemon starts!): their tests are skipped without
	@scripts/deps.sh runtimes

.PHONY: build
build: deps ## All programs, optimised, in target/release
	$(CARGO) build --release --workspace --bins

.PHONY: demo
demo: build ## Three containers, a policy, a hotfix: shown on this machine in a namespace of its own
	$(ROOT) $(RELEASE)/pilus-demo

.PHONY: bench
bench: build ## Measure the datapath on this machine
	$(ROOT) $(RELEASE)/pilus-bench

# One debug build serves the programs that tests start, the tests, and those under other kernels.
.PHONY: test
test: deps ## Every test, also under other kernels in virtual machines
	$(CARGO) build --workspace --bins --tests
	$(CARGO) test --workspace --no-fail-fast
	$(MAKE) test-kernels

.PHONY: test-long
test-long: deps ## As test, with the long variants (more rounds, more nodes)
	PILUS_TEST_LONG=1 $(MAKE) test

# Packets for each of both builds; a hundredth of it in policies.
FUZZ_ROUNDS ?= 5000000
FUZZ_SEED ?= $(shell date +%s)
.PHONY: fuzz
fuzz: deps ## Damaged packets and policies at length (FUZZ_ROUNDS), others each time (FUZZ_SEED)
	PILUS_FUZZ_ROUNDS=$(FUZZ_ROUNDS) PILUS_FUZZ_SEED=$(FUZZ_SEED) $(CARGO) test --workspace --no-fail-fast -- fuzz --nocapture

# Here first: what is compiled for tests lies in the target directory then, where each machine finds it.
.PHONY: test-kernels
test-kernels: deps ## The kernel tests here and under Linux 6.1, 6.12 and 7 in virtual machines
	mkdir -p $(TARGET)/kernels
	scripts/test-binaries.sh $(KERNEL_TESTS) >$(TARGET)/kernels/tests
	$(ROOT) scripts/run-tests.sh $(abspath $(TARGET))/kernels/tests $(KERNEL_TEST_ARGS)
	scripts/test-kernels.sh scripts/run-tests.sh $(abspath $(TARGET))/kernels/tests $(KERNEL_TEST_ARGS)

.PHONY: lint
lint: deps ## Style, lints, the walls, and that generated files are current
	$(CARGO) fmt --all --check
	$(CLANG_FORMAT) --dry-run -Werror $(C_SOURCES)
	@for script in $(SHELL_SOURCES); do bash -n "$$script" || exit 1; done
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) test --workspace --test tidy --test generated --test openapi

.PHONY: fmt
fmt: deps ## Format everything
	$(CARGO) fmt --all
	$(CLANG_FORMAT) -i $(C_SOURCES)

.PHONY: generated
generated: deps ## Write anew what is printed from Rust: C headers, the API's document
	PILUS_BLESS=1 $(CARGO) test --workspace --test generated --test openapi

# Man pages and completions come from `pilus` itself.
.PHONY: install
install: ## Install what `make build` built (PREFIX, DESTDIR)
	@[ -x $(RELEASE)/pilus-agent ] || { echo "nothing to install yet: run make build first" >&2; exit 1; }
	install -D -m 755 $(RELEASE)/pilus $(DESTDIR)$(PREFIX)/bin/pilus
	@for program in $(PROGRAMS); do \
		[ -x $(RELEASE)/$$program ] || { echo "not built, not installed: $$program" >&2; continue; }; \
		echo "install $$program in $(DESTDIR)$(PREFIX)/sbin"; \
		install -D -m 755 $(RELEASE)/$$program $(DESTDIR)$(PREFIX)/sbin/$$program; \
	done
	scripts/install-templates.sh install $(DESTDIR)$(PREFIX)/share/pilus/bpf-templates
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/bash-completion/completions \
		$(DESTDIR)$(PREFIX)/share/zsh/vendor-completions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	$(RELEASE)/pilus man $(DESTDIR)$(PREFIX)/share/man/man1
	$(RELEASE)/pilus completion bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/pilus
	$(RELEASE)/pilus completion zsh >$(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_pilus
	$(RELEASE)/pilus completion fish >$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/pilus.fish
	install -d $(DESTDIR)$(UNIT_DIR)
	for unit in pilus-agent pilus-docker; do \
		sed 's|/usr/|$(PREFIX)/|g' systemd/$$unit.service >$(DESTDIR)$(UNIT_DIR)/$$unit.service; \
	done
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/doc/pilus LICENSE-APACHE LICENSE-GPL CHANGELOG.md

.PHONY: uninstall
uninstall: ## Remove what install put there; edited templates and /etc/pilus stay
	rm -f $(DESTDIR)$(PREFIX)/bin/pilus $(addprefix $(DESTDIR)$(PREFIX)/sbin/,$(PROGRAMS))
	scripts/install-templates.sh uninstall $(DESTDIR)$(PREFIX)/share/pilus/bpf-templates
	rm -f $(DESTDIR)$(PREFIX)/share/man/man1/pilus.1 $(DESTDIR)$(PREFIX)/share/man/man1/pilus-*.1
	rm -f $(DESTDIR)$(PREFIX)/share/bash-completion/completions/pilus $(DESTDIR)$(PREFIX)/share/zsh/vendor-completions/_pilus \
		$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/pilus.fish
	rm -f $(DESTDIR)$(UNIT_DIR)/pilus-agent.service $(DESTDIR)$(UNIT_DIR)/pilus-docker.service
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/pilus
	-rmdir $(DESTDIR)$(PREFIX)/share/pilus 2>/dev/null

.PHONY: clean
clean: ## Remove everything built and fetched
	$(CARGO) clean
