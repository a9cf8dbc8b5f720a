# SPDX-License-Identifier: BSD-3-Clause
"""Plugins in other languages, by nbdkit's own plugins for them: sh, eval, python, perl, lua, ruby,
tcl, and C compiled as it is loaded. Each is read, written, and fails, as under nbdkit.
"""
import os

import nbd
import pytest

from harness import KIB, WEFT, run, wait_until
from hosted import (COMPILER, PROGRAMS, block_sizes, exercise, exports, extent_map, flags, look,
                    name_of, need, needs_compiler, needs_hosting, on_both, plugin)
from script_disks import FILE_SCRIPT, extents, outcome, script

pytestmark = needs_hosting
SIZE = 64 * KIB

# A disk of SIZE bytes in memory. Writes to the last block fail.
PERL = """
my $disk;
sub config { my ($key, $value) = @_; die "unknown parameter $key" unless $key eq "fill";
             $disk = $value x 65536; }
sub config_complete { die "fill is missing" unless defined $disk; }
sub open { my $readonly = shift; return { readonly => $readonly }; }
sub get_size { return length ($disk); }
sub can_write { return 1; }
sub can_flush { return 1; }
sub flush { my $h = shift; return; }
sub can_trim { return 1; }
sub pread { my ($h, $count, $offset, $flags) = @_; return substr ($disk, $offset, $count); }
sub pwrite { my ($h, $buf, $offset, $flags) = @_;
             if ($offset >= 65024) { Nbdkit::set_error (28); die "the disk is full"; }
             substr ($disk, $offset, length $buf) = $buf; }
sub zero { my ($h, $count, $offset, $flags) = @_;
           substr ($disk, $offset, $count) = "\\0" x $count; }
sub trim { my ($h, $count, $offset, $flags) = @_; }
"""
LUA = """
local disk
function config (key, value)
  if key ~= "fill" then error ("unknown parameter " .. key) end
  disk = string.rep (value, 65536)
end
function config_complete () if disk == nil then error ("fill is missing") end end
function open (readonly) return {} end
function get_size (h) return #disk end
function can_write (h) return true end
function can_flush (h) return true end
function flush (h) end
function pread (h, count, offset) return string.sub (disk, offset + 1, offset + count) end
function pwrite (h, buf, offset)
  if offset >= 65024 then error ("the disk is full") end
  disk = string.sub (disk, 1, offset) .. buf .. string.sub (disk, offset + #buf + 1)
end
"""
RUBY = """
$disk = nil
def config (key, value)
  raise "unknown parameter " + key unless key == "fill"
  $disk = (value * 65536).b
end
def config_complete; raise "fill is missing" if $disk.nil?; end
def open (readonly); return {}; end
def get_size (h); return $disk.bytesize; end
def can_write (h); return true; end
def can_flush (h); return true; end
def flush (h); end
def pread (h, count, offset); return $disk.byteslice(offset, count); end
def pwrite (h, buf, offset)
  if offset >= 65024
    Nbdkit.set_error (28)
    raise "the disk is full"
  end
  $disk[offset, buf.bytesize] = buf.b
end
"""
TCL = """
proc config {key value} {
    global disk
    if {$key != "fill"} { error "unknown parameter $key" }
    set disk [string repeat $value 65536]
}
proc config_complete {} { global disk; if {![info exists disk]} { error "fill is missing" } }
proc plugin_open {readonly} { return "handle" }
proc get_size {h} { global disk; return [string length $disk] }
proc can_write {h} { return 1 }
proc can_flush {h} { return 1 }
proc flush {h} { }
proc pread {h count offset} {
    global disk
    return [encoding convertto iso8859-1 [string range $disk $offset [expr $offset+$count-1]]]
}
proc pwrite {h buf offset} {
    global disk
    if {$offset >= 65024} { error "the disk is full" }
    set last [expr $offset + [string length $buf] - 1]
    set disk [string replace $disk $offset $last $buf]
}
"""
PYTHON = """
import errno
import nbdkit
API_VERSION = 2
disk = None
def thread_model(): return nbdkit.THREAD_MODEL_PARALLEL
def config(key, value):
    global disk
    if key != "fill": raise RuntimeError("unknown parameter " + key)
    disk = bytearray(value.encode() * 65536)
def config_complete():
    if disk is None: raise RuntimeError("fill is missing")
def dump_plugin(): print("from_the_script=yes", flush=True)
def list_exports(readonly, is_tls): return [("one", "The first"), ("two", "The second")]
def default_export(readonly, is_tls): return "one"
def export_description(h): return "called " + h["name"]
def open(readonly): return {"name": nbdkit.export_name()}
def close(h): nbdkit.debug("closed " + h["name"])
def get_size(h): return len(disk)
def block_size(h): return (1, 4096, 65536)
def can_write(h): return True
def can_flush(h): return True
def can_trim(h): return True
def can_zero(h): return True
def can_fast_zero(h): return True
def can_multi_conn(h): return True
def can_extents(h): return True
def is_rotational(h): return True
def can_fua(h): return nbdkit.FUA_NATIVE
def can_cache(h): return nbdkit.CACHE_NATIVE
def cache(h, count, offset, flags): pass
def flush(h, flags): pass
def pread(h, buf, offset, flags): buf[:] = disk[offset:offset+len(buf)]
def pwrite(h, buf, offset, flags):
    if offset >= 65024:
        nbdkit.set_error(errno.ENOSPC)
        raise RuntimeError("the disk is full")
    disk[offset:offset+len(buf)] = buf
def zero(h, count, offset, flags):
    if flags & nbdkit.FLAG_FAST_ZERO:
        nbdkit.set_error(errno.EOPNOTSUPP)
        raise RuntimeError("not fast")
    disk[offset:offset+count] = bytes(count)
def trim(h, count, offset, flags): disk[offset:offset+count] = b"t" * count
def extents(h, count, offset, flags):
    return [(0, 32768, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO), (32768, 32768, 0)]
"""
C = """
#include <string.h>
#include <errno.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
static char disk[65536];
static int config (const char *key, const char *value)
{ if (strcmp (key, "fill")) { nbdkit_error ("unknown parameter %s", key); return -1; }
  memset (disk, value[0], sizeof disk); return 0; }
static int config_complete (void)
{ if (!disk[0]) { nbdkit_error ("fill is missing"); return -1; } return 0; }
static void *my_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t get_size (void *h) { return sizeof disk; }
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
static int my_pread (void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ memcpy (buf, disk + offset, count); return 0; }
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ if (offset >= 65024) { nbdkit_error ("the disk is full"); errno = ENOSPC; return -1; }
  memcpy (disk + offset, buf, count); return 0; }
static int my_flush (void *h, uint32_t flags) { return 0; }
static struct nbdkit_plugin plugin = { .name = "inner", .config = config,
  .config_complete = config_complete, .open = my_open, .get_size = get_size, .pread = my_pread,
  .pwrite = my_pwrite, .flush = my_flush, .errno_is_preserved = 1 };
NBDKIT_REGISTER_PLUGIN (plugin)
"""
SCRIPTS = {"perl": PERL, "lua": LUA, "ruby": RUBY, "tcl": TCL, "python": PYTHON, "cc": C}
LANGUAGES = list(SCRIPTS)


