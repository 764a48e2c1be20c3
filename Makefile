# Names only; the work is in `cargo xtask` (`cargo xtask --help`). Packages are installed by a script, because nothing
# can be built before there is a linker.

# Where `make install` puts things; DESTDIR goes before it, for packages.
PREFIX ?= /usr/local

.PHONY: help demo build test programs bench install uninstall deb book

help:
	@echo "make demo       installs what is needed, builds, and runs one command in a microVM"
	@echo "make build      builds the command: target/release/microagent"
	@echo "make install    installs command, manual pages and completions (PREFIX=$(PREFIX), DESTDIR)"
	@echo "make uninstall  removes what make install installed"
	@echo "make deb        makes a Debian package of the command: target/deb"
	@echo "make book       makes a book of the documents: target/book"
	@echo "make test       installs what is needed, checks everything, runs all tests"
	@echo "make programs   runs real programs in guests, minutes each, and prints what they took"
	@echo "make bench      measures, against raw QEMU, umoci and podman"

demo:
	@xtask/install-packages demo
	@cargo xtask demo

build:
	@xtask/install-packages build
	@cargo build --release --locked --package microagent-cli

# Installs what `make build` built, so that root needs no compiler.
install:
	@xtask/install install "$(DESTDIR)$(PREFIX)"

uninstall:
	@xtask/install uninstall "$(DESTDIR)$(PREFIX)"

deb:
	@xtask/install-packages deb
	@cargo xtask deb

book:
	@cargo xtask book

test:
	@xtask/install-packages test
	@cargo xtask test

programs:
	@xtask/install-packages programs
	@cargo xtask programs

bench:
	@xtask/install-packages bench
	@cargo xtask bench
