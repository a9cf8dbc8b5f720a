# SPDX-License-Identifier: BSD-3-Clause
"""nbdcheck --conformance: weft keeps to the specification, and where peers do not it is said.

What peers deviate in is pinned to the versions of Debian 12; others are not tested.
"""
import hashlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile

import pytest

from harness import MIB, WEFT, free_port, wait_until
from nbdcheck_runs import BROKEN, KEPT, Run, faulty, why_not

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

MODES = ("simple", "structured", "extended")


def conformance(*words, **options):
    return Run("--conformance", "--destroy", *words, **options)


def weft(*words):
    return ["--", WEFT, "-f", "-U", "{socket}", *words]


def without_mode(name):
    stem, _, last = name.rpartition(".")
    return stem if last in MODES else name


def names(run, state):
    return {without_mode(test["name"]) for test in run.tests(state)}


def passed(run):
    return {test["name"] for test in run.tests("passed")}


def assert_clean(run, least):
    """Nothing failed, nothing warned, and enough was tested."""
    assert run.status == KEPT, run
    assert not run.tests("failed", "warned", "inconclusive"), run
    assert len(passed(run)) >= least, sorted(passed(run))


# ---------------------------------------------------------------------------------------------
# weft

def test_weft():
    run = conformance(*weft("memory", "64M"))
    assert_clean(run, 230)
    # What is worth most was not skipped.
    for mode in MODES:
        for check in ("disc-with-writes", "write-past-end", "write-32mib", "zeroes-long",
                      "unread-replies", "pipelining"):
            assert f"transmission.{check}.{mode}" in passed(run), run
    assert {"headers.status-payload.extended", "status.truth.structured"} <= passed(run)


@pytest.mark.parametrize("words, least", [
    (("-r", "memory", "64M"), 160),
    (("memory", "700"), 150),
    (("memory", "1"), 150),
    (("memory", str(2**62 + 512)), 200),
    (("--filter=noparallel", "memory", "4M", "serialize=connections"), 200),
    (("--filter=blocksize", "memory", "64M"), 200),
    (("--filter=cow", "memory", "64M"), 200),
], ids=lambda value: "-".join(value) if isinstance(value, tuple) else "")
def test_weft_in_other_ways(words, least):
    assert_clean(conformance(*weft(*words)), least)


def test_a_read_only_export_is_tested_as_one():
    run = conformance(*weft("-r", "memory", "64M"))
    assert {f"transmission.write-read-only.{mode}" for mode in MODES} <= passed(run), run
    skipped = {test["name"]: test["detail"] for test in run.tests("skipped")}
    assert "read-only" in skipped["transmission.write.simple"]


# ---------------------------------------------------------------------------------------------
# What a run does to the export

@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(64 * MIB))
    return path


def digest(path, begin=0, end=None):
    return hashlib.sha256(path.read_bytes()[begin:end]).hexdigest()


def test_nothing_is_written_without_permission(disk):
    before = digest(disk)
    run = Run("--conformance", *weft("file", disk))
    assert_clean(run, 100)
    assert digest(disk) == before
    skipped = {test["name"]: test["detail"] for test in run.tests("skipped")}
    assert "--destroy" in skipped["transmission.write.simple"], skipped


def test_only_the_range_is_changed(disk):
    begin, length = 8 * MIB + 4096, 256 * 1024
    before = digest(disk, 0, begin), digest(disk, begin + length)
    inside = digest(disk, begin, begin + length)
    run = conformance(f"--range={begin}:{length}", *weft("file", disk))
    assert_clean(run, 200)
    assert (digest(disk, 0, begin), digest(disk, begin + length)) == before
    assert digest(disk, begin, begin + length) != inside  # or the test has seen nothing


# ---------------------------------------------------------------------------------------------
# faulty-server

def test_a_faulty_server_without_a_fault():
    assert_clean(conformance(*faulty()), 210)


@pytest.mark.parametrize("fault, check, kinds", [
    ("drop-at-disc", "transmission.disc-with-writes", {"reply-lost-at-disc"}),
    ("past-end", "transmission.write-past-end", {"not-refused"}),
    ("unknown-command", "transmission.unknown-command", {"disconnected"}),
    ("bad-magic:1", "transmission.cookies", {"wrong-magic"}),
    ("wrong-cookie:1", "transmission.pipelining",
     {"wrong-data", "malformed-reply", "wrong-offset"}),  # of each mode
])
def test_a_faulty_server(fault, check, kinds):
    run = conformance(f"--only={check}", *faulty(f"--fault={fault}"))
    assert run.status == BROKEN, run
    failed = run.tests("failed")
    assert {without_mode(test["name"]) for test in failed} == {check}, run
    assert len(failed) == len(MODES), run
    assert {finding["kind"] for test in failed for finding in test["findings"]} == kinds, run
    for test in failed:
        (finding,) = test["findings"]
        assert f"--only={test['name']}" in finding["replay"]
        assert any("sent" in line for line in finding["story"]), finding


def test_what_is_accepted_is_only_warned_of():
    words = ["--only=transmission.unknown-command", *faulty("--fault=unknown-command")]
    assert conformance(*words).status == BROKEN
    run = conformance("--accept=disconnected", *words)
    assert run.status == KEPT and len(run.tests("warned")) == len(MODES), run


# ---------------------------------------------------------------------------------------------
# Peers

