# SPDX-License-Identifier: BSD-3-Clause
"""Many connections see one disk."""
import contextlib
import os
import random

import nbd
import pytest

from harness import KIB, MIB, WEFT, on_connections, run
from rawclient import Raw

pytestmark = pytest.mark.sanitized
CAN_MULTI_CONN = 1 << 8


@pytest.fixture(params=["memory", "file"])
def disk(request, image):
    """The plugin and its parameter: an empty disk of 16 MiB."""
    if request.param == "memory":
        return ("memory", "16M")
    return ("file", str(image(16 * MIB, content=b"")))


def flags(server):
    with Raw(server.socket) as raw:
        return raw.negotiate()[1]


def test_flag_is_advertised_for_writable_and_read_only_exports(serve, engine, disk):
    for options in ([], ["-r"]):
        server = serve(*disk, engine=engine, options=options)
        assert flags(server) & CAN_MULTI_CONN
        server.stop()  # and with it its lock on the image


@pytest.mark.weft_only
def test_flag_is_not_advertised_when_only_one_client_may_connect(serve, engine, disk):
    for limit in (1, 2):
        server = serve(*disk, engine=engine, options=[f"--shared={limit}"])
        assert bool(flags(server) & CAN_MULTI_CONN) is (limit > 1)
        server.stop()


@pytest.mark.weft_only
def test_flag_is_not_advertised_on_stdin(engine):
    client = nbd.NBD()
    client.connect_command([WEFT, "-s", f"--engine={engine}", "memory", "1M"])
    assert client.can_multi_conn() is False
    client.pwrite(b"single", 0)
    assert client.pread(6, 0) == b"single"
    client.shutdown()


def test_acknowledged_write_is_visible_everywhere_at_once(serve, engine, disk):
    server = serve(*disk, engine=engine)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client()) for _ in range(8)]
        for number in range(64):
            writer = clients[number % 8]
            tag = os.urandom(4096)
            writer.pwrite(tag, 4096 * (number % 16))
            for reader in clients:
                assert reader.pread(4096, 4096 * (number % 16)) == tag
        clients[0].zero(8192, 0)
        assert clients[5].pread(8192, 0) == bytes(8192)


def test_flush_on_one_connection_covers_the_others(serve, engine, image):
    path = image(4 * MIB, content=b"")
    server = serve("file", path, engine=engine)
    with server.client() as a, server.client() as b:
        tag = os.urandom(4096)
        a.pwrite(tag, 65536)
        b.flush()
        # kill -9 right behind the flush: the write of the other connection stays.
        server.kill()
    with open(path, "rb") as disk:
        disk.seek(65536)
        assert disk.read(4096) == tag


def test_status_is_the_same_on_every_connection(serve, engine):
    server = serve("memory", "16M", engine=engine)
    with server.client(contexts=["base:allocation"]) as a, \
            server.client(contexts=["base:allocation"]) as b:
        a.pwrite(b"x" * 65536, MIB)
        seen = []
        b.block_status(16 * MIB, 0, lambda _c, _o, entries, _e: seen.extend(entries))
        assert seen == [MIB, 3, 65536, 0, 15 * MIB - 65536, 3]


def test_size_and_flags_are_the_same_on_every_connection(serve, engine, disk):
    server = serve(*disk, engine=engine)
    answers = set()
    for _ in range(5):
        with Raw(server.socket) as raw:
            answers.add(raw.negotiate())
    assert len(answers) == 1


def test_random_load_over_many_connections(serve, engine, disk):
    """Each thread owns every 8th block, and after each change all threads may read it."""
    server = serve(*disk, engine=engine)
    seed = random.randrange(1 << 32)
    block, count, threads, steps = 4 * KIB, 512, 8, 250
    model = [bytes(block)] * count

    def work(me, client, rng):
        for _ in range(steps):
            number = rng.randrange(count // threads) * threads + me
            action = rng.random()
            if action < 0.5:
                model[number] = rng.randbytes(block)
                client.pwrite(model[number], number * block,
                              nbd.CMD_FLAG_FUA if rng.random() < 0.05 else 0)
            elif action < 0.6:
                model[number] = bytes(block)
                client.zero(block, number * block)
            elif action < 0.65:
                client.flush()
            else:
                assert client.pread(block, number * block) == model[number], f"block {number}"

    on_connections(threads, server.connect, work, seed)
    with server.client() as client:
        assert client.pread(block * count, 0) == b"".join(model), f"seed {seed}"


@pytest.mark.weft_only
def test_overlapping_writes_take_effect_in_their_order(serve, engine, disk):
    """Pipelined writes of one connection to one place: the last one stays."""
    server = serve(*disk, engine=engine)
    with Raw(server.socket) as raw:
        raw.negotiate()
        for round_number in range(20):
            for number in range(64):
                raw.write(512 * (number % 3), bytes([number + 1]) * 4096)
            for _ in range(64):
                assert raw.reply().error == 0
            last = {number % 3: number + 1 for number in range(64)}
            newest = last[63 % 3]
            assert raw.read(512 * (63 % 3), 4096) == bytes([newest]) * 4096, round_number


def test_two_hundred_connections(serve, engine):
    server = serve("memory", "16M", engine=engine)
    clients = [server.connect() for _ in range(200)]
    for number, client in enumerate(clients):
        client.pwrite(number.to_bytes(4, "big"), number * 4)
    expected = b"".join(number.to_bytes(4, "big") for number in range(200))
    for client in clients:
        assert client.pread(800, 0) == expected
    for client in clients:
        client.shutdown()


def test_nbdcopy_uses_more_than_one_connection(serve, engine, image, folder):
    source = image(16 * MIB)
    server = serve("memory", "16M", engine=engine, options=["-v"])
    run("nbdcopy", "--connections=4", "--threads=4", source, server.uri())
    run("nbdcopy", "--connections=4", "--threads=4", server.uri(), folder / "copy")
    assert (folder / "copy").read_bytes() == source.read_bytes()
