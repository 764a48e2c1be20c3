//! A restored machine is a new machine, and its template knows nothing of anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use microagent_tests::{Finished, listing};

use super::support::{MISSING, home, is_cold, only_template, printed, start};

/// Machines from one template, and how many at a time: enough to have them restored from it side by side.
const MACHINES: usize = 50;
const AT_A_TIME: usize = 5;

/// How far a guest's clock may be off, in seconds.
const CLOCK_TOLERANCE: u64 = 2;

/// A program that writes 32 bytes of `getrandom(2)` to standard output, as a whole ELF file.
fn getrandom_program() -> Vec<u8> {
    const ADDRESS: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    #[rustfmt::skip]
    let code = [
        0x48, 0x83, 0xec, 0x20,       // sub rsp, 32
        0x48, 0x89, 0xe7,             // mov rdi, rsp
        0xbe, 0x20, 0x00, 0x00, 0x00, // mov esi, 32
        0x31, 0xd2,                   // xor edx, edx
        0xb8, 0x3e, 0x01, 0x00, 0x00, // mov eax, 318: getrandom
        0x0f, 0x05,                   // syscall
        0x89, 0xc2,                   // mov edx, eax
        0x48, 0x89, 0xe6,             // mov rsi, rsp
        0xbf, 0x01, 0x00, 0x00, 0x00, // mov edi, 1
        0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1: write
        0x0f, 0x05,                   // syscall
        0x31, 0xff,                   // xor edi, edi
        0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60: exit
        0x0f, 0x05,                   // syscall
    ];
    let len = HEADERS + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
    file.extend(1_u32.to_le_bytes());
    file.extend([ADDRESS + HEADERS, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(0_u32.to_le_bytes());
    file.extend([64_u16, 56, 1, 64, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    let (loadable, readable_and_executable) = (1_u32, 5_u32);
    file.extend([loadable, readable_and_executable].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0, ADDRESS, ADDRESS, len, len, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(code);
    file
}

/// A shell line that prints everything by which machines could be told apart, one `name value` per line.
fn probe() -> String {
    let program: String = getrandom_program().iter().map(|byte| format!("\\{byte:03o}")).collect();
    format!(
        "printf '{program}' > /getrandom && chmod 700 /getrandom || exit 1
         hex() {{ od -An -v -tx1 | tr -d ' \\n'; }}
         echo getrandom $(/getrandom | hex)
         echo urandom $(head -c 32 /dev/urandom | hex)
         echo uuid $(cat /proc/sys/kernel/random/uuid)
         echo boot_id $(cat /proc/sys/kernel/random/boot_id)
         echo machine_id $(cat /etc/machine-id)
         echo mac $(cat /sys/class/net/eth0/address)
         echo hostname $(hostname)
         echo clock $(date +%s)"
    )
}

/// What the probe printed.
fn traits(run: &Finished) -> BTreeMap<String, String> {
    let text = printed(run);
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn unix_time() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

#[test]
fn fifty_machines_from_one_template_have_nothing_in_common() {
    let home = home();
    let options = ["--json", "--profile", "tiny", "--network", "user"];
    let probe = probe();
    let call = || home.run("busybox", options, &["sh", "-c", &probe]);
    // The machine that was frozen and continued is not one of those that are restored, and differs like any other.
    let mut machines = vec![traits(&is_cold(call(), MISSING))];
    for _ in 0..MACHINES / AT_A_TIME {
        let before = unix_time();
        let running: Vec<_> = (0..AT_A_TIME).map(|_| call().start()).collect();
        for run in running {
            let run = run.finish().code(0);
            assert_eq!(start(&run).0, "warm", "{}", run.told());
            let machine = traits(&run);
            let clock: u64 = machine["clock"].parse().unwrap();
            let right = before - CLOCK_TOLERANCE..=unix_time() + CLOCK_TOLERANCE;
            assert!(right.contains(&clock), "{clock} is not in {right:?}");
            machines.push(machine);
        }
    }
    assert_eq!(machines.len(), MACHINES + 1);
    let lengths = [
        ("getrandom", 64),
        ("urandom", 64),
        ("uuid", 36),
        ("boot_id", 36),
        ("machine_id", 32),
        ("mac", 17),
        ("hostname", 23),
    ];
    let mut random = BTreeSet::new();
    for (name, length) in lengths {
        let values: BTreeSet<&str> = machines.iter().map(|machine| machine[name].as_str()).collect();
        assert_eq!(values.len(), machines.len(), "{name} is the same in two machines: {values:#?}");
        for value in values {
            assert_eq!(value.len(), length, "{name}: {value}");
            if name == "getrandom" || name == "urandom" {
                // Not the same stream at another place, either.
                random.extend(value.as_bytes().chunks(16).map(<[u8]>::to_vec));
            }
        }
    }
    assert_eq!(random.len(), machines.len() * 2 * 4, "8 random bytes came twice");
    home.nothing_is_left();
}

/// A page that was never written to.
static ZERO_PAGE: [u8; 4096] = [0; 4096];

/// All files below a directory that have these bytes somewhere.
fn files_with(dir: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let files = listing::listing(dir).into_keys().filter(|path| path.is_file());
    let has = |path: &PathBuf| {
        // Guest memory is mostly pages of zeros, which nothing that is looked for has in it.
        let pages = fs::read(path).unwrap();
        let bytes = pages
            .chunks(ZERO_PAGE.len())
            .filter(|page| *page != &ZERO_PAGE[..page.len()])
            .collect::<Vec<_>>()
            .concat();
        let mut rest = &bytes[..];
        while let Some(at) = rest.iter().position(|byte| *byte == needle[0]) {
            if rest[at..].starts_with(needle) {
                return true;
            }
            rest = &rest[at + 1..];
        }
        false
    };
    files.filter(has).collect()
}

/// The UUID in the superblock of an ext4 image.
fn file_system_id(disk: &Path) -> [u8; 16] {
    use std::os::unix::fs::FileExt;
    let mut id = [0; 16];
    fs::File::open(disk).unwrap().read_exact_at(&mut id, 1024 + 0x68).unwrap();
    assert_ne!(id, [0; 16]);
    id
}

#[test]
fn a_template_holds_nothing_of_a_workspace() {
    let home = home();
    let marker =
        format!("mark{}x{}", std::process::id(), SystemTime::UNIX_EPOCH.elapsed().unwrap().subsec_nanos());
    let line =
        format!("echo {marker}; echo {marker} > /file; cat /file > /dev/shm/copy; cat /etc/machine-id");
    let templates = home.state().join("templates");
    let mut ids = Vec::new();
    // The first is frozen as it boots, the second once its image is mounted, the third is restored.
    for (number, run) in ["first", "second", "third"].into_iter().enumerate() {
        let (name, env) = (format!("{run}-{marker}"), format!("SECRET={marker}"));
        let options = ["--profile", "tiny", "--json", "--name", &name, "--hostname", &marker, "--env", &env];
        let run = home.run("busybox", options, &["sh", "-c", &line]).success();
        ids.push(printed(&run).lines().last().unwrap().to_owned());
        // The search finds what is there: the guest's kernel says its name in its memory.
        assert_eq!(files_with(&templates, b"Linux version ").len(), [1, 2, 2][number]);
        assert_eq!(files_with(&templates, marker.as_bytes()), Vec::<PathBuf>::new());
        let mut images = listing::listing(&home.state().join("images")).into_keys();
        let disk = images.find(|path| path.extension().is_some_and(|extension| extension == "ext4")).unwrap();
        assert_eq!(
            files_with(&only_template(&home), &file_system_id(&disk)),
            Vec::<PathBuf>::new(),
            "the disk was read"
        );
        for id in &ids {
            assert_eq!(files_with(&templates, id.as_bytes()), Vec::<PathBuf>::new(), "machine id {id}");
        }
    }
    home.nothing_is_left();
}