def words(language, folder, *parameters):
    """The plugin, its script, and what it needs besides."""
    suffix = {"cc": "c"}.get(language, language)
    path = script(folder, SCRIPTS[language], f"script.{suffix}", 0o644)
    more = [f"CC={COMPILER}"] if language == "cc" else []
    return [plugin(language), path, *more, *parameters]


def ready(language):
    if language == "cc":
        if COMPILER is None or not os.path.exists("/usr/include/nbdkit-plugin.h"):
            pytest.skip("no C compiler, or no nbdkit-plugin.h, here")


# Ruby 3.1 does not survive being called from a thread that it did not make, under nbdkit neither.
@pytest.mark.parametrize("language", [name for name in LANGUAGES if name != "ruby"])
def test_a_disk_in_memory(serve, folder, language):
    """Read, written, flushed, zeroed, trimmed: what comes of it is the same."""
    ready(language)

    def one(program):
        server = serve(*words(language, folder, "fill=x"), program=program)
        seen = look(server), exercise(server, count=60, longest=8 * KIB)
        with server.client() as client:
            seen += (outcome(client.pwrite, b"w" * 512, SIZE - 512),
                     outcome(client.pread, 512, SIZE - 512))
            client.pwrite(b"mine", 0)
            client.flush()
            with server.client() as other:
                assert other.pread(5, 0)[:4] == b"mine"
        # The words of the script, and who it was that said them.
        assert "the disk is full" in server.log()
        return seen, exports(server, "--no-content", "--list")
    (seen, _, full, _), _ = on_both(one)
    assert seen["size"] == SIZE and not seen["flags"]["is_read_only"]
    assert full == ("EIO" if language in ("lua", "tcl") else "ENOSPC")


