#!/bin/dash
# SPDX-License-Identifier: BSD-3-Clause
# A script disk whose flush takes 10 ms, and which keeps nothing (for the sh plugin). What a call
# costs beside that is kept small: one shell, which becomes the program that does the work.
case $1 in
    pwrite) exec cat > /dev/null ;;
    flush) exec sleep 0.01 ;;
    pread) exec head -c "$3" /dev/zero ;;
    open) echo handle ;;
    get_size) echo 1048576 ;;
    thread_model) echo parallel ;;
    can_write | can_flush) ;;
    *) exit 2 ;;
esac
