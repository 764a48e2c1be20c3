use std::path::Path;

use microagent_store::WORKSPACE_FORMAT;
use serde_json::json;

use super::*;
use crate::provision::fitting_mib;
use crate::spec::Service;

fn record() -> WorkspaceRecord {
    serde_json::from_value(json!({
        "format": WORKSPACE_FORMAT,
        "name": "web",
        "created_at": "2026-01-01T00:00:00Z",
        "image": {
            "reference": "busybox",
            "resolved_reference": "docker.io/library/busybox:latest",
            "digest": "sha256:0",
            "disk": "sha256:1",
        },
        "profile": "small",
        "resources": { "memory_mib": 512, "cpu_count": 2, "size_mib": 1024 },
        "network": "user",
        "hostname": "web",
        "disks": [bundle("/specs/in.tar", "/in"), volume("data", "/data")],
        "secrets": ["OLD=env:OLD"],
        "outputs": [{ "name": "a", "path": "/a" }],
        "disposable": false,
    }))
    .unwrap()
}

fn bundle(path: &str, mount_point: &str) -> Attachment {
    Attachment { source: DiskSource::Bundle(path.into()), mount_point: mount_point.into(), read_only: false }
}

fn volume(name: &str, mount_point: &str) -> Attachment {
    let source = DiskSource::Volume(name.parse().unwrap());
    Attachment { source, mount_point: mount_point.into(), read_only: false }
}

fn workload() -> Workload {
    let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Workload {
        env: vec![variable("HOSTNAME", "web"), variable("PATH", "/bin"), variable("A", "hunter2")],
        given_env: 1,
        setup_digest: Some(setup_digest(&[SetupStep::Shell("apt-get update".into())])),
        ..Workload::default()
    }
}

fn plan_of(record: &WorkspaceRecord, workload: &Workload, text: &str) -> Plan {
    let spec = SpecFile::parse(Path::new("/specs/microagent.yaml"), text).unwrap();
    let wanted = Wanted {
        setup: spec.setup_steps().unwrap(),
        env: spec.variables(&|_| None).unwrap(),
        publish: spec.published().unwrap(),
        forwards: spec.forwarded().unwrap(),
        brokers: spec.brokered().unwrap(),
        disks: spec.attachments().unwrap().concat(),
        service: spec.service.as_ref().map(|service| match service {
            Service::Shell(line) => CommandLine::Shell(line.clone()),
            Service::Argv(words) => CommandLine::Argv(words.clone()),
        }),
        size_mib: spec.resources.size_mib.map(|asked| fitting_mib(asked, 0)),
        spec: &spec,
    };
    Plan::of(record, workload, &wanted)
}

fn plan(text: &str) -> Plan {
    plan_of(&record(), &workload(), text)
}

/// The changes, each in a line.
fn lines(plan: &Plan) -> Vec<String> {
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let rest = |change: &Change| if change.needs_rest { "" } else { " (now)" };
    plan.changes
        .iter()
        .map(|change| {
            format!("{}: {} -> {}{}", change.key, text(&change.old), text(&change.new), rest(change))
        })
        .collect()
}

