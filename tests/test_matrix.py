# SPDX-License-Identifier: BSD-3-Clause
"""The same command lines for nbdkit and for weft under that name: see matrix.py.

Each test is a group of lines, and names all that are not as expected. What differs between the
two is explained by a row of docs/migration.md, and each such row by a line or a test.
"""
import os
import shutil
import socket

import pytest

import matrix
from harness import NBDKIT

GROUPS = matrix.groups()
# Rows whose difference no line of the matrix can show: test_migration.py shows these.
TESTED_ELSEWHERE = "tests/test_"

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")]


@pytest.fixture(scope="module", name="programs")
def programs_fixture():
    programs = matrix.Programs()
    yield programs
    programs.remove()


def default_port_is_free():
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", 10809)) != 0


@pytest.mark.parametrize("group", GROUPS)
def test_lines(programs, group):
    if "users" in group and os.geteuid() != 0:
        pytest.skip("changing the user needs root")
    alone = "alone" in group
    if alone and not default_port_is_free():
        pytest.skip("something listens on port 10809 here")
    wrong = matrix.differences(programs, GROUPS[group], 1 if alone else matrix.THREADS)
    assert not wrong, f"{len(wrong)} of {len(GROUPS[group])}:\n" + "\n".join(wrong)


def keys_of_lines():
    keys = {key for key, _ in matrix.EVERYWHERE.values()}
    for lines in GROUPS.values():
        for line in lines:
            keys.update(line.differs.values())
    return keys


def test_every_difference_has_a_row():
    missing = keys_of_lines() - set(matrix.page_rows())
    assert not missing, f"docs/migration.md has no row for {sorted(missing)}"


def test_every_row_is_shown():
    """By a line of the matrix, or by the test that the row names."""
    keys = keys_of_lines()
    for key, cells in matrix.page_rows().items():
        named = [cell for cell in cells if TESTED_ELSEWHERE in cell]
        assert key in keys or named, f"no line of the matrix and no test shows {key}"
        for cell in named:
            matrix.check_reference(cell)


def test_a_difference_is_noticed(programs):
    """The comparison can fail: lines whose expectation is wrong."""
    lines = [matrix.Line("", "serve memory 1M", "1", "bad-size"),
             matrix.Line("", "serve memory 1M", "2", differs={"status": "no-such-row"}),
             matrix.Line("", "look memory size=x", "3", "bad-size", ("nosuchword",)),
             matrix.Line("", 'nbdkit --version', "4"),
             matrix.Line("", "serve pattern 1M", "5")]
    wrong = matrix.differences(programs, lines)
    assert [text.split(":")[0] for text in wrong] == ["1", "2", "3", "4", "5"]
