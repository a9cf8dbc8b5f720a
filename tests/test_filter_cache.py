# SPDX-License-Identifier: BSD-3-Clause
"""The cache filter: one cache for all connections of an export."""
import errno
import json
import os
import pathlib
import random
import re
import threading

import nbd
import pytest

from harness import (IS_WEFT, KIB, MIB, NBDKIT, ROOT, WEFT, close, on_connections, run, wait_until,
                     why_no_mount)
from rawclient import Raw

pytestmark = pytest.mark.weft_only
CAN_MULTI_CONN = 1 << 8
BLOCK = 64 * KIB
MODES = ["writeback", "writethrough", "unsafe"]
TINY = ["cache-min-block-size=4K", "cache-max-size=64K"]

# Records each call. A connection keeps what it writes to itself until it is flushed.
SCRIPT = """#!/bin/bash
dir=$(dirname "$0")
echo "$*" >> "$dir/calls"
case "$1" in
  thread_model) echo @MODEL@ ;;
  open) mktemp "$dir/own.XXXXXX"; cp "$dir/disk.img" "$dir/last"; ;;
  get_size) echo 1M ;;
  can_write|can_flush) ;;
  can_fua) echo none ;;
  pread)
    if [ -s "$2" ]; then from=$2; else from=$dir/disk.img; fi
    dd if="$from" iflag=skip_bytes,count_bytes,fullblock skip=$4 count=$3 bs=64K status=none ;;
  pwrite)
    [ -s "$2" ] || cp "$dir/disk.img" "$2"
    dd of="$2" conv=notrunc oflag=seek_bytes seek=$4 bs=64K iflag=fullblock status=none ;;
  flush) if [ -s "$2" ]; then cp "$2" "$dir/disk.img"; fi ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture
def script(folder):
    """script(model) makes a disk of 1 MiB that records its calls."""
    def make(model="parallel"):
        path = folder / "disk.sh"
        path.write_text(SCRIPT.replace("@MODEL@", model))
        path.chmod(0o755)
        (folder / "disk.img").write_bytes(bytes(MIB))
        (folder / "calls").touch()
        return path
    return make


def calls(folder, name):
    lines = (folder / "calls").read_text().splitlines()
    return [line for line in lines if line.split()[0] == name]


def content(path, offset, length):
    with open(path, "rb") as disk:
        disk.seek(offset)
        return disk.read(length)


def flags(server):
    with Raw(server.socket) as raw:
        return raw.negotiate()[1]


def temporary_bytes(server):
    """What the server's files without a name take."""
    total = 0
    fds = pathlib.Path(f"/proc/{server.pid}/fd")
    for fd in fds.iterdir():
        try:
            if "(deleted)" in os.readlink(fd):
                total += os.stat(fd).st_blocks * 512
        except OSError:
            continue
    return total


# ---- Modes ------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_when_writes_reach_the_disk(serve, engine, image, mode):
    path = image(4 * MIB, content=b"")
    server = serve("--filter=cache", "file", path, f"cache={mode}", engine=engine)
    with server.client() as a, server.client() as b:
        a.pwrite(b"w" * 100, 1000)
        assert b.pread(102, 999) == b"\0" + b"w" * 100 + b"\0"
        written = content(path, 1000, 100) == b"w" * 100
        assert written is (mode == "writethrough")
        b.flush()
        flushed = content(path, 1000, 100) == b"w" * 100
        assert flushed is (mode != "unsafe")
        a.pwrite(b"f" * BLOCK, BLOCK, nbd.CMD_FLAG_FUA)
        durable = content(path, BLOCK, BLOCK) == b"f" * BLOCK
        assert durable is (mode != "unsafe")
        b.pwrite(b"e" * 512, 3 * MIB)
    server.stop()
    assert (content(path, 3 * MIB, 512) == b"e" * 512) is (mode != "unsafe")
    assert ("flushes are ignored" in server.log()) is (mode == "unsafe")


@pytest.mark.parametrize("mode", MODES)
def test_what_is_advertised_is_what_nbdkit_advertises(serve, image, mode):
    path = image(MIB, content=b"")

    def asked(server):
        info = json.loads(run("nbdinfo", "--json", server.uri()).stdout)["exports"][0]
        return {key: value for key, value in info.items()
                if key.startswith("can_") or key in ("block_size_minimum", "block_size_preferred")}

    mine = serve("--filter=cache", "file", path, f"cache={mode}")
    assert mine.process.args[0] == WEFT
    ours = asked(mine)
    mine.stop()
    theirs = json.loads(run(NBDKIT, "-U", "-", "--filter=cache", "file", path, f"cache={mode}",
                            "--run", 'nbdinfo --json "$uri"').stdout)["exports"][0]
    assert ours == {key: theirs[key] for key in ours}
    assert ours["can_multi_conn"] and ours["block_size_preferred"] == BLOCK


