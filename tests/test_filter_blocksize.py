# SPDX-License-Identifier: BSD-3-Clause
"""The blocksize filter: what reaches the layer below is aligned and not too long."""
import random
import re
import shutil
import subprocess
import threading

import nbd
import pytest

from harness import MIB, NBDKIT, WEFT, run, wait_until

SIZE = 2 * MIB + 4096 + 100


def blocksize(serve, *args, **kwargs):
    return serve(*args, options=["-v", "--filter=blocksize"], **kwargs)


def calls(server, layer):
    """(call, offset, length, fua) of what a layer was asked for."""
    found = []
    for line in server.log().splitlines():
        match = re.search(rf" {layer}: (\w+)(?: offset=(\d+) length=(\d+))?( fua)?", line)
        if match and match[1] in ("read", "write", "zero", "trim", "cache", "extents", "flush"):
            found.append((match[1], int(match[2] or 0), int(match[3] or 0), bool(match[4])))
    return found


@pytest.mark.parametrize("block", [512, 4096, 65536])
def test_what_comes_below_is_aligned_and_short(serve, engine, image, block):
    path = image(SIZE)
    content = bytearray(path.read_bytes())
    data_max, length_max = 2 * block, 4 * block
    server = blocksize(serve, "file", path, f"minblock={block}", f"maxdata={data_max}",
                       f"maxlen={length_max}", engine=engine)
    size = SIZE // block * block
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    with server.client(contexts=["base:allocation"]) as client:
        assert client.get_size() == size
        assert client.get_block_size(nbd.SIZE_MINIMUM) == 1
        for step in range(60):
            offset = rng.randrange(size)
            length = min(rng.choice([1, 100, 5000, 40000, 300000]), size - offset)
            flags = rng.choice([0, nbd.CMD_FLAG_FUA])
            action = rng.choice(["pwrite", "zero", "pread", "cache", "block_status", "trim"])
            if action == "pwrite":
                data = rng.randbytes(length)
                client.pwrite(data, offset, flags)
                content[offset:offset + length] = data
            elif action == "zero":
                client.zero(length, offset, flags)
                content[offset:offset + length] = bytes(length)
            elif action == "pread":
                assert client.pread(length, offset) == content[offset:offset + length], seed
            elif action == "cache":
                client.cache(length, offset)
            elif action == "trim":
                client.trim(length, offset, flags)
                first, end = -(-offset // block) * block, (offset + length) // block * block
                content[offset:offset + length] = client.pread(length, offset)
                assert not any(content[first:end]), (seed, step)
            else:
                client.block_status(length, offset, lambda *rest: 0)
        assert client.pread(size, 0) == content[:size], seed
        client.trim(8 * block + 1, 1)  # at least once each
        client.zero(8 * block, block + 1)
        client.cache(8 * block, 1)
        client.block_status(8 * block, 1, lambda *rest: 0)
        content[:size] = client.pread(size, 0)
    server.stop()
    assert path.read_bytes()[:size] == content[:size]
    seen = calls(server, "file")
    assert {call[0] for call in seen} >= {"read", "write", "zero", "trim", "cache", "extents"}
    for call, offset, length, _ in seen:
        assert offset % block == 0 and length % block == 0, call
        assert length <= (data_max if call in ("read", "write") else length_max), call


def test_fua_of_a_split_request_is_one_flush(serve, engine, image):
    server = blocksize(serve, "file", image(MIB), "minblock=4k", "maxdata=16k", engine=engine)
    with server.client() as client:
        client.pwrite(b"x" * 100, 0, nbd.CMD_FLAG_FUA)
        client.pwrite(b"x" * 65536, 4096, nbd.CMD_FLAG_FUA)
    seen = [call for call in calls(server, "file") if call[0] in ("write", "flush")]
    assert seen[0] == ("write", 0, 4096, True)
    assert [call[0] for call in seen[1:]] == ["write"] * 4 + ["flush"]
    assert not any(fua for *_, fua in seen[1:])


def test_two_clients_in_one_block_keep_what_they_wrote(serve, engine, image):
    path = image(MIB, content=b"")
    server = blocksize(serve, "file", path, "minblock=64k", engine=engine)

    def work(part):
        with server.client() as client:
            for turn in range(300):
                client.pwrite(bytes([part + 1]) * 100, turn % 40 * 1600 + part * 100)

    threads = [threading.Thread(target=work, args=[part]) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with server.client() as client:
        for turn in range(40):
            for part in range(4):
                offset = turn * 1600 + part * 100
                assert client.pread(100, offset) == bytes([part + 1]) * 100, (turn, part)


def test_a_disk_that_ends_in_a_block(serve, image):
    path = image(10000)
    server = blocksize(serve, "file", path)
    with server.client() as client:
        assert client.get_size() == 10000
        client.pwrite(b"end", 9997)
    server = blocksize(serve, "file", image(10000, "other"), "minblock=4k")
    with server.client() as client:
        assert client.get_size() == 8192
    server = blocksize(serve, "memory", "100", "minblock=512")
    with server.client() as client:
        assert client.get_size() == 0


def test_it_does_what_nbdkit_does(serve, image):
    if shutil.which(NBDKIT) is None:
        pytest.skip("nbdkit is not installed")
    seed = random.randrange(1 << 32)
    first, second = image(MIB, "a", b"abc" * 300000), image(MIB, "b", b"abc" * 300000)
    parameters = ["minblock=4k", "maxdata=8k", "maxlen=64k"]
    ours = blocksize(serve, "file", first, *parameters)
    socket = ours.dir / "nbdkit"
    theirs = subprocess.Popen([NBDKIT, "-f", "-U", socket, "--filter=blocksize", "file", second,
                               *parameters], stdin=subprocess.DEVNULL)
    try:
        wait_until(socket.exists, "nbdkit serves")
        contents = []
        for path in (ours.socket, str(socket)):
            rng = random.Random(seed)
            client = nbd.NBD()
            client.connect_unix(path)
            for _ in range(60):
                offset = rng.randrange(MIB - 1)
                length = min(rng.choice([1, 512, 5000, 100000]), MIB - offset)
                data = rng.randbytes(length)
                action = rng.choice(["pwrite", "zero", "trim"])
                if action == "pwrite":
                    client.pwrite(data, offset)
                else:
                    getattr(client, action)(length, offset)
            contents.append(client.pread(MIB, 0))
            client.shutdown()
        assert contents[0] == contents[1], f"seed {seed}"
    finally:
        theirs.kill()
        theirs.wait(timeout=20)


@pytest.mark.parametrize("wrong, named", [
    (["minblock=3"], "minblock"), (["minblock=128k"], "minblock"), (["minblock=0"], "minblock"),
    (["minblock=x"], "minblock"), (["maxdata=0"], "maxdata"), (["maxlen=0"], "maxlen"),
    (["minblock=512", "maxdata=1000"], "maxdata"), (["minblock=512", "maxlen=700"], "maxlen"),
])
def test_wrong_sizes_are_refused(wrong, named):
    done = run(WEFT, "-U", "-", "--filter=blocksize", "memory", "1M", *wrong, "--run", "true",
               check=False)
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and f" {named}: " in done.stderr


@pytest.mark.parametrize("extra", [["minblock=4k"], ["maxdata=32M", "maxlen=32M"]],
                         ids=["aligned", "short"])
def test_examples_of_the_manual(serve, image, extra):
    blocksize(serve, "file", image(MIB), *extra).check_serves()


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not installed")
def test_qemu_io(serve, engine):
    server = blocksize(serve, "memory", "4M", "minblock=64k", engine=engine)
    done = run("qemu-io", "-f", "raw", "-c", "write -P 5 1000 70000", "-c", "read -P 5 1000 70000",
               "-c", "read -P 0 0 1000", "-c", "write -z 500 1000", "-c", "read -P 0 0 1500",
               "-c", "flush", server.uri())
    assert "failed" not in done.stdout + done.stderr
