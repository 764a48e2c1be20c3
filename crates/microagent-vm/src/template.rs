//! Templates: guests that are frozen right after boot, and that later machines restore with copy-on-write.
//!
//! A template is the memory (`ram`, mapped privately by every machine that starts from it) and the state of
//! the devices (`state`, QEMU's migration stream without the memory) of a guest whose agent has answered
//! once and has seen nothing of any workspace: no name, no entropy, no clock. What makes the restored guest a
//! machine of its own is [`microagent_proto::Configure`], which a cold boot goes through as well.
//!
//! There are two kinds. The template of a shape has no disk; every start of that shape can use it. The
//! template of an image has been made from it: it has the image's disk mounted and grown, fresh as it was
//! unpacked, with no program of the image run; whoever starts from it gets a copy of its overlay.
//!
//! ```text
//! templates/KEY/   ram  state  [disk.qcow2]  manifest.json      appears whole, by one rename
//! templates/KEY.lock                              held while somebody freezes this shape
//! ```
//!
//! The key is a digest of everything that the frozen state depends on ([`Shape`]); another kernel, QEMU,
//! CPU, size or format is another key. The manifest has the inode, size and change time of both files: a
//! file that was truncated, replaced or written to since the freeze does not match, because nobody can set
//! a change time back. A template of an earlier boot of the host is stale, so nothing here needs an fsync.
//!
//! The same freeze and restore serve whatever else is to be frozen: they know nothing of keys.

mod copy;
mod shape;

use std::cell::OnceCell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use microagent_store::{
    Access, Lock, LockError, Scratch, StateDir, open_file, read_json, read_limited, write_json,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use crate::jail::{Account, FileAccess};
use crate::spec::MachineSpec;

pub(crate) use copy::copy_file;
pub(crate) use shape::FileIdentity;
pub use shape::{MachineShape, MountedImage, Shape};

/// Most templates that are kept; each is for a shape or for an image in a shape.
const TEMPLATE_COUNT_MAX: usize = 24;

/// Largest overlay that a template may have: a fresh image mounted and grown has written little.
const OVERLAY_BYTES_MAX: u64 = 64 * MIB;

/// Most bytes of all templates together; the least recently used ones are removed first.
const TEMPLATE_BYTES_MAX: u64 = 2 << 30;

/// Name of a mounted image's overlay.
const OVERLAY: &str = "disk.qcow2";

const MIB: u64 = 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    created_at: Timestamp,
    shape: Shape,
    ram: FileIdentity,
    state: FileIdentity,
    disk: Option<FileIdentity>,
}

/// A template that was found to be complete.
#[derive(Debug)]
pub(crate) struct Template {
    pub(crate) ram: File,
    pub(crate) state: File,
    /// The overlay of a mounted image.
    disk: Option<File>,
    dir: PathBuf,
}

/// Why there is no template to restore.
#[derive(Debug)]
pub(crate) enum Unavailable {
    /// This shape was not frozen yet.
    Missing,
    /// The template was damaged and has been removed.
    Damaged(String),
}

impl Template {
    /// Opens the template of a shape. If it does not match its manifest, it is removed.
    pub(crate) fn open(state: &StateDir, shape: &Shape) -> Result<Template, Unavailable> {
        let dir = state.templates().join(shape.key());
        if !dir.exists() {
            return Err(Unavailable::Missing);
        }
        match Self::open_checked(&dir, shape) {
            Ok(template) => Ok(template),
            Err(reason) => {
                discard(state, &dir);
                Err(Unavailable::Damaged(reason))
            }
        }
    }

    fn open_checked(dir: &Path, shape: &Shape) -> Result<Template, String> {
        let manifest: Manifest = read_json(&dir.join("manifest.json")).map_err(|e| e.to_string())?;
        if manifest.shape != *shape {
            return Err("its manifest is of another shape".to_owned());
        }
        let open = |name: &str, expected: &FileIdentity| {
            // QEMU opens the memory for writing, though it maps it privately.
            let file = open_file(&dir.join(name), Access::Modify).map_err(|e| format!("{name}: {e}"))?;
            let found = FileIdentity::of(&file.metadata().map_err(|e| format!("{name}: {e}"))?);
            if found == *expected { Ok(file) } else { Err(format!("`{name}` was changed since the freeze")) }
        };
        let template = Template {
            ram: open("ram", &manifest.ram)?,
            state: open("state", &manifest.state)?,
            disk: manifest.disk.as_ref().map(|expected| open(OVERLAY, expected)).transpose()?,
            dir: dir.to_owned(),
        };
        template.mark_used();
        Ok(template)
    }

