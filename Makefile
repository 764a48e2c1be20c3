# Names only; the work is in `cargo xtask` (`cargo xtask --help`). Packages are installed by a script, because nothing
# can be built before there is a linker.

.PHONY: help demo build test bench

help:
	@echo "make demo    installs what is needed, builds, and runs one command in a microVM"
	@echo "make build   builds the command: target/release/microagent"
	@echo "make test    installs what is needed, checks everything, runs all tests"
	@echo "make bench   measures, against raw QEMU, umoci and podman"

demo:
	@xtask/install-packages demo
	@cargo xtask demo

build:
	@xtask/install-packages build
	@cargo build --release --locked --package microagent-cli

test:
	@xtask/install-packages test
	@cargo xtask test

bench:
	@xtask/install-packages bench
	@cargo xtask bench
