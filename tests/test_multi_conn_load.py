# SPDX-License-Identifier: BSD-3-Clause
"""Random load through the multi-conn filter: what was acknowledged and flushed is seen by all.

The disk keeps a copy for each connection, so that whatever a flush leaves out is found.
"""
import random

import nbd
import pytest

from harness import WEFT, on_connections, run
from multi_conn import TRACKINGS, CopiesDisk, have_filter

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(not have_filter("multi-conn"),
                                 reason=f"{WEFT} has no filter multi-conn")]
FUA = nbd.CMD_FLAG_FUA
BLOCK = 512


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_changes_one_after_the_other(serve, engine, tracking):
    """One request at a time: the newest of all changes is what everybody sees after a flush."""
    disk = CopiesDisk(serve, "multi-conn", engine=engine, multi_conn_track_dirty=tracking)
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    model = bytearray(b"Initial contents".ljust(32))
    history = []
    with disk.connected(4) as clients:
        for _ in range(120):
            me = rng.randrange(4)
            client = clients[me]
            offset = rng.randrange(32)
            length = rng.randrange(1, min(8, 32 - offset) + 1)
            fua = FUA if rng.random() < 0.15 else 0
            action = rng.choice(["write", "write", "write", "zero", "trim", "read", "flush"])
            history.append((me, action, offset, length, fua))
            if action == "write":
                data = bytes(rng.choices(b"abcdefgh", k=length))
                client.pwrite(data, offset, fua)
            elif action == "read":
                client.pread(length, offset)
            elif action == "flush":
                client.flush()
            else:
                data = bytes(length)
                (client.zero if action == "zero" else client.trim)(length, offset, fua)
            if action in ("write", "zero", "trim"):
                model[offset:offset + length] = data
                # Whoever has written sees it.
                assert client.pread(length, offset) == data, f"seed {seed}: {history}"
            if action == "flush" or (fua and action in ("write", "zero", "trim")):
                for number, reader in enumerate(clients):
                    assert reader.pread(32, 0) == model, f"seed {seed}: {number} of {history}"


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_many_at_once(serve, engine, tracking):
    """Each thread counts up in blocks of its own, and looks at those of others after a flush.

    What a thread must see after its flush is what had been acknowledged before it was sent, and
    what anybody's FUA or flush has published.
    """
    threads, steps, blocks = 4, 40, 16
    disk = CopiesDisk(serve, "multi-conn", engine=engine, multi_conn_track_dirty=tracking,
                      model="serialize_requests", size=blocks * BLOCK, block=BLOCK)
    seed = random.randrange(1 << 32)
    acknowledged = [0] * blocks  # each written by its owner only

    def encode(count):
        return b"%07d " % count * (BLOCK // 8)

    def decode(data):
        """The oldest and the newest count in a block: who reads while somebody else flushes may
        see some of each."""
        words = [bytes(data[start:start + 7]) for start in range(0, BLOCK, 8)]
        counts = [int(word) if word.isdigit() else 0 for word in words]  # not: from the beginning
        return min(counts), max(counts)

    def work(me, client, rng):
        for _ in range(steps):
            block = rng.randrange(blocks // threads) * threads + me
            if rng.random() < 0.5:
                client.pwrite(encode(acknowledged[block] + 1), block * BLOCK,
                              FUA if rng.random() < 0.2 else 0)
                acknowledged[block] += 1
                assert decode(client.pread(BLOCK, block * BLOCK)) == (
                    acknowledged[block], acknowledged[block]), f"own block {block}"
                continue
            floor = list(acknowledged)
            client.flush()
            block = rng.randrange(blocks)
            seen, _ = decode(client.pread(BLOCK, block * BLOCK))
            assert seen >= floor[block], (
                f"block {block} after a flush is {seen}, and {floor[block]} was acknowledged "
                "before it")

    on_connections(threads, disk.server.connect, work, seed)
    with disk.client() as last:
        last.flush()
        assert [decode(last.pread(BLOCK, number * BLOCK)) for number in range(blocks)] == [
            (count, count) for count in acknowledged], f"seed {seed}"


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_a_copy_by_nbdcopy(serve, image, folder, tracking):
    """A client that uses several connections because it is told that it may."""
    size = 32 * BLOCK
    source = image(size)
    disk = CopiesDisk(serve, "multi-conn", multi_conn_track_dirty=tracking,
                      model="serialize_requests", size=size, block=BLOCK)
    run("nbdcopy", "--connections=4", "--threads=4", "--requests=2", "--request-size=4096",
        "--flush", source, disk.server.uri())
    run("nbdcopy", "--connections=4", "--threads=4", "--requests=2", "--request-size=4096",
        disk.server.uri(), folder / "copy")
    assert (folder / "copy").read_bytes() == source.read_bytes()
