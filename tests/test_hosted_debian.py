# SPDX-License-Identifier: BSD-3-Clause
"""nbdkit's plugins in files, hosted: those that need nothing but themselves.

Each serves the same as under nbdkit: size, flags, content, extents, and what comes of requests.
"""
import os
import struct

import nbd
import pytest

from harness import GIB, IS_WEFT, KIB, MIB, NBDKIT, WEFT, run
from hosted import (FOLDER, PROGRAMS, content, exercise, exports, extent_map, flags, look,
                    name_of, needs_hosting, on_both, plugin, refusals, several)
from script_disks import outcome

pytestmark = needs_hosting

# The binary plugins of Debian's package nbdkit.
DEBIAN = """cc cdi curl data eval example1 example2 example3 file floppy full info iso linuxdisk
memory nbd null ondemand partitioning pattern random sh sparse-random split ssh tmpdisk torrent
zero""".split()
LANGUAGES = "lua perl python ruby tcl".split()


def dump(program, path):
    """What --dump-plugin prints; weft's has the long name besides."""
    lines = run(program, path, "--dump-plugin").stdout.splitlines()
    return dict(line.partition("=")[::2] for line in lines if not line.startswith("longname="))


@pytest.mark.parametrize("name", DEBIAN + LANGUAGES)
def test_loads_and_tells_about_itself(name):
    """Every plugin: its own words about it and its callbacks are the same."""
    seen = on_both(lambda program: dump(program, plugin(name)))
    assert seen["name"] == name and seen["path"] == str(FOLDER / f"nbdkit-{name}-plugin.so")
    assert seen["has_open"] == seen["has_get_size"] == "1"


@pytest.mark.parametrize("name", DEBIAN + LANGUAGES)
def test_version_and_help(name):
    on_both(lambda program: run(program, "--version", plugin(name)).stdout.splitlines()[1:])
    version = run(WEFT, "--version", plugin(name)).stdout.splitlines()
    assert version[-1].startswith(name), version
    described = run(WEFT, "--help", plugin(name)).stdout
    # Each line of the plugin's own help is there.
    if NBDKIT in PROGRAMS:
        theirs = run(NBDKIT, "--help", plugin(name)).stdout
        own = theirs[theirs.index(f"plugin: {name}"):].splitlines()
        for line in own[1:]:
            assert line.strip() in described or plugin(name) in line, line
    assert name in described


def test_all_of_debian_are_named_here():
    """The folder holds no plugin in a file that the tests do not know."""
    there = {path.name[len("nbdkit-"):-len("-plugin.so")] for path in FOLDER.glob("*-plugin.so")}
    known = set(DEBIAN + LANGUAGES + ["guestfs", "libvirt", "vddk", "blkio"])
    assert there <= known and set(DEBIAN) <= there


def served(serve, name, *parameters, work=look, **options):
    """work(server) under both programs, compared."""
    def one(program):
        server = serve(plugin(name), *parameters, program=program, **options)
        seen = work(server), [{key: value for key, value in export.items() if key != "content"}
                              for export in exports(server, "--no-content")]
        server.stop()
        return seen
    return on_both(one)[0]


READABLE = {
    "data-words": ("data", ["data=1 2 3 @0x1000 (0xff*7)*1000 @0x100000 \"end\""]),
    "data-raw": ("data", ["raw=hello world", "size=10000"]),
    "data-base64": ("data", ["base64=aGVsbG8=", "size=1M"]),
    "example1": ("example1", []),
    "full": ("full", ["1M"]),
    "info-exportname": ("info", ["exportname"]),
    "memory": ("memory", ["1M"]),
    "memory-malloc": ("memory", ["1000000", "allocator=malloc"]),
    "memory-empty": ("memory", ["0"]),
    "null": ("null", ["10M"]),
    "null-empty": ("null", []),
    "pattern": ("pattern", ["1234567"]),
    "random": ("random", ["1M", "seed=3"]),
    "sparse-random": ("sparse-random", ["20M", "seed=3", "percent=20", "runlength=65536"]),
    "zero": ("zero", []),
}


@pytest.mark.parametrize("case", READABLE)
@pytest.mark.parametrize("options", [(), ("-r",)], ids=["", "read-only"])
def test_reads_the_same(serve, case, options):
    name, parameters = READABLE[case]
    seen = served(serve, name, *parameters, options=options)
    assert not options or seen["flags"]["is_read_only"]


def test_what_is_read_is_right(serve):
    """So that two servers which are wrong alike are found out."""
    def words(name, *parameters, length=16, offset=0, export=""):
        server = serve(plugin(name), *parameters)
        with server.client(export) as client:
            return client.get_size(), client.pread(length, offset)

    assert words("pattern", "1M", offset=4096) == (MIB, struct.pack(">QQ", 4096, 4104))
    assert words("data", "raw=abc", "size=1M") == (MIB, b"abc" + bytes(13))
    assert words("full", "1M") == (MIB, bytes(16))
    assert words("info", "exportname", export="a name of some length", length=21) == (
        21, b"a name of some length")
    assert words("example1", length=512, offset=100 * MIB - 512) == (100 * MIB, bytes(512))


