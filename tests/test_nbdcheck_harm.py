# SPDX-License-Identifier: BSD-3-Clause
"""nbdcheck on disks that lose their power and fail: what it says of servers whose behaviour is
known. One that forgets must be found out, one that does not must pass."""
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from harness import TIMEOUT_S, WEFT, wait_until
from nbdcheck_runs import BROKEN, HARMING, KEPT, NBDCHECK, UNKNOWN, Run, why_not

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(why_not(*HARMING) is not None, reason=str(why_not(*HARMING)))]

WEFT_FILE = [WEFT, "-f", "-U", "{socket}", "file", "{disk}"]
WEFT_CACHE = [WEFT, "-f", "-U", "{socket}", "--filter=cache", "file", "{disk}"]
WEFT_EPOLL = [WEFT, "-f", "-U", "{socket}", "--engine=epoll", "file", "{disk}"]
NBDKIT = ["nbdkit", "-f", "-U", "{socket}"]
QEMU = ["qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", "{socket}"]


def check(mode, command, *options):
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]}")
    done = Run(f"--{mode}", *options, "--", *command, timeout_s=100)
    assert done.tests("passed", "failed", "warned"), done
    return done


@pytest.mark.parametrize("mode", HARMING)
@pytest.mark.parametrize("command", [WEFT_FILE, WEFT_EPOLL, WEFT_CACHE],
                         ids=["io_uring", "epoll", "cache"])
def test_weft_keeps_its_promise(mode, command):
    done = check(mode, command, "--duration=3")
    assert done.status == KEPT, done
    # A write-back cache keeps what was not flushed to itself: of that nbdcheck warns.
    allowed = {"durability.kill.acknowledged"} if command is WEFT_CACHE else set()
    assert {test["name"] for test in done.tests("warned")} <= allowed, done


def test_a_cut_finds_the_lost_flush_of_nbdkits_multi_conn_filter():
    done = check("power-cut", NBDKIT + ["--filter=multi-conn", "file", "{disk}"])
    assert done.status == BROKEN, done
    assert done.kinds("failed") == {"durability.power-cut.flush", "lost-write"}, done


@pytest.mark.parametrize("command", [NBDKIT + ["--filter=cache", "file", "{disk}", "cache=unsafe"],
                                     QEMU + ["--cache=unsafe", "{disk}"]], ids=["nbdkit", "qemu"])
def test_a_cut_finds_an_unsafe_cache(command):
    done = check("power-cut", command, "--duration=3")
    assert done.status == BROKEN, done
    assert {"durability.power-cut.flush", "lost-write"} <= done.kinds("failed"), done


@pytest.mark.parametrize("command", [NBDKIT + ["file", "{disk}"], QEMU + ["{disk}"]],
                         ids=["nbdkit", "qemu"])
def test_a_cut_lets_servers_pass_that_are_right(command):
    done = check("power-cut", command, "--duration=4")
    assert done.status == KEPT, done


@pytest.mark.parametrize("command", [NBDKIT + ["file", "{disk}"],
                                     QEMU + ["--aio=io_uring", "{disk}"],
                                     QEMU + ["--aio=native", "--cache=none", "{disk}"]],
                         ids=["nbdkit", "qemu-io_uring", "qemu-native"])
def test_a_failed_sync_finds_false_flushes(command):
    done = check("fail-flush", command)
    assert done.status == BROKEN, done
    assert "false-flush" in done.kinds("failed"), done
    # Each connection of nbdkit has a descriptor, which the kernel tells once of the failure.
    assert ("error-told-to-one" in done.kinds("failed")) == ("nbdkit" not in command), done
    later = next(test for test in done.tests("failed") if test["name"] == "failures.flush.later")
    story = " / ".join(later["findings"][0]["story"])
    assert "A flushes: NBD_EIO" in story and "B flushes: OK" in story, done


def test_a_failed_sync_lets_qemu_with_threads_pass():
    done = check("fail-flush", QEMU + ["{disk}"])
    assert done.status == KEPT, done


def test_a_failed_read_lets_nbdkit_pass():
    done = check("fail-io", NBDKIT + ["file", "{disk}"])
    assert done.status == KEPT, done


@pytest.mark.parametrize("mode", ["power-cut", "kill"])
def test_interrupted_it_leaves_nothing_behind(mode, tmp_path):
    environment = dict(os.environ, TMPDIR=str(tmp_path))
    mounts = pathlib.Path("/proc/mounts")
    with subprocess.Popen([NBDCHECK, f"--{mode}", "--quiet", "--duration=60", "--", *WEFT_FILE],
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as process:
        wait_until(lambda: str(tmp_path) in mounts.read_text(), "the disk is mounted")
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode in (KEPT, UNKNOWN), output
    assert str(tmp_path) not in mounts.read_text()
    assert not list(tmp_path.iterdir())
