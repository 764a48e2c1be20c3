//! Programs of a guest see of their connections what programs of the host see: the same program plays the same scenarios on
//! the host and in a guest, and what it prints is compared.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[path = "../../crates/microagent-net/tests/differential/scenario.rs"]
mod scenario;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use microagent_tests::{Home, User, host, wait_for};
use scenario::{Scenario, Step};

/// Scenarios of each direction; the seeds are those of other scenarios than the stack's own test has.
const SCENARIOS: u64 = 50;
const FIRST_SEED: u64 = 1_000_001;

const DEADLINE: Duration = Duration::from_secs(280);

/// The port that a server in the guest listens at.
const GUEST_PORT: u16 = 7001;

/// Plays a scenario per line of its input, `client ADDRESS PORT` or `server PORT`; says what was seen.
const PLAYER: &str = r#"
use strict; use Socket; use IO::Handle; use Errno 'EAGAIN';
$| = 1; $SIG{PIPE} = 'IGNORE'; $SIG{ALRM} = sub { die "hangs\n" };
my ($role, @place) = @ARGV; my $port = pop @place;
my $period = 65521; my $data = ''; my $n = 1;
for (1 .. $period) { $n = ($n * 1103515245 + 12345) & 0x7fffffff; $data .= chr($n >> 16 & 255) }
$data x= 3;
sub ready { my ($s, $in, $out) = @_; my ($r, $w) = ('', '');
  vec($r, fileno $s, 1) = $in; vec($w, fileno $s, 1) = $out; select($r, $w, undef, 1); (vec($r, fileno $s, 1), vec($w, fileno $s, 1)) }
sub take { my ($s, $state, $most) = @_; $most = 65536 if $most > 65536;
  my $count = sysread($s, my $got, $most); defined $count or die "$!\n";
  $got eq substr($data, $state->{in} % $period, $count) or die "other data than was sent from $state->{in} on\n";
  $state->{in} += $count; $count }
sub move { my ($s, $state, $send, $receive, $piece) = @_;
  while ($send > 0 || $receive > 0) {
    my ($in, $out) = ready($s, $receive > 0 ? 1 : 0, $send > 0 ? 1 : 0);
    if ($in && $receive > 0) { my $count = take($s, $state, $receive) or die "ended $receive bytes early\n"; $receive -= $count }
    if ($out && $send > 0) { my $most = $send < $piece ? $send : $piece;
      my $count = syswrite($s, substr($data, $state->{out} % $period, $most));
      if (defined $count) { $state->{out} += $count; $send -= $count } elsif ($! != EAGAIN) { die "cannot send: $!\n" } } }
  'done' }