WRITABLE = {
    "data": ["data", "data=1 2 3 @0x8000 (7)*9999", "size=2M"],
    "data-malloc": ["data", "raw=x", "size=2M", "allocator=malloc"],
    "example3": ["example3", "size=2M"],
    "full": ["full", "2M"],
    "memory": ["memory", "2M"],
    "memory-malloc": ["memory", "2M", "allocator=malloc"],
    "null": ["null", "2M"],
    "random": ["random", "2M", "seed=7"],
    "sparse-random": ["sparse-random", "2M", "seed=7"],
}


@pytest.mark.parametrize("case", WRITABLE)
def test_every_request_gives_the_same(serve, case):
    served(serve, *WRITABLE[case], work=exercise)


def test_memory_compressed(serve):
    """Without extents: 1.32.5's allocator does not survive that question."""
    def work(server):
        several(server)
        with server.client() as client:
            client.zero(MIB, 64 * KIB)
            client.trim(64 * KIB, 64 * KIB)
            return flags(client), content(client)
    on_both(lambda program: work(serve(plugin("memory"), "4M", "allocator=zstd",
                                       program=program)))


@pytest.mark.parametrize("options", [["cache=none"], []])
def test_file(serve, image, options):
    """And the file holds what was written."""
    start = os.urandom(2 * MIB)
    made = {}

    def work(server):
        seen = exercise(server, count=250)
        several(server)
        with server.client() as client:
            client.flush()
        made[server] = server.args[1].partition("=")[2]
        return seen

    def one(program):
        path = image(2 * MIB, name_of(program), start)
        server = serve(plugin("file"), f"file={path}", *options, program=program)
        return look(server), work(server), path.read_bytes(), os.stat(path).st_blocks
    look_before, (seen, _, _, digest), bytes_after, _ = on_both(one)
    assert look_before["flags"]["can_multi_conn"] and not look_before["flags"]["is_read_only"]
    assert all(done in (None, 0) or kind == "pread" for kind, _, _, done in seen)
    assert digest and bytes_after != start


def test_file_with_holes(serve, folder):
    path = folder / "sparse"
    with open(path, "wb") as out:
        out.truncate(64 * MIB)
        for place in (0, 8 * MIB, 63 * MIB):
            out.seek(place)
            out.write(os.urandom(MIB))
    seen = served(serve, "file", path)
    assert len(seen["extents"]) >= 4


def test_file_of_a_folder(serve, folder, image):
    """dir=: the export's name is the file's."""
    for name, size in (("a", 1000), ("b", 4096)):
        image(size, name, name.encode() * size)

    def one(program):
        server = serve(plugin("file"), f"dir={folder}", program=program)
        listed = exports(server, "--no-content", "--list")
        with pytest.raises(nbd.Error):
            server.connect("absent")
        with pytest.raises(nbd.Error):
            server.connect("../" + folder.name + "/a")
        return sorted(export["export-name"] for export in listed), [
            look(server, name) for name in ("a", "b")]
    names, (first, second) = on_both(one)
    assert names == ["a", "b"] and (first["size"], second["size"]) == (1000, 4096)


def test_file_read_only_on_disk(serve, image):
    path = image(MIB)
    path.chmod(0o444)
    if os.geteuid() == 0 and IS_WEFT:
        served(serve, "file", path, options=["-r"], work=exercise)
    else:
        served(serve, "file", path, work=exercise)


@pytest.mark.parametrize("name, parameters", [
    ("memory", ["4M"]), ("data", ["raw=x", "size=4M"]), ("null", ["4M"])])
def test_several_connections(serve, name, parameters):
    for program in PROGRAMS:
        server = serve(plugin(name), *parameters, program=program)
        if name == "null":
            clients = [server.connect() for _ in range(10)]
            assert all(client.pread(512, 512) == bytes(512) for client in clients)
            for client in clients:
                client.shutdown()
        else:
            several(server)


def test_example3_has_a_disk_for_each_connection(serve):
    server = serve(plugin("example3"), "size=1M")
    with server.client() as one, server.client() as other:
        one.pwrite(b"1" * 512, 0)
        one.flush()
        assert one.pread(512, 0) == b"1" * 512
        assert other.pread(512, 0) == bytes(512)


def test_example2(serve, image):
    seen = served(serve, "example2", f"file={image(MIB)}")
    assert seen["flags"]["is_read_only"]