#[test]
fn each_key_changes_what_it_names() {
    for (text, changes) in [
        ("restart: always", &["restart: never -> always (now)"][..]),
        ("outputs: []", &["outputs[a]: /a -> - (now)"]),
        (
            "outputs: [{name: b, path: /b}, {name: a, path: /c}]",
            &["outputs[a]: /a -> /c (now)", "outputs[b]: - -> /b (now)"],
        ),
        ("service: sleep 1", &["service: none -> sleep 1"]),
        ("service: [sleep, 1]", &["service: none -> [\"sleep\", \"1\"]"]),
        ("shell: ash", &["shell: none -> ash"]),
        ("hostname: box", &["hostname: web -> box"]),
        ("user: nobody", &["user: root -> nobody"]),
        ("workdir: /srv", &["workdir: / -> /srv"]),
        ("init: true", &["init: false -> true"]),
        ("resources: {memoryMiB: 600}", &["resources.memoryMiB: 512 -> 600"]),
        ("resources: {cpuCount: 1}", &["resources.cpuCount: 2 -> 1"]),
        ("resources: {sizeMiB: 2000}", &["resources.sizeMiB: 1024 -> 2000"]),
        (
            "profile: medium",
            &[
                "profile: small -> medium",
                "resources.memoryMiB: 512 -> 2048",
                "resources.sizeMiB: 1024 -> 8192",
            ],
        ),
        // A smaller profile does not shrink the disk.
        (
            "profile: tiny\nresources: {memoryMiB: 512}",
            &["profile: small -> tiny", "resources.cpuCount: 2 -> 1"],
        ),
        ("network: {mode: isolated}", &["network.mode: user -> isolated"]),
        (
            "network: {dns: [192.0.2.53], dnsHost: true}",
            &["network.dns: none -> 192.0.2.53", "network.dnsHost: no -> yes"],
        ),
        ("network: {dnsSearch: [a.example, b]}", &["network.dnsSearch: none -> a.example, b"]),
        ("network: {addHosts: ['db:10.1.2.3']}", &["network.addHosts: none -> db:10.1.2.3"]),
        ("network: {hostForwards: ['80=localhost:81']}", &["network.hostForwards: none -> 80=127.0.0.1:81"]),
        ("network: {forwards: ['80:80']}", &["network.forwards: none -> 127.0.0.1:80:80/tcp"]),
        (
            "egress: {mode: open, allow: [example.org], maxBytes: 1}",
            &[
                "egress.mode: public -> open",
                "egress.allow: none -> example.org",
                "egress.maxBytes: 53687091200 -> 1",
            ],
        ),
        (
            "secrets: {NEW: 'env:NEW', OLD: 'env:OTHER'}",
            &["secrets[OLD]: env:OLD -> env:OTHER", "secrets[NEW]: - -> env:NEW"],
        ),
        ("secrets: {}", &["secrets[OLD]: env:OLD -> -"]),
        ("volumes: ['data:/data:ro']", &["volumes[/data]: data:rw -> data:ro"]),
        (
            "disks: [{path: a.img, mountpoint: /a}]",
            &["volumes[/data]: data:rw -> -", "volumes[/a]: - -> /specs/a.img:rw"],
        ),
        ("volumes: []", &["volumes[/data]: data:rw -> -"]),
    ] {
        let plan = plan(text);
        assert_eq!(lines(&plan), changes, "{text}");
        assert!(plan.impossible.is_empty(), "{text}");
        // Whoever applies the file again finds nothing to do.
        let again = plan_of(&plan.record, &plan.workload, text);
        assert_eq!(lines(&again), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn what_the_file_does_not_say_stays() {
    for text in [
        "",
        "name: web\nimage: busybox\nprofile: small\nrestart: never\nhostname: web",
        "image: docker.io/library/busybox:latest\nresources: {memoryMiB: 512, cpuCount: 2, sizeMiB: 1024}",
        "setup: [apt-get update]\nenv: {A: hunter2}\nnetwork: {mode: user, forwards: []}",
        "volumes: [data:/data]\nbundles: [{path: in.tar, mountpoint: /in}]",
        "volumes: [data:/data]\negress: {mode: public}\noutputs: [{name: a, path: /a}]",
        "pull: always\ntimeout: 3\nkeep: true\nexec: ls",
    ] {
        let plan = plan(text);
        assert_eq!((lines(&plan), &plan.impossible), (Vec::new(), &Vec::new()), "{text}");
        assert_eq!(plan.workload, workload(), "{text}");
    }
}

#[test]
fn variables_are_named_and_never_shown() {
    let plan = plan("env: {B: hunter3, C: '1'}");
    let keys: Vec<_> = plan.changes.iter().map(|change| (change.key.as_str(), change.change)).collect();
    assert_eq!(
        keys,
        [("env[A]", ChangeKind::Removed), ("env[B]", ChangeKind::Added), ("env[C]", ChangeKind::Added)]
    );
    let env: Vec<_> = plan.workload.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        (env.as_slice(), plan.workload.given_env),
        (&["HOSTNAME=web", "PATH=/bin", "B=hunter3", "C=1"].map(str::to_owned)[..], 2)
    );
    assert!(!format!("{:?}", plan.changes).contains("hunter"));
}

#[test]
fn what_cannot_change_is_named() {
    for (text, says) in [
        ("image: alpine", "image is `busybox`"),
        ("image: busybox:1.36", "image"),
        ("image: oci:layout", "image"),
        ("setup: [apt-get upgrade]", "setup has run"),
        ("setup: []", "setup has run"),
        ("bundles: []", "bundles"),
        ("bundles: [{path: other.tar, mountpoint: /in}]", "bundles"),
        ("volumes: ['./in.tar:/elsewhere']", "bundles"),
        ("resources: {sizeMiB: 1023}", "only grows"),
    ] {
        let plan = plan(text);
        assert!(plan.impossible.len() == 1 && plan.impossible[0].contains(says), "{text}: {plan:?}");
    }
}

#[test]
fn setup_that_failed_can_be_another() {
    let failed = Workload { setup: vec![SetupStep::Shell("apt-get update".into())], ..workload() };
    let plan = plan_of(&record(), &failed, "setup: [apt-get -y update]");
    assert_eq!(lines(&plan), ["setup: - -> -"]);
    assert_eq!(plan.workload.setup, [SetupStep::Shell("apt-get -y update".into())]);
    assert_eq!(
        lines(&plan_of(&plan.record, &plan.workload, "setup: [apt-get -y update]")),
        Vec::<String>::new()
    );
    assert!(plan_of(&record(), &failed, "setup: []").impossible[0].contains("tried"));
    // An older release did not write down what it was made with.
    let unknown = Workload { setup_digest: None, ..workload() };
    assert!(plan_of(&record(), &unknown, "setup: [x]").impossible.is_empty());
}

/// A crash between the two files leaves the workload new and the record old.
#[test]
fn a_repeated_apply_finishes_what_a_killed_one_began() {
    let text = "hostname: box\nenv: {B: x}\nuser: nobody\nrestart: always\nresources: {memoryMiB: 600}";
    let whole = plan(text);
    let half = plan_of(&record(), &whole.workload, text);
    assert_eq!(
        lines(&half),
        ["resources.memoryMiB: 512 -> 600", "restart: never -> always (now)", "hostname: web -> box"]
    );
    assert_eq!(half.workload, whole.workload);
    assert_eq!(serde_json::to_value(&half.record).unwrap(), serde_json::to_value(&whole.record).unwrap());
    assert_eq!(half.workload.env[0], ("HOSTNAME".to_owned(), "box".to_owned()));
}

#[test]
fn outputs_change_in_any_state_however_many_there_are() {
    let outputs: Vec<_> = (0..100).map(|n| format!("{{name: o{n}, path: /{}}}", "x".repeat(400))).collect();
    let plan = plan(&format!("outputs: [{}]", outputs.join(", ")));
    assert!(plan.changes.len() > 100 && plan.changes.iter().all(|change| !change.needs_rest));
}

#[test]
fn a_local_image_is_the_one_at_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("layout");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
    let mut record = record();
    record.image.reference = "oci:../layout:latest".into();
    record.image.resolved_reference = format!("oci:{}:latest", real.display());
    let base = dir.path().display();
    for (text, same) in [
        (format!("oci:{base}/layout:latest"), true),
        (format!("oci:{base}/link:latest"), true),
        (format!("oci:{base}/layout"), true),
        (format!("oci:{base}/layout:other"), false),
        (format!("oci-archive:{base}/layout:latest"), false),
        (format!("oci:{base}/none:latest"), false),
        ("busybox".to_owned(), false),
    ] {
        assert_eq!(is_image(&record, &text), same, "{text}");
    }
}

#[test]
fn a_workspace_has_one_origin() {
    let made = WorkspaceRecord { from_snapshot: Some("lab:a".parse().unwrap()), ..record() };
    let impossible = |record: &WorkspaceRecord, text: &str| plan_of(record, &workload(), text).impossible;
    assert!(impossible(&made, "fromSnapshot: lab:a").is_empty());
    assert!(impossible(&made, "fromSnapshot: lab:b")[0].contains("created from snapshot `lab:a`"));
    assert!(impossible(&record(), "fromSnapshot: lab:a")[0].contains("not created from a snapshot"));
}
