# Two commands: `make demo` and `make test`. Each installs what is missing, then does its job.
# `make help` lists the others.

PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
BENCH  ?=
# Test files run in so many processes at once: most tests wait for timers of the kernel. What promises a time runs after them.
PROCESSES ?= 2
define PYTEST
@result=0; set -x; \
$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile -m 'not alone' || result=$$?; \
$(BIN)/python -m pytest -m alone tests/api tests/lab || result=$$?; \
exit $$result
endef

# Debian packages: to build and run; and what the tests use and the benchmarks compare with.
BUILD_PACKAGES := clang gcc libbpf-dev libc6-dev linux-libc-dev python3-dev python3-venv
TEST_PACKAGES  := bind9-dnsutils chromium clang-19 containernetworking-plugins curl dnsmasq-base haproxy iproute2 iptables nftables nginx-light nodejs openssl tcpdump wrk

SOURCES := setup.py $(shell find csrc bpf examples/manifests -type f)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: .make/build ## a Service, load-balanced in the kernel, in a lab of network namespaces (needs root)
	@$(BIN)/k8sdatapath lab demo

.PHONY: test
test: .make/build .make/test-packages lint types ## lint, types and every test (needs root)
	$(PYTEST)

.PHONY: check
check: .make/build lint types ## what this machine and user allow; says what was left out
	$(PYTEST)

.PHONY: lint
lint: .make/build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .

.PHONY: types
types: .make/build
	$(BIN)/mypy

.PHONY: build
build: .make/build ## the extension and the BPF objects, in place

.PHONY: generate
generate: .make/build ## write the files that are made from the code (tests/api/public.txt)
	$(BIN)/python -m tests.api.snapshot > tests/api/public.txt.new
	mv tests/api/public.txt.new tests/api/public.txt

.PHONY: bench
bench: .make/build .make/test-packages .make/bench-venv ## all benchmarks, or one: make bench BENCH=name (needs root)
	$(BIN)/python -m benchmarks $(BENCH)

.PHONY: wheel
wheel: .make/build ## dist/*.whl and dist/*.tar.gz
	$(BIN)/python -m build --outdir dist .

.PHONY: clean
clean: ## remove everything that was built, and the venv
	rm -rf .make build dist $(VENV) *.egg-info k8sdatapath/_objects k8sdatapath/_manifests k8sdatapath/include
	rm -f k8sdatapath/pybpf/_libbpf*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

# -- stamps: a second run does nothing, a changed source rebuilds ------------------------------------

.make/build: .make/venv $(SOURCES)
	$(BIN)/python setup.py -q build_bpf build_ext --inplace
	$(BIN)/python -m compileall -q k8sdatapath # as pip does it for who installs: compiling is most of importing
	@touch $@

.make/venv: .make/build-packages pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip 'setuptools>=77' 'cffi>=1.17'
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-build-isolation -e '.[all]' --group dev
	@touch $@

.make/bench-venv: .make/venv
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --group bench
	@touch $@

.make/%-packages: Makefile
	@mkdir -p .make
	@$(call install,$(if $(filter build,$*),$(BUILD_PACKAGES),$(TEST_PACKAGES)))
	@touch $@

# Install the Debian packages that are absent; without root, or elsewhere than on Debian, say which.
define install
command -v dpkg-query >/dev/null || { echo "not Debian: make sure to have the like of: $(1)"; exit 0; }; \
missing=$$(for package in $(1); do \
	dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q ' installed$$' || echo $$package; done); \
test -n "$$missing" || exit 0; \
test "$$(id -u)" = 0 || { echo "missing packages; install them with: sudo apt-get install" $$missing; exit 1; }; \
echo "installing" $$missing; \
export DEBIAN_FRONTEND=noninteractive; \
apt-get -qq -o DPkg::Lock::Timeout=300 update && \
apt-get -qq -o DPkg::Lock::Timeout=300 install --no-install-recommends $$missing >/dev/null
endef
