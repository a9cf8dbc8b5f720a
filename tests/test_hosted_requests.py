# SPDX-License-Identifier: BSD-3-Clause
"""test_misbehaving_clients_requests.py over a plugin of nbdkit's: the same answers."""
import inspect

import pytest

import test_misbehaving_clients_requests as suite
from hosted import needs_hosting, plugin
from rawclient import Raw

pytestmark = [pytest.mark.weft_only, needs_hosting]

# Those that start a server of their own are about another disk. One takes long, and nbdcheck tests
# replies that nobody reads as well.
TESTS = {name: test for name, test in vars(suite).items() if name.startswith("test_")
         and "serve" not in inspect.signature(test).parameters
         and name != "test_client_that_never_reads_its_replies"}
globals().update(TESTS)


@pytest.fixture
def server(serve):
    server = serve(plugin("memory"), "256M")
    yield server
    server.check_serves()


@pytest.fixture(params=[False, True], ids=["simple", "structured"])
def raw(server, request):
    with Raw(server.socket) as client:
        client.negotiate(structured=request.param, allocation=request.param)
        client.structured = request.param
        yield client
        if not getattr(client, "ends", False):
            assert client.read(suite.SIZE - 512, 512) == bytes(512)


def test_the_suite_is_here():
    assert len(TESTS) > 20
