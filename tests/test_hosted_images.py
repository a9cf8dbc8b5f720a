# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit's plugins in files, hosted: those that make a disk of files or run programs for it.

They fork from the server, change what signals do and wait for children: that must go well too.
"""
import os
import random
import subprocess

import nbd
import pytest

from harness import KIB, MIB, run, wait_until
from hosted import (PROGRAMS, content, exports, look, name_of, need, needs_hosting, on_both,
                    plugin)
from script_disks import outcome

pytestmark = needs_hosting
SECTOR = 512


@pytest.fixture
def tree(folder):
    """A folder with a few files."""
    path = folder / "tree"
    (path / "deep").mkdir(parents=True)
    (path / "hello.txt").write_text("hello from a file\n")
    (path / "deep/random.bin").write_bytes(os.urandom(300 * KIB))
    return path


def copy(server, path):
    """The whole disk, into a file."""
    with server.client() as client:
        size = client.get_size()
        with open(path, "wb") as out:
            for offset in range(0, size, MIB):
                out.write(client.pread(min(MIB, size - offset), offset))
    return path


def binary(*command):
    """What a program prints, as bytes."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, timeout=60,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_iso(serve, folder, tree):
    need("xorriso")

    def one(program):
        server = serve(plugin("iso"), f"dir={tree}", "params=-r -J", program=program)
        with server.client() as client:
            assert client.is_read_only() and client.can_multi_conn()
        iso = copy(server, folder / name_of(program))
        out = folder / f"{name_of(program)}-tree"
        run("xorriso", "-indev", iso, "-osirrox", "on", "-extract", "/", out)
        assert (out / "hello.txt").read_text() == "hello from a file\n"
        assert (out / "deep/random.bin").read_bytes() == (tree / "deep/random.bin").read_bytes()
        server.stop()
        return iso.stat().st_size, exports(serve(plugin("iso"), tree, program=program),
                                           "--no-content")
    on_both(one)


def test_iso_of_a_program_that_fails(folder, tree):
    for program in PROGRAMS:
        done = run(program, "-U", "-", plugin("iso"), tree, "prog=false", "--run", "echo served",
                   check=False)
        assert done.returncode != 0 and "served" not in done.stdout
        assert "false" in done.stderr, done.stderr
        done = run(program, "-U", "-", plugin("iso"), folder / "absent", "--run", "echo served",
                   check=False)
        assert done.returncode != 0 and "served" not in done.stdout


def test_floppy(serve, folder, tree):
    """The plugin puts each file in one piece; at its only partition a FAT begins."""
    def one(program):
        server = serve(plugin("floppy"), tree, "label=TRIAL", program=program)
        disk = copy(server, folder / name_of(program)).read_bytes()
        begin = 2048 * SECTOR
        assert disk[510:512] == disk[begin + 510:begin + 512] == b"\x55\xaa"
        assert disk[begin + 71:begin + 82] == b"TRIAL      "
        assert disk[begin + 82:begin + 87] == b"FAT32"
        for name in ("hello.txt", "deep/random.bin"):
            assert (tree / name).read_bytes() in disk[begin:]
        return look(server)
    assert on_both(one)["flags"]["is_read_only"]


def partition(disk, path):
    """The first partition of a GPT disk, in a file."""
    content = disk.read_bytes()
    assert content[SECTOR:SECTOR + 8] == b"EFI PART"
    entry = content[2 * SECTOR:2 * SECTOR + 128]
    first, last = (int.from_bytes(entry[at:at + 8], "little") for at in (32, 40))
    path.write_bytes(content[first * SECTOR:(last + 1) * SECTOR])
    return path


@pytest.mark.parametrize("kind", ["ext2", "ext4"])
def test_linuxdisk(serve, folder, tree, kind):
    need("mke2fs", "debugfs", "e2fsck")

    def one(program):
        server = serve(plugin("linuxdisk"), f"dir={tree}", f"type={kind}", "size=+4M",
                       "label=TRIAL", program=program)
        with server.client() as client:
            assert client.is_read_only()
        image = partition(copy(server, folder / name_of(program)), folder / "partition")
        run("e2fsck", "-fn", image)
        assert binary("debugfs", "-R", "cat /deep/random.bin", image) == (
            tree / "deep/random.bin").read_bytes()
        return exports(server, "--no-content")
    on_both(one)


