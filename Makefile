# vmctl: build, install, test. `make help` lists what there is.

PREFIX  ?= /usr
# Below this, where systemd looks, whatever PREFIX is.
SYSTEMD ?= /usr/lib/systemd
GO      ?= go

# The version of a checkout; without git or its history, of nothing in
# particular. A package passes its own: make VERSION=1.2.3
VERSION ?= $(or $(shell git describe --tags --always --dirty 2>/dev/null),unknown)

export CGO_ENABLED = 0
# Go may be where a package of its makers puts it; a bare PATH of root does not
# have it.
export PATH := $(PATH):/usr/local/go/bin

BINARIES = bin/vmctl bin/vmctl-api bin/vmctl-generator bin/vmctl-unit
PROTOS   = $(patsubst cmd/vmctl-api/proto/%,%,$(wildcard cmd/vmctl-api/proto/mvirt/*.proto cmd/vmctl-api/proto/vmctl/v1/*.proto))
# What the protocol buffers have to pass; cmd/vmctl-api/proto/buf.yaml says what that is.
BUF      = v1.75.0
INSTALL  = install
DEST     = $(DESTDIR)$(PREFIX)
UNITS    = $(DESTDIR)$(SYSTEMD)
SHELLS   = bash zsh fish

.PHONY: build install test unit e2e demo bench lint guest clean help

build: ## the programs, static, into bin/
	$(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/...

# Whoever runs this as root may have no Go: what was built is taken as it is.
$(BINARIES):
	$(MAKE) build

# vmctl-unit is found by units at a fixed place, as systemd's own helpers are.
install: $(BINARIES) ## everything to where it belongs (DESTDIR, PREFIX)
	$(INSTALL) -D -m 755 bin/vmctl $(DEST)/bin/vmctl
	$(INSTALL) -D -m 755 bin/vmctl-unit $(DESTDIR)/usr/libexec/vmctl/vmctl-unit
	$(INSTALL) -D -m 755 bin/vmctl-api $(DESTDIR)/usr/libexec/vmctl/vmctl-api
	$(INSTALL) -D -m 755 bin/vmctl-generator $(UNITS)/system-generators/vmctl-generator
	$(INSTALL) -d $(UNITS)/user-generators
	ln -sf ../system-generators/vmctl-generator $(UNITS)/user-generators/vmctl-user-generator
	$(INSTALL) -d $(UNITS)/system $(UNITS)/user
	$(INSTALL) -m 644 $(wildcard packaging/systemd/*.*) $(UNITS)/system/
	$(INSTALL) -m 644 $(wildcard packaging/systemd/user/*.*) $(UNITS)/user/
	$(INSTALL) -d $(UNITS)/system/nftables.service.wants
	ln -sf ../vmctl-nftables.service $(UNITS)/system/nftables.service.wants/
	$(INSTALL) -D -m 644 packaging/system-preset/80-vmctl.preset $(UNITS)/system-preset/80-vmctl.preset
	$(INSTALL) -D -m 644 packaging/networks/default.toml $(DESTDIR)/usr/lib/vmctl/networks/default.toml
	$(INSTALL) -D -m 644 packaging/polkit/io.github.vmctl.policy $(DESTDIR)/usr/share/polkit-1/actions/io.github.vmctl.policy
	for file in $(PROTOS); do \
		$(INSTALL) -D -m 644 "cmd/vmctl-api/proto/$$file" "$(DEST)/share/vmctl/proto/$$file" || exit 1; \
	done
	$(INSTALL) -D -m 644 packaging/images.toml $(DESTDIR)/usr/lib/vmctl/images.toml
	$(INSTALL) -D -m 644 packaging/catalog/vmctl.catalog $(UNITS)/catalog/vmctl.catalog
	$(INSTALL) -D -m 644 packaging/sysusers.d/vmctl.conf $(DESTDIR)/usr/lib/sysusers.d/vmctl.conf
	$(INSTALL) -D -m 644 packaging/tmpfiles.d/vmctl.conf $(DESTDIR)/usr/lib/tmpfiles.d/vmctl.conf
	$(INSTALL) -d $(DEST)/share/bash-completion/completions $(DEST)/share/zsh/vendor-completions $(DEST)/share/fish/vendor_completions.d
	$(INSTALL) -d $(DEST)/share/man/man1
	bin/vmctl manual $(DEST)/share/man/man1
	bin/vmctl completion bash > $(DEST)/share/bash-completion/completions/vmctl
	bin/vmctl completion zsh > $(DEST)/share/zsh/vendor-completions/_vmctl
	bin/vmctl completion fish > $(DEST)/share/fish/vendor_completions.d/vmctl.fish
	$(INSTALL) -d $(DEST)/share/doc/vmctl/examples/networks $(DEST)/share/doc/vmctl/examples/environments
	$(INSTALL) -m 644 $(wildcard packaging/examples/*.*) packaging/polkit/*.rules $(DEST)/share/doc/vmctl/examples/
	$(INSTALL) -m 644 packaging/examples/networks/* $(DEST)/share/doc/vmctl/examples/networks/
	$(INSTALL) -m 644 packaging/examples/environments/* $(DEST)/share/doc/vmctl/examples/environments/
	$(INSTALL) -m 644 README.md LICENSE $(DEST)/share/doc/vmctl/
	for page in packaging/man/*.[1-9]; do \
		[ -e "$$page" ] || continue; \
		$(INSTALL) -D -m 644 "$$page" "$(DEST)/share/man/man$${page##*.}/$${page##*/}" || exit 1; \
	done

test: ## everything: unit tests, then end to end (root; installs what is missing)
	packaging/test

unit: ## the tests that need no systemd of their own (root, for real QEMUs and access lists)
	$(GO) test ./...

e2e: build ## end to end, under a real systemd in a container (root)
	packaging/e2e/run --suite trixie
	packaging/e2e/run --suite bookworm
	packaging/e2e/run --machine
	packaging/e2e/run --cloud-hypervisor

demo: ## a first machine, from nothing to its clean end (root)
	packaging/demo/run

bench: build ## the figures of packaging/BENCHMARKS.md
	packaging/e2e/run --suite trixie -test.run '^$$' -test.bench . -test.benchtime 10x -test.v=false

lint: ## what a change has to pass
	@unformatted=$$(gofmt -l $(wildcard cmd cloudinit config hypervisor netsetup packaging units)); \
	[ -z "$$unformatted" ] || { echo "not formatted: $$unformatted" >&2; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags e2e ./packaging/e2e/...
	$(GO) mod verify
	cd cmd/vmctl-api/proto && $(GO) run github.com/bufbuild/buf/cmd/buf@$(BUF) lint
	@if command -v shellcheck >/dev/null; then \
		shellcheck -x packaging/test packaging/*/run packaging/demo/show packaging/guest/build packaging/guest/image \
			packaging/guest/customize .ci/run; \
	else echo "shellcheck is not here, scripts not looked at"; fi

guest: ## the little guest of demo and tests; prints where kernel and initrd are
	@dir=$$(packaging/guest/build) && for kind in cloud generic; do \
		echo "$$kind: kernel $$dir/$$kind/vmlinuz"; \
		echo "$$kind: initrd $$dir/$$kind/initrd"; \
	done && echo "cmdline: console=ttyS0 (quiet: fewer lines from the kernel)"

clean: ## what was built here; the cache of tests is in /var/cache/vmctl-test
	rm -rf bin

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):[^#]*## \(.*\)/\1: \2/p' $(MAKEFILE_LIST) | while IFS=: read -r name doc; do printf '  %-8s%s\n' "$$name" "$$doc"; done
