# SPDX-License-Identifier: BSD-3-Clause
"""The life of a hosted plugin: the order of its callbacks and the processes they run in, how it is
configured and asked about itself, and what comes of it when it breaks.
"""
import os
import re
import signal

import nbd
import pytest

from harness import IS_WEFT, WEFT, run, wait_until
from hosted import PROGRAMS, build_plugin, name_of, needs_compiler, needs_hosting, on_both
from script_disks import outcome

pytestmark = [needs_hosting, needs_compiler]

# Writes every callback to $LOG: its name, its process, and what it was given.
WITNESS = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
int witness_debug_flag, witness_debug_dotted_name = 7;
static void say (const char *what, const char *more)
{ FILE *f = fopen (getenv ("LOG"), "a");
  fprintf (f, "%s %d %s\n", what, (int) getpid (), more); fclose (f); }
#define RETURN(name, more, result) do { say (name, more); return result; } while (0)
static void w_load (void)
{ char flags[50]; sprintf (flags, "%d %d", witness_debug_flag, witness_debug_dotted_name);
  say ("load", flags); }
static void w_unload (void) { say ("unload", ""); }
static void w_dump (void) { printf ("a_line_of_its_own=%d\n", witness_debug_flag); }
static int w_config (const char *key, const char *value)
{ say (key, value);
  if (!strcmp (key, "bad")) { nbdkit_error ("%s is no good", value); return -1; }
  return 0; }
static int w_complete (void) { RETURN ("config_complete", "", getenv ("INCOMPLETE") ? -1 : 0); }
static int w_model (void) { RETURN ("thread_model", "", NBDKIT_THREAD_MODEL_PARALLEL); }
static int w_ready (void)
{ struct stat in; fstat (0, &in);
  RETURN ("get_ready", "", getenv ("UNREADY") ? -1 : 0); }
static int w_after (void)
{ char where[1000]; RETURN ("after_fork", getcwd (where, sizeof where),
                            getenv ("UNFORKED") ? -1 : 0); }
static void w_cleanup (void) { say ("cleanup", ""); }
static int w_preconnect (int readonly) { RETURN ("preconnect", readonly ? "r" : "w", 0); }
static void *w_open (int readonly) { RETURN ("open", nbdkit_export_name (), malloc (1)); }
static void w_close (void *h) { free (h); say ("close", ""); }
static int64_t w_get_size (void *h) { RETURN ("get_size", "", 1 << 20); }
static int w_pread (void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ memset (buf, 0, count); RETURN ("pread", "", 0); }
static int w_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ RETURN ("pwrite", "", 0); }
static int w_flush (void *h, uint32_t flags) { RETURN ("flush", "", 0); }
static struct nbdkit_plugin plugin = { .name = "witness", .version = "4.5", .longname = "A witness",
  .description = "It says what it sees.", .config_help = "word=WORD   What it is given.",
  .magic_config_key = "word", .load = w_load, .unload = w_unload, .config = w_config,
  .config_complete = w_complete, .thread_model = w_model, .get_ready = w_ready,
  .after_fork = w_after, .cleanup = w_cleanup, .preconnect = w_preconnect, .open = w_open,
  .close = w_close, .get_size = w_get_size, .pread = w_pread, .pwrite = w_pwrite,
  .flush = w_flush, .dump_plugin = w_dump };
