# SPDX-License-Identifier: BSD-3-Clause
"""Starts faulty-server, the server of src/check/broken."""
import os
import pathlib
import shutil
import subprocess
import tempfile

import nbd

from harness import SANITIZER_REPORTS, TIMEOUT_S, WEFT, wait_until

# Beside the programs of the same build.
BUILD = pathlib.Path(WEFT).resolve().parent.parent
FAULTY = str(BUILD / "tests/faulty-server")


class Faulty:
    """One faulty-server on a private socket, with its log in a file."""

    def __init__(self, *args):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="weft-"))
        self.socket = str(self.dir / "s")
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.log_path = self.dir / "log"
        self.command = [FAULTY, f"--socket={self.socket}", *map(str, args)]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log,
                                            stderr=log)

        def ready():
            assert self.process.poll() is None, f"{self.command} ended:\n{self.log()}"
            return os.path.exists(self.socket)
        wait_until(ready, f"{self.command} listens")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def connect(self, contexts=()):
        handle = nbd.NBD()
        for context in contexts:
            handle.add_meta_context(context)
        handle.connect_unix(self.socket)
        return handle

    def stop(self):
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(timeout=TIMEOUT_S)
            assert self.process.returncode == 0, f"{self.command}:\n{self.log()}"
            for report in SANITIZER_REPORTS:
                assert report not in self.log(), self.log()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            shutil.rmtree(self.dir, ignore_errors=True)
