# SPDX-License-Identifier: BSD-3-Clause
"""libnbd's programs and its API: nbdinfo, nbdcopy, nbdsh's Python module."""
import errno
import hashlib
import json
import os

import nbd
import pytest

from harness import IS_WEFT, KIB, MIB, free_port, run, wait_until

pytestmark = pytest.mark.sanitized


def digest(path):
    with open(path, "rb") as source:
        return hashlib.sha256(source.read()).hexdigest()


def test_nbdinfo_json(serve, engine, image):
    server = serve("file", image(3 * MIB), engine=engine)
    info = json.loads(run("nbdinfo", "--json", server.uri()).stdout)
    assert info["protocol"] == "newstyle-fixed"
    export = info["exports"][0]
    assert export["export-size"] == 3 * MIB
    assert "base:allocation" in export["contexts"]
    assert export["can_multi_conn"] is True
    assert export["is_read_only"] is False
    for capability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_df", "can_cache"):
        assert export[capability] is True, capability


def test_nbdinfo_of_a_read_only_export(serve, engine, image):
    server = serve("file", image(MIB), engine=engine, options=["-r"])
    export = json.loads(run("nbdinfo", "--json", server.uri()).stdout)["exports"][0]
    assert export["is_read_only"] is True
    assert export["can_trim"] is False and export["can_zero"] is False


def test_nbdinfo_list_names_every_image_of_a_directory(serve, engine, folder):
    for number in range(12):
        (folder / f"disk-{number}").write_bytes(bytes(512 * (number + 1)))
    server = serve("file", f"dir={folder}", engine=engine)
    info = json.loads(run("nbdinfo", "--list", "--json", server.uri()).stdout)
    sizes = {export["export-name"]: export["export-size"] for export in info["exports"]}
    assert sizes == {f"disk-{number}": 512 * (number + 1) for number in range(12)}


def test_nbdinfo_map_shows_data_and_holes(serve, engine, folder):
    path = folder / "sparse.img"
    with open(path, "wb") as out:
        out.truncate(8 * MIB)
        out.seek(2 * MIB)
        out.write(os.urandom(MIB))
    server = serve("file", path, engine=engine)
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri()).stdout)
    assert [(e["offset"], e["length"], e["type"]) for e in extents] == [
        (0, 2 * MIB, 3), (2 * MIB, MIB, 0), (3 * MIB, 5 * MIB, 3)]


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_from_the_server(serve, engine, image, folder, connections):
    source = image(48 * MIB + 512)
    server = serve("file", source, engine=engine)
    run("nbdcopy", f"--connections={connections}", server.uri(), folder / "copy")
    assert digest(source) == digest(folder / "copy")


@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("plugin", ["memory", "file"])
def test_nbdcopy_to_the_server_and_back(serve, engine, image, folder, plugin, connections):
    source = image(32 * MIB)
    target = folder / "target"
    target.write_bytes(b"")
    os.truncate(target, 32 * MIB)
    server = serve(plugin, "32M" if plugin == "memory" else target, engine=engine)
    run("nbdcopy", "--flush", f"--connections={connections}", source, server.uri())
    run("nbdcopy", f"--connections={connections}", server.uri(), folder / "copy")
    assert digest(source) == digest(folder / "copy")
    if plugin == "file":
        assert digest(source) == digest(target)


def test_nbdcopy_between_two_servers(serve, engine, image):
    source = image(16 * MIB)
    one = serve("file", source, engine=engine, options=["-r"])
    two = serve("memory", "16M", engine=engine)
    run("nbdcopy", "--connections=4", one.uri(), two.uri())
    with one.client() as a, two.client() as b:
        for offset in range(0, 16 * MIB, 4 * MIB):
            assert a.pread(4 * MIB, offset) == b.pread(4 * MIB, offset)


def test_nbdcopy_of_a_sparse_disk_stays_sparse(serve, engine, folder):
    path = folder / "sparse.img"
    with open(path, "wb") as out:
        out.truncate(256 * MIB)
        out.seek(100 * MIB)
        out.write(b"data" * KIB)
    server = serve("file", path, engine=engine)
    run("nbdcopy", server.uri(), folder / "copy")
    assert digest(path) == digest(folder / "copy")
    assert os.stat(folder / "copy").st_blocks * 512 < MIB