WRONG = [["cache=fast"], ["cache-min-block-size=1024"], ["cache-min-block-size=5000"],
         ["cache-max-size=4096"], ["cache-max-size=0"], ["cache-low-threshold=0"],
         ["cache-max-size=1M", "cache-high-threshold=10"], ["cache-on-read=perhaps"],
         ["cache-high-threshold=x"]]


@pytest.mark.parametrize("parameters", WRONG, ids=[" ".join(words) for words in WRONG])
def test_wrong_parameters_are_refused_as_by_nbdkit(parameters):
    mine = run(WEFT, "--filter=cache", "null", "1M", *parameters, "--run", "true", check=False)
    assert mine.returncode == 1
    assert len(mine.stderr.strip().splitlines()) == 1, mine.stderr
    assert parameters[-1].split("=")[0].rsplit("-", 1)[0] in mine.stderr
    assert run(NBDKIT, "--filter=cache", "null", "1M", *parameters, "--run", "true",
               check=False).returncode == 1


# ---- Promises ---------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_what_is_explained(mode):
    text = run(WEFT, "--explain", "--filter=cache", "memory", "1M", f"cache={mode}").stdout
    assert "advertised: decided by the cache filter: all connections share" in text
    assert ("a flush covers every write acknowledged" in text) is (mode != "unsafe")
    assert ("durability  none: the operator has flushes ignored" in text) is (mode == "unsafe")


def test_kill_9_after_a_flush_loses_nothing_flushed(serve, engine, image):
    path = image(4 * MIB, content=b"")
    first = serve("--filter=cache", "file", path, engine=engine)
    a, b = first.connect(), first.connect()
    a.pwrite(b"flushed", 70000)
    a.zero(BLOCK, 2 * BLOCK)
    b.flush()
    a.pwrite(b"not yet", 3 * MIB)
    first.kill()
    close(a)
    close(b)
    second = serve("--filter=cache", "file", path, engine=engine)
    with second.client() as client:
        assert client.pread(7, 70000) == b"flushed"
        assert client.pread(7, 3 * MIB) == bytes(7)