NBDKIT_REGISTER_PLUGIN (plugin)
"""


@pytest.fixture(scope="module")
def witness(tmp_path_factory):
    return build_plugin(tmp_path_factory.mktemp("witness"), "witness", WITNESS)


def lines_of(log):
    """[(callback, process, word)]; processes are numbered as they appear."""
    pids, found = {}, []
    for line in log.read_text().splitlines():
        name, pid, word = line.split(" ", 2)
        found.append((name, pids.setdefault(pid, len(pids)), word))
    return found


def test_order_in_the_foreground(serve, folder, witness):
    def one(program):
        log = folder / f"log-{name_of(program)}"
        server = serve(witness, "first", "key=value", "word=last", program=program,
                       env={"LOG": str(log)}, options=["-D", "witness.flag=3"])
        with server.client("name") as client:
            client.pread(512, 0)
            client.pwrite(bytes(512), 0)
            client.flush()
        wait_until(lambda: "close" in log.read_text(), "the plugin's handle is closed")
        server.stop()
        return lines_of(log)
    seen = on_both(one)
    assert [name for name, _, _ in seen] == [
        "load", "word", "key", "word", "config_complete", "thread_model", "get_ready", "after_fork",
        "preconnect", "open", "get_size", "pread", "pwrite", "flush", "close", "cleanup", "unload"]
    assert {process for _, process, _ in seen} == {0}
    assert seen[0][2] == "3 7" and ("open", 0, "name") in seen


def test_order_in_the_background(folder, witness):
    """The fork comes between get_ready and after_fork; then the folder is the root."""
    def one(program):
        log, pidfile = folder / f"log-{name_of(program)}", folder / f"pid-{name_of(program)}"
        socket = folder / f"s-{name_of(program)}"
        run(program, "-U", socket, "-P", pidfile, witness, "x", env={**os.environ,
                                                                    "LOG": str(log)})
        wait_until(lambda: pidfile.exists() and pidfile.read_text().strip(), "the pidfile")
        pid = int(pidfile.read_text())
        try:
            client = nbd.NBD()
            client.connect_unix(str(socket))
            client.pread(512, 0)
            client.shutdown()
            wait_until(lambda: "close" in log.read_text(), "the plugin's handle is closed")
        finally:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: "unload" in log.read_text(), "the plugin is unloaded")
        assert f"after_fork {pid} " in log.read_text()
        return lines_of(log)
    seen = on_both(one)
    assert ("get_ready", 0, "") in seen and ("after_fork", 1, "/") in seen


def test_order_with_a_captive_client(folder, witness):
    """The server is the child; the client's exit status is the program's."""
    def one(program):
        log = folder / f"log-{name_of(program)}"
        done = run(program, "-U", "-", witness, "x", "--run", "nbdinfo --size $uri; exit 7",
                   check=False, env={**os.environ, "LOG": str(log)})
        wait_until(lambda: "unload" in log.read_text(), "the plugin is unloaded")
        return done.returncode, done.stdout, [
            (name, process) for name, process, _ in lines_of(log)
            if name not in ("pread", "open", "close", "preconnect", "get_size")]
    status, size, _ = on_both(one)
    assert (status, size.strip()) == (7, "1048576")


@pytest.mark.parametrize("environment, words", [
    ({}, ["bad=this one"]), ({"INCOMPLETE": "1"}, []), ({"UNREADY": "1"}, []),
    ({"UNFORKED": "1"}, [])], ids=["config", "config_complete", "get_ready", "after_fork"])
def test_failures_at_the_start(folder, witness, environment, words):
    def one(program):
        log = folder / f"log-{name_of(program)}"
        done = run(program, "-f", "-U", folder / "s", witness, *words, check=False,
                   env={**os.environ, **environment, "LOG": str(log)})
        assert done.returncode == 1, done.stderr
        assert not words or "this one is no good" in done.stderr
        (folder / "s").unlink(missing_ok=True)
        # How far it came; what it is told at an end like this is not the same in all releases.
        return [name for name, _, _ in lines_of(log) if name not in ("cleanup", "unload")]
    on_both(one)


def test_what_it_says_of_itself(folder, witness):
    environment = {**os.environ, "LOG": str(folder / "log")}

    def one(program):
        dumped = run(program, witness, "--dump-plugin", "some", "-D", "witness.flag=5",
                     env=environment).stdout
        # weft tells the long name besides.
        lines = sorted(line for line in dumped.splitlines() if not line.startswith("longname="))
        return lines, run(
            program, "--version", witness, env=environment).stdout.splitlines()[-1]
    dumped, version = on_both(one)
    assert {"a_line_of_its_own=5", "name=witness", "magic_config_key=word",
            "max_thread_model=serialize_all_requests"} <= set(dumped)
    assert version == "witness 4.5"
    for program in PROGRAMS:
        described = run(program, "--help", witness, env=environment).stdout
        for text in ("A witness", "It says what it sees.", "word=WORD   What it is given."):
            assert text in described


def test_debug_flags(serve, folder, witness):
    """Set before load; one that nobody has is a warning at most; what is no number an error."""
    def one(program):
        log = folder / f"log-{name_of(program)}"
        server = serve(witness, program=program, env={"LOG": str(log)},
                       options=["-D", "witness.flag=0x10", "-D", "witness.dotted.name=-2",
                                "-D", "witness.absent=1", "-D", "other.flag=1"])
        server.stop()
        bad = run(program, "-f", "-U", "-", "-D", "witness.flag=many", witness, check=False,
                  env={**os.environ, "LOG": str(log)})
        return lines_of(log)[0][2], bad.returncode
    assert on_both(one) == ("16 -2", 1)


# ---- Broken plugins ------------------------------------------------------------------------------

BROKEN = r"""
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
static void *b_open (int readonly) { @OPEN@ return NBDKIT_HANDLE_NOT_NEEDED; }
static int64_t b_get_size (void *h) { @SIZE@ return 1 << 20; }
static int b_pread (void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ memset (buf, 0, count); @READ@ return 0; }
static int b_can_fua (void *h) { @FUA@ return 0; }
static int b_sizes (void *h, uint32_t *a, uint32_t *b, uint32_t *c)
{ *a = *b = *c = 0; @SIZES@ return 0; }
static int b_extents (void *h, uint32_t count, uint64_t offset, uint32_t flags,
                      struct nbdkit_extents *extents)
{ if (offset >= 4096) @EXTENTS@ return nbdkit_add_extent (extents, offset, count, 0); return
  nbdkit_add_extent (extents, offset, count, 0); }
