//! A real guest for the tests: QEMU, the carried kernel and agent, a small root disk, and the host's side
//! of the protocol. Everything that waits has a deadline and shows the guest's console when it passes.

// Each test binary uses its own part of this.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs, dead_code)]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime};

use microagent_guest::EmbeddedGuest;
use microagent_proto::{
    Chunk, Configure, Configured, Entropy, Exec, ExecEvent, ExecInput, ExecRole, Exit, FsUsage, GuestError,
    GuestEvent, INPUT_CHUNK_LIMIT, INPUT_LIMIT, MessageReader, Pack, PackEvent, PathInfo, PreambleKind,
    REPLY_LIMIT, REQUEST_LIMIT, Request, Root, STDIN_WINDOW, SessionHandle, ShutDown, StartError, Stat,
    Stream, Unpack, UnpackInput, Unpacked, greet, host_session, read_message, write_message,
};
use microagent_qemu::qmp::Qmp;
use microagent_store::StateDir;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// Longest time that any single step may take, on a machine that does other things besides.
pub const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// Size of the root disk as it is made, in bytes.
pub const BASE_LEN: u64 = 24 << 20;

const COMMAND_LINE: &str = "console=ttyS0 reboot=t panic=-1 quiet scsi_mod.scan=manual";

/// Directory of the files that are made once for all tests, in the build directory. Each test is a process of its own,
/// and several make them at the same time: the first one that is ready gives its directory the name.
fn fixtures() -> &'static Path {
    static FIXTURES: OnceLock<PathBuf> = OnceLock::new();
    FIXTURES.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        // Made anew when this file changes, which says what is in them.
        hasher.write(include_bytes!("mod.rs"));
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = parent.join(format!("guest-{:016x}", hasher.finish()));
        if !dir.exists() {
            let made = tempfile::tempdir_in(parent).unwrap();
            make_root_disk(made.path());
            match fs::rename(made.path(), &dir) {
                Ok(()) => drop(made.keep()),
                Err(error) => assert!(dir.exists(), "{error}"),
            }
        }
        dir
    })
}