def need(program, version, *ask):
    """Skips unless the program is there, in the version whose deviations are known."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([program, *ask], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.?\d*", done.stdout + done.stderr)
    if not found or not (found.group() + ".").startswith(version + "."):
        pytest.skip(f"{program} is {found and found.group()}, not {version}")


# Depends on how threads run: may be seen or not.
NBDKIT_RACES = {"transmission.disc-with-reads", "transmission.disc-with-writes",
                "transmission.unread-replies", "transmission.leave"}
NBDKIT_WARNED = {"options.many", "contexts.trailing-bytes", "contexts.failed-set-forgets"}


def test_nbdkit_memory():
    need("nbdkit", "1.32", "--version")
    run = conformance("--", "nbdkit", "-f", "-U", "{socket}", "memory", "64M")
    assert names(run, "warned") - NBDKIT_RACES == NBDKIT_WARNED, run
    assert not names(run, "failed") - NBDKIT_RACES, run
    assert len(passed(run)) > 150, run


def test_nbdkit_read_only():
    need("nbdkit", "1.32", "--version")
    run = conformance("--", "nbdkit", "-f", "-r", "-U", "{socket}", "memory", "64M")
    assert names(run, "warned") - NBDKIT_RACES == NBDKIT_WARNED, run
    assert not names(run, "failed") - NBDKIT_RACES, run


def test_nbdkit_block_sizes():
    need("nbdkit", "1.32", "--version")
    run = conformance("--", "nbdkit", "-f", "-U", "{socket}", "--filter=blocksize-policy", "memory",
                      "64M", "blocksize-minimum=4096", "blocksize-preferred=64k",
                      "blocksize-maximum=1M", "blocksize-error-policy=error")
    assert names(run, "warned") - NBDKIT_RACES == NBDKIT_WARNED, run
    assert not names(run, "failed") - NBDKIT_RACES, run
    assert {"transmission.read-unaligned.simple", "transmission.write-unaligned.structured",
            "info.block-size"} <= passed(run), run


def test_a_server_that_dies_is_told_and_started_again(disk):
    """nbdkit ends at an assertion when a client asks for FAST_ZERO that was not offered."""
    need("nbdkit", "1.32", "--version")
    run = conformance("--", "nbdkit", "-f", "-U", "{socket}", "file", disk)
    died = [test for test in run.tests("failed")
            if without_mode(test["name"]) == "transmission.zeroes-fast-unadvertised"]
    assert len(died) == 2, run
    for test in died:
        (finding,) = [one for one in test["findings"] if one["kind"] == "server-gone"]
        assert "can_fast_zero" in finding["story"][-1], finding
    assert not run.tests("inconclusive"), run
    assert len(passed(run)) > 150, run


QEMU_DISC = {"transmission.disc-with-reads", "transmission.disc-with-writes"}


def test_qemu_nbd(disk):
    need("qemu-nbd", "7.2", "--version")
    run = conformance("--", "qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", "{socket}", disk)
    assert names(run, "warned") == {"transmission.write-past-end", "transmission.zeroes-past-end"}
    failed = names(run, "failed")
    assert failed - QEMU_DISC == {"contexts.trailing-bytes"}, run
    assert failed & QEMU_DISC, run
    assert "reply-lost-at-disc" in run.kinds("failed"), run


def test_qemu_nbd_read_only_and_one_connection(disk):
    need("qemu-nbd", "7.2", "--version")
    run = conformance("--", "qemu-nbd", "-r", "-f", "raw", "-t", "-k", "{socket}", disk)
    assert names(run, "warned") == {"transmission.write-read-only"}, run
    assert names(run, "failed") - QEMU_DISC == {"contexts.trailing-bytes"}, run
    skipped = {test["name"]: test["detail"] for test in run.tests("skipped")}
    assert "one connection" in skipped["handshake.silent-client"], skipped


@pytest.fixture
def nbd_server(disk):
    """The URI of an nbd-server; it becomes a daemon of its own, and is ended by its pid."""
    need("nbd-server", "3.24", "-V")
    with tempfile.TemporaryDirectory(prefix="weft-") as name:
        folder = pathlib.Path(name)
        config, pidfile, socket = folder / "config", folder / "pid", folder / "s"
        config.write_text(f"[generic]\nunixsock = {socket}\nlistenaddr = 127.0.0.1\n"
                          f"port = {free_port()}\nallowlist = true\n"
                          f"[export1]\nexportname = {disk}\n"
                          "flush = true\nfua = true\ntrim = true\n")
        subprocess.run(["nbd-server", "-C", config, "-p", pidfile], check=True, timeout=20,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        wait_until(lambda: pidfile.exists() and pidfile.read_text().strip() and socket.exists(),
                   "nbd-server listens")
        pid = int(pidfile.read_text())
        yield f"nbd+unix:///export1?socket={socket}"
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}") or
                   "State:\tZ" in pathlib.Path(f"/proc/{pid}/status").read_text(),
                   "nbd-server ends")


def test_nbd_server(nbd_server):
    run = conformance(nbd_server, timeout_s=100)
    assert names(run, "failed") == {
        "handshake.unknown-client-flag", "handshake.abort", "handshake.abort-with-data",
        "options.list-with-data",  # answered twice
        "info.count-too-large", "info.name-length-too-large", "info.too-short",
        "info.name-too-long",
        "info.then-go",  # INFO says size 0
    }, run
    assert names(run, "warned") == {"options.huge", "info.count-too-small",
                                    "transmission.misplaced-flag"}, run
    assert not run.tests("inconclusive"), run
