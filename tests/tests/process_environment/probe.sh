# What a program sees of itself and its surroundings, one line `KEY<tab>VALUE` each. For busybox.
say() { printf '%s\t%s\n' "$1" "$2"; }
lines() { tr '\n' ' ' < "$1" | sed 's/ $//'; }

# From a child: a shell ignores signals for itself.
cat /proc/self/status > /tmp/status
for status in "/proc/$$/status PPid NSpid NSpgid NSsid Threads" "/tmp/status Umask Uid Gid Groups SigBlk SigIgn \
    CapInh CapPrm CapEff CapBnd CapAmb NoNewPrivs Seccomp CoreDumping THP_enabled"; do
    set -- $status
    file=$1
    shift
    for key; do say "status $key" "$(awk -F':[ \t]*' -v k="$key" '$1 == k { gsub(/[ \t]+/, " ", $2); print $2 }' "$file")"; done
done
rm /tmp/status
set -- $(sed 's/.*) //' /proc/$$/stat)
say terminal "$5"
say nice "${17}"
awk 'function word(from, len) { w = substr($0, from, len); sub(/ *$/, "", w); return w }
    /^Max/ { printf "limit %s\t%s %s\n", word(5, 22), word(27, 21), word(48, 20) }' /proc/self/limits

say cgroup "$(lines /proc/self/cgroup)"
env | sed '/^SHLVL=/d; /^_=/d; s/=/\t/; s/^/variable /'
say 'working directory' "$(pwd)"
# Not through a pipe, whose ends the shell would have open, too.
ls -l /proc/$$/fd > /tmp/descriptors 2> /dev/null
sed -n 's/.* \([0-9]*\) -> \([^:]*\).*/descriptor \1\t\2/p' /tmp/descriptors
rm /tmp/descriptors
awk '{ sub(/,relatime/, "", $6); for (i = 7; $i != "-"; i++) {}; printf "mount %s\t%s %s%s\n", $5, $(i + 1), $6, $7 ~ /^shared/ ? " shared" : "" }' \
    /proc/self/mountinfo
find /dev -mindepth 1 -maxdepth 2 ! -path '/dev/pts/*' ! -path '/dev/shm/*' ! -path '/dev/fd/*' -exec \
    stat -c 'node %n	%A %t:%T %U:%G' {} +
find /dev -maxdepth 2 -type l -exec ls -l {} + | sed -n 's/.* \(.*\) -> \(.*\)/node \1\tlink to \2/p'

say 'program of process 1' "$(tr '\0' '\n' < /proc/1/cmdline | head -n 1)"
say hostname "$(hostname)"
for file in hostname resolv.conf; do
    [ -e "/etc/$file" ] && say "file /etc/$file" "$(lines "/etc/$file")"
done
say 'names in /etc/hosts' "$(sed 's/^[^ \t]*//' /etc/hosts | tr -s ' \t' '\n' | sort -u | tr '\n' ' ')"
[ -e /etc/machine-id ] && say 'file /etc/machine-id' 'one of its own'
say 'link /etc/mtab' "to $(readlink /etc/mtab)"
for dir in / /run /tmp; do say "entries of $dir" "$(ls -A "$dir" | tr '\n' ' ')"; done
say 'network devices' "$(cd /sys/class/net && ls -d */ | tr -d '/' | tr '\n' ' ')"
for file in oom_score_adj loginuid attr/current; do say "$file" "$(cat "/proc/self/$file" 2> /dev/null)"; done
for name in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range kernel/domainname; do
    say "setting $name" "$(cat "/proc/sys/$name")"
done
