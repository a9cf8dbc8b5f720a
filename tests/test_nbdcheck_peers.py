# SPDX-License-Identifier: BSD-3-Clause
"""nbdcheck finds what is known to be wrong with Debian 12's servers: so it can find such things.

docs/scoreboard.md has all that it sees. A peer of another version may have mended it: these tests
are skipped then.
"""
import concurrent.futures

import pytest

import subjects
from harness import WEFT, run
from nbdcheck_runs import BROKEN, KEPT, USAGE, Run, why_not

VERSIONS = {"nbdkit": (["nbdkit", "--version"], "nbdkit 1.32."),
            "qemu-nbd": (["qemu-nbd", "--version"], "qemu-nbd 7.2."),
            "nbd-server": (["nbd-server", "-V"], "3.24")}

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


def peer(title, *modes):
    """A Subject, if it can be run here and is of the version that these tests know."""
    subject = next(one for one in subjects.PEERS if one.title == title)
    why = subject.missing() or (why_not(*modes) if not subject.harmable else
                                why_not("power-cut"))
    if why:
        pytest.skip(why)
    command, version = VERSIONS[subject.server]
    done = run(*command, check=False)
    if version not in done.stdout + done.stderr:
        pytest.skip(f"{subject.server} is not {version}")
    return subject


def check(subject, mode, seed=1, duration=2):
    for _ in range(3):
        done = Run(f"--{mode}", f"--seed={seed}", "--destroy",
                   f"--duration={duration * subject.slow}", *subject.options, "--",
                   *subject.command(WEFT))
        # nbd-server listens long before it serves, on a machine that has other things to do.
        if done.status != USAGE and "no-restart" not in done.kinds("failed"):
            break
    return done


def one_of(subject, mode, kind, seeds, duration):
    """A race: one of so many runs, three at a time, must see it."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        runs = list(pool.map(lambda seed: check(subject, mode, seed, duration),
                             range(1, seeds + 1)))
    assert any(kind in done.kinds("failed") for done in runs), "\n".join(map(repr, runs))


@pytest.mark.parametrize("title", [
    "nbdkit file", "nbdkit memory", "qemu-nbd threads, writeback", "nbd-server plain"])
def test_a_good_peer_is_consistent(title):
    done = check(peer(title), "consistency", duration=3)
    assert done.status == KEPT, done


@pytest.mark.parametrize("title", [
    "nbdkit file", "qemu-nbd threads, none", "nbd-server plain"])
def test_a_good_peer_survives_power_cuts(title):
    done = check(peer(title, "power-cut"), "power-cut", duration=3)
    assert not done.tests("failed"), done


def test_nbdkit_multi_conn_filter_loses_a_flush():
    """The dirty mark is set before the write, and a flush that overlaps it clears it."""
    one_of(peer("nbdkit multi-conn filter over file", "power-cut"), "power-cut", "lost-write",
           seeds=9, duration=3)


def test_nbd_server_waitfile_is_a_disk_for_each_connection():
    one_of(peer("nbd-server waitfile, one request at a time"), "consistency",
           "stale-read", seeds=3, duration=2)


@pytest.mark.parametrize("title", [
    "nbdkit file", "nbd-server plain", "qemu-nbd io_uring, writeback", "qemu-nbd native, none",
    "qemu-nbd threads, none"])
def test_a_flush_succeeds_after_one_that_failed(title):
    """Nobody is told any more that what was acknowledged is gone."""
    done = check(peer(title, "fail-flush"), "fail-flush")
    assert done.status == BROKEN and "false-flush" in done.kinds("failed"), done


def test_qemu_nbd_with_threads_and_the_page_cache_remembers():
    done = check(peer("qemu-nbd threads, writeback", "fail-flush"), "fail-flush")
    assert "failures.flush.later" not in done.kinds("failed"), done
    assert any(test["name"] == "failures.flush.later" for test in done.tests("passed")), done


def test_qemu_nbd_drops_replies_at_disc():
    done = check(peer("qemu-nbd threads, writeback"), "reconnect")
    assert "reply-lost-at-disc" in done.kinds("failed", "warned"), done


@pytest.mark.parametrize("title", ["nbdkit file", "qemu-nbd threads, writeback",
                                   "nbd-server plain"])
def test_a_cut_write_comes_late(title):
    done = check(peer(title, "reconnect"), "reconnect")
    assert "late-write" in done.kinds("failed", "warned"), done


def test_qemu_nbd_ends_the_connection_on_a_read_error():
    done = check(peer("qemu-nbd threads, none", "fail-io"), "fail-io")
    assert "disconnect-on-read-error" in done.kinds("failed", "warned"), done


def test_nbdkit_ends_when_connections_are_cut():
    """An assertion of its own: connections.c, raw_send_socket."""
    one_of(peer("nbdkit memory"), "reconnect", "server-died", seeds=6, duration=1)


def test_nbdkit_cache_unsafe_ends_on_a_trim_with_fua():
    """An assertion of its own: backend.c, backend_trim."""
    done = check(peer("nbdkit cache filter, unsafe"), "consistency")
    kinds = done.kinds("failed")  # whether it is gone already when that is looked at is chance
    assert done.status == BROKEN and ("server-died" in kinds or "disconnected" in kinds), done
