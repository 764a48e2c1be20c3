
# Names and values that only the program knows: workspaces, jobs, images, volumes, modes.
_microagent_list() {
    local shown
    shown=$("${COMP_WORDS[0]}" "$@" -q 2>/dev/null) && printf '%s\n' "$shown"
}

# Workspaces, then tags of the one that is named.
_microagent_snapshots() {
    case $1 in
        create | list | ls | restore | delete | rm)
            if [[ -z $2 ]]; then
                _microagent_list list
            elif [[ $1 != create && $1 != l* ]]; then
                _microagent_list snapshot list "$2"
            fi ;;
    esac
}

_microagent_before_snapshot() { [[ $2 == --from-snapshot || $1.$2 == snapshot.export ]]; }

# The values of --from-snapshot and of snapshot export: WORKSPACE:TAG, which the shell has as three words, or a tag of the workspace to start.
_microagent_from_snapshot() {
    local verb=$1 workspace=$2 at=$COMP_CWORD
    local words=("${COMP_WORDS[@]:0:at+1}")
    [[ ${words[at]} == : ]] && words+=("") && ((at++))
    if _microagent_before_snapshot "$verb" "${words[at-1]}"; then
        if [[ $verb == start ]]; then
            [[ -z $workspace ]] || _microagent_list snapshot list "$workspace"
        else
            _microagent_list list
        fi
    elif ((at > 3)) && [[ ${words[at-1]} == : ]] && _microagent_before_snapshot "$verb" "${words[at-3]}"; then
        _microagent_list snapshot list "${words[at-2]}"
    fi
}

_microagent_names() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} verb= sub= name= word i names=
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case $word in
            --state-dir | --accel | --progress | --tail | --from | --timeout) ((i++)) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=$word; elif [[ -z $sub ]]; then sub=$word; elif [[ -z $name ]]; then name=$word; fi ;;
        esac
    done
    names=$(_microagent_from_snapshot "$verb" "$sub")
    if [[ -n $names ]]; then
        COMPREPLY=($(compgen -W "$names" -- "${cur#:}"))
        # A tag follows.
        if [[ $verb != start ]] && _microagent_before_snapshot "$verb" "$prev"; then
            COMPREPLY=("${COMPREPLY[@]/%/:}")
            compopt -o nospace 2>/dev/null
        fi
        return 0
    fi
    case $prev in
        --network | --net) names="user isolated" ;;
        --profile) names="tiny small medium large" ;;
        --egress) names="public allowlist open" ;;
        --image) names=$(_microagent_list image list) ;;
        -v | --volume) names=$(_microagent_list volume list) ;;
        --join) names=$(_microagent_list network list) ;;
    esac
    if [[ -n $names ]]; then
        COMPREPLY=($(compgen -W "$names" -- "$cur"))
        return 0
    fi
    _microagent "$@"
    if [[ $cur == -* || $prev == --* ]]; then
        return 0
    fi
    case $verb in
        port) names="$([[ -n $sub ]] || echo add remove) $(_microagent_list list)" ;;
        artifact) names="$([[ -n $sub ]] || echo get) $(_microagent_list list)" ;;
        start | restart | halt | stop | kill | pause | resume | unpause | quarantine | supervise | status | inspect \
            | touch | rename | resize | logs | log | events | egress | stats | top | wait | result | clone | commit | diff | export | delete | rm \
            | exec | connect | attach | jobs)
            names=$(_microagent_list list) ;;
        cp) names=$(_microagent_list list) ;;
        fork | branch) [[ -n $sub ]] || names=$(_microagent_list list) ;;
        network)
            case $sub in
                create | list | ls) ;;
                inspect | delete | rm) names=$(_microagent_list network list) ;;
                "") names="create list inspect delete $(_microagent_list list)" ;;
                *) names=$(_microagent_list list) ;;
            esac ;;
        job)
            if [[ -n $name ]]; then
                names=$(_microagent_list jobs "$name")
            elif [[ -n $sub ]]; then
                names=$(_microagent_list list)
            fi ;;
        run | rmi | push | tag | save | history) [[ -n $sub ]] || names=$(_microagent_list image list) ;;
        image)
            case $sub in
                delete | rm | push | tag | save | history) names=$(_microagent_list image list) ;;
            esac ;;
        snapshot) names=$(_microagent_snapshots "$sub" "$name") ;;
        volume)
            case $sub in
                delete | rm | status | inspect | resize) names=$(_microagent_list volume list) ;;
            esac ;;
    esac
    if [[ -n $names ]]; then
        COMPREPLY=($(compgen -W "$names" -- "$cur"))
        # A copy's other end is a file; this end continues with a path.
        if [[ $verb == cp ]]; then
            COMPREPLY=("${COMPREPLY[@]/%/:}" $(compgen -f -- "$cur"))
            compopt -o nospace 2>/dev/null
        fi
    fi
}

complete -F _microagent_names -o bashdefault -o default microagent