@pytest.mark.parametrize("plugin", ["memory", "file"])
def test_reads_and_writes_of_odd_places_and_lengths(serve, engine, image, plugin):
    server = serve(plugin, "4M" if plugin == "memory" else image(4 * MIB, content=b""),
                   engine=engine)
    model = bytearray(4 * MIB)
    with server.client() as client:
        for offset, length in ((0, 1), (1, 511), (511, 2), (4095, 4098), (65535, 3),
                               (4 * MIB - 1, 1), (MIB - 7, 2 * MIB + 13), (3, 65536)):
            data = os.urandom(length)
            client.pwrite(data, offset)
            model[offset:offset + length] = data
            assert client.pread(length, offset) == data
        assert client.pread(4 * MIB, 0) == model


@pytest.mark.parametrize("plugin", ["memory", "file"])
def test_zero_trim_flush_cache(serve, engine, image, plugin):
    server = serve(plugin, "4M" if plugin == "memory" else image(4 * MIB, content=b""),
                   engine=engine)
    with server.client() as client:
        client.pwrite(b"x" * MIB, 0)
        client.zero(5000, 1000)
        assert client.pread(7000, 0) == b"x" * 1000 + bytes(5000) + b"x" * 1000
        client.zero(4096, 65536, nbd.CMD_FLAG_NO_HOLE)
        assert client.pread(4096, 65536) == bytes(4096)
        client.flush()
        client.cache(MIB, 0)
        client.trim(MIB, 0)
        client.flush()
        # What a trim leaves is undefined for any disk; for these it is zeroes.
        assert client.pread(MIB, 0) == bytes(MIB)


def test_every_change_with_fua(serve, engine, image):
    server = serve("file", image(4 * MIB), engine=engine)
    with server.client() as client:
        client.pwrite(b"f" * 4096, 8192, nbd.CMD_FLAG_FUA)
        client.zero(4096, 16384, nbd.CMD_FLAG_FUA)
        client.trim(4096, 32768, nbd.CMD_FLAG_FUA)
        assert client.pread(4096, 8192) == b"f" * 4096
        assert client.pread(4096, 16384) == bytes(4096)


def test_fast_zero_is_fast_or_refused(serve, engine, image):
    for plugin in (("memory", "64M"), ("file", image(64 * MIB))):
        server = serve(*plugin, engine=engine)
        with server.client() as client:
            if not client.can_fast_zero():
                continue
            before = client.pread(4096, 0)
            try:
                client.zero(64 * MIB, 0, nbd.CMD_FLAG_FAST_ZERO)
                assert client.pread(4096, 0) == bytes(4096)
            except nbd.Error as error:
                assert error.errnum == errno.ENOTSUP
                assert client.pread(4096, 0) == before


def status(client, length, offset=0, flags=0):
    extents = []

    def note(context, place, entries, _error):
        assert context == "base:allocation" and place == offset
        extents.extend(zip(entries[::2], entries[1::2]))
    client.block_status(length, offset, note, flags)
    return extents


def test_block_status(serve, engine):
    server = serve("memory", "16M", engine=engine)
    with server.client(contexts=["base:allocation"]) as client:
        assert client.can_meta_context("base:allocation")
        assert status(client, 16 * MIB) == [(16 * MIB, 3)]
        client.pwrite(b"x" * MIB, 4 * MIB)
        assert status(client, 16 * MIB) == [(4 * MIB, 3), (MIB, 0), (11 * MIB, 3)]
        assert status(client, 16 * MIB, 0, nbd.CMD_FLAG_REQ_ONE) == [(4 * MIB, 3)]
        one = status(client, 512, 4 * MIB, nbd.CMD_FLAG_REQ_ONE)
        assert one == [(512, 0)]
        client.trim(MIB, 4 * MIB)
        assert status(client, 16 * MIB) == [(16 * MIB, 3)]


