#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Starts nbd-server, in the background as it wants it, on a Unix socket:
#
#   nbd_server.sh SOCKET FILE [KEY=VALUE...]
#
# exports FILE under the name "export" with these keys of nbd-server(5), and with flush, fua and
# trim. FILE - is a new one of 16 MiB beside the socket: for copyonwrite and waitfile, which put
# more files beside it.
set -e
socket=$1 file=$2
shift 2
if [ "$file" = - ]; then
    file=$socket.image
    [ -e "$file" ] || truncate -s 16M "$file"
fi
{
    printf '[generic]\nunixsock = %s\n[export]\nexportname = %s\n' "$socket" "$file"
    printf 'filesize = %s\n' "$(stat -Lc %s "$file")"
    printf '%s\n' flush=true fua=true trim=true "$@"
} >"$socket.conf"
exec nbd-server -C "$socket.conf" -p "$socket.pid"
