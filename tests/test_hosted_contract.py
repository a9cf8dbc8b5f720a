# SPDX-License-Identifier: BSD-3-Clause
"""The contract between a plugin and its server, both ways, by small plugins made here.

Where nbdkit is installed it is held to the same, but where it is known to be wrong.
"""
import errno
import os

import nbd
import pytest

from harness import KIB, MIB, WEFT
from hosted import (PROGRAMS, block_sizes, build_plugin, exercise, exports, extent_map, flags,
                    look, name_of, needs_compiler, needs_hosting, on_both)
from script_disks import extents, outcome

pytestmark = [needs_hosting, needs_compiler]

HEAD = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <nbdkit-plugin.h>
static char disk[1 << 20];
static void *my_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t my_get_size (void *h) { return sizeof disk; }
"""
READ = r"""
static int my_pread (void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ memcpy (buf, disk + offset, count); return 0; }
"""
WRITE = r"""
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ memcpy (disk + offset, buf, count); return 0; }
"""


def source(body="", fields="", version=2, model="PARALLEL", read=READ, more=HEAD):
    """The text of a plugin: its functions, and the fields of its struct."""
    last = ".pread = my_pread," if read else ""
    return (f"#define NBDKIT_API_VERSION {version}\n{more}{read}{body}\n"
            f"#define THREAD_MODEL NBDKIT_THREAD_MODEL_{model}\n"
            f"static struct nbdkit_plugin plugin = {{ .name = \"trial\", .open = my_open,\n"
            f"  .get_size = my_get_size, {last} {fields} }};\n"
            "NBDKIT_REGISTER_PLUGIN (plugin)\n")


@pytest.fixture
def made(folder, serve):
    """made(...) compiles a plugin as source() does; .serve(program) runs it."""
    class Made:
        def __init__(self, *args, **kwargs):
            self.path = build_plugin(folder, "trial", source(*args, **kwargs))

        def serve(self, *parameters, program=WEFT, **options):
            return serve(self.path, *parameters, program=program, **options)
    return Made


# ---- Both versions of the interface --------------------------------------------------------------

VERSION_1 = r"""
static int my_pread (void *h, void *buf, uint32_t count, uint64_t offset)
{ memcpy (buf, disk + offset, count); return 0; }
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset)
{ memcpy (disk + offset, buf, count); return 0; }
static int my_flush (void *h) { return 0; }
static int my_trim (void *h, uint32_t count, uint64_t offset)
{ memset (disk + offset, 't', count); return 0; }
static int my_zero (void *h, uint32_t count, uint64_t offset, int may_trim)
{ memset (disk + offset, 0, count); disk[offset] = may_trim ? 0 : 'n'; return 0; }
"""
VERSION_1_FIELDS = ".pread = my_pread, .pwrite = my_pwrite, .flush = my_flush, .trim = my_trim, "


def test_version_1(made):
    plugin = made(VERSION_1, VERSION_1_FIELDS + ".zero = my_zero", version=1, read="")

    def one(program):
        server = plugin.serve(program=program)
        return look(server), exercise(server), exports(server, "--no-content")
    (seen, *_) = on_both(one)
    assert seen["flags"]["can_fua"] and seen["flags"]["can_zero"]


@pytest.mark.parametrize("missing", ["flush", "trim", "zero", "flush trim zero"])
def test_version_1_without_some_callbacks(made, missing):
    fields = " ".join(f".{name} = my_{name}," for name in
                      ("pread", "pwrite", "flush", "trim", "zero") if name not in missing)
    unused = "".join(f"static void *unused_{name} (void) {{ return my_{name}; }}\n"
                     for name in missing.split())
    used = "".join(f"(void) unused_{name} ();" for name in missing.split())
    plugin = made(VERSION_1 + unused + f"static void my_load (void) {{ {used} }}\n",
                  fields + ".load = my_load", version=1, read="")

    def one(program):
        server = plugin.serve(program=program)
        return look(server), exercise(server)
    on_both(one)


VERSION_2 = r"""
static void say (const char *what, uint32_t count, uint64_t offset, uint32_t flags)
{ FILE *f = fopen (getenv ("LOG"), "a");
  fprintf (f, "%s %u %lu %x\n", what, count, offset, flags); fclose (f); }
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ say ("pwrite", count, offset, flags); memcpy (disk + offset, buf, count); return 0; }
static int my_flush (void *h, uint32_t flags) { say ("flush", 0, 0, flags); return 0; }
static int my_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ say ("trim", count, offset, flags); return 0; }
static int my_zero (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ say ("zero", count, offset, flags);
  if (flags & NBDKIT_FLAG_FAST_ZERO || offset == 8192) { nbdkit_set_error (EOPNOTSUPP); return -1; }
  memset (disk + offset, 0, count); return 0; }
