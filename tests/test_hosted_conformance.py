# SPDX-License-Identifier: BSD-3-Clause
"""Over a hosted plugin the protocol is kept as over weft's own, and so are its promises."""
import pytest

from harness import WEFT
from hosted import needs_hosting, plugin
from nbdcheck_runs import HARMING, KEPT, UNKNOWN, Run, why_not

pytestmark = [pytest.mark.weft_only, needs_hosting]
needs_nbdcheck = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

MODES = ("simple", "structured", "extended")


def check(mode, *words, options=()):
    """Runs nbdcheck; again and longer where it saw too little."""
    for seconds in (2, 8):
        done = Run(f"--{mode}", "--seed=1", "--destroy", f"--duration={seconds}", *options, "--",
                   WEFT, "-f", "-U", "{socket}", *words, timeout_s=120)
        if done.status != UNKNOWN:
            break
    return done


@needs_nbdcheck
@pytest.mark.parametrize("name, words, least", [
    ("memory", ["64M"], 225), ("memory", ["64M", "allocator=malloc"], 225),
    ("memory", ["700"], 140), ("pattern", ["64M"], 150),
    ("memory", [str(2**62 + 512)], 200), ("data", ["raw=x", "size=64M"], 225),
], ids=lambda value: "-".join(value) if isinstance(value, list) else str(value))
def test_conforms(name, words, least):
    """Nothing failed, nothing warned, and enough was tested."""
    done = check("conformance", plugin(name), *words)
    assert done.status == KEPT, done
    assert not done.tests("failed", "warned", "inconclusive"), done
    passed = {test["name"] for test in done.tests("passed")}
    assert len(passed) >= least, sorted(passed)
    if (name, words) == ("memory", ["64M"]):
        for mode in MODES:
            for one in ("disc-with-writes", "write-past-end", "write-32mib", "unread-replies",
                        "pipelining"):
                assert f"transmission.{one}.{mode}" in passed, done


@needs_nbdcheck
@pytest.mark.parametrize("words", [["16M"], ["16M", "allocator=malloc"]], ids="-".join)
def test_many_connections_see_one_memory(words):
    done = check("consistency", plugin("memory"), *words)
    assert done.status == KEPT and done.report["multi_conn_advertised"], done
    assert done.report["level_reached"] in ("flushed", "at-once"), done


@needs_nbdcheck
@pytest.mark.parametrize("mode", ["consistency", "reconnect", *HARMING])
def test_the_promise_over_a_file(mode):
    """Also when the power is cut, the server killed, or the disk fails."""
    if why_not("power-cut"):
        pytest.skip(why_not("power-cut"))
    done = check(mode, plugin("file"), "{disk}")
    assert done.status == KEPT and done.report["multi_conn_advertised"], done


@needs_nbdcheck
def test_the_promise_by_filters_over_a_hosted_plugin():
    """Filters of weft's, which make several connections one disk, over nbdkit's file."""
    if why_not("power-cut"):
        pytest.skip(why_not("power-cut"))
    for filters in (["--filter=multi-conn", "--filter=cache"], ["--filter=cow"]):
        done = check("consistency", *filters, plugin("file"), "{disk}")
        assert done.status == KEPT and done.report["multi_conn_advertised"], done
