#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# A script disk, of 32 bytes, that needs flushes as much as a disk can (for the sh plugin).
#
# Each connection has a copy of its own from its first read or change on. A change goes to the copy
# and into a list; a flush repeats the list on what all share, and drops the copy. A change with FUA
# flushes everything, or only its own range where strict=true.
#
# strict=BOOL       see above
# consistent=BOOL   what can_multi_conn says; it is a lie where it is true
# model=MODEL       the thread model, serialize_all_requests unless given
# fua=WORD          what can_fua says, native unless given
# size=BYTES        a larger disk, of blanks behind the first words
# block=BYTES       the preferred size of requests

option() { [ -e "$tmpdir/option.$1" ] && cat "$tmpdir/option.$1"; }

shared=$tmpdir/shared
handle=$2 count=$3 offset=$4 flags=$5

need_copy() { [ -e "$handle/copy" ] || cp "$shared" "$handle/copy"; }

# put FILE FROM: the bytes of FROM, which is a numbered change, into FILE.
put() {
    dd if="$2" of="$1" bs=65536 seek="${2##*@}" oflag=seek_bytes conv=notrunc status=none
}

repeat_list() {
    for change in "$handle"/change.*; do
        [ -e "$change" ] || continue
        put "$shared" "$change" || exit 1
        rm "$change"
    done
    rm -f "$handle/copy"
}

# The bytes come on stdin.
change() {
    need_copy
    number=$(( $(cat "$handle/number") + 1 ))
    echo $number > "$handle/number"
    change=$handle/change.$number@$offset
    cat > "$change"
    put "$handle/copy" "$change"
    case ",$flags," in
        *,fua,*) if [ "$(option strict)" = true ]; then put "$shared" "$change"
                 else repeat_list; fi ;;
    esac
}

case $1 in
    config) echo "$3" > "$tmpdir/option.$2" ;;
    get_ready) printf "%-$(option size || echo 32)s" 'Initial contents' > "$shared" ;;
    thread_model) option model || echo serialize_all_requests ;;
    open) handle=$(mktemp -d "$tmpdir/connection.XXXXXX"); echo 100 > "$handle/number"
          echo "$handle" ;;
    close) rm -rf "$handle" ;;
    get_size) option size || echo 32 ;;
    block_size) [ -e "$tmpdir/option.block" ] || exit 2; echo 1 "$(option block)" 32M ;;
    can_write | can_flush | can_trim | can_zero) ;;
    can_fua) option fua || echo native ;;
    can_cache) echo native ;;
    can_multi_conn) [ "$(option consistent)" = true ] || exit 3 ;;
    pread) need_copy; tail -c "+$((offset + 1))" "$handle/copy" | head -c "$count" ;;
    cache) need_copy ;;
    pwrite) change ;;
    zero | trim) head -c "$count" /dev/zero | change ;;
    flush) repeat_list ;;
    *) exit 2 ;;
esac