    /// Its directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it has its image mounted.
    pub(crate) fn is_mounted(&self) -> bool {
        self.disk.is_some()
    }

    /// Puts a copy of the overlay of the mounted image in the place of the machine's fresh one; does nothing for
    /// a template without.
    pub(crate) fn lay_disk(&self, machine: &MachineSpec) -> io::Result<()> {
        let (Some(from), Some(disk)) = (&self.disk, &machine.disk) else { return Ok(()) };
        let dir = disk.overlay.parent().unwrap_or(Path::new("/"));
        let copy = tempfile::NamedTempFile::new_in(dir)?;
        copy_file(from, copy.as_file())?;
        // Whatever happens in between, there is a whole disk under the name.
        copy.persist(&disk.overlay).map(drop).map_err(|e| e.error)
    }

    /// For the order in which templates are given up.
    fn mark_used(&self) {
        if let Ok(manifest) = open_file(&self.dir.join("manifest.json"), Access::Read) {
            let _ = manifest.set_modified(SystemTime::now());
        }
    }

    /// Removes the template, because a machine could not be restored from it.
    pub(crate) fn discard(self, state: &StateDir) {
        discard(state, &self.dir);
    }
}

/// Removes the template's name in one step; running machines keep its files.
fn discard(state: &StateDir, dir: &Path) {
    if state.take_out(dir).is_ok() {
        return;
    }
    // A supervisor whose guest is restored may remove its template and move none. Without its manifest it is damaged for
    // whoever finds it half removed. Somebody else may have been faster; then there is nothing left to do.
    let _ = fs::remove_file(dir.join("manifest.json"));
    let _ = fs::remove_dir_all(dir);
}

/// Memory and state of a guest that is about to be frozen.
#[derive(Debug)]
pub(crate) struct Freezer {
    memory: File,
    /// The root disk's overlay, for the template of an image.
    overlay: OnceCell<File>,
    shape: Shape,
    dir: Scratch,
    home: PathBuf,
    _lock: Lock,
}

