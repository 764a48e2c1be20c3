
# Names that only the program knows: workspaces, jobs, images, volumes, networks.
_microagent_workspaces() {
    local -a names
    names=(${(f)"$(microagent list -q 2>/dev/null)"})
    compadd -a names
}
# A workspace, or a verb of the group.
_microagent_workspaces_and() {
    _microagent_workspaces
    "$1"
}
_microagent_jobs() {
    local -a names
    names=(${(f)"$(microagent jobs "${words[CURRENT-1]}" -q 2>/dev/null)"})
    compadd -a names
}
_microagent_images() {
    local -a names
    names=(${(f)"$(microagent image list -q 2>/dev/null)"})
    compadd -a names
}
_microagent_volumes() {
    local -a names
    names=(${(f)"$(microagent volume list -q 2>/dev/null)"})
    compadd -a names
}
_microagent_networks() {
    local -a names
    names=(${(f)"$(microagent network list -q 2>/dev/null)"})
    compadd -a names
}
_microagent_snapshots() {
    local -a names
    local name
    for name in ${(f)"$(microagent list -q 2>/dev/null)"}; do
        names+=(${name}:${^${(f)"$(microagent snapshot list $name -q 2>/dev/null)"}})
    done
    compadd -a names
}
# Tags of the workspace that the command line names.
_microagent_tags() {
    local -a names
    local name
    for name in ${(f)"$(microagent list -q 2>/dev/null)"}; do
        (( ${words[(Ie)$name]} )) && names+=(${(f)"$(microagent snapshot list $name -q 2>/dev/null)"})
    done
    compadd -a names
}