@pytest.mark.parametrize("language", LANGUAGES)
def test_refusals_are_the_scripts(folder, language):
    ready(language)
    for parameters, text in (((), "fill is missing"), (("other=1",), "unknown parameter other")):
        for program in PROGRAMS:
            done = run(program, "-U", "-", *words(language, folder, *parameters), "--run",
                       "echo served", check=False)
            assert done.returncode == 1 and "served" not in done.stdout, done.stderr
            assert text in done.stderr, done.stderr


@pytest.mark.parametrize("language", ["perl", "lua", "ruby", "tcl", "python"])
def test_a_script_with_a_mistake(folder, language):
    path = script(folder, "( this is ] no program {\n", f"broken.{language}", 0o644)
    for program in PROGRAMS:
        done = run(program, "-U", "-", plugin(language), path, "--run", "echo served", check=False)
        assert done.returncode != 0 and "served" not in done.stdout
        done = run(program, "-U", "-", plugin(language), folder / "absent", "--run",
                   "echo served", check=False)
        assert done.returncode != 0 and "served" not in done.stdout


def test_python_has_every_callback(serve, folder):
    def one(program):
        server = serve(*words("python", folder, "fill=x"), program=program)
        with server.client("two", contexts=["base:allocation"]) as client:
            client.pwrite(b"w" * 512, 0, nbd.CMD_FLAG_FUA)
            client.trim(512, 1024)
            seen = [flags(client), extents(client), extent_map(client, 30 * KIB, 4096),
                    outcome(client.zero, 512, 0, nbd.CMD_FLAG_FAST_ZERO),
                    outcome(client.cache, 512, 0), client.pread(2048, 0),
                    block_sizes(client)]
        listed = exports(server, "--list", "--no-content")
        return seen, [(export["export-name"], export.get("description")) for export in listed]
    (can, *_), listed = on_both(one)
    assert can["can_multi_conn"] and can["is_rotational"] and can["can_fast_zero"]
    assert [name for name, _ in listed] == ["one", "two"]
    dumped = run(WEFT, *words("python", folder, "fill=x"), "--dump-plugin").stdout.splitlines()
    assert "from_the_script=yes" in dumped and "thread_model=parallel" in dumped


def test_python_in_parallel(serve, folder):
    """Requests of a parallel script overlap: it sleeps, the others go on."""
    path = script(folder, PYTHON.replace(
        "def pread(h, buf, offset, flags):", "import time\ndef pread(h, buf, offset, flags):\n"
        "    if offset == 0: time.sleep(1.5)\n   "), "slow.py", 0o644)
    server = serve(plugin("python"), path, "fill=x")
    with server.client() as client:
        order = []
        for offset in (0, 4096, 8192):
            client.aio_pread(nbd.Buffer(512), offset,
                             lambda error, offset=offset: order.append((offset, error.value)) or 1)
        while len(order) < 3:
            client.poll(20000)
        assert order[-1] == (0, 0) and {0 for _, error in order} == {0}