def test_split(serve, folder):
    """Files of odd lengths, one after another, and what is written lands in the right one."""
    lengths = [1000, 512, 70000, 1, MIB]
    start = [os.urandom(length) for length in lengths]

    def one(program):
        paths = [folder / f"{name_of(program)}-{number}" for number in range(len(lengths))]
        for path, some in zip(paths, start):
            path.write_bytes(some)
        server = serve(plugin("split"), *paths, program=program)
        seen = look(server)
        with server.client() as client:
            assert client.pread(client.get_size(), 0) == b"".join(start)
            client.pwrite(b"w" * 300, 600)
            assert client.pread(500, 500) == start[0][500:600] + b"w" * 300 + start[0][900:]
        server.stop()
        return seen, paths[0].read_bytes()
    seen, after = on_both(one)
    assert seen["size"] == sum(lengths) and after != start[0]
    assert not seen["flags"]["can_multi_conn"]


def test_split_of_one_file(serve, image):
    """In files but the first, 1.32.5's plugin writes elsewhere; asked to cache, it hangs."""
    start = os.urandom(MIB)

    def one(program):
        path, numbers = image(MIB, name_of(program), start), random.Random(1)
        server = serve(plugin("split"), path, program=program)
        with server.client() as client:
            for _ in range(50):
                length = numbers.randrange(1, 64 * KIB)
                offset = numbers.randrange(0, MIB - length)
                client.pwrite(numbers.randbytes(length), offset)
                client.zero(length, MIB - offset - length)
            seen = outcome(client.flush), content(client)
        return seen, path.read_bytes() != start
    assert on_both(one)[1]


@pytest.mark.parametrize("kind", ["mbr", "gpt"])
def test_partitioning(serve, image, folder, kind):
    content = [os.urandom(MIB), os.urandom(300 * KIB)]
    guid = "type-guid=0FC63DAF-8483-4772-8E79-3D69D8477DE4" if kind == "gpt" else "mbr-id=0x83"

    def one(program):
        paths = [image(len(some), f"{name_of(program)}-{number}", some)
                 for number, some in enumerate(content)]
        server = serve(plugin("partitioning"), f"partition-type={kind}", guid, *paths,
                       program=program)
        with server.client() as client:
            size, writable = client.get_size(), not client.is_read_only()
            # The tables are the plugin's own (a GPT has random numbers): written unchanged only.
            table = client.pread(SECTOR, 0)
            first = 2048 * SECTOR
            assert client.pread(MIB, first) == content[0]
            client.pwrite(b"p" * 4096, first + 8192)
            client.flush()
            seen = [size, writable, table[440:] if kind == "mbr" else table[446:],
                    outcome(client.pwrite, table, 0), outcome(client.pwrite, bytes(SECTOR), 0),
                    outcome(client.zero, 4096, first), client.can_multi_conn(),
                    outcome(client.pread, 300 * KIB, 2 * first)]
        server.stop()
        assert paths[0].read_bytes()[8192:12288] == b"p" * 4096
        return seen, exports(serve(plugin("partitioning"), f"partition-type={kind}", *paths,
                                   program=program), "--no-content")
    on_both(one)


def file_system(client):
    """What says an ext4 file system of its size; its number is random."""
    block = client.pread(1024, 1024)
    assert block[56:58] == b"\x53\xef"
    return {"size": client.get_size(), "magic": block[56:58], "blocks": block[4:8]}


