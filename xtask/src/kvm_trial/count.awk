# Counts KVM's events in a trace. Ports and addresses are those that the guest used, whoever served them.
/: kvm_exit:/ { exits++ }
/: kvm_userspace_exit:/ { to_qemu++; sub(/.* reason /, ""); reasons[$1]++ }
/: kvm_page_fault:/ { faults++ }
# 0xae is the type of KVM's requests.
/: sys_ioctl\(.*cmd: (0x0*)?[0-9a-f]*ae[0-9a-f][0-9a-f],/ {
    ioctls++
    sub(/.*cmd: (0x0*)?/, "")
    sub(/,.*/, "")
    requests[$0]++
}
/: kvm_pio:/ { sub(/.*kvm_pio: /, ""); ports[$1 " " $3]++ }
# The registers of a virtio device are 512 bytes.
/: kvm_mmio:/ { sub(/.* gpa 0x/, ""); addresses[$1]++ }
END {
    printf "exits: %s: %d exits, %d to QEMU, %d ioctls of KVM, %d page faults\n", name, exits, to_qemu, ioctls, faults
    show("reasons to QEMU", reasons)
    show("ioctls", requests)
    show("ports", ports)
    show("addresses", addresses)
}
# The most frequent ones.
function show(title, counts,    line, most, key, shown) {
    for (shown = 0; shown < 16; shown++) {
        most = ""
        for (key in counts) if (most == "" || counts[key] > counts[most]) most = key
        if (most == "") break
        line = line " " most ": " counts[most] ","
        delete counts[most]
    }
    sub(/,$/, "", line)
    printf "exits: %s: %s:%s\n", name, title, line
}
