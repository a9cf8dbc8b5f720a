# SPDX-License-Identifier: BSD-3-Clause
"""The cow filter: what is written goes to a temporary overlay, and the disk below stays."""
import errno
import hashlib
import json
import os
import random
import shutil
import subprocess

import nbd
import pytest

from harness import KIB, MIB, NBDKIT, WEFT, run, wait_until, why_no_mount
from test_clients_libnbd import status

SIZE = 3 * MIB + 12345


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cow(serve, *args, filters=(), **kwargs):
    options = [f"--filter={name}" for name in (*filters, "cow")]
    return serve(*args, options=options, **kwargs)


def refused(*args):
    done = run(WEFT, "-U", "-", "--filter=cow", "memory", "1M", *args, "--run", "true",
               check=False)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_the_disk_below_is_never_changed(serve, engine, image):
    path = image(SIZE)
    before = digest(path)
    path.chmod(0o444)
    server = cow(serve, "file", path, engine=engine)
    content = bytearray(path.read_bytes())
    with server.client() as client:
        assert client.get_size() == SIZE
        assert not client.is_read_only()
        for offset, length in [(0, 1), (65535, 2), (100000, 200000), (SIZE - 1, 1)]:
            data = os.urandom(length)
            client.pwrite(data, offset, nbd.CMD_FLAG_FUA)
            content[offset:offset + length] = data
        client.zero(150000, 1000000)
        content[1000000:1150000] = bytes(150000)
        client.trim(65536, 2 * MIB)
        content[2 * MIB:2 * MIB + 65536] = bytes(65536)
        client.flush()
        assert client.pread(SIZE, 0) == content
    with server.client() as other:
        assert other.pread(SIZE, 0) == content, "it stays when all have left"
    server.stop()
    assert digest(path) == before


def test_flags_are_those_of_a_whole_disk(serve, image):
    server = cow(serve, "pattern", "1M")  # read-only below
    with server.client(contexts=["base:allocation"]) as client:
        assert not client.is_read_only()
        assert client.can_flush() and client.can_fua() and client.can_trim() and client.can_zero()
        assert client.can_fast_zero() and client.can_multi_conn()
    server = serve("file", image(MIB), options=["-r", "--filter=cow"])
    with server.client() as client:
        assert client.is_read_only()
        assert client.can_multi_conn()


def test_every_connection_sees_one_overlay(serve, engine):
    server = cow(serve, "memory", "1M", engine=engine)
    with server.client() as one, server.client() as two, server.client("other name") as three:
        one.pwrite(b"written by one", 100)
        assert two.pread(14, 100) == b"written by one"
        assert three.pread(14, 100) == b"written by one"


def test_each_export_has_its_own_overlay(serve, engine, folder):
    for name in ("a", "b"):
        (folder / "exports").mkdir(exist_ok=True)
        (folder / "exports" / name).write_bytes(name.encode() * 100000)
    server = cow(serve, "file", f"dir={folder / 'exports'}", engine=engine)
    with server.client("a") as a, server.client("b") as b:
        a.pwrite(b"x" * 10, 5)
        assert b.pread(20, 0) == b"b" * 20
        assert a.pread(20, 0) == b"aaaaa" + b"x" * 10 + b"aaaaa"


@pytest.mark.parametrize("block", ["4k", "64k", "1m"])
@pytest.mark.parametrize("parameters", [[], ["cow-on-read=true"], ["cow-on-cache=true"]],
                         ids=["plain", "on-read", "on-cache"])
def test_it_does_what_nbdkit_does(serve, image, block, parameters):
    """The same commands on both: the same content after each of them."""
    if shutil.which(NBDKIT) is None:
        pytest.skip("nbdkit is not installed")
    path = image(SIZE)
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    args = ["file", path, f"cow-block-size={block}", *parameters]
    ours = cow(serve, *args)
    socket = ours.dir / "nbdkit"
    theirs = subprocess.Popen([NBDKIT, "-f", "-U", socket, "--filter=cow", *args],
                              stdin=subprocess.DEVNULL)
    try:
        wait_until(socket.exists, "nbdkit serves")
        clients = [nbd.NBD(), nbd.NBD()]
        clients[0].connect_unix(ours.socket)
        clients[1].connect_unix(str(socket))
        for step in range(150):
            offset = rng.randrange(SIZE)
            length = min(rng.choice([1, 512, 4096, 70000, 300000]), SIZE - offset)
            action = rng.choice(["pwrite", "pwrite", "zero", "cache", "pread"])
            data = rng.randbytes(length)
            answers = []
            for client in clients:
                if action == "pwrite":
                    client.pwrite(data, offset)
                elif action == "zero" and not client.can_zero():
                    client.pwrite(bytes(length), offset)
                elif action == "zero":
                    client.zero(length, offset)
                elif action == "cache":
                    client.cache(length, offset)
                else:
                    answers.append(bytes(client.pread(length, offset)))
            assert len(set(answers)) <= 1, f"seed {seed}, step {step}"
        contents = [client.pread(SIZE, 0) for client in clients]
        assert contents[0] == contents[1], f"seed {seed}"
        for client in clients:
            client.shutdown()
    finally:
        theirs.kill()  # it would wait for clients that are still there
        theirs.wait(timeout=20)