def test_full_is_full(serve):
    def work(server):
        with server.client() as client:
            return [outcome(client.pwrite, b"x" * 512, 0), outcome(client.pread, 512, 0),
                    outcome(client.zero, 512, 0), client.can_trim()]
    assert served(serve, "full", "1M", work=work)[:2] == ["ENOSPC", bytes(512)]


def test_random_refuses_what_it_does_not_hold(serve):
    def work(server):
        with server.client() as client:
            block = client.pread(512, 1024)
            return outcome(client.pwrite, block, 1024), outcome(client.pwrite, block, 512)
    assert served(serve, "random", "1M", "seed=1", work=work) == (None, "EIO")


def test_null_of_an_exbibyte(serve):
    """Long block status, reads at the far end; nbdkit dies of a length near 4 GiB."""
    def work(server):
        with server.client(contexts=["base:allocation"]) as client:
            size = client.get_size()
            return size, client.pread(MIB, size - MIB), extent_map(client, 1 << 40, 3 * GIB)
    assert served(serve, "null", str(1 << 60), work=work) == (
        1 << 60, bytes(MIB), [(3 * GIB, 3)])


@pytest.mark.weft_only
def test_block_status_of_4_gib(serve):
    server = serve(plugin("null"), "1T")
    with server.client(contexts=["base:allocation"]) as client:
        assert extent_map(client, 0, 64 * GIB) == [(64 * GIB, 3)]
        answers = []
        client.block_status(0xFFFFFFFF, 0, lambda *words: answers.append(words) or 0)
        assert answers
    server.check_serves(stores=False)


def test_info(serve):
    """Modes that are the same for both; times and addresses are each server's own."""
    for mode in ("exportname", "base64exportname"):
        export = "bmFtZQ==" if mode == "base64exportname" else "some name"

        def one(program, mode=mode, export=export):
            server = serve(plugin("info"), mode, program=program)
            return look(server, export)
        on_both(one)
    for program in PROGRAMS:
        server = serve(plugin("info"), "mode=address", program=program)
        with server.client() as client:
            assert client.pread(client.get_size(), 0).startswith(b"unix")
        server = serve(plugin("info"), "uptime", program=program)
        with server.client() as client:
            seconds, _, micros = client.pread(client.get_size(), 0), 0, 0
            assert int.from_bytes(seconds[:8], "big") < 100 and micros == 0
        for mode in ("time", "conntime"):
            server = serve(plugin("info"), mode, program=program)
            with server.client() as client:
                assert client.get_size() == 12


@pytest.mark.parametrize("name, parameters", [
    ("memory", ["size=much"]), ("memory", []), ("memory", ["1M", "unknown=1"]),
    ("memory", ["1M", "allocator=golden"]), ("file", []), ("file", ["/nowhere/at/all"]),
    ("file", ["file=/dev/null", "dir=/tmp"]), ("data", ["data=1 2 ("]), ("data", []),
    ("info", ["mode=unknown"]), ("split", []), ("nbd", []), ("nbd", ["uri=unknown:"]),
    ("curl", []), ("ssh", []), ("iso", []), ("partitioning", []), ("null", ["-5"]),
    ("null", ["bare", "words"]), ("example1", ["x=1"]), ("example2", []), ("eval", []),
    ("random", []), ("sparse-random", ["1M", "percent=200"]), ("torrent", []), ("python", []),
    ("perl", []), ("linuxdisk", []), ("floppy", []), ("tmpdisk", []), ("ondemand", []),
], ids=lambda value: value if isinstance(value, str) else "-".join(value) or "nothing")
def test_bad_parameters_are_refused_alike(name, parameters):
    """Or served alike: a plugin decides what it can do without."""
    path, said = plugin(name), []
    for program in PROGRAMS:
        done = run(program, "-U", "-", path, *parameters, "--run", "nbdinfo $uri", check=False)
        said.append((done.returncode != 0, program, done.stderr))
    assert len({failed for failed, _, _ in said}) == 1, said


def test_no_plugin_at_all(folder):
    path = folder / "nbdkit-text-plugin.so"
    path.write_text("no shared library")
    refusals(path, pattern=str(path))
    refusals(folder / "nbdkit-absent-plugin.so", pattern="absent")
    library = "/lib/x86_64-linux-gnu/libz.so.1"
    if os.path.exists(library):
        refusals(library, pattern="plugin_init")


def test_filters_of_wefts_over_a_hosted_plugin(serve):
    """The same names and parameters: the same result."""
    def one(program):
        server = serve(plugin("memory"), "2M", "minblock=4K", "maxdata=64K", program=program,
                       options=["--filter=nozero", "--filter=cow", "--filter=blocksize"])
        seen = look(server)
        _, _, _, digest = exercise(server, longest=64 * KIB, trims=False)
        return seen["size"], seen["content"], digest
    size, _, _ = on_both(one)
    assert size == 2 * MIB
