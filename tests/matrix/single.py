# SPDX-License-Identifier: BSD-3-Clause
"""single.py PROGRAM ARGUMENTS: what PROGRAM -s ARGUMENTS serves on its standard input."""
import hashlib
import sys

import nbd

program, *arguments = sys.argv[1:]
client = nbd.NBD()
try:
    client.connect_command([program, "-s", *arguments])
except nbd.Error:
    sys.exit("refused")
size = client.get_size()
print("size", size, "read-only", client.is_read_only(), "flush", client.can_flush(), "zero",
      client.can_zero(), "multi-conn", client.can_multi_conn(), "export", client.get_export_name())
print(hashlib.sha256(client.pread(min(size, 1 << 20), 0)).hexdigest())
client.shutdown()
