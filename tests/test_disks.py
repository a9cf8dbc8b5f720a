# SPDX-License-Identifier: BSD-3-Clause
"""What each built-in disk holds: memory, null, pattern, data, file and block devices."""
import contextlib
import errno
import os
import random
import shutil
import struct
import subprocess

import nbd
import pytest

from harness import IS_WEFT, KIB, MIB, SANITIZED, WEFT, run, wait_until, why_no_loop
from test_clients_libnbd import status

ODD_SIZES = [0, 1, 511, 513, 1000, 65537, 1000001]


def check_odd_size(server, size):
    with server.client() as client:
        assert client.get_size() == size
        if size:
            client.pwrite(b"e", size - 1)
            assert client.pread(1, size - 1) == b"e"
            assert client.pread(size, 0) == bytes(size - 1) + b"e"
            client.zero(size, 0)
            assert client.pread(size, 0) == bytes(size)
            client.trim(size, 0)
            client.flush()
    with server.client(strict=False) as client:
        with pytest.raises(nbd.Error) as failure:
            client.pread(1, size)
        assert failure.value.errnum == errno.EINVAL
        with pytest.raises(nbd.Error) as failure:
            client.pwrite(b"x", size)
        assert failure.value.errnum == errno.ENOSPC


@pytest.mark.parametrize("size", ODD_SIZES)
def test_memory_of_odd_size(serve, engine, size):
    check_odd_size(serve("memory", str(size), engine=engine), size)


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("cache", [[], ["cache=none"]], ids=["buffered", "direct"])
def test_file_of_odd_size(serve, engine, image, size, cache):
    path = image(size, content=b"")
    check_odd_size(serve("file", path, *cache, engine=engine), size)
    assert os.stat(path).st_size == size, "serving an image does not change its size"