def test_extents_tell_what_is_where(serve, engine, folder):
    path = folder / "disk"
    with open(path, "wb") as out:
        out.truncate(4 * MIB)
        out.seek(MIB)
        out.write(os.urandom(MIB))
    server = cow(serve, "file", path, engine=engine)
    with server.client(contexts=["base:allocation"]) as client:
        client.pwrite(b"x", 3 * MIB)
        client.trim(512 * KIB, MIB + 256 * KIB)
        assert status(client, 4 * MIB, 0) == [
            (MIB, 3), (256 * KIB, 0), (512 * KIB, 3), (256 * KIB, 0), (MIB, 3), (64 * KIB, 0),
            (MIB - 64 * KIB, 3)]


def test_fast_zero_is_fast_or_refused(serve, engine):
    server = cow(serve, "memory", "1M", engine=engine)
    with server.client() as client:
        client.pwrite(b"x" * 200000, 0)
        client.zero(131072, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert client.pread(131072, 0) == bytes(131072)
        with pytest.raises(nbd.Error) as failure:
            client.zero(100, 150000, nbd.CMD_FLAG_FAST_ZERO)
        assert failure.value.errnum == errno.ENOTSUP
        assert client.pread(100, 150000) == b"x" * 100
        client.zero(100, 150000)
        assert client.pread(102, 149999) == b"x" + bytes(100) + b"x"


def test_clients_that_only_read_take_no_descriptors(serve, folder):
    server = cow(serve, "memory", "1M", env={"TMPDIR": str(folder)})
    with server.client() as client:
        client.pread(1000, 0)
        before = len(os.listdir(f"/proc/{server.pid}/fd"))
        client.pwrite(b"x", 0)
        assert len(os.listdir(f"/proc/{server.pid}/fd")) == before + 1


def test_a_disk_that_is_resized_is_refused(serve, image):
    path = image(MIB)
    server = cow(serve, "file", f"dir={path.parent}")
    with server.client(path.name) as client:
        client.pwrite(b"x", 0)
    os.truncate(path, 2 * MIB)
    with pytest.raises(nbd.Error):
        server.connect(path.name)
    assert "had 1048576 bytes and has 2097152 now" in server.log()


def overlay_bytes(server):
    """What the overlays take: the server's open files that have no name any more."""
    total = 0
    for entry in os.listdir(f"/proc/{server.pid}/fd"):
        link = f"/proc/{server.pid}/fd/{entry}"
        try:
            if "(deleted)" in os.readlink(link) and "/s" not in os.path.basename(link):
                total += os.stat(link).st_blocks * 512
        except OSError:
            pass
    return total


def test_space_is_taken_by_changes_and_given_back(serve, engine, folder):
    server = cow(serve, "memory", "64M", engine=engine, env={"TMPDIR": str(folder)})
    assert not os.listdir(folder), "the overlay has no name"
    with server.client() as client:
        for offset in range(0, 8 * MIB, MIB):
            client.pwrite(os.urandom(MIB), offset)
        full = overlay_bytes(server)
        assert 8 * MIB <= full < 16 * MIB
        client.trim(8 * MIB, 0)
        assert overlay_bytes(server) < full // 4
        client.zero(64 * MIB, 0)
        assert overlay_bytes(server) < full // 4
        client.zero(MIB, 0, nbd.CMD_FLAG_NO_HOLE)
        assert overlay_bytes(server) >= MIB


def test_reads_are_kept_while_a_file_exists(serve, engine, image, folder):
    path = image(4 * MIB)
    content = path.read_bytes()
    switch = folder / "switch"
    server = cow(serve, "file", path, f"cow-on-read={switch}", engine=engine)
    with server.client() as client:
        assert client.pread(MIB, 0) == content[:MIB]
        switch.touch()
        assert client.pread(100000, MIB) == content[MIB:MIB + 100000]
        switch.unlink()
        assert client.pread(MIB, 2 * MIB) == content[2 * MIB:3 * MIB]
        # What lies in the overlay is seen no more to change below.
        path.write_bytes(bytes(4 * MIB))
        assert client.pread(100000, MIB) == content[MIB:MIB + 100000]
        assert client.pread(100000, 0) == bytes(100000)
        assert client.pread(100000, 2 * MIB) == bytes(100000)


@pytest.mark.parametrize("on_cache", ["true", "false"])
def test_what_is_prefetched_is_kept(serve, engine, image, on_cache):
    path = image(4 * MIB)
    content = path.read_bytes()
    server = cow(serve, "file", path, f"cow-on-cache={on_cache}", engine=engine)
    with server.client() as client:
        client.cache(100000, MIB)
        path.write_bytes(bytes(4 * MIB))
        kept = content[MIB:MIB + 100000] if on_cache == "true" else bytes(100000)
        assert client.pread(100000, MIB) == kept


@pytest.mark.skipif(why_no_mount() is not None, reason=str(why_no_mount()))
def test_a_full_folder_loses_nothing(serve, engine, mounts, folder, image):
    path = image(4 * MIB)
    content = bytearray(path.read_bytes())
    mounts.tmpfs(folder / "small", "1M")
    server = cow(serve, "file", path, "cow-on-read=true", engine=engine,
                 env={"TMPDIR": str(folder / "small")})
    with server.client() as client:
        client.pwrite(b"y" * 100, 10)
        content[10:110] = b"y" * 100
        failures = 0
        for offset in range(65536, 4 * MIB, 65536):
            try:
                client.pwrite(b"z" * 1000, offset + 5)
                content[offset + 5:offset + 1005] = b"z" * 1000
            except nbd.Error as failure:
                assert failure.errnum == errno.ENOSPC
                failures += 1
        assert failures > 40
        assert client.pread(4 * MIB, 0) == content, "reads do not need the space"
        client.pwrite(b"again", 12)
        content[12:17] = b"again"
        client.trim(MIB // 2, 0)
        content[:MIB // 2] = bytes(MIB // 2)
        client.pwrite(b"z" * 1000, 3 * MIB)
        content[3 * MIB:3 * MIB + 1000] = b"z" * 1000
        assert client.pread(4 * MIB, 0) == content
    assert "cannot be kept in the overlay" in server.log()


def test_a_disk_that_exceeds_any_file(serve):
    server = cow(serve, "memory", "7e")
    with server.client() as client:
        client.pwrite(b"x" * 10, 5)
        client.zero(1 << 30, 1 << 60)
        assert client.pread(12, 4) == b"\0" + b"x" * 10 + b"\0"
        with pytest.raises(nbd.Error) as failure:
            client.pwrite(b"x", 6 << 60)
        assert failure.value.errnum == errno.ENOSPC


def test_the_largest_block(serve, image):
    path = image(SIZE)
    content = bytearray(path.read_bytes())
    server = cow(serve, "file", path, "cow-block-size=2g")
    with server.client() as client:
        client.pwrite(b"x" * 1000, 100000)
        content[100000:101000] = b"x" * 1000
        client.zero(MIB, MIB)
        content[MIB:2 * MIB] = bytes(MIB)
        assert client.pread(SIZE, 0) == content


@pytest.mark.parametrize("value", ["0", "2048", "4097", "4g", "x"])
def test_a_wrong_block_size_is_refused(value):
    assert "cow-block-size" in refused(f"cow-block-size={value}")


def test_wrong_words_are_refused():
    assert "cow-on-read: 'rel/path'" in refused("cow-on-read=rel/path")
    assert "cow-on-cache" in refused("cow-on-cache=perhaps")


def test_a_folder_that_is_missing_is_named(folder):
    done = run(WEFT, "-U", "-", "--filter=cow", "memory", "1M", "--run", "true", check=False,
               env={**os.environ, "TMPDIR": str(folder / "none")})
    assert done.returncode == 1
    assert str(folder / "none") in done.stderr and "TMPDIR" in done.stderr


def test_explain_says_why_several_connections_may_be_used():
    text = run(WEFT, "--filter=cow", "--explain", "memory", "1M").stdout
    assert "advertised: decided by the cow filter" in text


@pytest.mark.parametrize("extra", [[], ["cow-on-read=true"]], ids=["plain", "on-read"])
def test_examples_of_the_manual(serve, image, extra):
    path = image(MIB)
    before = digest(path)
    server = cow(serve, "file", path, *extra)
    server.check_serves()
    server.stop()
    assert digest(path) == before


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-utils is not installed")
def test_example_diff_by_qemu_img(serve, image, folder):
    path = image(4 * MIB)
    server = cow(serve, "file", path)
    with server.client() as client:
        client.pwrite(b"changed", 2 * MIB)
        content = client.pread(4 * MIB, 0)
    diff = folder / "diff.qcow2"
    run("qemu-img", "create", "-F", "raw", "-b", f"nbd+unix:///?socket={server.socket}",
        "-f", "qcow2", diff)
    run("qemu-img", "rebase", "-F", "raw", "-b", path, "-f", "qcow2", diff)
    server.stop()
    run("qemu-img", "convert", "-O", "raw", diff, folder / "out")
    assert (folder / "out").read_bytes() == content
    extents = json.loads(run("qemu-img", "map", "--output=json", diff).stdout)
    own = sum(e["length"] for e in extents if e["depth"] == 0)
    assert 0 < own <= 128 * KIB


@pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-utils is not installed")
def test_qemu_io(serve, engine, image):
    server = cow(serve, "file", image(4 * MIB, content=b""), engine=engine)
    done = run("qemu-io", "-f", "raw", "-c", "write -P 5 1000 70000", "-c", "read -P 5 1000 70000",
               "-c", "read -P 0 0 1000", "-c", "write -z -u 0 1M", "-c", "read -P 0 0 1M",
               "-c", "discard 1M 1M", "-c", "flush", server.uri())
    for failure in ("failed", "Pattern verification", "error"):
        assert failure not in done.stdout + done.stderr, done.stdout + done.stderr
