# SPDX-License-Identifier: BSD-3-Clause
"""Runs nbdcheck and reads its report."""
import json
import os
import pathlib
import subprocess
import tempfile
import time

from faulty import BUILD, FAULTY
from harness import ROOT, why_no_fuse

NBDCHECK = str(BUILD / "bin/nbdcheck")
KEPT, BROKEN, UNKNOWN, USAGE = range(4)
HARMING = ("power-cut", "kill", "fail-flush", "fail-io")  # modes that need {disk}


def why_not(*modes):
    """Why these modes cannot be run here, or None."""
    if not os.path.exists(NBDCHECK):
        return f"{NBDCHECK} is not built"
    return why_no_fuse() if set(modes) & set(HARMING) else None


class Run:
    """One run of nbdcheck: its exit status, its report, and how long it took."""

    def __init__(self, *words, timeout_s=60):
        with tempfile.TemporaryDirectory(prefix="weft-") as folder:
            path = pathlib.Path(folder) / "report"
            self.command = [NBDCHECK, "--quiet", f"--json={path}", *map(str, words)]
            begin = time.monotonic()
            done = subprocess.run(self.command, cwd=ROOT, stdin=subprocess.DEVNULL, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
                                  errors="replace", timeout=timeout_s)
            self.seconds = time.monotonic() - begin
            self.status = done.returncode
            self.text = done.stdout + done.stderr
            self.report = json.loads(path.read_text("utf-8")) if path.exists() else {"tests": []}

    def tests(self, *states):
        return [test for test in self.report["tests"] if test["state"] in states]

    def kinds(self, *states):
        """The kinds of all findings, and the names of the tests they belong to."""
        found = set()
        for test in self.tests(*(states or ("failed", "warned"))):
            found |= {test["name"], *(finding["kind"] for finding in test["findings"])}
        return found

    def __repr__(self):
        return f"{' '.join(self.command)}\nexit status {self.status}\n{self.text[-6000:]}"


def faulty(*options, disk=False, seed=1):
    """The words that say which server: a faulty-server."""
    words = ["--", FAULTY, "--socket={socket}", f"--seed={seed}", *options]
    return words + ["--file={disk}"] if disk else ["--destroy", *words]