def resident_kib(server):
    with open(f"/proc/{server.pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


@pytest.mark.weft_only
@pytest.mark.skipif(SANITIZED, reason="a sanitizer keeps freed memory")
@pytest.mark.parametrize("how", ["trim", "zero"])
def test_memory_is_given_back(serve, engine, how):
    server = serve("memory", "1G", engine=engine)
    with server.client() as client:
        for offset in range(0, 128 * MIB, MIB):
            client.pwrite(os.urandom(MIB), offset)
        full = resident_kib(server)
        assert full > 100 * 1024
        getattr(client, how)(128 * MIB, 0)
        wait_until(lambda: resident_kib(server) < full - 96 * 1024, "the memory is given back")
        assert client.pread(4096, 64 * MIB) == bytes(4096)


def test_null(serve, engine):
    server = serve("null", "1G", engine=engine)
    with server.client() as client:
        client.pwrite(b"x" * MIB, 0)
        assert client.pread(MIB, 0) == bytes(MIB)
        client.flush()
        client.zero(MIB, 0)


def test_null_without_a_size_is_empty(serve, engine):
    server = serve("null", engine=engine)
    with server.client() as client:
        assert client.get_size() == 0


def test_pattern(serve, engine):
    server = serve("pattern", "1G", engine=engine)
    rng = random.Random(3)
    with server.client() as client:
        assert client.is_read_only()
        for _ in range(50):
            offset, length = rng.randrange(1 << 30) & ~7, rng.randrange(8, 65536)
            skip = rng.randrange(8)
            expected = b"".join(struct.pack(">Q", offset + n) for n in range(0, length + 16, 8))
            length = min(length, (1 << 30) - offset - skip)
            assert client.pread(length, offset + skip) == expected[skip:skip + length]


def test_data_raw(serve, engine):
    server = serve("data", "raw=written on the command line", engine=engine)
    with server.client() as client:
        assert client.get_size() == len("written on the command line")
        assert client.pread(client.get_size(), 0) == b"written on the command line"
        client.pwrite(b"W", 0)
        assert client.pread(7, 0) == b"Written"


def test_data_base64(serve, engine):
    server = serve("data", "base64=AAECAwT/", engine=engine)
    with server.client() as client:
        assert client.pread(client.get_size(), 0) == bytes([0, 1, 2, 3, 4, 255])


@pytest.mark.parametrize("size", [2, 3, MIB])
def test_data_with_a_size(serve, engine, size):
    server = serve("data", "raw=abc", f"size={size}", engine=engine)
    with server.client() as client:
        assert client.pread(client.get_size(), 0) == b"abc".ljust(size, b"\0")[:size]


def blocks(path):
    return os.stat(path).st_blocks * 512


def test_file_trim_frees_and_no_hole_allocates(serve, engine, image):
    path = image(8 * MIB)
    server = serve("file", path, engine=engine)
    with server.client(contexts=["base:allocation"]) as client:
        client.flush()
        assert blocks(path) >= 8 * MIB
        client.trim(4 * MIB, 0)
        assert blocks(path) <= 4 * MIB + 64 * KIB
        assert status(client, 8 * MIB) == [(4 * MIB, 3), (4 * MIB, 0)]
        client.zero(MIB, 4 * MIB)
        assert client.pread(MIB, 4 * MIB) == bytes(MIB)
        before = blocks(path)
        client.zero(MIB, 0, nbd.CMD_FLAG_NO_HOLE)
        client.flush()
        assert blocks(path) >= before + MIB
        assert client.pread(MIB, 0) == bytes(MIB)


def test_file_opened_through_a_link(serve, engine, image, folder):
    path = image(MIB)
    (folder / "link").symlink_to(path)
    server = serve("file", folder / "link", engine=engine)
    with server.client() as client:
        client.pwrite(b"through the link", 0)
    assert path.read_bytes()[:16] == b"through the link"


def test_read_only_file_is_not_changed(serve, engine, image):
    path = image(MIB)
    before = path.read_bytes()
    server = serve("file", path, engine=engine, options=["-r"])
    with server.client(strict=False) as client:
        for action in (lambda: client.pwrite(b"x", 0), lambda: client.zero(512, 0),
                       lambda: client.trim(512, 0)):
            with pytest.raises(nbd.Error):
                action()
    assert path.read_bytes() == before


def test_image_cut_under_the_server(serve, engine, image):
    """Somebody truncates the image: reads fail or give zeroes, and the server lives."""
    path = image(MIB)
    server = serve("file", path, "lock=off", engine=engine) if IS_WEFT else serve("file", path)
    with server.client() as client:
        os.truncate(path, 1000)
        with contextlib.suppress(nbd.Error):
            assert client.pread(4096, 65536) == bytes(4096)
        assert len(client.pread(1000, 0)) == 1000
    assert server.alive()


def test_directory_follows_its_content(serve, engine, folder):
    (folder / "one").write_bytes(bytes(512))
    (folder / "sub").mkdir()
    os.mkfifo(folder / "fifo")
    server = serve("file", f"dir={folder}", engine=engine)

    def names():
        found = set()
        client = nbd.NBD()
        client.set_opt_mode(True)
        client.connect_unix(server.socket)
        client.opt_list(lambda name, _description: found.add(name))
        client.opt_abort()
        return found
    assert names() == {"one"}
    (folder / "two").write_bytes(bytes(1024))
    assert names() == {"one", "two"}
    with server.client("two") as client:
        assert client.get_size() == 1024
    (folder / "one").unlink()
    assert names() == {"two"}
    for name in ("one", "sub", "fifo"):
        with pytest.raises(nbd.Error):
            server.connect(name)
    with server.client("two") as client:
        assert client.pread(512, 0) == bytes(512)


@pytest.mark.weft_only
def test_cache_none_opens_with_o_direct(serve, engine, image):
    path = image(MIB)
    server = serve("file", path, "cache=none", engine=engine)
    with server.client() as client:
        client.pread(512, 0)
        flags = [int(line.split()[1], 8)
                 for fd in os.listdir(f"/proc/{server.pid}/fd")
                 if os.readlink(f"/proc/{server.pid}/fd/{fd}") == str(path)
                 for line in open(f"/proc/{server.pid}/fdinfo/{fd}", encoding="ascii")
                 if line.startswith("flags")]
        assert any(flag & os.O_DIRECT for flag in flags)


def test_cache_none_with_odd_requests(serve, engine, image):
    path = image(MIB)
    model = bytearray(path.read_bytes())
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    server = serve("file", path, "cache=none", engine=engine)
    with server.client() as client:
        for _ in range(200):
            offset = rng.randrange(MIB)
            length = rng.randrange(1, min(20000, MIB - offset) + 1)
            action = rng.randrange(3)
            if action == 0:
                model[offset:offset + length] = data = rng.randbytes(length)
                client.pwrite(data, offset)
            elif action == 1:
                model[offset:offset + length] = bytes(length)
                client.zero(length, offset)
            else:
                assert client.pread(length, offset) == model[offset:offset + length], seed
        client.flush()
        assert client.pread(MIB, 0) == model, seed
    assert path.read_bytes() == model, seed


# Locks: qemu's image locks (OFD locks), so that one image has one writer.

def refused_start(*words):
    """Starting this server must fail with one line; returns it."""
    done = run(WEFT, "-U", "-", *words, "--run", 'nbdinfo --size "$uri"', check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return next(line for line in done.stderr.splitlines() if line.startswith("weft: "))


@pytest.mark.weft_only
def test_second_writer_is_refused_with_the_name_of_the_image(serve, engine, image):
    path = image(MIB)
    server = serve("file", path, engine=engine)
    server.check_serves()
    line = refused_start("file", path)
    assert str(path) in line and "lock" in line
    server.check_serves()
    server.stop()
    serve("file", path, engine=engine).check_serves()


@pytest.mark.weft_only
def test_two_readers_share(serve, engine, image):
    path = image(MIB)
    for _ in range(2):
        serve("file", path, engine=engine, options=["-r"]).check_serves()


@pytest.mark.weft_only
def test_lock_off(serve, engine, image):
    path = image(MIB)
    serve("file", path, engine=engine).check_serves()
    serve("file", path, "lock=off", engine=engine).check_serves()


@pytest.fixture
def qemu_nbd(folder):
    if shutil.which("qemu-nbd") is None:
        pytest.skip("qemu-utils is not installed")

    @contextlib.contextmanager
    def start(path):
        pidfile = folder / "qemu.pid"
        with subprocess.Popen(["qemu-nbd", "-f", "raw", "-t", "-k", folder / "q",
                               f"--pid-file={pidfile}", path]) as process:
            try:
                wait_until(pidfile.exists, "qemu-nbd is ready")
                yield process
            finally:
                process.kill()
    return start


@pytest.mark.weft_only
def test_qemu_nbd_as_the_first_writer(image, qemu_nbd):
    path = image(MIB)
    with qemu_nbd(path):
        assert str(path) in refused_start("file", path)


@pytest.mark.weft_only
def test_qemu_nbd_as_the_second_writer(serve, engine, image, folder):
    path = image(MIB)
    serve("file", path, engine=engine).check_serves()
    done = run("qemu-nbd", "-f", "raw", "-k", folder / "q", path, check=False)
    assert done.returncode != 0
    assert "lock" in done.stderr


@pytest.mark.weft_only
def test_lock_of_an_image_in_a_directory(serve, engine, image, folder):
    image(MIB, "a.img")
    image(MIB, "b.img")
    one = serve("file", f"dir={folder}", engine=engine)
    two = serve("file", f"dir={folder}", engine=engine)
    with one.client("a.img") as holder:
        with pytest.raises(nbd.Error):
            two.connect("a.img")
        with two.client("b.img") as other:
            assert len(other.pread(512, 0)) == 512
        assert len(holder.pread(512, 0)) == 512
    assert "a.img" in two.log()


# Block devices

@pytest.mark.skipif(why_no_loop() is not None, reason=str(why_no_loop()))
@pytest.mark.parametrize("cache", [[], ["cache=none"]], ids=["buffered", "direct"])
def test_block_device(serve, engine, image, mounts, cache):
    path = image(16 * MIB)
    device = mounts.loop(path)
    server = serve("file", device, *cache, engine=engine)
    with server.client() as client:
        assert client.get_size() == 16 * MIB
        tag = os.urandom(65536)
        client.pwrite(tag, 4096)
        client.pwrite(b"odd", 1001)
        client.flush()
        assert client.pread(65536, 4096) == tag
        assert client.pread(3, 1001) == b"odd"
        client.zero(MIB, 8 * MIB)
        assert client.pread(MIB, 8 * MIB) == bytes(MIB)
        client.trim(MIB, 4 * MIB)
        client.pwrite(b"last", 16 * MIB - 4, nbd.CMD_FLAG_FUA)
    server.stop()
    with open(path, "rb") as backing:
        backing.seek(4096)
        assert backing.read(65536) == tag
        backing.seek(-4, os.SEEK_END)
        assert backing.read() == b"last"


@pytest.mark.weft_only
@pytest.mark.skipif(why_no_loop() is not None, reason=str(why_no_loop()))
@pytest.mark.parametrize("cache", [[], ["cache=none"]], ids=["buffered", "direct"])
def test_block_device_with_sectors_of_4096_bytes(serve, engine, image, mounts, cache):
    path = image(4 * MIB)
    device = mounts.loop(path, "--sector-size", "4096")
    server = serve("file", device, *cache, engine=engine)
    with server.client() as client:
        client.pwrite(b"inside a sector", 5000)
        client.flush()
        assert client.pread(15, 5000) == b"inside a sector"
        client.zero(512, 8192 + 512)
        assert client.pread(512, 8192 + 512) == bytes(512)


@pytest.mark.skipif(why_no_loop() is not None, reason=str(why_no_loop()))
def test_read_only_block_device(serve, engine, image, mounts):
    device = mounts.loop(image(MIB), "--read-only")
    server = serve("file", device, engine=engine, options=["-r"])
    with server.client() as client:
        assert client.is_read_only()
        assert len(client.pread(MIB, 0)) == MIB
