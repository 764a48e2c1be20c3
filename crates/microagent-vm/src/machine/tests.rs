//! What the command line of QEMU has and has not.

use std::os::fd::AsFd;

use super::*;
use crate::spec::{Claim, DiskSpec, ExtraDisk};

fn spec() -> MachineSpec {
    MachineSpec {
        qemu: "/usr/bin/qemu-system-x86_64".into(),
        kvm: false,
        kernel: "/g/vmlinux".into(),
        initramfs: "/g/initramfs".into(),
        memory_mib: 512,
        cpu_count: 2,
        disk: Some(DiskSpec {
            overlay: "/w/disk.qcow2".into(),
            layers: Vec::new(),
            base: "/i/base.ext4".into(),
            size_bytes: 1 << 30,
            keep: true,
            fresh: false,
        }),
        extra_disks: Vec::new(),
        disk_limits: DiskLimits::default(),
        verbose_boot: false,
    }
}

/// Returns the command line of a machine whose sockets and files are all the same descriptor.
fn words_of(spec: &MachineSpec, start: Start<'_>, fd: BorrowedFd<'_>, with_network: bool) -> Vec<String> {
    let sockets = Sockets { console: fd, monitor: fd, control: fd, network: with_network.then_some(fd) };
    let extra = vec![fd; spec.extra_disks.len()];
    let root = spec.disk.as_ref().map(|_| (fd, fd));
    let layers = vec![fd; spec.disk.as_ref().map_or(0, |disk| disk.layers.len())];
    let boot = Some(BootFiles { kernel: fd, initramfs: fd });
    let files = Files { boot, root, layers: &layers, extra: &extra };
    let line = command_line(spec, start, sockets, files, Features::default());
    line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect()
}

fn words(spec: &MachineSpec, with_network: bool) -> Vec<String> {
    let null = std::fs::File::open("/dev/null").unwrap();
    words_of(spec, Start::Boot, null.as_fd(), with_network)
}

/// Returns the JSON argument that contains this text.
fn json_of(words: &[String], text: &str) -> Value {
    let word = words.iter().find(|word| word.contains(text)).unwrap();
    serde_json::from_str(word).unwrap()
}

#[test]
fn no_file_has_a_path() {
    for network in [false, true] {
        let words = words(&spec(), network);
        let is_path = |word: &&String| ["/w/", "/i/", "/g/"].iter().any(|dir| word.contains(dir));
        assert_eq!(words.iter().find(is_path), None, "{words:?}");
        assert_eq!(words.iter().filter(|word| *word == "-add-fd").count(), 2);
    }
}

#[test]
fn a_guest_sees_no_virtualisation_and_no_counters_of_the_host() {
    let words = words(&MachineSpec { kvm: true, ..spec() }, false);
    let cpu = words.iter().position(|word| word == "-cpu").unwrap();
    assert_eq!(words[cpu + 1], "host,svm=off,vmx=off,pmu=off");
}

#[test]
fn an_isolated_machine_has_no_network_device() {
    let words = words(&spec(), false);
    assert!(!words.iter().any(|word| word.contains("net")), "{words:?}");
}

#[test]
fn a_user_network_is_one_inherited_socket() {
    let words = words(&spec(), true);
    assert_eq!(words.iter().filter(|word| word.contains("virtio-net-device")).count(), 1);
    assert!(words.iter().any(|word| word.starts_with("stream,id=net0,server=off,addr.type=fd")));
}

#[test]
fn every_start_has_the_same_devices_in_the_same_order() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = null.as_fd();
    let devices = |spec: &MachineSpec, start| {
        let words = words_of(spec, start, fd, true);
        let device = |pair: &[String]| (pair[0] == "-device").then(|| pair[1].clone());
        words.windows(2).filter_map(device).collect::<Vec<_>>()
    };
    let booted = devices(&spec(), Start::Boot);
    assert_eq!(devices(&spec(), Start::BootToFreeze { memory: fd }), booted);
    assert_eq!(devices(&spec(), Start::Restore { memory: fd, state: fd }), booted);
    assert_eq!(devices(&spec(), Start::RestoreToFreeze { memory: fd, state: fd }), booted);
    let without_disk = MachineSpec { disk: None, ..spec() };
    assert_eq!(devices(&without_disk, Start::BootToFreeze { memory: fd }), booted);
}

