# SPDX-License-Identifier: BSD-3-Clause
"""The readahead filter: prefetches for sequential readers, and is in nobody's way."""
import re

import pytest

from harness import KIB, MIB, wait_until


def readahead(serve, *args, filters=(), **kwargs):
    options = ["-v", "--filter=readahead", *(f"--filter={name}" for name in filters)]
    return serve(*args, options=options, **kwargs)


def prefetched(server, layer):
    return [(int(a), int(b))
            for a, b in re.findall(rf" {layer}: cache offset=(\d+) length=(\d+)", server.log())]


def read_all(client, size, step):
    content = b""
    for offset in range(0, size, step):
        content += client.pread(min(step, size - offset), offset)
    return content


@pytest.mark.parametrize("size", [16 * MIB, 4 * MIB + 123])
def test_a_sequential_reader_is_prefetched_for(serve, engine, image, size):
    path = image(size)
    server = readahead(serve, "file", path, engine=engine)
    with server.client() as client:
        assert read_all(client, size, 100 * KIB) == path.read_bytes()
    seen = prefetched(server, "file")
    assert seen
    for (offset, length), (after, _) in zip(seen, seen[1:]):
        assert offset + length <= after, "nothing is prefetched twice"
    assert all(length <= 4 * MIB and offset + length <= size for offset, length in seen)


def test_a_reader_that_jumps_is_left_alone(serve, engine, image):
    path = image(64 * MIB)
    server = readahead(serve, "file", path, engine=engine)
    with server.client() as client:
        for turn in range(100):
            offset = turn * 37 % 64 * MIB
            assert len(client.pread(4096, offset)) == 4096
    assert not prefetched(server, "file")


def test_connections_are_watched_apart(serve, engine, image):
    path = image(32 * MIB)
    server = readahead(serve, "file", path, engine=engine)
    with server.client() as one, server.client() as two:
        for offset in range(0, 4 * MIB, 65536):
            one.pread(65536, offset)
            two.pread(65536, 16 * MIB + offset)
    seen = prefetched(server, "file")
    assert any(offset < 16 * MIB for offset, _ in seen)
    assert any(offset >= 16 * MIB for offset, _ in seen)


def test_it_keeps_what_it_prefetches_in_an_overlay(serve, engine, image):
    """An example of the manual: the overlay holds what comes next before it is read."""
    path = image(4 * MIB)
    content = path.read_bytes()
    server = readahead(serve, "file", path, "cow-on-cache=true", filters=["cow"], engine=engine)
    read = 2 * 65536
    with server.client() as client:
        assert read_all(client, read, 65536) == content[:read]
        wait_until(lambda: prefetched(server, "cow"), "what comes next is prefetched")
    wait_until(lambda: "cow: close" in server.log(), "the disk is closed")
    ahead = max(offset + length for offset, length in prefetched(server, "cow"))
    assert ahead > read
    path.write_bytes(bytes(4 * MIB))
    with server.client() as client:
        assert client.pread(ahead - read, read) == content[read:ahead], "no prefetch is left undone"
        assert client.pread(MIB, 3 * MIB) == bytes(MIB)


def test_it_says_so_when_it_cannot_help(serve, image):
    # Direct I/O has no cache to fill.
    path = image(4 * MIB)
    server = readahead(serve, "file", path, "cache=none")
    for _ in range(2):
        with server.client() as client:
            assert read_all(client, 4 * MIB, 65536) == path.read_bytes()
    assert server.log().count("readahead: nothing will be prefetched") == 1
    assert not prefetched(server, "file")


def test_a_client_that_goes_leaves_nothing_behind(serve, engine, image):
    server = readahead(serve, "file", image(32 * MIB), engine=engine)
    for _ in range(20):
        client = server.connect()
        for offset in range(0, 2 * MIB, 65536):
            client.pread(65536, offset)
        del client  # without a goodbye
    server.check_serves()


def test_example_of_the_manual(serve, image):
    readahead(serve, "file", image(MIB)).check_serves()
