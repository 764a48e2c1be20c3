//! Databases: load, and what a power cut leaves.

use microagent_tests::{host, wait_for};

use crate::support::{Guests, PATIENCE};

const ISOLATED: [&str; 2] = ["--network", "isolated"];

#[test]
#[ignore = "cargo xtask programs"]
fn postgresql_with_pgbench() {
    let mut guests = Guests::of("databases");
    guests.start("db", 512, &ISOLATED);
    let bin = "export PATH=/usr/lib/postgresql/15/bin:$PATH";
    guests.sh("db", &format!("install -d -o postgres /run/postgresql; su postgres -c '{bin}; initdb -D /tmp/pg > /tmp/init && pg_ctl -w -D /tmp/pg -l /tmp/pg.log start > /tmp/start'"));
    let load = "pgbench -i -q -s 3 postgres 2> /dev/null; pgbench -c 4 -j 2 -t 200 postgres";
    let printed = guests.sh("db", &format!("su postgres -c '{bin}; {load}'"));
    assert!(printed.contains("number of transactions actually processed: 800/800"), "{printed}");
    let count = guests.sh("db", "su postgres -c 'psql -qAt -c \"select count(*) from pgbench_accounts\"'");
    assert_eq!(count, "300000\n");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn postgresql_is_forked_under_pgbench() {
    let mut guests = Guests::of("databases");
    guests.home.microagent(["volume", "create", "pg", "--size-mib", "1024"]).success();
    guests.start("db", 512, &[&ISOLATED[..], &["-v", "pg:/pg"]].concat());
    let bin = "export PATH=/usr/lib/postgresql/15/bin:$PATH";
    let serve = format!(
        "install -d -o postgres /run/postgresql; rm -f /pg/data/postmaster.pid; \
         su postgres -c '{bin}; pg_ctl -w -t 600 -D /pg/data -l /tmp/pg.log start > /tmp/start'"
    );
    guests.sh("db", &format!("chown postgres /pg; su postgres -c '{bin}; initdb -D /pg/data > /tmp/init'"));
    guests.sh("db", &serve);
    guests.sh("db", &format!("su postgres -c '{bin}; pgbench -i -q -s 1 postgres 2> /dev/null'"));
    // Each transaction that was committed is a line of a log in memory.
    let load = "cd /dev/shm; exec pgbench -c 4 -j 2 -T 3600 --log --log-prefix=/dev/shm/tx postgres > /dev/null 2>&1";
    guests.sh("db", &format!("su postgres -c '{bin}; {load}' > /dev/null 2>&1 &"));
    let committed = |guests: &Guests| -> u64 {
        guests.sh("db", "cat /dev/shm/tx* 2> /dev/null | wc -l").trim().parse().expect("a number")
    };
    wait_for("transactions", PATIENCE, || if committed(&guests) >= 100 { Ok(()) } else { Err("too few") });
    let before = committed(&guests);
    guests.home.microagent(["fork", "db", "kid", "--copy-volumes"]).deadline(PATIENCE).success();
    // The sums of all four tables are equal if each transaction is there as a whole.
    let sums = "select count(*) from pgbench_history; \
         select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history) \
         and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history) \
         and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)";
    let is_whole = |guests: &Guests, name: &str, least: u64| {
        let found = guests.sh(name, &format!("su postgres -c 'psql -qAt -c \"{sums}\"'"));
        let (count, equal) = found.trim().split_once('\n').expect("two lines");
        assert!(count.parse::<u64>().expect("a number") >= least && equal == "t", "{name}: {found}");
    };
    let end = "for dir in /proc/[0-9]*; do [ \"$(cat $dir/comm 2> /dev/null)\" != pgbench ] || kill ${dir#/proc/}; done";
    guests.sh("kid", &format!("{end}; sleep 1"));
    is_whole(&guests, "kid", before);
    // After a power cut the fork has its disks alone.
    guests.home.microagent(["kill", "kid"]).success();
    guests.home.microagent(["start", "kid"]).deadline(PATIENCE).success();
    guests.sh("kid", &serve);
    is_whole(&guests, "kid", before);
    assert!(committed(&guests) > before, "the source continues");
    for name in ["kid", "db"] {
        guests.sh(
            name,
            &format!("su postgres -c '{bin}; pg_ctl -w -m immediate -D /pg/data stop > /dev/null'"),
        );
        guests.home.microagent(["halt", name]).success();
    }
    for volume in ["pg", "pg-kid"] {
        host::e2fsck(&guests.home.state().join("volumes").join(volume).join("disk.ext4"));
    }
    guests.home.microagent(["delete", "kid", "--force"]).success();
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn redis_keeps_what_it_wrote() {
    let mut guests = Guests::of("databases");
    guests.start("cache", 256, &ISOLATED);
    let serve = "redis-server --daemonize yes --appendonly yes --dir /var/lib/redis > /dev/null";
    let answers = "[ \"$(redis-cli ping)\" = PONG ]";
    guests.sh("cache", serve);
    guests.wait_for("cache", "redis", answers);
    let load = guests.sh("cache", "redis-benchmark -q -n 5000 -c 20 -t set,get,lpush");
    assert_eq!(load.matches("requests per second").count(), 3, "{load}");
    guests.sh("cache", "redis-cli set kept yes; redis-cli shutdown; sync");
    guests.home.microagent(["kill", "cache"]).success();
    guests.home.microagent(["start", "cache"]).success();
    guests.sh("cache", serve);
    guests.wait_for("cache", "redis", "[ \"$(redis-cli get kept)\" = yes ]");
    guests.end();
}

#[test]
#[ignore = "cargo xtask programs"]
fn mariadb_recovers_from_a_power_cut() {
    let mut guests = Guests::of("databases");
    let serve = "mkdir -p /run/mysqld; chown mysql /run/mysqld; exec mariadbd --user=mysql --skip-networking";
    guests.start("db", 512, &[&ISOLATED[..], &["--service-command", serve]].concat());
    let answers = "mariadb-admin --silent ping";
    guests.wait_for("db", "MariaDB", answers);
    let rows = "create table t (id int primary key auto_increment, text varchar(99)) engine = InnoDB; \
        insert into t (text) select concat('row ', seq) from seq_1_to_20000;";
    guests.sh("db", &format!("mariadb -e 'create database d'; mariadb d -e \"{rows}\""));
    guests.home.microagent(["kill", "db"]).success();
    guests.home.microagent(["start", "db"]).success();
    guests.wait_for("db", "MariaDB again", answers);
    assert_eq!(guests.sh("db", "mariadb -N d -e 'select count(*), max(text) from t'"), "20000\trow 9999\n");
    guests.end();
}