static struct nbdkit_plugin plugin = { .name = "broken", .open = b_open, .get_size = b_get_size,
  .pread = b_pread, .can_fua = b_can_fua, .block_size = b_sizes, .extents = b_extents,
  .errno_is_preserved = 1 };
NBDKIT_REGISTER_PLUGIN (plugin)
"""


def broken(folder, **what):
    text = re.sub("@([A-Z]+)@", lambda match: what.get(match[1], ""), BROKEN)
    return build_plugin(folder, "broken", text)


@pytest.mark.weft_only
@pytest.mark.parametrize("code, number", [
    ("*(volatile int *) 8 = 1;", signal.SIGSEGV), ("abort ();", signal.SIGABRT),
    ("__builtin_trap ();", signal.SIGILL)], ids=["segv", "abort", "ill"])
@pytest.mark.parametrize("where, callback", [("READ", "pread"), ("OPEN", "open")])
def test_a_crash_is_told(serve, folder, code, number, where, callback):
    """Who it was and where; and the signal ends the server as it would without weft."""
    server = serve(broken(folder, **{where: code}))
    server.may_die = True
    try:
        client = server.connect()
        outcome(client.pread, 512, 0)
    except nbd.Error:
        pass
    assert server.wait(30) == -number
    last = server.log().splitlines()
    assert any("broken" in line and callback in line for line in last), server.log()


NO_CLIENT = {
    "no handle": {"OPEN": "return NULL;"},
    "a negative size": {"SIZE": "return -5;"},
    "no size": {"SIZE": 'nbdkit_error ("it has none"); return -1;'},
    "no capability": {"FUA": "return -1;"},
    "fua out of range": {"FUA": "return 77;"},
    "odd block size": {"SIZES": "*a = 3; *b = 4096; *c = 8192;"},
    "blocks upside down": {"SIZES": "*a = 4096; *b = 512; *c = 8192;"},
    "some of the sizes": {"SIZES": "*a = 512;"},
}


@pytest.mark.parametrize("what", NO_CLIENT)
def test_nonsense_when_a_client_comes(serve, folder, what):
    """The client is refused, the server lives, and the log names the plugin."""
    path = broken(folder, **NO_CLIENT[what])
    for program in PROGRAMS:
        server = serve(path, program=program)
        for _ in range(2):
            try:
                client = server.connect()
            except nbd.Error:
                continue
            # fua: nbdkit asks whether it can be, and a plugin that cannot write has none.
            assert what.startswith(("fua", "no cap")), f"{program} serves {what}"
            client.shutdown()
        assert server.alive()
        if program == WEFT and IS_WEFT and not what.startswith(("fua", "no cap")):
            assert "broken" in server.log(), server.log()


NO_EXTENTS = {
    "nothing": "return 0; else",
    "a gap": "{ nbdkit_add_extent (extents, offset, 512, 0); "
             "return nbdkit_add_extent (extents, offset + 1024, 512, 0); } else",
    "begins late": "return nbdkit_add_extent (extents, offset + 512, 512, 0); else",
    "backwards": "{ nbdkit_add_extent (extents, offset, 1024, 0); "
                 "return nbdkit_add_extent (extents, offset, 512, 0); } else",
    "failure": "return -1; else",
}


@pytest.mark.parametrize("what", NO_EXTENTS)
def test_nonsense_extents(serve, folder, what):
    """That request fails, or is answered with what is certain; the next is served."""
    path = broken(folder, EXTENTS=NO_EXTENTS[what])
    for program in PROGRAMS:
        server = serve(path, program=program)
        with server.client(contexts=["base:allocation"]) as client:
            heard = []
            failed = outcome(client.block_status, 8192, 8192,
                             lambda *answer, heard=heard: heard.append(answer) or 0)
            assert isinstance(failed, str), (program, failed, heard)
            assert client.pread(512, 0) == bytes(512)
            assert not isinstance(outcome(client.block_status, 4096, 0, lambda *_: 0), str)