@pytest.mark.parametrize("extra", [[], TINY], ids=["large", "tiny"])
def test_kill_9_under_load_loses_nothing_promised(serve, engine, image, extra):
    """Each thread owns every 4th sector; its flushes promise what all had acknowledged."""
    sectors, threads = 1024, 4
    path = image(sectors * 512, content=b"")
    seed = random.randrange(1 << 32)
    server = serve("--filter=cache", "file", path, *extra, engine=engine)
    acknowledged, promised = [0] * sectors, [0] * sectors
    rounds = [0] * threads
    lock = threading.Lock()

    def work(me):
        rng = random.Random(seed + me)
        client = server.connect()
        serial = 0
        try:
            while True:
                if rng.random() < 0.05:
                    with lock:
                        before = list(acknowledged)
                    client.flush()
                    with lock:
                        promised[:] = [max(pair) for pair in zip(promised, before)]
                    rounds[me] += 1
                    continue
                sector = rng.randrange(sectors // threads) * threads + me
                serial += 1
                fua = rng.random() < 0.05
                client.pwrite(serial.to_bytes(8, "big") * 64, sector * 512,
                              nbd.CMD_FLAG_FUA if fua else 0)
                with lock:
                    acknowledged[sector] = serial
                    if fua:
                        promised[sector] = max(promised[sector], serial)
        except nbd.Error:
            close(client)

    workers = [threading.Thread(target=work, args=(me,)) for me in range(threads)]
    for worker in workers:
        worker.start()
    wait_until(lambda: min(rounds) >= 10, "each thread has flushed ten times")
    server.kill()
    for worker in workers:
        worker.join()
    disk = path.read_bytes()
    for sector, serial in enumerate(promised):
        found = int.from_bytes(disk[sector * 512:sector * 512 + 8], "big")
        assert found >= serial, f"seed {seed}: sector {sector} was promised {serial}, has {found}"


def test_one_disk_below_for_all_clients(script, folder, serve, engine):
    """Of a disk that keeps writes per connection: reads, writes and flushes are those of one."""
    server = serve("--filter=cache", "sh", script(), engine=engine)
    assert flags(server) & CAN_MULTI_CONN
    with server.client() as a, server.client() as b, server.client() as c:
        a.pwrite(b"a" * BLOCK, 0)
        b.pwrite(b"b" * 10, 100000)
        assert calls(folder, "pwrite") == []
        assert len(calls(folder, "pread")) == 1  # the rest of b's block
        c.flush()
        assert len(calls(folder, "flush")) == 1
        assert content(folder / "disk.img", 0, BLOCK) == b"a" * BLOCK
        assert content(folder / "disk.img", 100000, 11) == b"b" * 10 + b"\0"
        # Nothing is dirty: a flush writes nothing more.
        writes = len(calls(folder, "pwrite"))
        a.flush()
        assert len(calls(folder, "pwrite")) == writes
    assert len(calls(folder, "open")) == 1
    with server.client() as late:
        assert late.pread(10, 100000) == b"b" * 10
    assert len(calls(folder, "open")) == 1


@pytest.mark.parametrize("model", ["serialize_connections", "serialize_all_requests",
                                   "serialize_requests"])
def test_a_disk_that_serialises_serves_many(script, serve, engine, model):
    server = serve("--filter=cache", "sh", script(model), engine=engine)
    assert flags(server) & CAN_MULTI_CONN
    with server.client() as a, server.client() as b:
        a.pwrite(b"x" * 512, 512)
        assert b.pread(512, 512) == b"x" * 512
        b.flush()


def test_another_export_of_a_disk_for_one_is_refused(script, serve):
    server = serve("--filter=cache", "sh", script("serialize_connections"))
    with server.client(export="one") as client:
        client.pwrite(b"x", 0)
        with pytest.raises(nbd.Error):
            server.connect(export="two")
        assert client.pread(1, 0) == b"x"


def test_exports_have_caches_of_their_own_and_names_of_one_disk_share(serve, engine, folder):
    for name in ("one", "two"):
        (folder / name).write_bytes(bytes(MIB))
    os.link(folder / "one", folder / "again")
    server = serve("--filter=cache", "file", f"dir={folder}", engine=engine)
    with server.client(export="one") as one, server.client(export="two") as two, \
            server.client(export="again") as again:
        one.pwrite(b"1", 0)
        two.pwrite(b"2", 0)
        assert again.pread(1, 0) == b"1"
        assert two.pread(1, 0) == b"2"
        again.flush()
        assert content(folder / "one", 0, 1) == b"1"
        assert content(folder / "two", 0, 1) == b"\0"


def test_read_only(serve, engine, image):
    path = image(MIB)
    server = serve("--filter=cache", "file", path, "cache-on-read=true", engine=engine,
                   options=["-r"])
    with server.client() as client:
        assert client.is_read_only()
        assert client.pread(MIB, 0) == path.read_bytes()
        assert client.pread(MIB, 0) == path.read_bytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extra", [[], TINY], ids=["large", "tiny"])
def test_random_load_over_many_connections(serve, engine, image, mode, extra):
    """Each thread owns every 4th piece of 3000 bytes, so that blocks are shared."""
    path = image(MIB, content=b"")
    server = serve("--filter=cache", "file", path, f"cache={mode}", "cache-on-read=true", *extra,
                   engine=engine)
    seed = random.randrange(1 << 32)
    piece, threads, steps = 3000, 4, 150
    count = MIB // piece
    model = [bytes(piece)] * count

    def work(me, client, rng):
        for _ in range(steps):
            number = rng.randrange(count // threads) * threads + me
            action = rng.random()
            if action < 0.4:
                model[number] = rng.randbytes(piece)
                client.pwrite(model[number], number * piece,
                              nbd.CMD_FLAG_FUA if rng.random() < 0.05 else 0)
            elif action < 0.5:
                model[number] = bytes(piece)
                client.zero(piece, number * piece)
            elif action < 0.55:
                client.flush()
            elif action < 0.6:
                client.cache(piece, number * piece)
            else:
                assert client.pread(piece, number * piece) == model[number], f"piece {number}"

    on_connections(threads, server.connect, work, seed)
    expected = b"".join(model)
    with server.client() as client:
        assert client.pread(len(expected), 0) == expected, f"seed {seed}"
    server.stop()
    if mode != "unsafe":
        assert content(path, 0, len(expected)) == expected, f"seed {seed}"


# ---- Room -------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_the_temporary_file_is_bounded(serve, engine, image, mode):
    path = image(32 * MIB, content=b"")
    limit = 2 * MIB
    server = serve("--filter=cache", "file", path, f"cache={mode}", f"cache-max-size={limit}",
                   engine=engine)
    seen = []
    data = os.urandom(MIB)
    with server.client() as client:
        for offset in range(0, 32 * MIB, MIB):
            client.pwrite(data, offset)
            seen.append(temporary_bytes(server))
        for offset in range(0, 32 * MIB, MIB):
            assert client.pread(MIB, offset) == data
        client.flush()
        # The file system may round up, and keeps books of its own.
        assert 0 < max(seen) <= limit + limit // 8, seen
        wait_until(lambda: temporary_bytes(server) <= limit * 95 // 100 + limit // 8,
                   "the cache is reclaimed")
    if mode != "unsafe":
        assert content(path, 31 * MIB, MIB) == data


@pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount()))
@pytest.mark.parametrize("mode", MODES)
def test_a_full_folder_loses_nothing(serve, engine, image, folder, mounts, mode):
    mounts.tmpfs(folder / "small", "1m")
    path = image(16 * MIB, content=b"")
    server = serve("--filter=cache", "file", path, f"cache={mode}", "cache-on-read=true",
                   engine=engine, env={"TMPDIR": str(folder / "small")})
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    model = bytearray(16 * MIB)
    with server.client() as client:
        for _ in range(300):
            length = rng.choice([512, 5000, BLOCK, 300000])
            offset = rng.randrange(len(model) - length)
            data = rng.randbytes(length)
            client.pwrite(data, offset)
            model[offset:offset + length] = data
        assert client.pread(8 * MIB, 0) == model[:8 * MIB], f"seed {seed}"
        assert client.pread(8 * MIB, 8 * MIB) == model[8 * MIB:], f"seed {seed}"
        client.flush()
    server.stop()
    if mode != "unsafe":
        assert path.read_bytes() == model, f"seed {seed}"


