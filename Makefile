# Names only; the work is in `cargo xtask` (`cargo xtask --help`). Packages are installed by a script, because nothing
# can be built before there is a linker.

.PHONY: help demo build test bench install uninstall

help:
	@echo "make demo    installs what is needed, builds, and runs one command in a microVM"
	@echo "make build   builds the command: target/release/microagent"
	@echo "make install     copies program, manual pages and completions to PREFIX (/usr/local)"
	@echo "make uninstall   removes them again"
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

# Copies what `make build` made; builds nothing, so that it can run with sudo. DESTDIR is for packagers.
PREFIX ?= /usr/local
PROGRAM ?= target/release/microagent
SHARE := $(DESTDIR)$(PREFIX)/share
BASH_COMPLETION := $(SHARE)/bash-completion/completions/microagent
ZSH_COMPLETION := $(SHARE)/zsh/site-functions/_microagent
FISH_COMPLETION := $(SHARE)/fish/vendor_completions.d/microagent.fish

install:
	@test -x $(PROGRAM) || { echo "Error: $(PROGRAM) is missing; run: make build" >&2; exit 1; }
	install -D -m 755 $(PROGRAM) $(DESTDIR)$(PREFIX)/bin/microagent
	install -d $(SHARE)/man/man1 $(dir $(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION))
	$(PROGRAM) man --dir $(SHARE)/man/man1
	$(PROGRAM) completions bash > $(BASH_COMPLETION)
	$(PROGRAM) completions zsh > $(ZSH_COMPLETION)
	$(PROGRAM) completions fish > $(FISH_COMPLETION)

uninstall:
	rm -f $(DESTDIR)$(PREFIX)/bin/microagent $(SHARE)/man/man1/microagent.1 $(SHARE)/man/man1/microagent-*.1
	rm -f $(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION)
