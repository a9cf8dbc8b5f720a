# SPDX-License-Identifier: BSD-3-Clause
"""Which engine runs, why, and what an idle connection costs."""
import errno
import os
import pathlib
import sys

import pytest

from harness import MIB, SANITIZED, WEFT, run
from rawclient import Raw

pytestmark = pytest.mark.weft_only
NO_IO_URING = str(pathlib.Path(__file__).parent / "no_io_uring.py")


def refusing(number):
    return [sys.executable, NO_IO_URING, str(number)]


def uses_io_uring(server):
    folder = f"/proc/{server.pid}/fd"
    return any("io_uring" in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))


def io_uring_works():
    return run(WEFT, "--engine=io_uring", "-U", "-", "memory", "1M", "--run", "true",
               check=False).returncode == 0



def test_auto_takes_io_uring_and_says_so(serve):
    if not io_uring_works():
        pytest.skip("this kernel refuses io_uring")
    server = serve("memory", "1M", options=["-v", "--engine=auto"])
    server.check_serves()
    assert uses_io_uring(server)
    assert "io_uring" in server.log()


def test_epoll_when_ordered(serve):
    server = serve("memory", "1M", options=["-v", "--engine=epoll"])
    server.check_serves()
    assert not uses_io_uring(server)
    assert "epoll" in server.log()


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS])
def test_auto_falls_back_to_epoll_where_io_uring_is_refused(serve, number):
    server = serve("memory", "1M", launcher=refusing(number), options=["-v"])
    server.check_serves()
    assert not uses_io_uring(server)
    line = next(line for line in server.log().splitlines()
                if "epoll" in line and "io_uring" in line)
    assert os.strerror(number) in line, "the log gives the reason"


def test_file_disk_on_the_fallback(serve, image):
    server = serve("file", image(4 * MIB), launcher=refusing(errno.EPERM))
    server.check_serves()
    with server.client() as client:
        client.pwrite(b"x" * MIB, 512)
        client.flush()
        client.trim(MIB, 0)


def test_io_uring_when_ordered_but_refused_is_an_error():
    done = run(*refusing(errno.EPERM), WEFT, "--engine=io_uring", "-U", "-", "memory", "1M",
               "--run", "true", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("weft: ") and "io_uring" in done.stderr


def status(server, field):
    with open(f"/proc/{server.pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def test_idle_connections_cost_no_thread_and_little_memory(serve, engine):
    server = serve("memory", "16M", engine=engine)
    server.check_serves()
    clients = []
    try:
        for _ in range(50):  # what is allocated once is there now
            clients.append(Raw(server.socket))
            clients[-1].negotiate()
        threads, memory = status(server, "Threads"), status(server, "VmRSS")
        for _ in range(400):
            clients.append(Raw(server.socket))
            clients[-1].negotiate()
        assert status(server, "Threads") == threads
        if not SANITIZED:
            assert (status(server, "VmRSS") - memory) / 400 <= 16, "KiB for each connection"
        server.check_serves()
    finally:
        for client in clients:
            client.close()
