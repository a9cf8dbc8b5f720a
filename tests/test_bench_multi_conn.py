# SPDX-License-Identifier: BSD-3-Clause
"""bench/multi_conn, run small: that it works, and that what it shows has the right sign."""
import shutil

import pytest

from harness import NBDKIT, ROOT, SANITIZED, WEFT, run
from multi_conn import have_filter, have_plugin

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(not have_filter("multi-conn"),
                                 reason=f"{WEFT} has no filter multi-conn")]


def bench(*words):
    """The rows of its tables, by their first cells."""
    out = run("/usr/bin/python3", ROOT / "bench/multi_conn", f"--weft={WEFT}", "--rounds=1",
              "--seconds=0.3", "--flushes=3", f"--size={64 << 20}", *words, timeout_s=110).stdout
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines()
            if line.startswith("|")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.skipif(not have_plugin("sh"), reason=f"{WEFT} has no plugin sh")
def test_flushes():
    rows = bench("--work=script,")
    for kind in ("script", "no script"):
        _, ours, theirs, times = rows[f"{kind}, one flush (ms)"]
        if kind == "no script" and not have_filter("delay"):
            continue
        # One flush takes 10 ms, eight in a row take 80.
        assert 10 <= float(ours) < (1000 if SANITIZED else 60), rows
        if shutil.which(NBDKIT) and theirs:
            assert float(theirs) >= 80 and (SANITIZED or float(times) > 1), rows
        for tracking in ("connection", "off"):
            assert float(rows[f"{kind}, all flush, track-dirty={tracking} (flushes/s)"][1]) > 0


def test_layers():
    rows = bench("--work=layers")
    for stack in ("no filter", "5 x nofilter"):
        assert float(rows[stack][0].replace(",", "")) > 0, rows
