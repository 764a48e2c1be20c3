//! Compilers, and programs that need much of one kind of thing.

use crate::support::Guests;

const ISOLATED: [&str; 2] = ["--network", "isolated"];

/// Two threads that count, in C++.
const THREADS: &str = r#"mkdir /tmp/c; cd /tmp/c
cat > count.cc <<'END'
#include <atomic>
#include <iostream>
#include <thread>
#include <vector>
int main() {
    std::atomic<long> sum{0};
    std::vector<std::thread> all;
    for (int t = 0; t < 8; t++) all.emplace_back([&] { for (int i = 0; i < 100000; i++) sum++; });
    for (auto &one : all) one.join();
    std::cout << sum << "\n";
}
END
cat > hello.c <<'END'
#include <stdio.h>
int main(void) { puts("hello from C"); return 0; }
END
printf 'all: count hello\ncount: count.cc\n\tg++ -O2 -pthread -o $@ $<\nhello: hello.c\n\tgcc -O2 -static -o $@ $<\n' > Makefile
make -j2 > /tmp/make.log; ./count; ./hello"#;

/// A crate with a test, without the network.
const CRATE: &str = r#"export HOME=/root USER=root; cd /tmp; cargo new --quiet --vcs none counter; cd counter
cat > src/main.rs <<'END'
use std::collections::BTreeMap;
fn count(text: &str) -> BTreeMap<char, usize> {
    let mut all = BTreeMap::new();
    for letter in text.chars() { *all.entry(letter).or_default() += 1; }
    all
}
fn main() { println!("{:?}", count("banana")); }
#[test]
fn letters_are_counted() { assert_eq!(count("aa")[&'a'], 2); }
END
cargo build --quiet --release --offline; ./target/release/counter; cargo test --quiet --offline | grep 'test result'"#;

const MODULE: &str = r#"export HOME=/root GOFLAGS=-mod=mod GOPROXY=off; mkdir /tmp/g; cd /tmp/g
cat > go.mod <<'END'
module example.test/g
END
cat > main.go <<'END'
package main

import ("fmt"; "sync")

func main() {
	var wait sync.WaitGroup
	sums := make(chan int, 100)
	for i := 0; i < 100; i++ {
		wait.Add(1)
		go func(n int) { defer wait.Done(); sums <- n * n }(i)
	}
	wait.Wait()
	close(sums)
	total := 0
	for sum := range sums { total += sum }
	fmt.Println(total)
}
END
go build -o g . ; ./g"#;

/// Watches 50,000 files and waits for a change of the last one.
const WATCHES: &str = r#"mkdir /tmp/w; cat > /tmp/w.js <<'END'
const fs = require("fs");
const count = 50000;
for (let i = 0; i < count; i++) fs.writeFileSync("/tmp/w/" + i, "");
let watches = 0;
for (let i = 0; i < count; i++) {
    fs.watch("/tmp/w/" + i, kind => { console.log(i, kind, watches); process.exit(0); });
    watches++;
}
fs.appendFileSync("/tmp/w/" + (count - 1), "more");
END
node /tmp/w.js"#;

/// As a search engine does: more areas than the kernel's own limit of 65,530.
const AREAS: &str = r#"python3 - <<'END'
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
count = 262144
for i in range(count):
    # Neighbours with the same rights would become one area.
    if libc.mmap(None, 4096, 1 + 2 * (i % 2), 0x22, -1, 0) in (None, 2**64 - 1):
        raise SystemExit(f"{i} areas: {ctypes.get_errno()}")
print(sum(1 for _ in open("/proc/self/maps")) > count)
END"#;

#[test]
#[ignore = "cargo xtask programs"]
fn gcc_builds_programs_with_threads() {
    let mut guests = Guests::of("languages");
    guests.start("dev", 1024, &ISOLATED);
    assert_eq!(guests.sh("dev", THREADS), "800000\nhello from C\n");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn cargo_builds_and_tests_a_crate() {
    let mut guests = Guests::of("languages");
    guests.start("dev", 1024, &ISOLATED);
    let printed = guests.sh("dev", CRATE);
    assert!(printed.starts_with("{'a': 3, 'b': 1, 'n': 2}\n"), "{printed}");
    assert!(printed.contains("1 passed; 0 failed"), "{printed}");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn go_builds_a_module() {
    let mut guests = Guests::of("languages");
    guests.start("dev", 1024, &ISOLATED);
    assert_eq!(guests.sh("dev", MODULE), "328350\n");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn node_watches_50_000_files() {
    let mut guests = Guests::of("languages");
    guests.start("dev", 1024, &ISOLATED);
    assert_eq!(guests.sh("dev", WATCHES), "49999 change 50000\n");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn python_installs_a_wheel_and_uses_it() {
    let mut guests = Guests::of("languages");
    guests.start("dev", 512, &ISOLATED);
    let install =
        "python3 -m venv /tmp/v; /tmp/v/bin/pip install --quiet --no-index --find-links /srv/wheels numpy";
    let program = "import numpy as n; a = n.arange(90000.0).reshape(300, 300); print(int((a @ a).trace()))";
    let printed = guests.sh("dev", &format!("{install}; /tmp/v/bin/python -c '{program}'"));
    assert_eq!(printed, "182650945522500\n");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn a_program_maps_262_144_areas() {
    let mut guests = Guests::of("languages");
    guests.start("dev", 512, &ISOLATED);
    assert_eq!(guests.sh("dev", AREAS), "True\n");
    guests.end();
}
