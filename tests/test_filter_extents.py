# SPDX-License-Identifier: BSD-3-Clause
"""The filters that answer for extents: extentlist and cacheextents."""
import json
import os
import random
import re
import shutil
import subprocess
import threading

import nbd
import pytest

from harness import KIB, MIB, NBDKIT, WEFT, run
from test_clients_libnbd import status

CONTEXT = ["base:allocation"]


# ---- extentlist -------------------------------------------------------------------------------

@pytest.fixture
def listed(serve, folder):
    """listed(text, plugin...) serves with a list of this text."""
    def start(text, *plugin, options=(), **kwargs):
        path = folder / "list"
        path.write_text(text)
        return serve(*plugin, f"extentlist={path}", options=[*options, "--filter=extentlist"],
                     **kwargs)
    return start


LISTS = {
    "": [(10 * MIB, 3)],
    "0 1M\n": [(MIB, 0), (9 * MIB, 3)],
    "0 1M\n1M 9M hole,zero\n": [(MIB, 0), (9 * MIB, 3)],
    "5M 1M 1\n0 1M 2": [(MIB, 2), (4 * MIB, 3), (MIB, 1), (4 * MIB, 3)],
    "0 1M hole\n1M 1M zero\n2M 1M 0\n3M 1M zero,hole": [(MIB, 1), (MIB, 2), (MIB, 0),
                                                       (7 * MIB, 3)],
    "0 0\n\n  4M\t100M  \n": [(4 * MIB, 3), (6 * MIB, 0)],
    "100s 1\n": [(51200, 3), (1, 0), (10 * MIB - 51201, 3)],
}


@pytest.mark.parametrize("text", LISTS)
def test_extentlist_is_what_clients_hear(listed, engine, text):
    server = listed(text, "memory", "10M", engine=engine)
    with server.client(contexts=CONTEXT) as client:
        assert status(client, 10 * MIB, 0) == LISTS[text]


@pytest.mark.parametrize("text", [text for text in LISTS if "\n\n" not in text])
def test_extentlist_is_what_nbdkit_makes_of_it(folder, text):
    if shutil.which(NBDKIT) is None or shutil.which("nbdinfo") is None:
        pytest.skip("nbdkit or nbdinfo is not installed")
    (folder / "list").write_text(text)
    maps = []
    for program in (WEFT, NBDKIT):
        done = run(program, "-U", "-", "-r", "--filter=extentlist", "memory", "10M",
                   f"extentlist={folder / 'list'}", "--run", 'nbdinfo --map --json "$uri"')
        extents = json.loads(done.stdout)
        maps.append([(e["offset"], e["length"], e["type"]) for e in extents])
    assert maps[0] == maps[1]


def test_extentlist_does_not_change_what_is_read(listed, engine, image):
    path = image(MIB)
    server = listed("", "file", path, engine=engine)
    with server.client(contexts=CONTEXT) as client:
        assert status(client, MIB, 0) == [(MIB, 3)]
        assert client.pread(MIB, 0) == path.read_bytes()


