# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of the multi-conn filter share: their two disks, and clients of them."""
import atexit
import contextlib
import pathlib
import re
import shutil
import tempfile

import nbd
import pytest

from harness import NBDKIT, ROOT, TIMEOUT_S, WEFT, Server, run, wait_until

HERE = pathlib.Path(__file__).resolve().parent
COPIES_DISK = HERE / "multi_conn_disk.sh"
CALLS_DISK = HERE / "call_log_disk.sh"
TRACKINGS = ["connection", "fast", "off"]


def words(**parameters):
    """key=value words for a command line; a _ in a key stands for a -."""
    return [f"{key.replace('_', '-')}={value}" for key, value in parameters.items()]


def filters(*names):
    return [f"--filter={name}" for name in names]


def have_filter(name, program=WEFT):
    """Whether the program has this filter."""
    return run(program, f"--filter={name}", "--dump-plugin", "memory", "1M",
               check=False).returncode == 0


def have_plugin(name, program=WEFT):
    return f"there is no plugin '{name}'" not in run(program, "--dump-plugin", name,
                                                     check=False).stderr


@contextlib.contextmanager
def connected(server, count, export=""):
    """Clients of one export; all say goodbye at the end."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server.client(export)) for _ in range(count)]


def error_of(call, *args):
    """The errno of a libnbd call, or None when it succeeds."""
    try:
        call(*args)
    except nbd.Error as error:
        return error.errnum
    return None


class CopiesDisk:
    """multi_conn_disk.sh behind some filters: each connection has a copy until it flushes."""

    def __init__(self, serve, *stack, engine=None, options=(), program=WEFT, **parameters):
        self.server = serve(*filters(*stack), "sh", COPIES_DISK, *words(**parameters),
                            engine=engine, options=options, program=program)
        self.client = self.server.client

    def connected(self, count):
        return connected(self.server, count)


class CallsDisk:
    """call_log_disk.sh behind some filters: notes its calls, can be held up and made fail."""

    def __init__(self, serve, *stack, engine=None, options=(), program=WEFT, **parameters):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="weft-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)  # servers end before
        self.server = serve(*filters(*stack), "sh", CALLS_DISK, f"folder={self.folder}",
                            *words(**parameters), engine=engine, options=options, program=program)
        self.client = self.server.client

    def connected(self, count, export=""):
        return connected(self.server, count, export)

    def calls(self):
        """[(method, handle, what)...]"""
        return [tuple(line.split()) for line in (self.folder / "calls").read_text().splitlines()]

    def count(self, method, what="begin"):
        return sum(call[0] == method and call[-1] == what for call in self.calls())

    def wait_for(self, method, what="begin", count=1):
        wait_until(lambda: self.count(method, what) >= count,
                   f"{count} x {method} {what}; the calls: {self.calls()}")

    @contextlib.contextmanager
    def held(self, what):
        """Inside the with statement such calls wait: "slow", "flush", "flush.EXPORT", ..."""
        gate = self.folder / f"hold-{what}"
        gate.touch()
        try:
            yield
        finally:
            gate.unlink()

    def content(self, offset, length):
        with open(self.folder / "disk", "rb") as disk:
            disk.seek(offset)
            return disk.read(length)


class Pending:
    """A command of libnbd that is on its way."""

    def __init__(self, client, cookie, buffer=None):
        self.client, self.cookie, self.buffer = client, cookie, buffer

    def error(self):
        """Waits for the reply; its errno, or None."""
        try:
            def done():
                self.client.poll(10)
                return self.client.aio_command_completed(self.cookie)
            wait_until(done, "the reply to a command", TIMEOUT_S)
        except nbd.Error as error:
            return error.errnum
        return None

    def arrived(self):
        """Whether the reply is there; does not wait. For commands that succeed."""
        self.client.poll(0)
        return self.client.aio_command_completed(self.cookie)


def send_write(client, data, offset, flags=0):
    buffer = nbd.Buffer.from_bytearray(bytearray(data))
    return Pending(client, client.aio_pwrite(buffer, offset, flags=flags), buffer)


def send_flush(client):
    return Pending(client, client.aio_flush())


# The filter of Debian's nbdkit has these defects. Each is a function check(start, program), which
# the tests call with weft; here it must fail, which shows that it can.

HAVE_NBDKIT = pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")


class Starter:
    """Starts servers for a check that is expected to fail, and ends them without asking how."""

    def __init__(self):
        self.servers = []

    def __call__(self, *args, **kwargs):
        server = Server(*args, **kwargs)
        self.servers.append(server)
        return server

    def end(self):
        for server in self.servers:
            server.kill()
            server.remove()


def fails_on_nbdkit(check, *args):
    """Runs the check on Debian's nbdkit; returns why it failed, and insists that it did."""
    start = Starter()
    try:
        check(start, NBDKIT, *args)
    except (AssertionError, OSError, nbd.Error) as error:
        return str(error)
    finally:
        start.end()
    raise AssertionError("nbdkit does it right: is the check good for anything?")


def flushes_counted(path):
    """What a stats filter has written to its file about flushes."""
    found = re.search(r"^flush: (\d+) ops", pathlib.Path(path).read_text(), re.M)
    return int(found[1]) if found else 0
