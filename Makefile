# make demo    two nodes, a witness and a client in network namespaces on this machine: a service survives ten faults
# make install  binaries, units, manual pages and completion below DESTDIR; starts nothing
# make packages deb and rpm of a node and of a witness, in dist/
# make test    all tests; as root everything, as an ordinary user what user namespaces allow
GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
SRC      = $(shell find cmd cluster failover netid replication internal -name '*.go' -not -name '*_test.go' 2>/dev/null) go.mod go.sum

export CGO_ENABLED = 0

# make test-crash KILLS=200    volume servers are killed at random instants; every acknowledged operation must be there
.PHONY: all build demo test-crash test-crash-memory test vet bench-failover bench-volume bench-resync idle soak-cpu soak-fsync clean install man packages
all: build
build: bin/hanode bin/witness

bin/hanode: $(SRC)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/hanode
bin/witness: $(SRC)
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/witness

# Nothing is started, stopped or enabled: on a node that would be an outage. DESTDIR is where a package is put together.
PREFIX   ?= /usr
UNITDIR  ?= $(PREFIX)/lib/systemd/system
MANDIR   ?= $(PREFIX)/share/man/man8
install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(MANDIR) $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/hanode
	install -m 755 bin/hanode $(DESTDIR)$(PREFIX)/bin/hanode
	install -m 755 bin/witness $(DESTDIR)$(PREFIX)/bin/hanode-witness
	install -m 644 contrib/systemd/hanode.service contrib/systemd/hanode-witness.service $(DESTDIR)$(UNITDIR)
	./bin/hanode man $(DESTDIR)$(MANDIR)
	./bin/hanode completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/hanode
	./bin/hanode spec schema > $(DESTDIR)$(PREFIX)/share/hanode/spec.schema.json
	install -m 644 docs/monitoring/* $(DESTDIR)$(PREFIX)/share/hanode

man: bin/hanode
	install -d bin/man
	./bin/hanode man bin/man

NFPM    ?= $(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.44.2
ARCH    ?= $(shell $(GO) env GOARCH)
packages: build
	rm -rf dist/stage && install -d dist
	$(MAKE) install DESTDIR=dist/stage
	for p in hanode hanode-witness; do for f in deb rpm; do \
	  STAGE=dist/stage ARCH=$(ARCH) VERSION=$(patsubst v%,%,$(VERSION)) $(NFPM) package -f contrib/packages/$$p.yaml -p $$f -t dist || exit 1; done; done
	rm -rf dist/stage

demo: build
	./bin/hanode demo --report demo-report.json

vet:
	$(GO) vet ./...
	@test -z "$$(gofmt -l cmd cluster failover netid replication internal)" || { gofmt -l cmd cluster failover netid replication internal; echo 'not formatted: run gofmt -w on these'; exit 1; }

test: vet build
	$(GO) test -p 1 -timeout 20m ./...

# random kills of applications, servers of regions and nodes; KILLS=10000 SEED=1
test-crash-memory:
	$(GO) test ./replication/memory -run RandomKills -count=1 -v -timeout 0 -crash.kills $(or $(KILLS),200) -crash.time 0 $(if $(SEED),-crash.seed $(SEED))

test-crash:
	$(GO) test ./replication/stream -run Crash -v -timeout 60m -kills=$(or $(KILLS),200) $(if $(SEED),-crash-seed=$(SEED))

bench-failover: build
	./bin/hanode demo bench --runs $(or $(RUNS),20) --out $(or $(OUT),bench.json) --faults "$(FAULTS)" --profile "$(PROFILE)" \
	  --peer "$(PEER)" --peers-dir "$(or $(PEERS_DIR),../shared/peers)"

soak-cpu soak-fsync: build
	./bin/hanode demo soak $(@:soak-%=%) --for $(or $(DURATION),10m) --profile "$(or $(PROFILE),normal)"

idle: build
	./bin/hanode demo idle --for $(or $(DURATION),20s) --profile "$(PROFILE)"

# What a replicated volume costs beside ext4, a loopback, GlusterFS and PostgreSQL's own replication; QUICK=1 in under ten minutes. SYSTEMS and WORKLOADS choose some, with commas.
bench-volume:
	$(GO) build -trimpath -o bin/volbench ./internal/volbench
	./bin/volbench run $(if $(QUICK),--quick) --out $(or $(OUT),volume-bench.json) --systems "$(SYSTEMS)" --workloads "$(WORKLOADS)" $(if $(ROUNDS),--rounds $(ROUNDS))

# resync of 1 GiB against rsync on the same tree (as root; rsync is left out where it is not installed), and of MANY small files
bench-resync:
	$(GO) test ./replication/resync -run '^TestMeasure$$' -timeout 60m -v -measure $(abspath $(or $(OUT),bench-resync.json)) -rounds $(or $(RUNS),5) -mib $(or $(MIB),1024) -many $(or $(MANY),1000000)

clean:
	rm -rf bin dist demo-report.json bench.json bench-resync.json volume-bench.json