def test_extentlist_knows_of_writes(listed, engine):
    server = listed("2M 1M\n", "memory", "10M", engine=engine)
    with server.client(contexts=CONTEXT) as one, server.client(contexts=CONTEXT) as two:
        one.pwrite(b"x", MIB)
        one.pwrite(b"x" * 100, 5 * MIB - 50)
        one.pwrite(b"x", 2 * MIB + 5)
        one.zero(MIB, 8 * MIB)
        unit = 64 * KIB
        assert status(two, 10 * MIB, 0) == [
            (MIB, 3), (unit, 0), (MIB - unit, 3), (MIB, 0), (2 * MIB - unit, 3), (2 * unit, 0),
            (5 * MIB - unit, 3)]
        rng = random.Random(5)
        touched = set()
        for _ in range(300):
            block = rng.randrange(160)
            one.pwrite(b"y", block * unit + rng.randrange(unit))
            touched.add(block)
        offset = 0
        for length, flags in status(two, 10 * MIB, 0):
            for block in range(offset // unit, -(-(offset + length) // unit)):
                assert not flags or block not in touched
            offset += length


@pytest.mark.parametrize("text, line, named", [
    ("0 1M\n0\n", 2, "OFFSET LENGTH"), ("0 1M foo\n", 1, "'foo'"), ("0 1M 4\n", 1, "'4'"),
    ("0 1M hole zero\n", 1, "OFFSET LENGTH"), ("0 x\n", 1, "x"), ("\n\n# no\n", 3, "#"),
    ("7e 7e\n", 1, "largest disk"), ("0 2M\n5M 1M\n1M 1M\n", 3, "line 1"),
])
def test_extentlist_names_the_line_that_is_wrong(folder, text, line, named):
    path = folder / "list"
    path.write_text(text)
    done = run(WEFT, "-U", "-", "--filter=extentlist", "memory", "10M", f"extentlist={path}",
               "--run", "true", check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"{path}:{line}: " in done.stderr and named in done.stderr


@pytest.mark.parametrize("parameters", [[], ["extentlist=/nonexistent"], ["extentlist=/"]])
def test_extentlist_without_a_list(parameters):
    done = run(WEFT, "-U", "-", "--filter=extentlist", "memory", "1M", *parameters, "--run", "true",
               check=False)
    assert done.returncode == 1 and "extentlist: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_example_of_the_extentlist_manual(listed, image):
    server = listed("0   1M\n1M  9M  hole,zero\n", "file", image(10 * MIB), options=["-r"])
    with server.client(contexts=CONTEXT) as client:
        assert client.is_read_only()
        assert status(client, 10 * MIB, 0) == [(MIB, 0), (9 * MIB, 3)]


# ---- cacheextents -----------------------------------------------------------------------------

def cacheextents(serve, *args, **kwargs):
    return serve(*args, options=["-v", "--filter=cacheextents"], **kwargs)


def asked(server, layer):
    """How often a layer was asked for extents."""
    return len(re.findall(rf" {layer}: extents ", server.log()))


def one_extent(client, length, offset):
    found = []
    client.block_status(length, offset, lambda meta, at, entries, error: found.append(entries[:2]),
                        nbd.CMD_FLAG_REQ_ONE)
    return tuple(found[0])


@pytest.fixture
def sparse(folder):
    path = folder / "disk"
    with open(path, "wb") as out:
        out.truncate(16 * MIB)
        for offset in range(0, 16 * MIB, 2 * MIB):
            out.seek(offset)
            out.write(os.urandom(MIB))
    return path


def test_cacheextents_asks_once_for_a_walk(serve, engine, sparse):
    server = cacheextents(serve, "file", sparse, engine=engine)
    with server.client(contexts=CONTEXT) as client:
        offset, walk = 0, []
        while offset < 16 * MIB:
            length, flags = one_extent(client, 16 * MIB - offset, offset)
            walk.append((length, flags))
            offset += length
        assert walk == [(MIB, 0), (MIB, 3)] * 8
        assert asked(server, "file") == 1
        assert one_extent(client, 16 * MIB - 100, 100) == (MIB - 100, 0)
        assert asked(server, "file") == 1


@pytest.mark.parametrize("change", ["pwrite", "zero", "trim"])
def test_cacheextents_forgets_at_a_change_of_another_client(serve, engine, sparse, change):
    server = cacheextents(serve, "file", sparse, engine=engine)
    with server.client(contexts=CONTEXT) as one, server.client(contexts=CONTEXT) as two:
        assert one_extent(one, 16 * MIB, 0) == (MIB, 0)
        if change == "pwrite":
            two.pwrite(os.urandom(MIB), MIB)
            assert one_extent(one, 16 * MIB, 0) == (3 * MIB, 0)
        else:
            getattr(two, change)(MIB, 0)
            assert one_extent(one, 16 * MIB, 0) == (2 * MIB, 3)
        assert asked(server, "file") == 2


def test_cacheextents_never_tells_what_was_before(serve, engine):
    """Whoever asks after a change hears of it, whatever others ask meanwhile."""
    server = serve("memory", "64M", options=["--filter=cacheextents"], engine=engine)
    stop = threading.Event()

    def ask():
        with server.client(contexts=CONTEXT) as client:
            while not stop.is_set():
                client.block_status(64 * MIB, 0, lambda *rest: 0)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with server.client(contexts=CONTEXT) as client:
            for turn in range(400):
                offset = turn % 32 * 2 * MIB
                client.pwrite(b"x" * 65536, offset)
                assert one_extent(client, MIB, offset) == (65536, 0)
                client.trim(65536, offset)
                assert one_extent(client, MIB, offset) == (MIB, 3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_cacheextents_of_each_export(serve, folder):
    exports = folder / "exports"
    exports.mkdir()
    (exports / "data").write_bytes(os.urandom(MIB))
    with open(exports / "hole", "wb") as out:
        out.truncate(MIB)
    server = cacheextents(serve, "file", f"dir={exports}")
    with server.client("data", contexts=CONTEXT) as data, \
            server.client("hole", contexts=CONTEXT) as hole:
        for _ in range(2):
            assert status(data, MIB, 0) == [(MIB, 0)]
            assert status(hole, MIB, 0) == [(MIB, 3)]
    assert asked(server, "file") == 2


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is not installed")
def test_example_of_the_cacheextents_manual(sparse):
    done = subprocess.run([WEFT, "--filter=cacheextents", "file", str(sparse), "--run",
                           'qemu-img map "$uri"'], capture_output=True, text=True, check=True,
                          timeout=60)
    assert len(done.stdout.splitlines()) == 1 + 8