static int my_cache (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ say ("cache", count, offset, flags); return 0; }
static int answer (const char *what)
{ char *given = getenv (what); return given ? atoi (given) : 1; }
static int my_can_fua (void *h) { return answer ("FUA"); }
static int my_can_zero (void *h) { return answer ("ZERO"); }
static int my_can_fast_zero (void *h) { return answer ("FAST_ZERO"); }
static int my_can_cache (void *h) { return answer ("CACHE"); }
static int my_can_flush (void *h) { return answer ("FLUSH"); }
static int my_can_trim (void *h) { return answer ("TRIM"); }
static int my_can_write (void *h) { return answer ("WRITE"); }
static int my_can_multi_conn (void *h) { return answer ("MULTI_CONN"); }
static int my_is_rotational (void *h) { return answer ("ROTATIONAL"); }
"""
VERSION_2_FIELDS = " ".join(f".{name} = my_{name}," for name in """pwrite flush trim zero cache
    can_fua can_zero can_fast_zero can_cache can_flush can_trim can_write can_multi_conn
    is_rotational""".split())
ANSWERS = [{}, {"FUA": "2"}, {"FUA": "0"}, {"ZERO": "0"}, {"ZERO": "0", "FAST_ZERO": "0"},
           {"FAST_ZERO": "0"}, {"CACHE": "0"}, {"CACHE": "2"}, {"FLUSH": "0"},
           {"TRIM": "0", "FUA": "2"}, {"WRITE": "0"}, {"MULTI_CONN": "0", "ROTATIONAL": "0"},
           {"FLUSH": "0", "FUA": "0"}]


@pytest.mark.parametrize("answers", ANSWERS, ids=lambda one: "-".join(
    f"{name}={value}" for name, value in one.items()) or "all-1")
def test_capabilities_and_calls(made, folder, answers):
    """What is advertised, and every call with its flags, emulations among them."""
    plugin = made(VERSION_2, VERSION_2_FIELDS)

    def one(program):
        log = folder / f"log-{name_of(program)}"
        log.touch()
        server = plugin.serve(program=program, env={**answers, "LOG": str(log)})
        with server.client(strict=False) as client:
            seen = [flags(client)]
            for fua in (0, nbd.CMD_FLAG_FUA):
                if fua and not client.can_fua():
                    continue
                if not client.is_read_only():
                    seen.append(outcome(client.pwrite, b"w" * 4096, 4096, fua))
                if client.can_trim():
                    seen.append(outcome(client.trim, 512, 1024, fua))
                if client.can_zero():
                    seen += [outcome(client.zero, 4096, 0, fua),
                             outcome(client.zero, 4096, 8192, fua),
                             outcome(client.zero, 4096, 0, fua | nbd.CMD_FLAG_NO_HOLE)]
                if client.can_fast_zero():
                    seen.append(outcome(client.zero, 512, 0, fua | nbd.CMD_FLAG_FAST_ZERO))
            if client.can_flush():
                seen.append(outcome(client.flush))
            if client.can_cache():
                seen.append(outcome(client.cache, 8192, 0))
            seen.append(client.pread(16384, 0))
        return seen, log.read_text().splitlines()
    on_both(one)


# ---- Errors --------------------------------------------------------------------------------------

ERRORS = r"""
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ int which = offset / 512;
  nbdkit_error ("write %d fails: %m", which);
  if (which >= 200) { nbdkit_set_error (which - 200); errno = EPERM; }
  else errno = which;
  return -1; }
