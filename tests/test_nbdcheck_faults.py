# SPDX-License-Identifier: BSD-3-Clause
"""nbdcheck finds every fault of faulty-server, and none where there is none.

NBDCHECK_SOAK_SEEDS=N runs N seeds of everything instead of a few, for longer.
"""
import concurrent.futures
import os

import pytest

from harness import run
from faulty import FAULTY
from nbdcheck_runs import BROKEN, HARMING, KEPT, Run, faulty, why_not

SOAK_SEEDS = int(os.environ.get("NBDCHECK_SOAK_SEEDS", "0"))
SEEDS = SOAK_SEEDS or 3
LIMIT_S = 30  # for one run, three at a time, of 2 to 5 s on two idle cores

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

STALE = {"stale-read", "false-zero", "not-linear", "garbage-read"}
# Fault: the mode that must find it, and of which kinds one must be named.
EXPECTED = {
    "stale-cache": ("consistency", STALE),
    "stale-read-ahead": ("consistency", STALE),
    "lost-flush": ("consistency", STALE),
    "own-flush": ("consistency", STALE),
    "private-overlay": ("consistency", STALE),
    "neighbour": ("consistency", STALE),
    "early-ack": ("consistency", STALE),
    "short-read": ("consistency", STALE),
    "ignored-zero": ("consistency", STALE),
    "wide-trim": ("consistency", STALE),
    "false-zero": ("consistency", {"false-zero"}),
    "wrong-cookie": ("consistency", {"protocol-violation", "garbage-read"}),
    "hang": ("consistency", {"no-reply"}),
    "bad-magic": ("consistency", {"protocol-violation"}),
    "torn-size": ("consistency", {"unequal-exports"}),
    "late-write": ("reconnect", {"late-write"}),
    "drop-at-disc": ("reconnect", {"reply-lost-at-disc"}),
    "no-flush": ("power-cut", {"lost-write"}),
    "no-fua": ("power-cut", {"lost-write"}),
    "one-error": ("fail-flush", {"false-flush"}),
    "swallowed-error": ("fail-io", {"false-flush", "stale-read"}),
    "error-hangup": ("fail-io", {"disconnect-on-read-error"}),
    "past-end": ("conformance", {"transmission.write-past-end.structured"}),
    "unknown-command": ("conformance", {"transmission.unknown-command.structured"}),
}
# Seen by other means, too: what a flush does not cover does not survive.
ALSO = ["own-flush", "private-overlay"]
OPTIONS = {"hang": ["--timeout=2"]}
DURATION = {"consistency": "2", "reconnect": "1", "power-cut": "3", "kill": "2"}


def runs(mode, seeds, *options, faults=(), duration=None):
    if mode == "conformance":
        seeds = seeds[:1]  # nothing in it is random

    def one(seed):
        return Run(f"--{mode}", f"--seed={seed}", "--destroy",
                   f"--duration={duration or DURATION.get(mode, 2)}", *options,
                   *faulty(*(f"--fault={fault}" for fault in faults), disk=mode in HARMING,
                           seed=seed))
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        return list(pool.map(one, seeds))


def needs(mode):
    why = why_not(mode)
    if why:
        pytest.skip(why)


def test_every_fault_of_the_server_is_expected():
    lines = run(FAULTY, "--list-faults").stdout.splitlines()[1:]
    listed = {line.split()[0]: line.split()[2] for line in lines}
    assert listed == {fault: mode for fault, (mode, _) in EXPECTED.items()}


@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_is_found(fault):
    mode, kinds = EXPECTED[fault]
    needs(mode)
    for seed, done in enumerate(runs(mode, range(1, SEEDS + 1), *OPTIONS.get(fault, []),
                                     faults=[fault]), 1):
        if done.status != BROKEN:
            # On a machine that has other things to do there are too few races in two seconds.
            done, = runs(mode, [seed], *OPTIONS.get(fault, []), faults=[fault], duration=8)
        assert done.status == BROKEN, f"not found:\n{done}"
        found = done.kinds("failed")
        assert kinds & found, f"{found}, but none of {kinds}:\n{done}"
        assert done.seconds < LIMIT_S, f"{done.seconds} s:\n{done}"


@pytest.mark.parametrize("fault", ALSO)
def test_what_a_flush_does_not_cover_does_not_survive(fault):
    needs("power-cut")
    for done in runs("power-cut", range(1, SEEDS + 1), faults=[fault], duration=6):
        assert done.status == BROKEN, f"not found:\n{done}"
        assert "lost-write" in done.kinds("failed"), done


def test_a_lost_flush_loses_data():
    """It needs a race and a power cut behind it: half of the runs see it."""
    needs("power-cut")
    done = runs("power-cut", range(1, max(SEEDS, 9) + 1), faults=["lost-flush"])
    assert any(one.status == BROKEN and "lost-write" in one.kinds("failed") for one in done), done


@pytest.mark.parametrize("mode", ["consistency", "reconnect", "conformance", *HARMING])
def test_a_server_without_a_fault_is_never_accused(mode):
    needs(mode)
    seeds = SOAK_SEEDS or (10 if mode == "consistency" else 4)
    duration = "10" if SOAK_SEEDS else "3" if mode == "power-cut" else "2"
    done = runs(mode, range(1, seeds + 1), duration=duration)
    for one in done:
        assert one.status != BROKEN and not one.tests("failed"), one
    # Some could not tell, perhaps, on a machine that has other things to do; not all of them.
    assert any(one.status == KEPT for one in done), done


def test_the_story_of_a_finding_can_be_followed():
    """The operations that prove it are told, and the command that shows it again works."""
    done = Run("--consistency", "--seed=3", "--duration=2",
               *faulty("--fault=private-overlay", seed=3))
    assert done.status == BROKEN, done
    finding = next(finding for test in done.tests("failed") for finding in test["findings"]
                   if finding["kind"] == "stale-read")
    assert len(finding["story"]) >= 3 and len(finding["operations"]) >= 2, done
    assert "private-overlay" in finding["replay"] and "--seed=3" in finding["replay"]
    words = finding["replay"].split()[1:]
    again = Run(*(word for word in words if not word.startswith(("--json=", "--quiet"))))
    assert again.status == BROKEN, again
    assert "stale-read" in again.kinds("failed"), again


def test_a_private_overlay_is_allowed_where_the_flag_is_not_advertised():
    done = Run("--consistency", "--seed=1", "--duration=2",
               *faulty("--fault=private-overlay", "--no-multi-conn"))
    assert done.status == KEPT, done
    assert done.report["level_reached"] == "own", done
    assert not done.report["multi_conn_advertised"]


def test_a_kill_shows_what_stays_with_its_connection():
    if why_not("kill"):
        pytest.skip(why_not("kill"))
    done = Run("--kill", "--seed=1", "--duration=3",
               *faulty("--fault=private-overlay", disk=True))
    assert done.status == BROKEN and "durability.kill.synced" in done.kinds("failed"), done
