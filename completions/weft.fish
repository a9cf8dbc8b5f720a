# SPDX-License-Identifier: BSD-3-Clause
# Completion of fish for weft, under its own name and as nbdkit. What there is, the program itself
# is asked for; asked as weft, which tells more, and where that is another server, as it is.

function __weft_ask --description 'What the program of the command line prints'
    set -l program (commandline -opc)[1]
    timeout 5 $program $argv 2>/dev/null </dev/null
end

function __weft_config
    set -l text (__weft_ask --as=weft --dump-config)
    or set text (__weft_ask --dump-config)
    printf '%s\n' $text
end

function __weft_layers --argument-names kind --description 'The short names of plugins or filters'
    set -l config (__weft_config)
    string replace -fr "^"$kind"s=" '' -- $config | string split ' '
    set -l folder (string replace -fr "^"$kind"dir=" '' -- $config)
    test -n "$folder"; or return 0
    for file in $folder/nbdkit-*-$kind $folder/nbdkit-*-$kind.so
        test -e $file; and string replace -r '.*/nbdkit-(.*)-'$kind'(\.so)?$' '$1' -- $file
    end
end

# The words before the one being written: the filters, then the plugin, if they are there.
function __weft_layers_given
    set -l words (commandline -opc)[2..-1]
    set -l with_argument -U -p -i -t -e -P -u -g -D --run --unix --port --ipaddr --ip-addr \
        --threads --exportname --export --export-name --pidfile --pid-file --user --group --debug \
        --log --engine --shared --as --name --tls --tls-certificates --tls-psk --tls-priority \
        --timeout --time-out --drain-timeout --max-memory --mask-handshake --selinux-label
    set -l skip 0
    set -l filter 0
    for word in $words
        if test $skip = 1
            set skip 0
        else if test $filter = 1
            set filter 0
            printf '%s\n' --filter=$word
        else if string match -q -- '--filter=*' $word
            printf '%s\n' $word
        else if test $word = --filter
            set filter 1
        else if contains -- $word $with_argument
            set skip 1
        else if not string match -q -- '-*' $word
            printf '%s\n' $word
            return 0
        end
    end
    return 1
end

function __weft_has_plugin
    __weft_layers_given >/dev/null
end

function __weft_keys --description 'The parameters of the filters and the plugin'
    __weft_ask --help (__weft_layers_given) | sed -n \
        '/^Parameters of\|^plugin:\|^filter:/,$s/^ *\[\{0,1\}\([A-Za-z][A-Za-z0-9._-]*=\).*/\1/p'
end

function __weft_options
    __weft_ask --long-options
    __weft_ask --short-options
end

# What is written begins with a dash.
function __weft_at_option
    string match -q -- '-*' (commandline -ct)
end

for program in weft nbdkit
    complete -c $program -n 'not __weft_has_plugin' -f
    complete -c $program -n __weft_at_option -f -a '(__weft_options)'
    complete -c $program -n 'not __weft_has_plugin; and not __weft_at_option' -f \
        -a '(__weft_layers plugin)'
    complete -c $program -n '__weft_has_plugin; and not __weft_at_option' -a '(__weft_keys)'
    complete -c $program -n 'string match -q -- "*/*" (commandline -ct)' -F
    complete -c $program -l filter -x -a '(__weft_layers filter)'
    complete -c $program -l log -r -a 'default stderr syslog null'
    complete -c $program -l tls -x -a 'off on require'
    complete -c $program -s u -l user -x -a '(__fish_complete_users)'
    complete -c $program -s g -l group -x -a '(__fish_complete_groups)'
    complete -c $program -s U -l unix -r -F
    complete -c $program -s P -l pidfile -r -F
    complete -c $program -l run -x
    complete -c $program -s p -l port -x
end
# Options that nbdkit has not.
complete -c weft -l engine -x -a 'auto io_uring epoll'
complete -c weft -l as -x -a 'weft nbdkit'
