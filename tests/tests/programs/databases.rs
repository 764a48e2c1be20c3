//! Databases: load, and what a power cut leaves.

use crate::support::Guests;

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
