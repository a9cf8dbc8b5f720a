#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# A script disk of 64 KiB that notes its calls, and that a test can hold up and make fail (for the
# sh plugin). All connections see one file; a handle is the name of the export and a number.
#
# folder=DIR        required; the test's:
#   DIR/calls         lines "METHOD HANDLE begin" and "... end" (or "failed"): changes and flushes
#   DIR/disk          the content
#   DIR/hold-METHOD   such calls wait until it is gone ("hold-flush.EXPORT": of one export)
# model=MODEL       the thread model, parallel unless given
# consistent=BOOL   what can_multi_conn says
# flushable=BOOL    false: there is no flush
# fua=WORD          what can_fua says, none unless given
# flush-takes=S     seconds
# overlap=true      notes a line "overlap HANDLE" when a call finds another of its connection
#
# A write that begins with SLOW waits for DIR/hold-slow; after one that begins with FAIL, the next
# flush of that connection fails, and only that.

option() { [ -e "$tmpdir/option.$1" ] && cat "$tmpdir/option.$1"; }

read -r folder 2> /dev/null < "$tmpdir/option.folder"
method=$1 handle=$2 count=$3 offset=$4 flags=$5

note() { echo "$method $handle $1" >> "$folder/calls"; }

held_by() {
    tries=0
    while [ -e "$folder/$1" ] && [ $tries -lt 1500 ]; do sleep 0.01; tries=$((tries + 1)); done
}

enter() {
    [ -e "$tmpdir/option.overlap" ] || return
    mkdir "$tmpdir/in.$handle" 2> /dev/null || echo "overlap $handle" >> "$folder/calls"
    sleep 0.02
}

leave() { [ ! -e "$tmpdir/option.overlap" ] || rmdir "$tmpdir/in.$handle" 2> /dev/null || true; }

put() { dd of="$folder/disk" bs=65536 seek="$offset" oflag=seek_bytes conv=notrunc status=none; }

case $method in
    config) echo "$3" > "$tmpdir/option.$2"; exit ;;
    get_ready) truncate -s 65536 "$folder/disk"; : >> "$folder/calls"; exit ;;
    thread_model) option model || echo parallel; exit ;;
    open) number=$(mktemp "$tmpdir/handle.XXXXXX"); echo "$3.${number##*.}"; exit ;;
    get_size) echo 65536; exit ;;
    can_write | can_trim | can_zero) exit ;;
    can_flush) [ "$(option flushable)" != false ] || exit 3; exit ;;
    can_fua) option fua || echo none; exit ;;
    can_multi_conn) [ "$(option consistent)" = true ] || exit 3; exit ;;
    pread) enter; tail -c "+$((offset + 1))" "$folder/disk" | head -c "$count"; leave; exit ;;
    pwrite | zero | trim | flush) ;;
    *) exit 2 ;;
esac

enter
note begin
held_by "hold-$method"
case $method in
    pwrite)
        data=$(mktemp "$tmpdir/data.XXXXXX")
        cat > "$data"
        case $(head -c 4 "$data" | tr '\0' ' ') in
            SLOW) held_by hold-slow ;;
            FAIL) : > "$tmpdir/fails.$handle" ;;
        esac
        put < "$data"
        rm "$data" ;;
    zero | trim) head -c "$count" /dev/zero | put ;;
    flush)
        held_by "hold-flush.${handle%.*}"
        [ ! -e "$tmpdir/option.flush-takes" ] || sleep "$(option flush-takes)"
        if [ -e "$tmpdir/fails.$handle" ]; then
            rm "$tmpdir/fails.$handle"
            note failed
            leave
            echo "EIO the test wants it so" >&2
            exit 1
        fi ;;
esac
note end
leave
