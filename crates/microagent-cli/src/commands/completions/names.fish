
# Names and values that only the program knows: workspaces, jobs, images, volumes, modes.
function __microagent_verb
    set -l words (commandline -opc)
    contains -- $words[2] $argv
end
function __microagent_group
    set -l words (commandline -opc)
    test (count $words) -ge 3; and test $words[2] = $argv[1]; and contains -- $words[3] $argv[2..]
end
function __microagent_words
    commandline -opc | string match -v -- '-*'
end
function __microagent_job
    set -l words (__microagent_words)
    test (count $words) -eq $argv[1]; and test $words[2] = job
end
complete -c microagent -f -n "__microagent_job 3" -a "(microagent list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_job 4" -a "(microagent jobs (__microagent_words)[4] -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_verb start restart halt stop kill pause resume unpause quarantine supervise status inspect port touch rename resize logs log events egress stats top wait result clone artifact commit diff export delete rm exec connect attach jobs" -a "(microagent list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_verb fork branch; and test (count (__microagent_words)) -eq 2" -a "(microagent list -q 2>/dev/null)"
complete -c microagent -n "__microagent_verb create" -l from-snapshot -x -a "(for name in (microagent list -q 2>/dev/null); microagent snapshot list \$name -q 2>/dev/null | string replace -r '^' \$name:; end)"
complete -c microagent -n "__microagent_verb start; and test (count (__microagent_words)) -ge 3" -l from-snapshot -x -a "(microagent snapshot list (__microagent_words)[3] -q 2>/dev/null)"
complete -c microagent -n "__microagent_verb cp" -a "(microagent list -q 2>/dev/null | string replace -r '\$' ':')"
complete -c microagent -f -n "__microagent_verb run rmi push tag save history" -a "(microagent image list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_group image delete rm push tag save history" -a "(microagent image list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_group snapshot create list ls restore delete rm; and test (count (__microagent_words)) -eq 3" -a "(microagent list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_group snapshot restore delete rm; and test (count (__microagent_words)) -ge 4" -a "(microagent snapshot list (__microagent_words)[4] -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_group snapshot export; and test (count (__microagent_words)) -eq 3" -a "(for name in (microagent list -q 2>/dev/null); microagent snapshot list \$name -q 2>/dev/null | string replace -r '^' \$name:; end)"
complete -c microagent -f -n "__microagent_group volume delete rm status inspect resize" -a "(microagent volume list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_verb network; and test (count (__microagent_words)) -eq 2" -a "(microagent list -q 2>/dev/null)"
complete -c microagent -f -n "__microagent_group network inspect delete rm" -a "(microagent network list -q 2>/dev/null)"
complete -c microagent -n "__microagent_verb run create" -l join -x -a "(microagent network list -q 2>/dev/null)"
complete -c microagent -n "__microagent_verb run create" -l network -x -a "user isolated"
complete -c microagent -n "__microagent_verb run create" -l profile -x -a "tiny small medium large"
complete -c microagent -n "__microagent_verb run create" -l egress -x -a "public allowlist open"
complete -c microagent -n "__microagent_verb run create" -s v -l volume -x -a "(microagent volume list -q 2>/dev/null)"
