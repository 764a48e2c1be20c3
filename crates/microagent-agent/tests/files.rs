//! Files into a guest and out of it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod harness;

use std::time::{Duration, Instant};

use harness::{BASE_LEN, Machine, Session, Vm, settings, shell};
use microagent_proto::{Exit, GuestErrorKind};
use microagent_tar::write::{header, padding};
use microagent_tar::{Attribute, BLOCK, Entry, Kind, Meta};
use tokio::time::sleep;

async fn configured(vm: &Vm) -> Session<'_> {
    let session = vm.session().await;
    let configured = session.configure(settings()).await;
    configured.unwrap_or_else(|e| panic!("{e:?}; console:\n{}", vm.console()));
    session
}

/// A tar stream, entry by entry.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, kind: Kind<u64>, meta: Meta, attributes: &[Attribute]) -> &mut Archive {
        let len = if let Kind::File(len) = kind { len } else { 0 };
        let name = name.as_bytes().to_vec();
        self.0.extend(header(&Entry { name, kind, meta, attributes: attributes.to_vec() }));
        self.0.extend((0..len).map(|at| (at % 251) as u8));
        self.0.resize(self.0.len() + padding(len), 0);
        self
    }

    fn end(&mut self) -> &[u8] {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        &self.0
    }
}

fn meta(mode: u16, uid: u32, seconds: i64) -> Meta {
    Meta { mode, uid, gid: uid + 1, mtime: (seconds, 123_456_789) }
}

fn attribute(name: &str, value: &[u8]) -> Attribute {
    (name.as_bytes().to_vec(), value.to_vec())
}

