# SPDX-License-Identifier: BSD-3-Clause
"""Starts `nbdkit ARGUMENTS` as systemd would: with a listening socket as descriptor 3.

What is served is shown by probe.sh; a server that does not end by itself is then told to.
"""
import os
import signal
import socket
import subprocess
import sys
import time

listener = socket.socket(socket.AF_UNIX)
listener.bind("sock")
listener.listen()
child = os.fork()
if child == 0:
    if listener.fileno() != 3:
        os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    os.execvp("nbdkit", ["nbdkit", *sys.argv[1:]])
listener.close()  # so that a client of a server that has ended is refused, and does not wait
probe = subprocess.run(["sh", os.environ["matrix"] + "/probe.sh", "nbd+unix:///?socket=sock"],
                       check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
if "refused" in probe.stdout:
    ended, status = os.waitpid(child, 0)  # it said what is wrong, and ends
else:
    print(probe.stdout, end="")
    os.kill(child, signal.SIGTERM)
    end = time.monotonic() + 20
    ended, status = os.waitpid(child, os.WNOHANG)
    while not ended and time.monotonic() < end:
        time.sleep(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
sys.exit(os.waitstatus_to_exitcode(status) % 256)
