.PHONY: help run test unit coverage next lint docs bench bench-js plot stress soak lock sbom audit

help:
	@echo "make run    the daemon with a demo, to look at      (script/run)"
	@echo "make test   every test                              (script/test)"
	@echo "make unit   the unit tests, which need no broker    (script/unit)"
	@echo "make coverage  the unit tests, with the branches of towerws/ that they miss (script/coverage)"
	@echo "make next   the tests with the newest pre-releases of Autobahn, Twisted and pika; ONLY=tests/insides takes seconds (script/next)"
	@echo "make bench  what it costs: about ten minutes; QUICK=1 under two, SCENARIO=burst only that one"
	@echo "make bench-js  events a second of the JavaScript client, of centrifuge-js and of stomp.js: 10 minutes; EVENTS= ROUNDS= BYTES="
	@echo "make stress breaks brokers, links, daemons and clients, and counts: 25 minutes; ONLY=broker-*,… SEED= REPEAT= LANES=2 BROKER=3|4"
	@echo "make soak   one daemon, hand-overs and faults: what grows? an hour; HOURS=8 or MINUTES=30, SEED= BROKER=3|4"
	@echo "make plot   docs/growth.svg from what the last 'make bench' measured"
	@echo "make lint   ruff, its formatter, mypy, the wording  (script/lint)"
	@echo "make docs   build/site, the documentation as HTML   (script/docs)"
	@echo "make lock   writes requirements/*.txt, with hashes  (script/supply lock)"
	@echo "make sbom   build/towerws.cdx.json, in CycloneDX    (script/supply sbom)"
	@echo "make audit  known vulnerabilities of what is locked (script/supply audit)"

run:
	@script/run

test:
	@script/test

unit:
	@script/unit

coverage:
	@script/coverage

next:
	@script/next $(ONLY)

lint:
	@script/lint

docs:
	@script/docs

bench:
	@script/bench $(if $(QUICK),--size 0.1) $(addprefix --scenario ,$(SCENARIO))

bench-js:
	@cd clients/js/bench && npm ci --ignore-scripts --no-audit --no-fund && node bench.mjs $(or $(EVENTS),100000) $(or $(ROUNDS),7) $(or $(BYTES),300)

plot:
	@.venv/bin/python -m benchmarks.plot build/benchmarks.json docs/growth.svg

stress:
	@script/stress $(if $(ONLY),--only '$(ONLY)') $(addprefix --seed ,$(SEED)) $(addprefix --repeat ,$(REPEAT)) $(addprefix --lanes ,$(LANES)) $(addprefix --broker ,$(BROKER))

soak:
	@script/soak $(addprefix --hours ,$(HOURS)) $(addprefix --minutes ,$(MINUTES)) $(addprefix --seed ,$(SEED)) $(addprefix --broker ,$(BROKER))

lock sbom audit:
	@script/supply $@