impl Freezer {
    /// Prepares to freeze the next machine of this shape, which starts with a copy of this memory, if any;
    /// `None` when somebody else is at it.
    ///
    /// # Errors
    /// Fails when the memory or the files cannot be made.
    pub(crate) fn prepare(
        state: &StateDir,
        shape: Shape,
        from: Option<&File>,
    ) -> io::Result<Option<Freezer>> {
        let home = state.templates().join(shape.key());
        let lock = match Lock::try_exclusive(&home.with_extension("lock")) {
            Ok(lock) => lock,
            Err(LockError::Held { .. }) => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        let memory = memfd_create("guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let memory = File::from(memory);
        match from {
            Some(from) => copy_file(from, &memory)?,
            None => memory.set_len(u64::from(shape.memory_mib) * MIB)?,
        }
        // Without a control group, nothing else would limit how far a QEMU that was taken over lets it grow.
        fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let overlay = OnceCell::new();
        Ok(Some(Freezer { memory, overlay, shape, dir: state.scratch()?, home, _lock: lock }))
    }

    /// Where the template is made.
    pub(crate) fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// The guest's memory.
    pub(crate) fn memory(&self) -> &File {
        &self.memory
    }

    /// Whether the guest is to have its image mounted when it is frozen.
    pub(crate) fn wants_mount(&self) -> bool {
        self.shape.image.is_some()
    }

    /// Lets machines with a user of their own open the template's memory. A confined supervisor could not do it any
    /// more.
    ///
    /// # Errors
    /// Fails when the file cannot be made or given to them.
    pub(crate) fn admit(&self, machine: &MachineSpec) -> io::Result<()> {
        match Account::choose(&machine.qemu, machine.kvm) {
            Ok(account) => account.admit(&self.open_ram()?, FileAccess::ReadWrite),
            Err(_) => Ok(()),
        }
    }

    /// Opens the overlay that the template gets a copy of. A confined supervisor could not do it any more.
    ///
    /// # Errors
    /// Fails when it cannot be opened.
    pub(crate) fn hold_overlay(&self, machine: &MachineSpec) -> io::Result<()> {
        if let Some(disk) = machine.disk.as_ref().filter(|_| self.wants_mount()) {
            let overlay = open_file(&disk.overlay, Access::Read)?;
            self.overlay.get_or_init(|| overlay);
        }
        Ok(())
    }

    fn open_ram(&self) -> io::Result<File> {
        let path = self.dir.path().join("ram");
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Where the device state goes; only for writing, as QEMU opens it.
    pub(crate) fn state_file(&self) -> io::Result<OwnedFd> {
        let path = self.dir.path().join("state");
        Ok(OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.into())
    }

    /// Copies the memory of the stopped guest, and what it has written to the overlay if it is of a mounted image.
    pub(crate) fn copy(&self) -> io::Result<()> {
        copy_file(&self.memory, &self.open_ram()?)?;
        if !self.wants_mount() {
            return Ok(());
        }
        let overlay = self.overlay.get().ok_or_else(|| io::Error::other("its disk was not opened"))?;
        if overlay.metadata()?.len() > OVERLAY_BYTES_MAX {
            return Err(io::Error::other("the image's disk was written to more than expected"));
        }
        copy_file(overlay, &self.create(OVERLAY)?)
    }

    /// Renames the template to its final name, replacing an older one, and removes surplus templates.
    pub(crate) fn publish(self, state: &StateDir) -> io::Result<()> {
        let identity = |name: &str| fs::metadata(self.dir.path().join(name)).map(|m| FileIdentity::of(&m));
        let manifest = Manifest {
            created_at: Timestamp::now(),
            ram: identity("ram")?,
            state: identity("state")?,
            disk: self.wants_mount().then(|| identity(OVERLAY)).transpose()?,
            shape: self.shape.clone(),
        };
        write_json(&self.dir.path().join("manifest.json"), &manifest).map_err(io::Error::other)?;
        // Whoever holds the lock is the only one who gives this name. What had it before was asked to be
        // made anew.
        discard(state, &self.home);
        self.dir.publish(&self.home)?;
        let all = list(state)?;
        for old in surplus(&all) {
            discard(state, &old.dir);
        }
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(self.dir.path().join(name))
    }
}
/// A template on disk.
#[derive(Debug, Clone)]
pub struct TemplateInfo {
    /// Its key.
    pub key: String,
    /// Its shape; `None` when its manifest is damaged.
    pub shape: Option<Shape>,
    /// When it was frozen.
    pub created_at: Option<Timestamp>,
    /// When a machine last started from it.
    pub used_at: SystemTime,
    /// Bytes on disk.
    pub bytes: u64,
    /// Whether it is of no use: the host was booted anew, or the image is gone.
    pub stale: bool,
    dir: PathBuf,
}

/// Lists all templates, most recently used first. Changes nothing.
///
/// # Errors
/// Fails when the directory exists and cannot be read.
pub fn list(state: &StateDir) -> io::Result<Vec<TemplateInfo>> {
    let entries = match fs::read_dir(state.templates()) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let boot_id = read_limited(Path::new("/proc/sys/kernel/random/boot_id"), 100).unwrap_or_default();
    let boot_id = String::from_utf8_lossy(&boot_id).trim().to_owned();
    let mut found: Vec<TemplateInfo> =
        entries.flatten().filter_map(|entry| info(&entry.path(), &boot_id)).collect();
    found.sort_by_key(|template| std::cmp::Reverse(template.used_at));
    Ok(found)
}

fn info(dir: &Path, boot_id: &str) -> Option<TemplateInfo> {
    let key = dir.file_name()?.to_str()?.to_owned();
    let metadata = fs::metadata(dir).ok().filter(fs::Metadata::is_dir)?;
    let path = dir.join("manifest.json");
    let manifest: Option<Manifest> = read_json(&path).ok();
    let used = fs::metadata(&path).and_then(|metadata| metadata.modified());
    let bytes = ["ram", "state", OVERLAY]
        .iter()
        .filter_map(|name| fs::metadata(dir.join(name)).ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum();
    Some(TemplateInfo {
        key,
        created_at: manifest.as_ref().map(|manifest| manifest.created_at),
        stale: manifest.as_ref().is_none_or(|manifest| manifest.shape.is_stale(boot_id)),
        shape: manifest.map(|manifest| manifest.shape),
        used_at: used.or_else(|_| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
        bytes,
        dir: dir.to_owned(),
    })
}

/// Removes one template.
pub fn remove(state: &StateDir, template: &TemplateInfo) {
    discard(state, &template.dir);
    let path = template.dir.with_extension("lock");
    // Whoever freezes this shape holds it, and a second one must not get another of the same name.
    if let Ok(_lock) = Lock::try_exclusive(&path) {
        let _ = fs::remove_file(&path);
    }
}

/// Which templates a prune removes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TemplatePrune {
    /// Those that no start can use any more.
    Stale,
    /// All.
    All,
}

/// Removes templates and returns the removed ones.
///
/// # Errors
/// Fails if the directory exists and cannot be read.
pub fn prune(state: &StateDir, which: TemplatePrune) -> io::Result<Vec<TemplateInfo>> {
    let is_removed = |template: &TemplateInfo| which == TemplatePrune::All || template.stale;
    let gone: Vec<_> = list(state)?.into_iter().filter(is_removed).collect();
    gone.iter().for_each(|template| remove(state, template));
    Ok(gone)
}

/// Those beyond the bounds and those of no use, given all, most recently used first.
fn surplus(all: &[TemplateInfo]) -> impl Iterator<Item = &TemplateInfo> {
    let mut bytes = 0;
    let mut count = 0;
    all.iter().filter(move |template| {
        if template.stale {
            return true;
        }
        bytes += template.bytes;
        count += 1;
        // The newest stays, whatever it takes: it was frozen a moment ago to be used.
        count > 1 && (count > TEMPLATE_COUNT_MAX || bytes > TEMPLATE_BYTES_MAX)
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};
    use std::os::unix::fs::FileExt;

    use super::*;

    fn machine(dir: &Path) -> MachineSpec {
        let file = |name: &str| {
            let path = dir.join(name);
            if !path.exists() {
                fs::write(&path, name).unwrap();
            }
            path
        };
        MachineSpec {
            qemu: file("qemu"),
            kvm: false,
            kernel: file("kernel"),
            initramfs: file("initramfs"),
            memory_mib: 1,
            cpu_count: 1,
            disk: None,
            extra_disks: Vec::new(),
            disk_limits: Default::default(),
            verbose_boot: false,
        }
    }

    fn shape_with_network(machine: &MachineSpec) -> Shape {
        let mut shape = Shape::of(machine).unwrap();
        shape.network = true;
        shape
    }

    fn frozen(state: &StateDir, shape: &Shape) {
        let freezer = Freezer::prepare(state, shape.clone(), None).unwrap().unwrap();
        let mut memory = freezer.memory().try_clone().unwrap();
        memory.seek(io::SeekFrom::Start(8192)).unwrap();
        memory.write_all(b"guest").unwrap();
        File::from(freezer.state_file().unwrap()).write_all(b"devices").unwrap();
        freezer.copy().unwrap();
        freezer.publish(state).unwrap();
    }

    fn fixture() -> (tempfile::TempDir, StateDir, Shape) {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::at(dir.path().join("state"));
        state.prepare().unwrap();
        let shape = shape_with_network(&machine(dir.path()));
        (dir, state, shape)
    }

    #[test]
    fn what_is_frozen_is_found_and_holes_stay_holes() {
        let (_dir, state, shape) = fixture();
        assert!(matches!(Template::open(&state, &shape), Err(Unavailable::Missing)));
        frozen(&state, &shape);
        let mut template = Template::open(&state, &shape).unwrap();
        let mut bytes = Vec::new();
        template.ram.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, MIB);
        assert_eq!(&bytes[8192..8197], b"guest");
        assert!(template.ram.metadata().unwrap().blocks() * 512 < MIB);
        assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
        assert_eq!(list(&state).unwrap().len(), 1);
    }

    /// The machine with a fresh overlay of 4 MiB on a base disk.
    fn machine_with_disk(dir: &Path) -> MachineSpec {
        let (base, overlay) = (dir.join("base.ext4"), dir.join("disk.qcow2"));
        fs::write(&base, "base").unwrap();
        crate::create_overlay(&overlay, crate::Backing::Base(&base), 4 * MIB).unwrap();
        let disk = crate::DiskSpec {
            overlay,
            layers: Vec::new(),
            base,
            size_bytes: 4 * MIB,
            keep: false,
            fresh: true,
        };
        MachineSpec { disk: Some(disk), ..machine(dir) }
    }

    #[test]
    fn an_image_has_a_template_of_its_own_with_its_overlay() {
        let (dir, state, shape) = fixture();
        frozen(&state, &shape);
        let base = Template::open(&state, &shape).unwrap();
        let machine = machine_with_disk(dir.path());
        let mounted = shape.with_image(&machine).unwrap().unwrap();
        assert_eq!(mounted.image.as_ref().unwrap().size, 4 * MIB);
        assert_ne!(mounted.key(), shape.key());

        let freezer = Freezer::prepare(&state, mounted.clone(), Some(&base.ram)).unwrap().unwrap();
        let mut word = [0; 5];
        freezer.memory().read_exact_at(&mut word, 8192).unwrap();
        assert_eq!(&word, b"guest", "it starts with the memory of the other");
        freezer.state_file().unwrap();
        let disk = machine.disk.as_ref().unwrap();
        let frozen = fs::read(&disk.overlay).unwrap();
        freezer.hold_overlay(&machine).unwrap();
        freezer.copy().unwrap();
        freezer.publish(&state).unwrap();

        let template = Template::open(&state, &mounted).unwrap();
        assert!(template.is_mounted() && !base.is_mounted());
        fs::write(&disk.overlay, "another one").unwrap();
        template.lay_disk(&machine).unwrap();
        assert_eq!(fs::read(&disk.overlay).unwrap(), frozen);
        base.lay_disk(&machine).unwrap();
        assert_eq!(fs::read(&disk.overlay).unwrap(), frozen);

        assert!(!list(&state).unwrap().iter().any(|template| template.stale));
        fs::remove_file(&disk.base).unwrap();
        let stale: Vec<_> =
            prune(&state, TemplatePrune::Stale).unwrap().into_iter().map(|template| template.key).collect();
        assert_eq!(stale, [mounted.key()]);
    }

    #[test]
    fn a_disk_that_was_used_has_no_template() {
        let (dir, _state, shape) = fixture();
        let mut machine = machine_with_disk(dir.path());
        machine.disk.as_mut().unwrap().fresh = false;
        assert_eq!(shape.with_image(&machine).unwrap(), None);
    }

    #[test]
    fn an_overlay_that_was_written_to_too_much_is_not_kept() {
        let (dir, state, shape) = fixture();
        let machine = machine_with_disk(dir.path());
        let mounted = shape.with_image(&machine).unwrap().unwrap();
        let freezer = Freezer::prepare(&state, mounted, None).unwrap().unwrap();
        let overlay = OpenOptions::new().write(true).open(&machine.disk.as_ref().unwrap().overlay).unwrap();
        overlay.set_len(OVERLAY_BYTES_MAX + 1).unwrap();
        freezer.hold_overlay(&machine).unwrap();
        assert!(freezer.copy().is_err());
    }

    #[test]
    fn what_is_frozen_anew_takes_the_place_of_the_old() {
        let (_dir, state, shape) = fixture();
        frozen(&state, &shape);
        let old = Template::open(&state, &shape).unwrap();
        frozen(&state, &shape);
        let new = Template::open(&state, &shape).unwrap();
        assert_ne!(new.ram.metadata().unwrap().ino(), old.ram.metadata().unwrap().ino());
        assert_eq!(list(&state).unwrap().len(), 1);
        assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn a_changed_file_is_noticed_and_the_template_goes() {
        let changes: [fn(&Path); 5] = [
            |dir| File::options().write(true).open(dir.join("ram")).unwrap().set_len(4096).unwrap(),
            |dir| File::options().write(true).open(dir.join("ram")).unwrap().write_all(b"evil").unwrap(),
            |dir| {
                fs::remove_file(dir.join("state")).unwrap();
                fs::write(dir.join("state"), b"devices").unwrap();
            },
            |dir| fs::remove_file(dir.join("ram")).unwrap(),
            |dir| fs::write(dir.join("manifest.json"), b"{").unwrap(),
        ];
        for change in changes {
            let (_dir, state, shape) = fixture();
            frozen(&state, &shape);
            // The change time has the granularity of the kernel's tick.
            std::thread::sleep(std::time::Duration::from_millis(20));
            change(&state.templates().join(shape.key()));
            assert!(matches!(Template::open(&state, &shape), Err(Unavailable::Damaged(_))));
            assert!(matches!(Template::open(&state, &shape), Err(Unavailable::Missing)));
            assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
        }
    }

    #[test]
    fn another_qemu_kernel_or_size_is_another_template() {
        let (dir, _state, shape) = fixture();
        let machine = machine(dir.path());
        let mut keys = vec![shape.key(), Shape::of(&machine).unwrap().key()];
        keys.push(shape_with_network(&MachineSpec { memory_mib: 2, ..machine.clone() }).key());
        keys.push(shape_with_network(&MachineSpec { cpu_count: 2, ..machine.clone() }).key());
        for name in ["qemu", "kernel", "initramfs"] {
            fs::remove_file(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name), "upgraded").unwrap();
            keys.push(shape_with_network(&machine).key());
        }
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }

    #[test]
    fn one_freezes_at_a_time_and_a_lost_race_leaves_nothing() {
        let (_dir, state, shape) = fixture();
        let first = Freezer::prepare(&state, shape.clone(), None).unwrap().unwrap();
        assert!(Freezer::prepare(&state, shape, None).unwrap().is_none());
        drop(first);
        assert_eq!(fs::read_dir(state.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn a_freeze_that_takes_long_is_not_swept_and_keeps_its_lock() {
        let (_dir, state, shape) = fixture();
        frozen(&state, &shape);
        let freezer = Freezer::prepare(&state, shape.clone(), None).unwrap().unwrap();
        let hours = SystemTime::now() - std::time::Duration::from_secs(7200);
        File::open(freezer.dir.path()).unwrap().set_modified(hours).unwrap();
        state.prepare().unwrap();
        assert!(freezer.dir.path().exists());
        assert_eq!(prune(&state, TemplatePrune::All).unwrap().len(), 1);
        assert!(Freezer::prepare(&state, shape.clone(), None).unwrap().is_none());
        freezer.memory().set_len(MIB).unwrap();
        File::from(freezer.state_file().unwrap()).write_all(b"devices").unwrap();
        freezer.copy().unwrap();
        freezer.publish(&state).unwrap();
        Template::open(&state, &shape).unwrap();
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let template = |key: &str, bytes, stale| TemplateInfo {
            key: key.into(),
            shape: None,
            created_at: None,
            used_at: SystemTime::UNIX_EPOCH,
            bytes,
            stale,
            dir: PathBuf::new(),
        };
        let gone =
            |all: &[TemplateInfo]| surplus(all).map(|template| template.key.clone()).collect::<Vec<_>>();
        let half = TEMPLATE_BYTES_MAX / 2;
        assert_eq!(gone(&[template("new", half, false), template("old", half + 1, false)]), ["old"]);
        assert_eq!(gone(&[template("huge", 3 * half, false)]), Vec::<String>::new());
        assert_eq!(gone(&[template("a", 1, false), template("stale", 1, true)]), ["stale"]);
        let many: Vec<_> = (0..26).map(|number| template(&number.to_string(), 1, false)).collect();
        assert_eq!(gone(&many), ["24", "25"]);
    }
}
