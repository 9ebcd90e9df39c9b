.PHONY: help run test lint

help:
	@echo "make run    the daemon with a demo, to look at      (script/run)"
	@echo "make test   every test                              (script/test)"
	@echo "make lint   ruff, its formatter, mypy --strict      (script/lint)"

run:
	@script/run

test:
	@script/test

lint:
	@script/lint