def test_structured_read_reports_holes(serve, engine):
    server = serve("memory", "16M", engine=engine)
    with server.client() as client:
        client.pwrite(b"x" * MIB, 4 * MIB)
        chunks = []

        def note(data, offset, kind, _error):
            chunks.append((kind, offset, len(data)))
        data = client.pread_structured(8 * MIB, 0, note)
        assert data == bytes(4 * MIB) + b"x" * MIB + bytes(3 * MIB)
        covered = sorted((offset, length) for kind, offset, length in chunks)
        if IS_WEFT:
            assert any(kind == nbd.READ_HOLE for kind, _, _ in chunks)
        assert covered[0][0] == 0
        del chunks[:]
        client.pread_structured(8 * MIB, 0, note, nbd.CMD_FLAG_DF)
        assert len(chunks) == 1


def test_many_requests_in_flight(serve, engine):
    server = serve("memory", "64M", engine=engine)
    with server.client() as client:
        buffers, cookies = [], []
        for number in range(500):
            data = nbd.Buffer.from_bytearray(bytearray(number.to_bytes(4, "big") * KIB))
            buffers.append(data)
            cookies.append(client.aio_pwrite(data, number * 4096))
        wait_for(client, cookies)
        results = [nbd.Buffer(4096) for _ in range(500)]
        wait_for(client, [client.aio_pread(result, number * 4096)
                          for number, result in enumerate(results)])
        for number, result in enumerate(results):
            assert result.to_bytearray() == number.to_bytes(4, "big") * KIB


def wait_for(client, cookies):
    left = set(cookies)
    while left:
        client.poll(-1)
        left -= {cookie for cookie in left if client.aio_command_completed(cookie)}


def test_without_structured_replies(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--no-sr"])
    with server.client(contexts=["base:allocation"]) as client:
        assert not client.get_structured_replies_negotiated()
        assert not client.can_meta_context("base:allocation")
        assert not client.can_df()
        client.pwrite(b"plain", 0)
        assert client.pread(5, 0) == b"plain"


@pytest.mark.weft_only
def test_without_meta_contexts(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--no-mc"])
    with server.client(contexts=["base:allocation"]) as client:
        assert client.get_structured_replies_negotiated()
        assert not client.can_meta_context("base:allocation")


@pytest.mark.parametrize("mask,protocol", [(0, "newstyle"), (1, "newstyle-fixed"),
                                           (2, "newstyle"), (3, "newstyle-fixed")])
def test_mask_handshake(serve, engine, mask, protocol):
    server = serve("memory", "1M", engine=engine, options=[f"--mask-handshake={mask}"])
    with server.client() as client:
        assert client.get_protocol() == protocol
        assert client.pread(512, 0) == bytes(512)


def test_oldstyle_client(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["-o"])
    with server.client() as client:
        assert client.get_protocol() == "oldstyle"
        assert client.get_size() == MIB
        client.pwrite(b"old", 100)
        assert client.pread(3, 100) == b"old"


def test_tcp_on_loopback(serve, engine):
    port = free_port()
    serve("memory", "8M", engine=engine, unix=False, options=["-i", "127.0.0.1", "-p", str(port)])
    client = nbd.NBD()
    client.connect_tcp("127.0.0.1", str(port))
    client.pwrite(b"tcp", 5)
    assert client.pread(3, 5) == b"tcp"
    client.shutdown()


@pytest.mark.weft_only
def test_tcp_and_unix_at_once(serve, engine):
    port = free_port()
    server = serve("memory", "8M", engine=engine, options=["-i", "127.0.0.1", "-p", str(port)])
    tcp = nbd.NBD()
    tcp.connect_tcp("127.0.0.1", str(port))
    tcp.pwrite(b"both", 0)
    with server.client() as unix:
        assert unix.pread(4, 0) == b"both"
    tcp.shutdown()


def test_one_image_of_a_directory_by_its_name(serve, engine, folder):
    (folder / "a.img").write_bytes(b"a" * 1024)
    (folder / "with space").write_bytes(b"s" * 2048)
    server = serve("file", f"dir={folder}", engine=engine)
    with server.client("a.img") as a, server.client("with space") as spaced:
        assert (a.get_size(), a.pread(4, 0)) == (1024, b"aaaa")
        assert (spaced.get_size(), spaced.pread(4, 0)) == (2048, b"ssss")
        a.pwrite(b"new", 0)
        a.flush()
    wait_until(lambda: (folder / "a.img").read_bytes()[:4] == b"newa", "the write is in the file")
