# SPDX-License-Identifier: BSD-3-Clause
"""test_misbehaving_clients_handshake.py over a plugin of nbdkit's: the same answers."""
import inspect

import pytest

import test_misbehaving_clients_handshake as suite
from hosted import needs_hosting, plugin
from rawclient import Raw

pytestmark = [pytest.mark.weft_only, needs_hosting]

# Those that start a server of their own are about another disk.
TESTS = {name: test for name, test in vars(suite).items() if name.startswith("test_")
         and "serve" not in inspect.signature(test).parameters}
globals().update(TESTS)


@pytest.fixture
def server(serve):
    server = serve(plugin("memory"), "16M")
    yield server
    server.check_serves()


@pytest.fixture
def raw(server):
    with Raw(server.socket) as client:
        yield client


def test_the_suite_is_here():
    assert len(TESTS) > 20
