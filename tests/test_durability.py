# SPDX-License-Identifier: BSD-3-Clause
"""What was acknowledged stays: after kill -9, and when the disk is full."""
import errno
import os
import random
import struct
import threading
import time

import nbd
import pytest

from harness import KIB, MIB, close, run, wait_until, why_no_loop, why_no_mount

BLOCK = 4 * KIB
BLOCKS = 256


def tag(writer, serial):
    """A block that names its write, in every one of its words."""
    return struct.pack(">II", writer, serial) * (BLOCK // 8)


class Writer(threading.Thread):
    """Writes tagged blocks, several in flight, until the server is gone.

    Each writer owns the blocks that are `me` modulo the number of writers. Before it sends a
    write it notes it as possible; when the reply arrives it notes it as acknowledged.
    """

    def __init__(self, server, me, writers, seed):
        super().__init__()
        self.client = server.connect()
        self.me, self.writers = me, writers
        self.rng = random.Random(seed * 1000 + me)
        self.acknowledged = {}  # block -> serial
        self.sent = {}          # block -> latest serial that may have been written
        self.count = 0
        self.unexpected = None

    def run(self):
        in_flight = {}
        serial = 0
        try:
            while True:
                while len(in_flight) < 8:
                    block = self.rng.randrange(BLOCKS // self.writers) * self.writers + self.me
                    if any(block == other for other, _ in in_flight.values()):
                        continue
                    serial += 1
                    self.sent[block] = serial
                    buffer = nbd.Buffer.from_bytearray(bytearray(tag(self.me, serial)))
                    flags = nbd.CMD_FLAG_FUA if self.rng.random() < 0.02 else 0
                    cookie = self.client.aio_pwrite(buffer, block * BLOCK, flags=flags)
                    in_flight[cookie] = (block, serial)
                self.client.poll(100)
                for cookie in list(in_flight):
                    if self.client.aio_command_completed(cookie):
                        block, done = in_flight.pop(cookie)
                        self.acknowledged[block] = done
                        self.count += 1
        except nbd.Error as error:
            if error.errnum not in (0, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE,
                                    errno.ESHUTDOWN, errno.EINVAL):
                self.unexpected = error


@pytest.mark.parametrize("plugin_options", [[], ["cache=none"]], ids=["buffered", "direct"])
def test_kill_9_under_load_loses_no_acknowledged_write(serve, engine, image, plugin_options):
    path = image(BLOCK * BLOCKS, content=b"")
    seed = random.randrange(1 << 32)
    # cache=none means something else to nbdkit; the promise is the same.
    server = serve("file", path, *plugin_options, engine=engine)
    writers = [Writer(server, me, 4, seed) for me in range(4)]
    for writer in writers:
        writer.start()
    wait_until(lambda: sum(writer.count for writer in writers) > 20_000, "20000 replies to writes")
    server.kill()
    for writer in writers:
        writer.join()
        assert writer.unexpected is None, f"seed {seed}: {writer.unexpected}"
    with open(path, "rb") as disk:
        content = disk.read()
    for writer in writers:
        for block, serial in writer.acknowledged.items():
            found = content[block * BLOCK:(block + 1) * BLOCK]
            allowed = {tag(writer.me, serial), tag(writer.me, writer.sent[block])}
            assert found in allowed, (
                f"seed {seed}: block {block} of writer {writer.me} was acknowledged as {serial}, "
                f"found {struct.unpack('>II', found[:8])}")


def test_restart_after_kill_9_serves_what_was_acknowledged(serve, engine, image):
    path = image(MIB, content=b"")
    first = serve("file", path, engine=engine)
    client = first.connect()
    client.pwrite(b"acknowledged", 5000)
    first.kill()
    close(client)
    # The image's lock died with its holder: the next server starts at once.
    second = serve("file", path, engine=engine)
    with second.client() as client:
        assert client.pread(12, 5000) == b"acknowledged"


def fill(client, size):
    """Writes until the server refuses; returns the errno and the number of blocks taken."""
    block = os.urandom(256 * KIB)
    for offset in range(0, size, len(block)):
        try:
            client.pwrite(block, offset)
        except nbd.Error as error:
            return error.errnum, offset // len(block)
    return None, size // len(block)


def check_full_disk(server, size):
    with server.client() as client, server.client() as other:
        number, taken = fill(client, size)
        assert number == errno.ENOSPC, f"errno {number} after {taken} blocks"
        assert taken > 0
        # Both go on: what was written is read, and the error was this write's alone.
        assert len(client.pread(4096, 0)) == 4096
        assert len(other.pread(4096, 0)) == 4096
        # Overwriting takes no space; giving back makes room.
        client.pwrite(b"x" * 4096, 0)
        assert other.pread(4096, 0) == b"x" * 4096
        other.trim(256 * KIB * (taken // 2), 0)
        client.flush()
        client.pwrite(b"y" * 4096, 256 * KIB * (taken + 1))
    assert server.alive()


@pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount()))
def test_full_tmpfs_is_enospc_and_the_server_lives(serve, engine, folder, mounts):
    mounts.tmpfs(folder / "small", "8m")
    path = folder / "small" / "disk.img"
    path.touch()
    os.truncate(path, 64 * MIB)
    server = serve("file", path, engine=engine)
    check_full_disk(server, 64 * MIB)
    server.stop()


@pytest.mark.skipif(why_no_loop() is not None, reason=str(why_no_loop()))
def test_full_ext4_is_enospc_and_the_server_lives(serve, engine, folder, mounts):
    run("truncate", "-s", "24M", folder / "fs.img")
    run("mkfs.ext4", "-q", "-O", "^has_journal", folder / "fs.img")
    mounts.mount(mounts.loop(folder / "fs.img"), folder / "small")
    path = folder / "small" / "disk.img"
    path.touch()
    os.truncate(path, 64 * MIB)
    server = serve("file", path, engine=engine)
    check_full_disk(server, 64 * MIB)
    server.stop()


@pytest.mark.weft_only
@pytest.mark.skipif(why_no_loop() is not None, reason=str(why_no_loop()))
def test_failed_flush_stays_failed_everywhere(serve, engine, folder, mounts):
    """A loop device whose file has no room: writes reach the page cache, the flush fails.

    Linux reports such a failure once and calls the pages clean; the next fdatasync would succeed.
    """
    mounts.tmpfs(folder / "small", "4m")
    backing = folder / "small" / "backing.img"
    backing.touch()
    os.truncate(backing, 64 * MIB)
    server = serve("file", mounts.loop(backing), engine=engine)

    def must_fail(action, *args, **kwargs):
        with pytest.raises(nbd.Error) as failure:
            action(*args, **kwargs)
        assert failure.value.errnum in (errno.EIO, errno.ENOSPC)

    with server.client() as a, server.client() as b:
        for offset in range(0, 32 * MIB, MIB):
            a.pwrite(b"x" * MIB, offset)
        must_fail(b.flush)
        must_fail(a.flush)
        must_fail(b.flush)
        must_fail(a.pwrite, b"f" * 4096, 0, nbd.CMD_FLAG_FUA)
        with server.client() as new:
            must_fail(new.flush)
            must_fail(new.pwrite, b"f" * 4096, 4096, nbd.CMD_FLAG_FUA)
    # The last client has left; the mark has not.
    with server.client() as late:
        must_fail(late.flush)
    server.may_die = True  # a server that knows of lost data may say so with its status
    server.stop()


def test_flush_while_writes_are_in_flight(serve, engine, image):
    """A second flush with no write between must cover what the first could not."""
    path = image(BLOCK * BLOCKS, content=b"")
    server = serve("file", path, engine=engine)
    with server.client() as client:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            buffer = nbd.Buffer.from_bytearray(bytearray(os.urandom(BLOCK)))
            write = client.aio_pwrite(buffer, 0)
            first = client.aio_flush()
            for cookie in (write, first):
                while not client.aio_command_completed(cookie):
                    client.poll(-1)
            client.flush()
            assert client.pread(BLOCK, 0) == buffer.to_bytearray()
