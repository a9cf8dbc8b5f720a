# SPDX-License-Identifier: BSD-3-Clause
"""faulty-server, which the tests of nbdcheck are run against: it is right until told otherwise.

What each fault does is seen by nbdcheck, in test_nbdcheck_faults.py.
"""
import errno
import json
import os
import random
import threading

import nbd
import pytest

import rawclient
from faulty import FAULTY, Faulty
from harness import KIB, MIB, close, on_connections, run

pytestmark = [pytest.mark.sanitized, pytest.mark.weft_only,
              pytest.mark.skipif(not os.path.exists(FAULTY), reason=f"{FAULTY} is not built")]


@pytest.fixture
def start():
    servers = []

    def one(*args):
        servers.append(Faulty(*args))
        return servers[-1]

    yield one
    for server in servers:
        server.stop()


@pytest.fixture(params=["memory", "file"])
def disk(request, folder):
    """The options for a disk of 4 MiB."""
    if request.param == "memory":
        return ["--size=4M"]
    path = folder / "disk"
    path.write_bytes(bytes(4 * MIB))
    return [f"--file={path}"]


def test_it_offers_everything(start):
    export = json.loads(run("nbdinfo", "--json", start("--size=4M").uri).stdout)["exports"][0]
    assert export["export-size"] == 4 * MIB
    assert "base:allocation" in export["contexts"]
    for capability in ("multi_conn", "flush", "fua", "trim", "zero", "fast_zero", "cache", "df"):
        assert export[f"can_{capability}"] is True, capability
    alone = start("--size=4M", "--no-multi-conn")
    export = json.loads(run("nbdinfo", "--json", alone.uri).stdout)["exports"][0]
    assert export["can_multi_conn"] is False


def test_nbdcopy_there_and_back(start, disk, folder):
    server = start(*disk)
    content = os.urandom(MIB) + bytes(MIB) + os.urandom(2 * MIB)
    (folder / "content").write_bytes(content)
    run("nbdcopy", "--flush", "--connections=4", folder / "content", server.uri)
    run("nbdcopy", "--connections=4", server.uri, folder / "copy")
    assert (folder / "copy").read_bytes() == content


def test_what_is_acknowledged_is_seen_on_every_connection(start, disk):
    """Threads with pieces of their own, of odd length, read what others have written."""
    server = start(*disk)
    lock = threading.Lock()
    pieces = [(at * 1000 + 7, bytes(993)) for at in range(64)]

    def work(me, client, numbers):
        for _ in range(60):
            with lock:
                index = numbers.randrange(len(pieces))
                offset, content = pieces[index]
                assert client.pread(len(content), offset) == content, f"{me} at {offset}"
                content = numbers.randbytes(len(content))
                client.pwrite(content, offset, nbd.CMD_FLAG_FUA if index % 3 == 0 else 0)
                pieces[index] = offset, content
            if index % 5 == 0:
                client.flush()

    on_connections(4, server.connect, work, seed=1)


def test_overlapping_writes_are_done_in_their_order(start):
    """The order in which they were sent, though they run in parallel."""
    server = start("--delay=500", "--workers=8")
    with rawclient.Raw(server.socket) as client:
        client.negotiate(structured=True)
        for number in range(1, 41):
            client.write(100, bytes([number]) * 1000)
        assert {client.reply().cookie for _ in range(40)} == set(range(1, 41))
        assert client.read(100, 1000) == bytes([40]) * 1000


def test_replies_come_out_of_order(start):
    server = start("--delay=500", "--workers=8")
    with rawclient.Raw(server.socket) as client:
        client.negotiate(structured=True)
        cookies = [client.request(rawclient.CMD_READ, at * 4096, 512) for at in range(64)]
        got = [client.reply().cookie for _ in cookies]
        assert sorted(got) == cookies
        assert got != cookies


def test_zeroes_trim_and_block_status(start, disk):
    server = start(*disk)
    client = server.connect(contexts=["base:allocation"])
    try:
        client.pwrite(b"x" * 64 * KIB, 0)
        client.zero(8 * KIB, 16 * KIB + 1)
        client.trim(8 * KIB, 40 * KIB)
        assert client.pread(64 * KIB, 0)[16 * KIB:24 * KIB + 2] == b"x" + bytes(8 * KIB) + b"x"
        assert client.pread(40 * KIB, 0)[24 * KIB + 1:] == b"x" * (16 * KIB - 1)
        seen = []
        client.block_status(MIB, 0, lambda name, offset, entries, error: seen.extend(entries))
        assert seen[:4] == [16 * KIB + 1, 0, 8 * KIB, 2]
        with pytest.raises(nbd.Error) as failure:
            client.set_strict_mode(0)
            client.pwrite(b"x", 4 * MIB)
        assert failure.value.errnum == errno.ENOSPC
        client.cache(MIB, 0)
        client.flush()
    finally:
        close(client)


@pytest.mark.parametrize("extended", [False, True])
def test_disc_waits_for_what_is_in_flight(start, extended):
    server = start("--delay=2000")
    with rawclient.Raw(server.socket) as client:
        client.negotiate(structured=True, extended=extended)
        for number in range(16):
            client.write(number * 512, bytes([number]) * 512)
        client.disconnect()
        assert {client.reply().cookie for _ in range(16)} == set(range(1, 17))
        assert client.expect_closed() == b""


def test_a_cut_write_does_not_come_late(start):
    """What a cut connection had asked for never undoes what another wrote afterwards."""
    server = start("--delay=300")
    numbers = random.Random(1)
    for turn in range(200):
        with rawclient.Raw(server.socket) as cut:
            cut.negotiate()
            for _ in range(numbers.randrange(1, 12)):
                cut.write(0, b"old!" * 256)
        with rawclient.Raw(server.socket) as client:
            client.negotiate()
            assert client.error_of(rawclient.CMD_WRITE, 0, 1024, payload=b"new!" * 256) == 0
            for _ in range(3):
                assert client.read(0, 1024) == b"new!" * 256, f"turn {turn}"


def test_every_fault_is_explained():
    listed = run(FAULTY, "--list-faults").stdout.splitlines()[1:]
    assert len(listed) >= 20
    for line in listed:
        name, chance, mode, text = line.split(maxsplit=3)
        assert 0 < float(chance) <= 1 and len(text) > 20, name
        assert mode in ("consistency", "reconnect", "conformance", "power-cut", "fail-flush",
                        "fail-io"), name


@pytest.mark.parametrize("options, word", [
    ([], "--socket is missing"),
    (["--socket=/nowhere/s"], "/nowhere/s"),
    (["--socket=/tmp/s", "--fault=no-such"], "--list-faults"),
    (["--socket=/tmp/s", "--fault=hang:2"], "from 0 to 1"),
    (["--socket=/tmp/s", "--block=100"], "power of two"),
    (["--socket=/tmp/s", "--file=/nowhere/disk"], "No such file"),
    (["--socket=/tmp/s", "word"], "'word'"),
])
def test_wrong_options(options, word):
    done = run(FAULTY, *options, check=False)
    assert done.returncode == 1
    assert word in done.stderr and done.stderr.count("\n") <= 2