def test_tmpdisk(serve):
    """Each connection has a fresh file system, and loses it."""
    need("mkfs.ext4")

    def one(program):
        server = serve(plugin("tmpdisk"), "16M", "label=TRIAL", program=program)
        with server.client() as client, server.client() as other:
            seen = file_system(client), client.can_multi_conn()
            client.pwrite(b"mine" * 128, MIB)
            client.flush()
            assert other.pread(512, MIB) != b"mine" * 128
            assert client.pread(512, MIB) == b"mine" * 128
            # Another number: another file system.
            assert client.pread(16, 1024 + 104) != other.pread(16, 1024 + 104)
        return seen, [{key: value for key, value in export.items() if key != "content"}
                      for export in exports(server, "--no-content")]
    (_, multi_conn), _ = on_both(one)
    assert multi_conn is False


def test_tmpdisk_with_a_command(serve):
    def one(program):
        return look(serve(
            plugin("tmpdisk"), "size=1M", 'command=printf %s "$word" >"$disk"; '
            'truncate -s $size "$disk"', "word=said to the command", program=program))
    seen = on_both(one)
    assert seen["size"] == MIB and not seen["flags"]["is_read_only"]


def test_tmpdisk_of_a_command_that_fails(serve):
    """The connection is refused; the server lives."""
    for program in PROGRAMS:
        server = serve(plugin("tmpdisk"), "size=1M", "command=exit 3", program=program)
        for _ in range(2):
            with pytest.raises(nbd.Error):
                server.connect()
        assert server.alive() and "tmpdisk" in server.log()


def connected(server, export):
    """A client, or None where the export cannot be had."""
    try:
        return server.connect(export)
    except nbd.Error:
        return None


def test_ondemand(serve, folder):
    """A disk for each name, kept in the folder; the second connection to a name is refused."""
    need("mkfs.ext4")

    def one(program):
        place = folder / name_of(program)
        place.mkdir()
        server = serve(plugin("ondemand"), f"dir={place}", "16M", program=program)
        with server.client("first") as first, server.client("second") as second:
            first.pwrite(b"1" * 512, MIB)
            first.flush()
            assert second.pread(512, MIB) != b"1" * 512
            with pytest.raises(nbd.Error):
                server.connect("first")
            seen = file_system(second), first.can_multi_conn()
        # It may take the server a moment to see that the first client has left.
        first = wait_until(lambda: connected(server, "first"), "the disk is free again")
        assert first.pread(512, MIB) == b"1" * 512
        first.shutdown()
        with pytest.raises(nbd.Error):
            server.connect("../outside")
        listed = sorted(export["export-name"] for export in exports(server, "--list",
                                                                    "--no-content"))
        server.stop()
        return seen, listed, sorted(os.listdir(place))
    _, _, kept = on_both(one)
    assert {"first", "second"} <= set(kept)


def said(dumped):
    """The lines of --dump-plugin; weft's has the long name besides."""
    return sorted(line for line in dumped.splitlines() if not line.startswith("longname="))


def bencoded(value):
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    return b"d" + b"".join(bencoded(key) + bencoded(value[key]) for key in sorted(value)) + b"e"


def test_torrent_takes_its_parameters(folder):
    """It is loaded and configured; it would look for peers if it were started."""
    path = folder / "some.torrent"
    path.write_bytes(bencoded({b"info": {b"length": MIB, b"name": b"disk", b"piece length": MIB,
                                         b"pieces": bytes(20)}}))

    def one(program):
        good = run(program, plugin("torrent"), "--dump-plugin", path, f"cache={folder}")
        bad = run(program, plugin("torrent"), "--dump-plugin", path, "unknown=1", check=False)
        return said(good.stdout), bad.returncode
    lines, refused = on_both(one)
    assert "name=torrent" in lines and refused == 1


def test_cdi_takes_its_parameters():
    def one(program):
        good = run(program, plugin("cdi"), "--dump-plugin", "docker.io/library/some", "layer=1")
        bad = run(program, plugin("cdi"), "--dump-plugin", "name", "layer=many", check=False)
        return said(good.stdout), bad.returncode
    lines, refused = on_both(one)
    assert "name=cdi" in lines and refused == 1