def test_sh(serve, folder, image):
    """nbdkit's sh plugin: the calls of a script that knows every method."""
    start = os.urandom(256 * KIB)

    def one(program):
        log = folder / f"log-{name_of(program)}"
        path = image(len(start), name_of(program), start)
        server = serve(plugin("sh"), script(folder, FILE_SCRIPT), path, program=program,
                       env={"LOG": str(log)})
        with server.client("second", contexts=["base:allocation"]) as client:
            seen = [flags(client), client.pread(4096, 4096), outcome(client.trim, 4096, 8192),
                    outcome(client.pwrite, b"w" * 8192, 8192, nbd.CMD_FLAG_FUA),
                    outcome(client.zero, 4096, 32768), outcome(client.flush),
                    outcome(client.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO),
                    outcome(client.cache, 65536, 0), client.pread(64 * KIB, 0)]
        listed = exports(server, "--list", "--no-content")
        server.stop()
        lines = log.read_text().replace(str(path), "IMAGE").splitlines()
        calls = [line for line in lines if not line.startswith(
            ("can_", "is_", "block_size", "get_size", "export_description", "close",
             "list_exports", "open", "preconnect", "default_export"))]
        return seen, sorted(export["export-name"] for export in listed), calls
    _, names, calls = on_both(one)
    assert names == ["first", "second"]
    assert calls[:3] == ["load", "magic_config_key", "config|image|IMAGE"]
    assert calls[-1] == "unload"


def test_eval(serve, folder):
    path = folder / "disk"

    def one(program):
        path.write_bytes(b"e" * SIZE)
        server = serve(plugin("eval"), f"get_size=stat -c %s {path}", "can_write=exit 0",
                       f"pread=dd if={path} iflag=count_bytes,skip_bytes count=$3 skip=$4",
                       f"pwrite=dd of={path} oflag=seek_bytes seek=$4 conv=notrunc",
                       "flush=echo ENOSPC no room >&2; exit 1", "can_flush=exit 0",
                       "zero=exit 1", "can_zero=exit 0", "thread_model=echo serialize_requests",
                       program=program)
        with server.client() as client:
            seen = [flags(client), outcome(client.pwrite, b"w" * 1000, 500),
                    outcome(client.flush), outcome(client.zero, 512, 0),
                    client.pread(2000, 0)]
        assert "no room" in server.log()
        return seen, path.read_bytes()
    (_, _, flushed, zeroed, _), _ = on_both(one)
    assert (flushed, zeroed) == ("ENOSPC", "EIO")


def test_children_hold_no_connections(serve, folder):
    """What a script leaves behind in the background does not keep a client's connection open."""
    need("sleep")
    server = serve(plugin("eval"), "get_size=echo 4096", f"pread=sleep 60 >/dev/null 2>&1 & "
                   f"echo $! >>{folder}/pids; head -c $3 /dev/zero")
    client = server.connect()
    assert client.pread(512, 0) == bytes(512)
    pids = [int(word) for word in (folder / "pids").read_text().split()]
    try:
        for pid in pids:
            held = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            assert not [name for name in held if name.startswith("socket:")], held
    finally:
        for pid in pids:
            os.kill(pid, 9)
    client.shutdown()


@needs_compiler
def test_cc_from_standard_input(folder):
    """The C of a plugin, with its own parameters, comes from a here document."""
    need("sh", "nbdinfo")
    (folder / "inner.c").write_text(C)
    for program in PROGRAMS:
        done = run("sh", "-c", f"{program} -U - {plugin('cc')} - CC={COMPILER} fill=y "
                   f"--run 'nbdinfo --size $uri' <{folder}/inner.c")
        assert done.stdout.strip() == str(SIZE)
        (folder / "bad.c").write_text("this is not C")
        done = run("sh", "-c", f"{program} -U - {plugin('cc')} {folder}/bad.c CC={COMPILER} "
                   "--run 'echo served'", check=False)
        assert done.returncode == 1 and "served" not in done.stdout


def test_signals_while_scripts_run(serve, folder):
    """SIGTERM ends the server, also while a script is at work."""
    server = serve(plugin("eval"), "get_size=echo 4096",
                   f"pread=touch {folder}/begun; sleep 1; head -c $3 /dev/zero")
    client = server.connect()
    client.aio_pread(nbd.Buffer(512), 0)
    wait_until((folder / "begun").exists, "the script is at work")
    server.signal(15)
    assert server.wait(30) == 0