#[test]
fn a_machine_that_is_to_be_frozen_sees_its_disk_only_afterwards() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let words = words_of(&spec(), Start::BootToFreeze { memory: null.as_fd() }, null.as_fd(), false);
    let opened = |word: &&String| word.contains("\"/dev/fdset/");
    assert_eq!(words.iter().find(opened), None, "{words:?}");
    let inserted = insert_disk(&spec());
    assert_eq!(inserted[0].1["file"]["filename"], "/dev/fdset/0");
    assert_eq!(inserted[0].1["backing"]["file"]["filename"], "/dev/fdset/1");
    assert_eq!(inserted[1].1["options"][0]["file"], inserted[0].1["node-name"]);
    assert!(insert_disk(&MachineSpec { disk: None, ..spec() }).is_empty());
}

#[test]
fn further_disks_come_last_and_never_into_a_template() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = null.as_fd();
    let disk = |path: &str, read_only| ExtraDisk { path: path.into(), read_only, claim: Claim::None };
    let spec = MachineSpec { extra_disks: vec![disk("/i/other", true), disk("/v/data", false)], ..spec() };
    let words = |start| words_of(&spec, start, fd, false);
    for start in [Start::Boot, Start::Restore { memory: fd, state: fd }] {
        let words = words(start);
        let (base, data) = (json_of(&words, "/dev/fdset/16"), json_of(&words, "/dev/fdset/17"));
        assert_eq!((&base["read-only"], &base["file"]["read-only"]), (&json!(true), &json!(true)));
        assert_eq!(data["read-only"], Value::Null);
        assert_eq!(json_of(&words, "\"disk2\"")["scsi-id"], 2);
        assert!(words.last().unwrap().contains("disk2"), "{words:?}");
    }
    for start in [Start::BootToFreeze { memory: fd }, Start::RestoreToFreeze { memory: fd, state: fd }] {
        let frozen = words(start);
        let has = |text: &str| frozen.iter().any(|word| word.contains(text));
        assert!(!has("/dev/fdset/16") && !has("disk1"), "{frozen:?}");
    }
    let added = add_extra_disks(&spec);
    let names: Vec<_> = added.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["blockdev-add", "device_add", "blockdev-add", "device_add"]);
    assert_eq!(added[1].1["drive"], added[0].1["node-name"]);
}

#[test]
fn a_restored_machine_maps_its_memory_privately() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = null.as_fd();
    let words = words_of(&spec(), Start::Restore { memory: fd, state: fd }, fd, false);
    let object = json_of(&words, "memory-backend-file");
    assert_eq!(object["share"], false);
}

#[test]
fn the_memory_of_a_template_is_opened_for_reading_where_qemu_can() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = null.as_fd();
    let sockets = Sockets { console: fd, monitor: fd, control: fd, network: None };
    let files = Files { boot: None, root: Some((fd, fd)), layers: &[], extra: &[] };
    let features = Features { read_only_memory: true, file_migration: true };
    let words = |start| {
        let line = command_line(&spec(), start, sockets, files, features);
        line.args().iter().map(|arg| arg.to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let restored = words(Start::Restore { memory: fd, state: fd });
    let memory = json_of(&restored, "memory-backend-file");
    assert_eq!((&memory["readonly"], &memory["rom"]), (&json!(true), &json!("off")));
    assert!(restored.iter().any(|word| word.ends_with(",set=2")), "{restored:?}");
    let loads = |word: &String| ["-kernel", "-initrd", "-append"].contains(&word.as_str());
    assert!(!restored.iter().any(loads), "{restored:?}");
    // What is to be frozen again is written to.
    for start in [Start::BootToFreeze { memory: fd }, Start::RestoreToFreeze { memory: fd, state: fd }] {
        assert_eq!(json_of(&words(start), "memory-backend-file")["readonly"], Value::Null);
    }
}

#[test]
fn a_guest_reports_free_memory_wherever_qemu_can_give_it_back() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let fd = null.as_fd();
    let reports = |start, read_only_memory| {
        let features = Features { read_only_memory, ..Features::default() };
        balloon(start, features)["free-page-reporting"].as_bool().unwrap()
    };
    for read_only in [false, true] {
        assert!(reports(Start::Boot, read_only));
        assert!(reports(Start::RestoreWhole { state: fd }, read_only));
        // What a template was frozen with, its restored machines have.
        assert_eq!(reports(Start::BootToFreeze { memory: fd }, read_only), !read_only);
        assert_eq!(reports(Start::Restore { memory: fd, state: fd }, read_only), !read_only);
        assert_eq!(reports(Start::RestoreToFreeze { memory: fd, state: fd }, read_only), !read_only);
    }
}

#[test]
fn the_base_disk_is_never_writable() {
    let words = words(&spec(), false);
    let blockdev = json_of(&words, "qcow2");
    assert_eq!(blockdev["backing"]["file"]["read-only"], true);
}