"""


@pytest.mark.parametrize("preserved", [0, 1])
def test_errors(made, preserved):
    """errno counts where the plugin says so, what it set comes first."""
    plugin = made(ERRORS, f".pwrite = my_pwrite, .errno_is_preserved = {preserved}")

    def one(program):
        server = plugin.serve(program=program)
        with server.client() as client:
            seen = {which: outcome(client.pwrite, bytes(512), 512 * which)
                    for which in [*range(0, 135), *range(200, 335)]}
            assert client.pread(512, 0) == bytes(512)
        for which, error in seen.items():
            # What the protocol has no code for is EINVAL of nbdkit, though the client is right.
            if error == "EINVAL" and which % 200 != errno.EINVAL:
                seen[which] = "EIO"
        assert "write 28 fails" in server.log() and "trial" in server.log()
        return seen
    seen = on_both(one)
    assert seen[228] == "ENOSPC" and seen[28] == ("ENOSPC" if preserved else "EIO")


def test_an_error_is_not_the_next_ones(made):
    """What a callback set does not stick to its thread."""
    plugin = made(r"""
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ if (offset == 0) { nbdkit_set_error (ENOSPC); return 0; } return -1; }
""", ".pwrite = my_pwrite")

    def one(program):
        server = plugin.serve(program=program)
        with server.client() as client:
            return [outcome(client.pwrite, bytes(512), offset) for offset in (0, 512, 0, 512)]
    assert on_both(one) == [None, "EIO", None, "EIO"]


# ---- Emulations ----------------------------------------------------------------------------------

@pytest.mark.weft_only
def test_long_zeroes_by_writing(made):
    """All of it: 1.32.5 writes each piece of 64 MiB to the same place."""
    plugin = made(WRITE, ".pwrite = my_pwrite", more=HEAD.replace("1 << 20", "160 << 20"))
    server = plugin.serve()
    with server.client() as client:
        for offset in range(0, 160 * MIB, 16 * MIB):
            client.pwrite(b"x" * 512, offset)
        client.zero(150 * MIB, 5 * MIB)
        assert client.pread(512, 0) == b"x" * 512
        for offset in range(16 * MIB, 155 * MIB, 16 * MIB):
            assert client.pread(512, offset) == bytes(512), offset


def test_read_only_is_told_to_open(made):
    """-r: the plugin is told, and not asked whether it can write."""
    plugin = made(WRITE + r"""
static void *tell (int readonly) { nbdkit_debug ("told %d", readonly);
  memset (disk, '0' + readonly, 8); return disk; }
static int my_can_write (void *h) { abort (); }
""", ".pwrite = my_pwrite, .can_write = my_can_write", more=HEAD.replace(
        "static void *my_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }",
        "static void *tell (int);\n#define my_open tell"))

    def one(program):
        with plugin.serve(program=program, options=["-r"]).client() as client:
            return flags(client), client.pread(8, 0)
    assert on_both(one)[1] == b"1" * 8


# ---- What plugins list ---------------------------------------------------------------------------

EXPORTS = r"""
static int my_list (int readonly, int is_tls, struct nbdkit_exports *exports)
{ if (nbdkit_add_export (exports, "first", "The first") == -1) return -1;
  if (nbdkit_add_export (exports, "second", NULL) == -1) return -1;
  return nbdkit_use_default_export (exports); }
static const char *my_default (int readonly, int is_tls)
{ return nbdkit_strdup_intern ("chosen"); }
static const char *my_description (void *h)
{ return nbdkit_printf_intern ("about %s", (char *) h); }
static void *named (int readonly)
{ const char *name = nbdkit_export_name ();
  if (!strcmp (name, "refused")) { nbdkit_error ("no such export"); return NULL; }
  strcpy (disk, name);
  return (void *) name; }
