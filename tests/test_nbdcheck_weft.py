# SPDX-License-Identifier: BSD-3-Clause
"""weft keeps what it promises, in every combination of disk and filters that advertises the flag.

NBDCHECK_SOAK_SECONDS=N gives each test N seconds.
"""
import concurrent.futures
import os

import pytest

import subjects
from harness import WEFT, run
from nbdcheck_runs import BROKEN, HARMING, KEPT, UNKNOWN, Run, why_not

SECONDS = float(os.environ.get("NBDCHECK_SOAK_SECONDS", "0"))
MODES = ("consistency", "reconnect", "conformance", *HARMING)
# For the plain disks; everything else is asked once how consistent it is.
EVERYTHING = ["file", "file, epoll", "cache filter, writeback", "multi-conn and cache filters"]
LIES = [
    subjects.weft("multi-conn filter, unsafe", *subjects.copies_disk("unsafe"),
                  **subjects.SCRIPT_LOAD),
    subjects.weft("script that says so", "sh", subjects.COPIES_DISK, "size=8192",
                  "consistent=true", **subjects.SCRIPT_LOAD),
]
# Without the flag a client may use one connection, and that is judged alone.
HONEST = subjects.weft("multi-conn filter, disable", *subjects.copies_disk("disable"),
                       **subjects.SCRIPT_LOAD)

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


def check(subject, mode, *options, duration=2):
    """Once more, and longer, where there were too few races: other programs run here, too."""
    for seconds in (SECONDS or duration, 4 * (SECONDS or duration)):
        seconds *= subject.slow
        done = Run(f"--{mode}", "--seed=1", "--destroy", *options, f"--duration={seconds}",
                   *subject.options, "--", *subject.command(WEFT), timeout_s=60 + 5 * seconds)
        if done.status != UNKNOWN:
            break
    return done


def by_title(title):
    return next(subject for subject in subjects.WEFT if subject.name == title)


def needs_disk(subject):
    if subject.harmable and why_not(*HARMING):
        pytest.skip(why_not(*HARMING))


def must_keep(done, advertised=True):
    assert done.report.get("multi_conn_advertised") is advertised, done
    assert done.status == KEPT, done


def test_every_combination_sees_one_disk():
    """All of them, three at a time."""
    chosen = [subject for subject in subjects.WEFT
              if not (subject.harmable and why_not(*HARMING))]
    assert len(chosen) > 5
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        for subject, done in zip(chosen, pool.map(lambda one: check(one, "consistency"), chosen)):
            must_keep(done)
            assert done.report["level_reached"] in ("flushed", "at-once"), f"{subject}\n{done}"


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("title", EVERYTHING)
def test_everything_holds(title, mode):
    subject = by_title(title)
    needs_disk(subject)
    done = check(subject, mode, duration=3 if mode == "power-cut" else 1)
    if mode == "fail-io" and "cache" in title:
        # What the cache holds is read from it, whatever the disk below does.
        assert done.status in (KEPT, UNKNOWN) and not done.tests("failed"), done
    else:
        must_keep(done)


@pytest.mark.parametrize("title", ["memory", "cow filter", "readahead and cow filters"])
def test_cut_connections_harm_nobody(title):
    must_keep(check(by_title(title), "reconnect", duration=1))


def test_memory_conforms():
    must_keep(check(by_title("memory"), "conformance"))


@pytest.mark.parametrize("subject", LIES, ids=lambda subject: subject.name)
def test_a_lie_is_found(subject):
    done = check(subject, "consistency")
    assert done.report["multi_conn_advertised"], done
    assert done.status == BROKEN, done
    assert "stale-read" in done.kinds("failed"), done


@pytest.mark.parametrize("words, name", [
    (["--filter=cache", "file", "{disk}", "cache=unsafe"], "durability.power-cut.flush"),
    (["--filter=fua", "file", "{disk}", "fuamode=discard"], "durability.power-cut.fua"),
])
def test_what_ignores_flush_or_fua_loses_data(words, name):
    if why_not("power-cut"):
        pytest.skip(why_not("power-cut"))
    done = check(subjects.weft(name, *words), "power-cut", duration=3)
    assert done.status == BROKEN and name in done.kinds("failed"), done


def test_what_is_not_promised_is_not_asked_for():
    done = check(HONEST, "consistency", duration=3)
    must_keep(done, advertised=False)
    assert done.report["level_reached"] == "own", done


def test_every_filter_is_among_the_combinations():
    """But those that have nothing to do with data, or need a file of their own."""
    named = {word.partition("=")[2] for subject in subjects.WEFT for word in subject.words
             if word.startswith("--filter=")}
    filters = {folder for folder in os.listdir(subjects.TESTS.parent / "src/filters")
               if run(WEFT, f"--filter={folder}", "--dump-plugin", "memory", "1M",
                      check=False).returncode == 0}
    assert filters - named == {"error", "ip", "log", "nofilter", "stats"}
