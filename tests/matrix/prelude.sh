# SPDX-License-Identifier: BSD-3-Clause
# The words of the matrix's lines. `nbdkit` is the server under test; the current folder is the
# line's own, with the files that matrix.py puts there; $port is a free port.

umask 022
# For --run: all that a client can see.
probe='sh "$matrix/probe.sh" "$uri"'

serve() { nbdkit -U - "$@" --run "$probe"; }
# The flags and the size alone, which is quicker.
look() { nbdkit -U - "$@" --run 'sh "$matrix/probe.sh" "$uri" briefly'; }
try() { nbdkit -U - "$@" --run true; }
# Served on standard input and output.
single() { "$python" "$matrix/single.py" nbdkit "$@"; }
# Started as systemd would start it.
activate() { "$python" "$matrix/activate.py" "$@"; }
# Lines are without the version, which differs.
versions() { sed 's/[0-9.]*$/N/'; }
plugindir() { nbdkit --dump-config | sed -n 's/^plugindir=//p'; }
filterdir() { nbdkit --dump-config | sed -n 's/^filterdir=//p'; }

until_true() { for _ in $(seq 3000); do "$@" && return; sleep 0.01; done; echo "in vain: $*"; }
gone() { ! kill -0 "$1" 2>/dev/null; }
end_server() {
  kill "$(cat pid)"
  until_true gone "$(cat pid)"
}
# Starts, waits until clients can connect, shows what is served, ends.
background() {
  nbdkit -P "$PWD/pid" -U "$PWD/sock" "$@" &
  until_true test -s pid
  sh "$matrix/probe.sh" "nbd+unix:///?socket=$PWD/sock"
  end_server
  wait
}
