# SPDX-License-Identifier: BSD-3-Clause
# Usage: zsh -f completion.zsh FOLDER LINE: prints what zsh, with the completions of FOLDER,
# offers for LINE, in a terminal of its own. A match a line.
zmodload zsh/zpty || exit 77
zpty z zsh -f -i
setup=$(mktemp)
trap 'rm -f $setup' EXIT
cat >$setup <<'END'
PS1= RPS1= PROMPT_EOL_MARK=
stty -echo
fpath=($FOLDER $fpath)
autoload -Uz compinit && compinit -u -D
zstyle ':completion:*' completer _complete
compadd() {
    local -a hits
    if [[ ${@[1,(i)(-|--)]} != *-(O|A|D)\ * ]]; then
        builtin compadd -A hits "$@"
        (( ${#hits} )) && print -rl -- HIT:$^hits:
    fi
    builtin compadd "$@"
}
capture() { zle complete-word; print -r -- @END@ }
zle -N capture
bindkey '^I' capture
END
zpty -w z "FOLDER=${(q)1}; source $setup; print @READY@"
while zpty -r z line; do [[ $line == *@READY@$'\r'* ]] && break; done
zpty -w -n z "$2"$'\t'
while zpty -r z line; do
    [[ $line == *@END@* ]] && break
    [[ $line == *HIT:* ]] && print -r -- ${${line#*HIT:}%:*}
done
zpty -d z
