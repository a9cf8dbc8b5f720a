# SPDX-License-Identifier: BSD-3-Clause
"""The fixtures: `serve` starts servers, `engine` runs a test once per engine."""
import os
import pathlib
import shutil
import tempfile

import pytest

from harness import ENGINES, IS_WEFT, WEFT, Mounts, Server, Watchdog

TEST_TIMEOUT_S = 120


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitized: part of the short run with sanitizers")
    config.addinivalue_line("markers", "weft_only: a promise that nbdkit does not make")
    if shutil.which(WEFT) is None:
        raise pytest.UsageError(f"there is no program {WEFT}; build it (cmake --preset release && "
                                "cmake --build --preset release) or set WEFT")


def pytest_collection_modifyitems(config, items):
    if IS_WEFT:
        return
    others = [item for item in items if item.get_closest_marker("weft_only")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if item not in others]


def pytest_report_header():
    return f"program under test: {WEFT}"


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture
def serve():
    """serve(args...) starts a server; all are stopped, and must end cleanly, with the test."""
    servers = []
    watchdog = Watchdog(servers, TEST_TIMEOUT_S)

    def start(*args, **kwargs):
        server = Server(*args, **kwargs)
        servers.append(server)
        return server

    yield start
    watchdog.cancel()
    failures = []
    for server in reversed(servers):
        try:
            server.stop()
        except AssertionError as failure:
            failures.append(str(failure))
        finally:
            server.kill()
            server.remove()
    if watchdog.fired:
        failures.append(f"the test did not end within {TEST_TIMEOUT_S} s")
    assert not failures, "\n".join(failures)


@pytest.fixture
def mounts():
    made = Mounts()
    yield made
    made.close()


@pytest.fixture
def folder():
    """A private folder with a short name (Unix sockets), on a real file system."""
    base = os.environ.get("WEFT_TEST_DIR", tempfile.gettempdir())
    path = pathlib.Path(tempfile.mkdtemp(prefix="weft-", dir=base))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def image(folder):
    """image(size) makes a file of random content and returns its path."""
    def make(size, name="disk.img", content=None):
        path = folder / name
        with open(path, "wb") as out:
            if content is not None:
                out.write(content)
                out.truncate(size)
            else:
                for start in range(0, size, 1 << 20):
                    out.write(os.urandom(min(1 << 20, size - start)))
        return path
    return make
