# SPDX-License-Identifier: BSD-3-Clause
"""The delay filter: what is delayed takes that long at least, what is not does not wait."""
import errno
import signal
import time

import nbd
import pytest

from harness import KIB, MIB, WEFT, close, run
from manuals import examples, in_folder, words

pytestmark = pytest.mark.weft_only

BASE = ("base:allocation",)
OPERATIONS = {
    "read": lambda client: client.pread(512, 0),
    "write": lambda client: client.pwrite(b"x" * 512, 0),
    "zero": lambda client: client.zero(512, 0),
    "trim": lambda client: client.trim(512, 0),
    "extents": lambda client: client.block_status(512, 0, lambda *_: 0),
    "cache": lambda client: client.cache(512, 0),
    "flush": lambda client: client.flush(),
}
LONG_S = 30  # far above what a step takes, and never waited for


def took_s(action, *args):
    begun = time.monotonic()
    action(*args)
    return time.monotonic() - begun


@pytest.mark.parametrize("parameter, delayed", [
    ("rdelay", {"read"}),
    ("wdelay", {"write", "zero", "trim"}),
    *((f"delay-{name}", {name}) for name in OPERATIONS),
])
def test_each_parameter_delays_its_operations_and_no_other(serve, engine, parameter, delayed):
    server = serve("--filter=delay", "memory", "1M", f"{parameter}=300ms", engine=engine)
    with server.client(contexts=BASE) as client:
        for name, operation in OPERATIONS.items():
            if name in delayed:
                assert took_s(operation, client) >= 0.3
    # The others do not wait: with a delay that is longer than the test may take.
    server = serve("--filter=delay", "memory", "1M", f"{parameter}={LONG_S}", engine=engine)
    with server.client(contexts=BASE) as client:
        for name, operation in OPERATIONS.items():
            if name not in delayed:
                assert took_s(operation, client) < LONG_S


def test_data_is_what_it_would_be(serve, engine):
    server = serve("--filter=delay", "memory", "1M", "rdelay=5ms", "wdelay=5ms", "delay-cache=1ms",
                   engine=engine)
    with server.client() as client:
        client.pwrite(b"abc" * 1000, 777)
        client.zero(1000, 1000)
        data = client.pread(3000, 777)
        expected = bytearray(b"abc" * 1000)
        expected[223:1223] = bytes(1000)
        assert data == expected


def test_delays_run_side_by_side(serve, engine):
    server = serve("--filter=delay", "memory", "1M", "rdelay=500ms", engine=engine)
    clients = [server.connect() for _ in range(4)]
    begun = time.monotonic()
    pending = []
    for client in clients:
        for i in range(50):
            buffer = nbd.Buffer(512)
            pending.append((client, client.aio_pread(buffer, i * 512)))
    for client, cookie in pending:
        while not client.aio_command_completed(cookie):
            client.poll(1000)
    took = time.monotonic() - begun
    assert took >= 0.5
    assert took < 20, "200 delays one after another would take 100 s"
    for client in clients:
        close(client)


def test_fast_zero(serve):
    server = serve("--filter=delay", "memory", "1M", f"delay-zero={LONG_S}", "delay-fast-zero=off")
    with server.client() as client:
        assert client.can_fast_zero()
        with pytest.raises(nbd.Error) as failure:
            client.zero(512, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert failure.value.errnum == errno.ENOTSUP
    server = serve("--filter=delay", "memory", "1M", "delay-zero=300ms", "delay-fast-zero=on")
    with server.client() as client:
        assert took_s(client.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO) >= 0.3


def test_open_and_close(serve, engine):
    server = serve("--filter=delay", "memory", "1M", "delay-open=400ms", engine=engine,
                   options=["--timeout=200ms"])
    assert took_s(server.check_serves) >= 0.4
    server = serve("--filter=delay", "memory", "1M", "delay-close=400ms", engine=engine)
    client = server.connect()
    client.pread(512, 0)
    assert took_s(close, client) >= 0.4, "the client sees the end after the delay"
    client = server.connect()
    client.pread(512, 0)
    assert took_s(server.stop) >= 0.4, "the server waits for the connection's end"


@pytest.mark.parametrize("drain_s", [0.5, 2])
def test_a_long_delay_does_not_keep_the_server(serve, engine, drain_s):
    server = serve("--filter=delay", "memory", "1M", "delay-read=60", engine=engine,
                   options=[f"--drain-timeout={drain_s}"])
    server.may_die = True  # its status says that not all was done
    client = server.connect()
    cookie = client.aio_pread(nbd.Buffer(512), 0)
    while client.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
        client.poll(100)
    other = server.connect()  # by now the request has arrived
    close(other)
    begun = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait() in (0, 1)
    assert time.monotonic() - begun < drain_s + 5
    with pytest.raises(nbd.Error) as failure:
        while not client.aio_command_completed(cookie):
            client.poll(1000)
    assert failure.value.errnum == errno.ESHUTDOWN


def test_what_is_delayed_is_finished_when_there_is_time(serve, engine):
    server = serve("--filter=delay", "memory", "1M", "wdelay=700ms", engine=engine)
    client = server.connect()
    cookie = client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4 * KIB)), 0)
    while client.aio_get_direction() & nbd.AIO_DIRECTION_WRITE:
        client.poll(100)
    close(server.connect())
    server.signal(signal.SIGTERM)
    while not client.aio_command_completed(cookie):
        client.poll(1000)
    assert server.wait() == 0


@pytest.mark.parametrize("argument", ["rdelay=", "wdelay=x", "delay-open=-1", "delay-flush=1h",
                                      "delay-fast-zero=maybe", "delay-read=1e3"])
def test_wrong_parameters_are_refused_in_one_line(argument):
    done = run(WEFT, "--filter=delay", "memory", "1M", argument, "--run", "true", check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    key, value = argument.split("=")
    assert key in done.stderr and repr(value) in done.stderr


def test_examples_of_the_manual(serve, folder):
    both, zero, flush = examples("filters/delay/weft-delay-filter.md")
    (folder / "disk.img").write_bytes(bytes(MIB))
    for example, delayed, least_s in ((both, ("read", "write"), 0.1), (zero, ("zero",), 1),
                                      (flush, ("flush",), 0.02)):
        server = serve(*words(example), preexec=in_folder(folder))
        with server.client() as client:
            for name in delayed:
                assert took_s(OPERATIONS[name], client) >= least_s
        server.stop()