/// A root with busybox, users and groups, and a link to nowhere as `/etc/resolv.conf`.
fn make_root_disk(dir: &Path) {
    let root = dir.join("root");
    // `/sys` is left for the agent to make.
    for path in ["bin", "dev", "etc", "home/user", "lib", "proc", "srv", "tmp"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    for applet in [
        "sh",
        "cat",
        "echo",
        "id",
        "sleep",
        "sha256sum",
        "dd",
        "true",
        "false",
        "ls",
        "pwd",
        "env",
        "mount",
        "kill",
        "ps",
        "mkdir",
        "unshare",
        "hostname",
        "ip",
        "df",
        "touch",
        "readlink",
        "head",
        "wc",
        "yes",
        "stat",
        "grep",
        "test",
        "ln",
        "chmod",
        "chown",
        "mkfifo",
        "mknod",
        "ulimit",
        "rm",
        "date",
        "sync",
        "seq",
        "tr",
        "umount",
        "pivot_root",
        "awk",
        "cp",
        "sort",
        "ping",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\nmedia:x:44:user\n").unwrap();
    symlink("../run/systemd/resolve/stub-resolv.conf", root.join("etc/resolv.conf")).unwrap();
    fs::write(root.join("srv/plain"), "not executable\n").unwrap();
    fs::write(root.join("srv/no-format"), "echo a script without its first line\n").unwrap();
    fs::write(root.join("srv/no-interpreter"), "#!/nonexistent\n").unwrap();
    for name in ["no-format", "no-interpreter"] {
        fs::set_permissions(root.join("srv").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let disk = dir.join("root.ext4");
    File::create(&disk).unwrap().set_len(BASE_LEN).unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4", "-O", "^resize_inode", "-b", "4096", "-E", "root_owner=0:0", "-d"])
        .args([&root, &disk])
        .status()
        .expect("mke2fs of e2fsprogs is installed");
    assert!(made.success());
}

/// What a guest has to do with a frozen one, which lies in the given directory.
#[derive(Default)]
pub enum Template {
    #[default]
    None,
    Freeze(PathBuf),
    Restore(PathBuf),
}

/// How a guest is made.
pub struct Machine {
    /// Length of the root disk in bytes.
    pub disk_len: u64,
    /// A disk to start from in place of the fresh one.
    pub disk: Option<PathBuf>,
    /// SCSI target of the disk. A frozen machine has a placeholder at target 0 and nothing at others.
    pub scsi_target: u8,
    /// Whether it is frozen before it meets a disk, or restored from one that was.
    pub template: Template,
    /// Whether there is a network device (with nobody at its other end).
    pub network: bool,
}

impl Default for Machine {
    fn default() -> Machine {
        Machine { disk_len: BASE_LEN, disk: None, scsi_target: 0, template: Template::None, network: false }
    }
}

/// A running guest.
pub struct Vm {
    dir: TempDir,
    qemu: Child,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Vm {
    /// Starts QEMU.
    pub fn start(machine: &Machine) -> Vm {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        let fresh = fixtures().join("root.ext4");
        fs::copy(machine.disk.as_ref().unwrap_or(&fresh), &disk).unwrap();
        File::options().write(true).open(&disk).unwrap().set_len(machine.disk_len).unwrap();
        let files = EmbeddedGuest::embedded().unpack(&StateDir::at(fixtures().join("state"))).unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut qemu = Command::new("qemu-system-x86_64");
        let mut board = "microvm,accel=tcg,acpi=off,rtc=on,isa-serial=on".to_owned();
        if let Template::Freeze(template) | Template::Restore(template) = &machine.template {
            let share = if matches!(machine.template, Template::Freeze(_)) { "on" } else { "off" };
            let ram = template.join("ram").display().to_string();
            board += ",memory-backend=mem";
            qemu.args([
                "-object",
                &format!("memory-backend-file,id=mem,size=256M,mem-path={ram},share={share}"),
            ]);
        }
        if matches!(machine.template, Template::Restore(_)) {
            qemu.args(["-incoming", "defer"]);
        }
        qemu.args(["-M", &board, "-cpu", "max,erms=off", "-m", "256", "-smp", "2"])
            .args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-append"])
            .arg(COMMAND_LINE)
            .arg("-kernel")
            .arg(files.kernel)
            .arg("-initrd")
            .arg(files.initramfs)
            .args(["-serial", &format!("file:{}", at("console"))])
            .args(["-device", "virtio-serial-device,max_ports=2"])
            .args(["-chardev", &format!("socket,id=c0,path={},server=on,wait=off", at("control"))])
            .args(["-device", &format!("virtserialport,chardev=c0,name={}", microagent_proto::PORT_NAME)])
            .args(["-device", "virtio-rng-device", "-device", "virtio-scsi-device,id=scsi0"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("monitor"))]);
        let target = machine.scsi_target;
        let disk = match machine.template {
            Template::Freeze(_) => "driver=null-co,size=65536".to_owned(),
            _ => format!("driver=raw,file.driver=file,discard=unmap,file.filename={}", at("disk")),
        };
        if !(matches!(machine.template, Template::Freeze(_)) && machine.scsi_target != 0) {
            qemu.args(["-blockdev", &format!("{disk},node-name=root")])
                .args(["-device", &format!("scsi-hd,drive=root,bus=scsi0.0,scsi-id={target},lun=0")]);
        }
        if machine.network {
            qemu.args(["-netdev", "hubport,hubid=0,id=n0", "-device", "virtio-net-device,netdev=n0"]);
        }
        let qemu = qemu.stdin(Stdio::null()).spawn().expect("qemu-system-x86_64 is installed");
        Vm { dir, qemu }
    }

    /// Where the root disk lies.
    pub fn disk(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// What the guest printed so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// Waits for a step, or fails with the console.
    pub async fn within<T>(&self, what: &str, step: impl Future<Output = T>) -> T {
        match timeout(STEP_DEADLINE, step).await {
            Ok(done) => done,
            Err(_) => panic!("{what} took more than {STEP_DEADLINE:?}; console:\n{}", self.console()),
        }
    }

    /// Opens the control channel.
    pub async fn connect(&self) -> UnixStream {
        self.connect_to("control").await
    }

    async fn monitor(&self) -> Qmp {
        let socket = self.connect_to("monitor").await;
        let mut monitor = self.within("the monitor", Qmp::negotiate(socket)).await.unwrap();
        let ignore_shared = json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] });
        monitor.execute("migrate-set-capabilities", ignore_shared).await.unwrap();
        monitor
    }

    /// Freezes a guest started as [`Template::Freeze`] and ends it.
    pub async fn freeze(mut self, template: &Path) {
        let mut monitor = self.monitor().await;
        monitor.execute("stop", json!({})).await.unwrap();
        let to = format!("exec:cat >{}", template.join("state").display());
        monitor.execute("migrate", json!({ "uri": to })).await.unwrap();
        self.until(&mut monitor, "query-migrate", |answer| answer["status"] == "completed").await;
        self.kill();
    }

    /// Resumes a guest started as [`Template::Restore`].
    pub async fn restore(&self, template: &Path) {
        let mut monitor = self.monitor().await;
        let from = format!("exec:cat {}", template.join("state").display());
        monitor.execute("migrate-incoming", json!({ "uri": from })).await.unwrap();
        self.until(&mut monitor, "query-status", |answer| answer["status"] != "inmigrate").await;
        monitor.execute("cont", json!({})).await.unwrap();
    }

    async fn until(&self, monitor: &mut Qmp, question: &str, done: impl Fn(&Value) -> bool) {
        self.within(question, async {
            while !done(&monitor.execute(question, json!({})).await.unwrap()) {
                sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    async fn connect_to(&self, name: &str) -> UnixStream {
        let path = self.dir.path().join(name);
        self.within("connecting", async {
            loop {
                match UnixStream::connect(&path).await {
                    Ok(stream) => return stream,
                    Err(_) => sleep(Duration::from_millis(2)).await,
                }
            }
        })
        .await
    }

    /// Greets the guest on an open control channel.
    pub async fn greet(&self, channel: &mut UnixStream, kind: PreambleKind) {
        static NONCE: AtomicU8 = AtomicU8::new(1);
        let nonce = [NONCE.fetch_add(1, Ordering::Relaxed); 16];
        if let Err(error) = self.within("the preamble", greet(channel, kind, nonce)).await {
            panic!("no answer to the preamble: {error}; console:\n{}", self.console());
        }
    }

    /// Opens the control channel and a session on it.
    pub async fn session(&self) -> Session<'_> {
        let channel = self.connect().await;
        self.session_on(channel).await
    }

    /// Opens a session on the control channel.
    pub async fn session_on(&self, mut channel: UnixStream) -> Session<'_> {
        self.greet(&mut channel, PreambleKind::Session).await;
        let (handle, driver) = host_session(channel);
        tokio::spawn(driver);
        Session { vm: self, handle }
    }

    /// Cuts the power.
    pub fn kill(&mut self) {
        self.qemu.kill().unwrap();
        self.qemu.wait().unwrap();
    }

    /// Waits for QEMU's own end.
    pub async fn wait(&mut self) {
        let start = std::time::Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < STEP_DEADLINE, "the guest does not end; console:\n{}", self.console());
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The host's side of a session.
pub struct Session<'a> {
    pub vm: &'a Vm,
    handle: SessionHandle,
}

/// All that a command gave.
#[derive(Debug, Default)]
pub struct Output {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub out_of_memory: Option<String>,
    pub exit: Option<Exit>,
    pub not_started: Option<StartError>,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// A disk that was left complete.
pub fn check_disk(disk: &Path) {
    let check = Command::new("e2fsck").arg("-fn").arg(disk).output().expect("e2fsck is installed");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    let report = String::from_utf8(check.stdout).unwrap();
    assert!(!report.contains("recover"), "the journal had to be replayed: {report}");
}

/// Settings that all tests share.
pub fn settings() -> Configure {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Configure {
        clock_unix_ns: u64::try_from(now.as_nanos()).unwrap(),
        entropy: Entropy([0x5a; 32]),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        hostname: "tested".to_owned(),
        network: None,
        root: Root { scsi_target: 0, grow: true },
        mounts: Vec::new(),
        settings: microagent_proto::Settings::default(),
        secrets: Vec::new(),
        secrets_owner: String::new(),
    }
}

/// A command with nothing special about it.
pub fn exec(command: microagent_proto::Command) -> Exec {
    Exec {
        command,
        env: Vec::new(),
        working_dir: Chunk::new(),
        user: String::new(),
        stdin: false,
        terminal: None,
        make_working_dir: true,
        role: ExecRole::Command,
    }
}

/// A shell command line.
pub fn shell(line: &str) -> Exec {
    exec(microagent_proto::Command::Shell(line.as_bytes().to_vec().into()))
}

/// A program with its arguments.
pub fn argv(words: &[&str]) -> Exec {
    exec(microagent_proto::Command::Argv(words.iter().map(|word| word.as_bytes().to_vec().into()).collect()))
}

impl Session<'_> {
    /// Opens a stream with its request on it.
    pub async fn open(&self, request: &Request) -> Stream {
        self.vm
            .within("opening a stream", async {
                let mut stream = self.handle.open().await.unwrap();
                write_message(&mut stream, request, REQUEST_LIMIT).await.unwrap();
                stream
            })
            .await
    }

    async fn next<T: serde::de::DeserializeOwned + std::fmt::Debug>(&self, stream: &mut Stream) -> T {
        let message = self.vm.within("an answer", read_message(stream, REPLY_LIMIT)).await;
        match message {
            Ok(Some(message)) => message,
            end => panic!("no answer: {end:?}; console:\n{}", self.vm.console()),
        }
    }

    /// Configures the guest.
    pub async fn configure(&self, wanted: Configure) -> Result<Configured, GuestError> {
        let mut stream = self.open(&Request::Configure(Box::new(wanted))).await;
        self.next(&mut stream).await
    }

    /// The next event of a command.
    pub async fn event(&self, stream: &mut Stream) -> ExecEvent {
        self.next(stream).await
    }

    /// Asks for what happens to the machine.
    pub async fn watch(&self) -> Stream {
        self.open(&Request::Watch).await
    }

    /// The next thing that happens to the machine.
    pub async fn guest_event(&self, watch: &mut Stream) -> GuestEvent {
        self.next(watch).await
    }

    /// Runs a command to its end.
    pub async fn run(&self, exec: Exec) -> Output {
        let mut stream = self.open(&Request::Exec(exec)).await;
        let mut output = Output::default();
        loop {
            match self.event(&mut stream).await {
                ExecEvent::Started => {}
                ExecEvent::OutOfMemory { program } => output.out_of_memory = Some(program),
                ExecEvent::DiskFull { .. } => {}
                ExecEvent::StdinTaken(_) => panic!("nothing was sent"),
                ExecEvent::Stdout(bytes) => output.stdout.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => output.stderr.extend_from_slice(&bytes),
                ExecEvent::Exited(exit) => output.exit = Some(exit),
                ExecEvent::NotStarted(error) => output.not_started = Some(error),
            }
            if output.exit.is_some() || output.not_started.is_some() {
                return output;
            }
        }
    }

    /// Runs a shell command that must succeed, and gives its standard output.
    pub async fn sh(&self, line: &str) -> String {
        let output = self.run(shell(line)).await;
        assert_eq!(output.exit, Some(Exit::Code(0)), "`{line}` gave {output:?}");
        output.text().trim_end().to_owned()
    }

    /// Starts a command that is spoken to while it runs.
    pub async fn start_exec(&self, exec: Exec) -> RunningCommand<'_> {
        let (from_guest, to_guest) = tokio::io::split(self.open(&Request::Exec(exec)).await);
        RunningCommand {
            vm: self.vm,
            events: MessageReader::new(from_guest, REPLY_LIMIT),
            to_guest,
            room: STDIN_WINDOW,
            output: Output::default(),
        }
    }

    /// Packs a path.
    pub async fn pack(&self, path: &[u8]) -> Result<Vec<u8>, GuestError> {
        let mut stream = self.open(&Request::Pack(Pack { path: path.to_vec().into(), follow: true })).await;
        let mut tar = Vec::new();
        loop {
            match self.next(&mut stream).await {
                PackEvent::Data(bytes) => tar.extend_from_slice(&bytes),
                PackEvent::End => return Ok(tar),
                PackEvent::Failed(error) => return Err(error),
            }
        }
    }

    /// Unpacks a tar stream.
    pub async fn unpack(&self, dir: &[u8], tar: &[u8]) -> Result<Unpacked, GuestError> {
        let wanted = Unpack { dir: dir.to_vec().into(), exact: false };
        let (mut from_guest, mut to_guest) = tokio::io::split(self.open(&Request::Unpack(wanted)).await);
        let sending = async {
            let data = tar.chunks(INPUT_CHUNK_LIMIT).map(|part| UnpackInput::Data(part.to_vec().into()));
            for input in data.chain([UnpackInput::End]) {
                write_message(&mut to_guest, &input, INPUT_LIMIT).await.unwrap();
            }
            std::future::pending::<()>().await;
        };
        let answer = async {
            tokio::select! {
                () = sending => unreachable!("it does not end"),
                answer = read_message(&mut from_guest, REPLY_LIMIT) => answer.unwrap().unwrap(),
            }
        };
        self.vm.within("unpacking", answer).await
    }

    /// Begins to unpack a tar stream and goes away.
    pub async fn unpack_and_leave(&self, dir: &[u8], tar: &[u8]) {
        let mut stream = self.open(&Request::Unpack(Unpack { dir: dir.to_vec().into(), exact: false })).await;
        for part in tar.chunks(INPUT_CHUNK_LIMIT) {
            write_message(&mut stream, &UnpackInput::Data(part.to_vec().into()), INPUT_LIMIT).await.unwrap();
        }
    }

    /// Asks what stands at a path.
    pub async fn stat(&self, path: &[u8], follow: bool) -> Result<PathInfo, GuestError> {
        let mut stream = self.open(&Request::Stat(Stat { path: path.to_vec().into(), follow })).await;
        self.next(&mut stream).await
    }

    /// Asks how full the root file system is.
    pub async fn fs_usage(&self) -> Result<FsUsage, GuestError> {
        let mut stream = self.open(&Request::FsUsage).await;
        self.next(&mut stream).await
    }

    /// Ends the guest's work.
    pub async fn shut_down(&self, signal: u8, grace_ms: u32) -> Result<(), GuestError> {
        let mut stream = self.open(&Request::ShutDown(ShutDown { signal, grace_ms })).await;
        self.next(&mut stream).await
    }
}

/// A command that is spoken to while it runs.
pub struct RunningCommand<'a> {
    vm: &'a Vm,
    events: MessageReader<tokio::io::ReadHalf<Stream>>,
    to_guest: tokio::io::WriteHalf<Stream>,
    /// Bytes of input that may be sent.
    pub room: usize,
    pub output: Output,
}

impl RunningCommand<'_> {
    /// Sends whatever it is.
    pub async fn send(&mut self, input: ExecInput) {
        assert!(self.try_send(input).await, "the guest closed the stream");
    }

    /// Sends whatever it is; `false` when the guest has closed the stream.
    pub async fn try_send(&mut self, input: ExecInput) -> bool {
        let sent = write_message(&mut self.to_guest, &input, INPUT_LIMIT);
        self.vm.within("sending", sent).await.is_ok()
    }

    /// Sends input, and takes what comes meanwhile.
    pub async fn stdin(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.room == 0 {
                assert!(self.step().await, "the command ended: {:?}", self.output.exit);
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.room).min(INPUT_CHUNK_LIMIT));
            self.room -= now.len();
            bytes = later;
            self.send(ExecInput::Stdin(now.to_vec().into())).await;
        }
    }

    /// Takes one event; `false` after the last.
    pub async fn step(&mut self) -> bool {
        let seen = &self.output.stdout[self.output.stdout.len().saturating_sub(500)..];
        let what = format!("an event after {:?}", String::from_utf8_lossy(seen));
        let event = self.vm.within(&what, self.events.next()).await;
        match event {
            Ok(Some(ExecEvent::Started)) => {}
            Ok(Some(ExecEvent::OutOfMemory { program })) => self.output.out_of_memory = Some(program),
            Ok(Some(ExecEvent::DiskFull { .. })) => {}
            Ok(Some(ExecEvent::Stdout(bytes))) => self.output.stdout.extend_from_slice(&bytes),
            Ok(Some(ExecEvent::Stderr(bytes))) => self.output.stderr.extend_from_slice(&bytes),
            Ok(Some(ExecEvent::StdinTaken(count))) => self.room += count as usize,
            Ok(Some(ExecEvent::Exited(exit))) => self.output.exit = Some(exit),
            Ok(Some(ExecEvent::NotStarted(error))) => self.output.not_started = Some(error),
            Ok(None) | Err(_) => return false,
        }
        assert!(self.room <= STDIN_WINDOW, "more was taken than sent");
        self.output.exit.is_none() && self.output.not_started.is_none()
    }

    /// Waits until the output has this text, and forgets everything up to it.
    pub async fn expect(&mut self, text: &str) {
        loop {
            let at = self.output.stdout.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = at {
                self.output.stdout.drain(..at + text.len());
                return;
            }
            let before = self.output.exit;
            let seen = String::from_utf8_lossy(&self.output.stdout).into_owned();
            assert!(self.step().await || before.is_none(), "`{text}` never came, but {seen:?}, {before:?}");
        }
    }

    /// Takes everything up to the end.
    pub async fn finish(mut self) -> Output {
        while self.step().await {}
        self.output
    }
}