sub all { my ($s, $state) = @_; my $all = 0;
  while (1) { (ready($s, 1, 0))[0] or next; my $count = eval { take($s, $state, 65536) };
    defined $count or return "$all bytes, then: $@" =~ s/\n//r; $count or return "$all bytes, then the end"; $all += $count } }
sub fails { my ($s) = @_;
  while (1) { my $count = syswrite($s, 'x'); defined $count or $! == EAGAIN or return "fails: $!"; select(undef, undef, undef, 0.01) } }
sub wait_for { my ($done) = @_; until ($done->()) { select(undef, undef, undef, 0.01) } 'done' }
sub play { my ($s, $step, $state) = @_; my ($kind, $a, $b) = $step =~ m|^(\w)(\d*)/?(\d*)$|;
  $kind eq 's' ? move($s, $state, $a, 0, 65536) : $kind eq 't' ? move($s, $state, $a, 0, 1)
  : $kind eq 'r' ? move($s, $state, 0, $a, 65536) : $kind eq 'd' ? move($s, $state, $a, $b, 65536)
  : $kind eq 'h' ? (shutdown($s, 1) ? 'done' : "$!") : $kind eq 'e' ? all($s, $state) : $kind eq 'w' ? fails($s)
  : $kind eq 'q' ? wait_for(sub { recv($s, my $seen, $a, MSG_PEEK); length $seen >= $a })
  : $kind eq 'z' ? do { my $error; wait_for(sub { $error = unpack 'i', getsockopt($s, SOL_SOCKET, SO_ERROR) }); $! = $error; "$!" }
  : $kind eq 'p' ? do { select(undef, undef, undef, $a / 1000); 'done' }
  : $kind eq 'x' ? do { setsockopt($s, SOL_SOCKET, SO_LINGER, pack 'ii', 1, 0); close $s; 'done' }
  : do { close $s; 'done' } }
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die;
if ($role eq 'server') { setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1); bind($listener, sockaddr_in($port, INADDR_ANY)) or die "$!";
  listen($listener, 9); print "listening\n" }
while (my $line = <STDIN>) { my ($seed, @steps) = split ' ', $line; my ($s, $state) = (undef, { in => 0, out => 0 }); my @seen;
  eval { alarm 60;
    if ($role eq 'server') { accept($s, $listener) or die "$!\n" }
    else { socket($s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in($port, inet_aton($place[0]))) or die "cannot connect: $!\n" }
    setsockopt($s, 6, 1, 1); $s->blocking(0);
    for my $step (@steps) { push @seen, "$step " . play($s, $step, $state) } };
  alarm 0; push @seen, $@ =~ s/\n//r if $@; close $s if $s; print "$seed: ", join(', ', @seen), "\n" }
"#;

/// The scenarios, and the lines that each side of them is told.
fn scenarios(first: u64) -> [String; 2] {
    let drawn: Vec<(u64, Scenario)> =
        (first..first + SCENARIOS).map(|seed| (seed, Scenario::draw(seed))).collect();
    let line = |seed: u64, steps: &[Step]| {
        let steps: Vec<String> = steps.iter().map(Step::to_string).collect();
        format!("{seed} {}\n", steps.join(" "))
    };
    [
        drawn.iter().map(|(seed, scenario)| line(*seed, &scenario.client)).collect(),
        drawn.iter().map(|(seed, scenario)| line(*seed, &scenario.server)).collect(),
    ]
}

/// A player on the host; it ends with the test.
struct HostPlayer(Child);

impl HostPlayer {
    fn start(words: &[&str], lines: &str) -> HostPlayer {
        let mut perl = Command::new("perl");
        perl.args(["-e", PLAYER]).args(words).env("LC_ALL", "C");
        let mut child = perl.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // It reads them as it comes to them; they fit the pipe.
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        HostPlayer(child)
    }

    /// A server that listens.
    fn server(port: u16, lines: &str) -> HostPlayer {
        let player = HostPlayer::start(&["server", &port.to_string()], lines);
        // A connection would be taken for a client's.
        wait_for("the server", Duration::from_secs(60), || listens(port).then_some(()).ok_or("nobody"));
        player
    }

    /// What it has seen, a line for each scenario.
    fn seen(mut self) -> Vec<String> {
        let lines = BufReader::new(self.0.stdout.take().unwrap()).lines();
        lines.map(Result::unwrap).filter(|line| line != "listening").collect()
    }
}

impl Drop for HostPlayer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether somebody listens at this port of any address, as the kernel lists it.
fn listens(port: u16) -> bool {
    let wanted = format!("00000000:{port:04X} 00000000:0000 0A");
    std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&wanted)
}

/// What client and server see on the host alone.
fn on_the_host(port: u16, [client, server]: &[String; 2]) -> [Vec<String>; 2] {
    let server = HostPlayer::server(port, server);
    let client = HostPlayer::start(&["client", "127.0.0.1", &port.to_string()], client);
    [client.seen(), server.seen()]
}

#[track_caller]
fn compare(what: &str, scenarios: &[String; 2], expected: &[Vec<String>; 2], seen: &[Vec<String>; 2]) {
    for (side, role) in ["client", "server"].into_iter().enumerate() {
        assert_eq!(seen[side].len(), expected[side].len(), "{what}: {role}: {:?}", seen[side].last());
        for (number, (seen, expected)) in seen[side].iter().zip(&expected[side]).enumerate() {
            let steps = scenarios.each_ref().map(|lines| lines.lines().nth(number).unwrap());
            assert_eq!(seen, expected, "{what}: {role} of client {} and server {}", steps[0], steps[1]);
        }
    }
}

#[test]
fn a_program_sees_in_a_guest_what_it_sees_on_the_host() {
    if !host::has_program("perl") {
        return host::skip("there is no Perl on this host");
    }
    let port = host::own_ports();
    let home = Home::new(User::unprivileged());
    let forward = format!("{port}=localhost:{port}");
    let create =
        ["create", "box", "--network", "user", "--image", &home.image("debian"), "--forward", &forward];
    home.microagent(create).args(["-p", &format!("{}:{GUEST_PORT}", port + 1)]).success();
    home.microagent(["start", "box"]).success();
    let play = |words: &[&str], lines: &str| {
        let exec = home.microagent(["exec", "-i", "box", "--", "env", "LC_ALL=C", "perl", "-e", PLAYER]);
        exec.args(words).stdin(lines).deadline(DEADLINE)
    };
    let told = |text: &str| text.lines().filter(|line| *line != "listening").map(str::to_owned).collect();

    let outward = scenarios(FIRST_SEED);
    let expected = on_the_host(port, &outward);
    let server = HostPlayer::server(port, &outward[1]);
    let client = play(&["client", "10.0.2.2", &port.to_string()], &outward[0]).success();
    compare("from the guest", &outward, &expected, &[told(client.text()), server.seen()]);

    let inward = scenarios(FIRST_SEED + SCENARIOS);
    let expected = on_the_host(port, &inward);
    let server = play(&["server", &GUEST_PORT.to_string()], &inward[1]).start();
    server.prints("listening\n");
    let client = HostPlayer::start(&["client", "127.0.0.1", &(port + 1).to_string()], &inward[0]);
    let client = client.seen();
    compare("to the guest", &inward, &expected, &[client, told(server.finish().code(0).text())]);

    home.microagent(["delete", "box", "--force", "--yes"]).success();
    home.nothing_is_left();
}