"""


def test_exports(made):
    plugin = made(EXPORTS, ".list_exports = my_list, .default_export = my_default, "
                  ".export_description = my_description", more=HEAD.replace(
                      "static void *my_open (int readonly) { return NBDKIT_HANDLE_NOT_NEEDED; }",
                      "static void *named (int);\n#define my_open named"))

    def one(program):
        server = plugin.serve(program=program)
        listed = nbd.NBD()
        listed.set_opt_mode(True)
        listed.connect_unix(server.socket)
        names = []
        listed.opt_list(lambda name, text: names.append((name, text)) or 0)
        listed.opt_abort()
        with pytest.raises(nbd.Error):
            server.connect("refused")
        with server.client() as client, server.client("other") as other:
            seen = [client.pread(8, 0), other.pread(8, 0)]
        return sorted(names), seen, [export.get("description") for export in exports(
            server, "--no-content")]
    names, _, described = on_both(one)
    assert ("first", "The first") in names and ("chosen", "") in names
    assert described == ["about chosen"]


# ---- Extents and sizes ---------------------------------------------------------------------------

def test_extents_before_and_beyond(made):
    """Extents that begin before what was asked for, or end after it, are cut; neighbours joined."""
    plugin = made(r"""
static int my_extents (void *h, uint32_t count, uint64_t offset, uint32_t flags,
                       struct nbdkit_extents *extents)
{ for (uint64_t at = 0; at < sizeof disk; at += 4096)
    if (nbdkit_add_extent (extents, at, 4096, at / 4096 % 4 < 2 ? 0 : NBDKIT_EXTENT_ZERO) == -1)
      return -1;
  return 0; }
""", ".extents = my_extents")

    def one(program):
        server = plugin.serve(program=program)
        with server.client(contexts=["base:allocation"]) as client:
            return [extent_map(client), extent_map(client, 5000, 100000),
                    extent_map(client, 8191, 2),
                    extents(client, 4096, 4096, nbd.CMD_FLAG_REQ_ONE)]
    seen = on_both(one)
    assert seen[0][:2] == [(8192, 0), (8192, 2)]


@pytest.mark.parametrize("sizes", ["512, 4096, 65536", "1, 65536, 1 << 25", "0, 0, 0",
                                   "4096, 4096, 4096"])
def test_block_sizes(made, sizes):
    plugin = made("static int my_sizes (void *h, uint32_t *a, uint32_t *b, uint32_t *c)\n"
                  f"{{ uint32_t all[] = {{ {sizes} }}; *a = all[0]; *b = all[1]; *c = all[2];"
                  " return 0; }", ".block_size = my_sizes")

    def one(program):
        with plugin.serve(program=program).client() as client:
            return block_sizes(client)
    on_both(one)


def test_nothing_is_asked_twice(made, folder):
    """Each can_* at most once for a connection, however many requests there are."""
    plugin = made(VERSION_2.replace("{ char *given", '{ say (what, 0, 0, 0); char *given'),
                  VERSION_2_FIELDS)
    for program in PROGRAMS:
        log = folder / f"log-{name_of(program)}"
        server = plugin.serve(program=program, env={"LOG": str(log)})
        with server.client() as client:
            for _ in range(10):
                client.pwrite(bytes(512), 0, nbd.CMD_FLAG_FUA)
                client.zero(512, 512)
        asked = [line for line in log.read_text().splitlines() if line.split()[0].isupper()]
        assert asked and len(asked) == len(set(asked)), asked


def test_the_biggest_request(made):
    plugin = made(WRITE, ".pwrite = my_pwrite", more=HEAD.replace("1 << 20", "40 << 20"))
    data = os.urandom(32 * MIB)

    def one(program):
        with plugin.serve(program=program).client() as client:
            client.pwrite(data, 4 * MIB)
            assert client.pread(32 * MIB, 4 * MIB) == data
            return client.pread(KIB, 4 * MIB - 512)[512:] == data[:512]
    assert on_both(one)
