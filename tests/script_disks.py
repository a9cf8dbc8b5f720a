# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the sh and eval plugins share: scripts, and sessions with their disks."""
import os
import pathlib
import shutil
import subprocess

import nbd

from harness import IS_WEFT, NBDKIT, WEFT, run

# The programs that must behave alike.
PROGRAMS = [WEFT] + ([NBDKIT] if IS_WEFT and shutil.which(NBDKIT) else [])

# A disk in a file, with every method. Writes its calls to $LOG, a line each.
FILE_SCRIPT = r"""#!/bin/bash
line=$1; shift
log=$line; for word in "$@"; do log+="|$word"; done; echo "$log" >>"$LOG"
set -- "$line" "$@"
case "$1" in
  load|config_complete|get_ready|after_fork|preconnect|unload|close|flush) exit 0 ;;
  magic_config_key) echo image ;;
  config) [ "$2" = image ] || { echo "EINVAL the parameter $2 is unknown" >&2; exit 1; }
          ln -s "$(realpath "$3")" "$tmpdir/image" ;;
  thread_model) echo parallel ;;
  list_exports) printf 'INTERLEAVED\nfirst\nThe first\nsecond\nThe second\n' ;;
  default_export) echo first ;;
  open) echo "handle of $3" ;;
  export_description) echo "An image called ${2#handle of }" ;;
  get_size) stat -Lc %s "$tmpdir/image" ;;
  block_size) echo 512 4K 1M ;;
  is_rotational|can_write|can_flush|can_trim|can_zero|can_extents|can_fast_zero|can_multi_conn)
          exit 0 ;;
  can_fua|can_cache) echo native ;;
  pread) dd if="$tmpdir/image" iflag=count_bytes,skip_bytes count="$3" skip="$4" bs=1M \
            2>/dev/null ;;
  pwrite) dd of="$tmpdir/image" oflag=seek_bytes seek="$4" conv=notrunc bs=1M iflag=fullblock \
             2>/dev/null ;;
  zero|trim) fallocate -p -n -o "$4" -l "$3" "$tmpdir/image" ;;
  extents) echo "0 512K hole,zero"; echo "512K 512K" ;;
  cache) exit 0 ;;
  *) exit 2 ;;
esac
"""


def script(folder, text, name="script.sh", mode=0o755):
    path = pathlib.Path(folder) / name
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
    return path


def outcome(call, *args):
    """What a request gives: its errno, or what it returns."""
    try:
        result = call(*args)
    except nbd.Error as error:
        return error.errno
    return bytes(result) if isinstance(result, (bytes, bytearray)) else result


def extents(client, length=None, offset=0, flags=0):
    found = []

    def heard(context, start, entries, error):
        assert context == nbd.CONTEXT_BASE_ALLOCATION and error.value == 0
        found.append((start, list(entries)))

    try:
        client.block_status(length or client.get_size(), offset, heard, flags)
    except nbd.Error as error:
        return error.errno
    return found


def capabilities(client):
    names = ("is_read_only", "can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero",
             "can_cache", "can_multi_conn", "is_rotational")
    return {name: bool(getattr(client, name)()) for name in names}


def refusal(*args, stdin=subprocess.DEVNULL, **options):
    """The one line with which weft refuses to start."""
    done = subprocess.run([WEFT, "-f", "-U", "-", *map(str, args)], stdin=stdin, text=True,
                          stderr=subprocess.PIPE, stdout=subprocess.PIPE, timeout=30, check=False,
                          **options)
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("weft: "), done.stderr
    return done.stderr


def run_with(program, args, command, check=True, **options):
    """Runs `command` (for --run) on a private socket."""
    return run(program, "-U", "-", *args, "--run", command, check=check, **options)


def gone(pid):
    """The process has ended, whether or not somebody has reaped it."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def files_of(folder):
    return sorted(os.listdir(folder))