/// One of everything, as the agent itself would pack it.
fn one_of_everything() -> Vec<u8> {
    let lines = attribute("user.lines", b"a\n20 SCHILY.xattr.x=y\n\n=\0");
    // cap_net_raw, effective, in revision 2 of its form.
    let capability =
        attribute("security.capability", &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // Read for user 5 beside an owner, a group and others without any right.
    let mut list = vec![2, 0, 0, 0];
    for (tag, rights, id) in
        [(1u16, 6u16, u32::MAX), (2, 4, 5), (4, 0, u32::MAX), (0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]
    {
        list.extend(tag.to_le_bytes().into_iter().chain(rights.to_le_bytes()).chain(id.to_le_bytes()));
    }
    let access = attribute("system.posix_acl_access", &list);
    let deep = format!("all/{}/", "d".repeat(150));
    let mut archive = Archive::default();
    archive
        .add("all/", Kind::Directory, meta(0o1750, 7, 1_000_000_000), std::slice::from_ref(&lines))
        .add("all/acl", Kind::File(5), meta(0o640, 7, 1), &[access])
        .add("all/block", Kind::BlockDevice { major: 8, minor: 300 }, meta(0o660, 0, 2), &[])
        .add("all/char", Kind::CharacterDevice { major: 1, minor: 3 }, meta(0o666, 0, 3), &[])
        .add(&deep, Kind::Directory, meta(0o555, 3_000_000_000, 4), &[])
        .add(&format!("{deep}{}", "f".repeat(200)), Kind::File(1), meta(0o444, 70_000, 5), &[])
        .add("all/fifo", Kind::Fifo, meta(0o622, 9, 6), &[])
        .add("all/large", Kind::File(9_000_001), meta(0o4755, 1000, 7), &[capability, lines])
        .add("all/link", Kind::Symlink(b"/etc/nowhere".to_vec()), meta(0o777, 11, 8), &[])
        .add("all/same", Kind::HardLink(b"all/large".to_vec()), meta(0o4755, 1000, 7), &[]);
    archive.end().to_vec()
}

#[tokio::test]
async fn what_goes_in_comes_out_the_same() {
    let vm = Vm::start(&Machine { disk_len: 200 << 20, ..Machine::default() });
    let session = configured(&vm).await;
    session.sh("mkdir /srv/in /srv/again").await;
    let sent = one_of_everything();
    let unpacked = session.unpack(b"/srv/in", &sent).await.unwrap();
    assert_eq!((unpacked.entries, unpacked.attributes_dropped), (10, 0));
    let got = session.pack(b"/srv/in/all").await.unwrap();
    assert!(got == sent, "{} bytes went in, {} came out", sent.len(), got.len());
    assert_eq!(
        session
            .sh("cd /srv/in/all && stat -c '%a %u %g %Y %h %t:%T' large char; stat -c '%a %Y' . fifo")
            .await,
        "4755 1000 1001 7 2 0:0\n666 0 1 3 1 1:3\n1750 1000000000\n622 6"
    );
    assert_eq!(session.sh("head -c 5 /srv/in/all/acl | wc -c; ls -A /srv/in").await, "5\nall");

    // Many small ones, some at the same time.
    session.sh("mkdir /srv/many; cd /srv/many; for i in $(seq 1 1500); do echo $i >$i; done").await;
    let many = session.pack(b"/srv/many").await.unwrap();
    let targets: Vec<_> = (0..6).map(|number| format!("/srv/again/{number}")).collect();
    session.sh(&format!("mkdir {}", targets.join(" "))).await;
    let unpacking = targets.iter().map(|dir| session.unpack(dir.as_bytes(), &many));
    for unpacked in futures::future::join_all(unpacking).await {
        assert_eq!(unpacked.unwrap().entries, 1501);
    }
    for dir in targets {
        assert!(session.pack(format!("{dir}/many").as_bytes()).await.unwrap() == many);
    }
}

#[tokio::test]
async fn a_running_program_and_links_of_the_guest_are_replaced_not_written_through() {
    let vm = Vm::start(&Machine::default());
    let session = configured(&vm).await;
    session
        .sh("cp /bin/busybox /srv/sleep; mkdir /var /run; ln -s /run /var/run; ln -s /etc/passwd /tmp/report")
        .await;
    session.sh("/srv/sleep 1000 >/dev/null 2>&1 & true").await;
    let mut archive = Archive::default();
    archive
        .add("srv/sleep", Kind::File(10), meta(0o755, 0, 1), &[])
        .add("tmp/report", Kind::File(11), meta(0o600, 0, 1), &[])
        .add("var/run/pid", Kind::File(12), meta(0o644, 0, 1), &[]);
    // The guest's root has no outside, so a link to an absolute path leads where the guest says.
    assert_eq!(session.unpack(b"/", archive.end()).await.unwrap().entries, 3);
    assert_eq!(
        session.sh("stat -c %s /srv/sleep /tmp/report /run/pid; head -n 1 /etc/passwd").await,
        "10\n11\n12\nroot:x:0:0:root:/root:/bin/sh"
    );
    assert_eq!(session.sh("ps -o args | grep -c '^/srv/[s]leep'").await, "1");
}

#[tokio::test]
async fn what_cannot_be_finished_leaves_no_half_file() {
    let mut vm = Vm::start(&Machine::default());
    {
        let session = configured(&vm).await;
        let mut archive = Archive::default();
        let large = archive.add("large", Kind::File(2 * BASE_LEN), meta(0o644, 0, 1), &[]).end().to_vec();
        let full = session.unpack(b"/srv", &large).await.unwrap_err();
        assert_eq!(full.kind, GuestErrorKind::Disk, "{full:?}");
        assert!(full.message.contains("`large`") && full.message.contains("No space left"), "{full:?}");
        assert_eq!(session.sh("ls -A /srv | sort | tr '\\n' ' '").await, "no-format no-interpreter plain");

        // The answer comes while the stream is still on its way.
        let missing = session.unpack(b"/srv/none", &large).await.unwrap_err();
        assert_eq!(missing.kind, GuestErrorKind::NotFound);
        assert!(missing.message.contains("`/srv/none`"), "{missing:?}");

        session.unpack_and_leave(b"/srv", &large[..3_000_000]).await;
        eventually_gone(&session).await;

        // What was taken is on the disk, whatever happens to the machine then.
        let mut archive = Archive::default();
        let small = archive.add("kept", Kind::File(100_000), meta(0o644, 0, 1), &[]).end().to_vec();
        session.unpack(b"/srv", &small).await.unwrap();
    }
    vm.kill();
    let vm = Vm::start(&Machine { disk: Some(vm.disk()), ..Machine::default() });
    let session = configured(&vm).await;
    assert_eq!(session.sh("wc -c </srv/kept; tr -d '\\000' </srv/kept | wc -c").await, "100000\n99601");
}

/// Waits until nothing is in `/srv` that is being written.
async fn eventually_gone(session: &Session<'_>) {
    let start = Instant::now();
    while session.run(shell("! ls -A /srv | grep -q microagent")).await.exit != Some(Exit::Code(0)) {
        assert!(start.elapsed() < harness::STEP_DEADLINE, "the half file stays");
        sleep(Duration::from_millis(20)).await;
    }
}
