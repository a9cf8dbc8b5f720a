# SPDX-License-Identifier: BSD-3-Clause
# Completion of bash for weft, under its own name and as nbdkit. What there is, the program itself
# is asked for; asked as weft, which tells more, and where that is another server, as it is.

# _weft_ask PROGRAM WORD...: what the program prints, if it can be run.
_weft_ask() {
    timeout 5 "$@" 2>/dev/null </dev/null
}

# _weft_config PROGRAM: --dump-config.
_weft_config() {
    local text
    if text=$(_weft_ask "$1" --as=weft --dump-config); then
        printf '%s\n' "$text"
    else
        _weft_ask "$1" --dump-config
    fi
}

# _weft_layers PROGRAM plugin|filter: the short names there are.
_weft_layers() {
    local config folder file
    config=$(_weft_config "$1")
    sed -n "s/^$2s=//p" <<<"$config" | tr ' ' '\n'
    folder=$(sed -n "s/^$2dir=//p" <<<"$config")
    [ -n "$folder" ] || return 0
    for file in "$folder"/nbdkit-*-"$2" "$folder"/nbdkit-*-"$2".so; do
        [ -e "$file" ] || continue
        file=${file##*/nbdkit-}
        printf '%s\n' "${file%-"$2"*}"
    done
}

# _weft_keys PROGRAM WORD...: the parameters of the filters and the plugin on a command line.
_weft_keys() {
    _weft_ask "$1" --help "${@:2}" |
        sed -n '/^Parameters of\|^plugin:\|^filter:/,$s/^ *\[\{0,1\}\([A-Za-z][A-Za-z0-9._-]*=\).*/\1/p'
}

_weft() {
    local program=${COMP_WORDS[0]} current before word plugin='' position
    local -a layers=()
    # "--filter=cow" arrives in three words, as "=" separates them, or in one.
    local -a line=()
    local -i i
    for ((i = 1; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ $word == = && ${#line[@]} -gt 0 ]]; then
            line[-1]+==
        elif [[ ${#line[@]} -gt 0 && ${line[-1]} == *= && ${COMP_WORDS[i - 1]} == = ]]; then
            line[-1]+=$word
        else
            line+=("$word")
        fi
    done
    current=${line[-1]-}
    before=''
    [ ${#line[@]} -lt 2 ] || before=${line[-2]}
    program=${program/#\~/$HOME}

    # What the words before say.
    for ((i = 0; i < ${#line[@]} - 1; i++)); do
        word=${line[i]}
        case $word in
            --filter=*) layers+=("$word") ;;
            --filter) layers+=("--filter=${line[i + 1]}"); i+=1 ;;
            -U | -p | -i | -t | -e | -P | -u | -g | -D | --run | --unix | --port | --ipaddr | \
                --ip-addr | --threads | --exportname | --export | --export-name | --pidfile | \
                --pid-file | --user | --group | --debug | --log | --engine | --shared | --as | \
                --name | --tls | --tls-certificates | --tls-psk | --tls-priority | --timeout | \
                --time-out | --drain-timeout | --max-memory | --mask-handshake | --selinux-label)
                i+=1 ;;
            -*) ;;
            *) [ -n "$plugin" ] || plugin=$word ;;
        esac
    done

    # Only what follows the last "=" of a word is put in its place.
    position=$current
    case $COMP_WORDBREAKS in
        *=*) case $current in *=*) position=${current##*=} ;; esac ;;
    esac
    local value=$current option=''
    case $current in
        --*=*) option=${current%%=*} value=${current#*=} ;;
        *) option=$before ;;
    esac

    local choices=''
    case $option in
        --filter) choices=$(_weft_layers "$program" filter) ;;
        --log) choices='default stderr syslog null' ;;
        --tls) choices='off on require' ;;
        --engine) choices='auto io_uring epoll' ;;
        --as) choices='weft nbdkit' ;;
        -u | --user) choices=$(compgen -u) ;;
        -g | --group) choices=$(compgen -g) ;;
        -U | --unix | -P | --pidfile | --pid-file | --tls-certificates | --tls-psk)
            mapfile -t COMPREPLY < <(compgen -f -- "$value")
            compopt -o filenames 2>/dev/null
            return ;;
    esac
    if [ -n "$choices" ]; then
        mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$value")
        return
    fi

    case $current in
        -*)
            mapfile -t COMPREPLY < <(compgen -W "$(_weft_ask "$program" --long-options)
                $(_weft_ask "$program" --short-options)" -- "$current")
            return ;;
        *=*)  # the value of a parameter
            mapfile -t COMPREPLY < <(compgen -f -- "${current#*=}")
            compopt -o filenames 2>/dev/null
            [ "$position" != "$current" ] ||
                COMPREPLY=("${COMPREPLY[@]/#/${current%%=*}=}")
            return ;;
    esac
    if [ -n "$plugin" ]; then
        mapfile -t COMPREPLY < <(
            compgen -W "$(_weft_keys "$program" "${layers[@]}" "$plugin" | sort -u)" -- "$current"
            compgen -f -- "$current")
        # As a file's name, "size=" would be quoted.
        [[ " ${COMPREPLY[*]}" != *"= "* && ${COMPREPLY[-1]-} != *= ]] || {
            compopt -o nospace 2>/dev/null
            return
        }
    elif [[ $current == */* || $current == .* ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    else
        mapfile -t COMPREPLY < <(
            compgen -W "$(_weft_layers "$program" plugin | sort -u)" -- "$current")
    fi
    compopt -o filenames 2>/dev/null
}

complete -F _weft weft nbdkit