def test_a_disk_larger_than_any_file(serve, engine):
    server = serve("--filter=cache", "memory", "7E", "cache-on-read=true", engine=engine)
    with server.client() as client:
        for offset in (0, 1 << 40, 7 << 60):
            client.pwrite(b"far" * 100, offset - 300 if offset else 0)
            assert client.pread(300, offset - 300 if offset else 0) == b"far" * 100
        client.flush()
        client.zero(1 << 20, 6 << 60)


def test_no_folder_is_told_at_the_start(image):
    path = image(MIB)
    done = run(WEFT, "--filter=cache", "file", path, "--run", "true", check=False,
               env={**os.environ, "TMPDIR": "/nowhere"})
    assert done.returncode == 1
    assert "/nowhere" in done.stderr and "TMPDIR" in done.stderr


def test_reads_are_kept_while_a_path_exists(script, folder, serve, engine):
    switch = folder / "keep"
    server = serve("--filter=cache", "sh", script(), f"cache-on-read={switch}", engine=engine)

    def reads(client):
        before = len(calls(folder, "pread"))
        client.pread(512, 0)
        return len(calls(folder, "pread")) - before

    with server.client() as client:
        assert [reads(client), reads(client)] == [1, 1]
        switch.touch()
        assert [reads(client), reads(client)] == [1, 0]
        switch.unlink()
        assert reads(client) == 0  # it is there
        client.pread(512, 512 * KIB)
        before = len(calls(folder, "pread"))
        client.pread(512, 512 * KIB)
        assert len(calls(folder, "pread")) == before + 1


def test_a_failed_write_back_fails_every_flush(script, folder, serve, engine):
    path = script()
    server = serve("--filter=cache", "sh", path, engine=engine)
    with server.client() as a, server.client() as b:
        a.pwrite(b"x" * BLOCK, 0)
        good = path.read_text()
        bad = folder / "bad.sh"
        bad.write_text(good.replace("pwrite)", "pwrite) echo EIO broken >&2; exit 1;;\n  never)"))
        bad.chmod(0o755)
        os.rename(bad, path)
        with pytest.raises(nbd.Error) as failure:
            a.flush()
        assert failure.value.errnum == errno.EIO
        for client in (a, b):
            with pytest.raises(nbd.Error):
                client.flush()
        assert b.pread(BLOCK, 0) == b"x" * BLOCK
    assert "every flush" in server.log()
    server.may_die = True  # what is dirty cannot be saved, and the exit status says so
    server.stop()
    assert server.process.returncode != 0


# ---- The manual -------------------------------------------------------------------------------

def examples():
    manual = (ROOT / "src/filters/cache/weft-cache-filter.md").read_text()
    section = re.search(r"^# EXAMPLES\n(.*?)^# ", manual, re.M | re.S).group(1)
    return [line.strip() for line in section.splitlines() if line.startswith("    weft ")]


@pytest.mark.skipif(not IS_WEFT, reason="the examples of weft's manual")
@pytest.mark.parametrize("example", examples())
def test_examples_of_the_manual(image, script, folder, example):
    image(MIB)
    script()
    (folder / "image.raw").write_bytes(os.urandom(MIB))
    switch = folder / "keep-reads"
    command = example.replace("weft ", f"{WEFT} ", 1).replace("/run/keep-reads", str(switch))
    if "--run" not in command and "--explain" not in command:
        command += ''' --run 'nbdinfo "$uri"; touch keep-reads
                              nbdcopy "$uri" null:; rm keep-reads' '''
    done = run("sh", "-c", command, cwd=folder)
    if "--explain" in command:
        assert "advertised: decided by the cache filter" in done.stdout
    elif "nbdinfo" in command:
        assert "can_multi_conn: true" in done.stdout
