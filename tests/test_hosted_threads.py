# SPDX-License-Identifier: BSD-3-Clause
"""Thread models, threads of a plugin's own, sleep and end, by plugins that watch themselves."""
import os
import threading
import time

import nbd
import pytest

from harness import MIB, wait_until
from hosted import PROGRAMS, build_plugin, name_of, needs_compiler, needs_hosting
from script_disks import outcome

pytestmark = [needs_hosting, needs_compiler]

# Counts who is inside, for each connection and for all, and lets nobody hurry. A read at offset 0
# tells how many there were at most: in one connection, in all, and how many connections at once.
WATCHFUL = r"""
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_@MODEL@
struct handle { atomic_int inside; };
static atomic_int all, most_in_one, most_in_all, connections, most_connections;
static void keep (atomic_int *most, int now)
{ int before = atomic_load (most);
  while (now > before && !atomic_compare_exchange_weak (most, &before, now)); }
static void enter (struct handle *h)
{ if (h) keep (&most_in_one, ++h->inside);
  keep (&most_in_all, ++all);
  usleep (2000); }
static void leave (struct handle *h) { if (h) --h->inside; --all; }
static void *my_open (int readonly)
{ struct handle *h = calloc (1, sizeof *h);
  enter (NULL); keep (&most_connections, ++connections); leave (NULL); return h; }
static void my_close (void *h) { --connections; free (h); }
static int64_t my_get_size (void *h) { enter (h); leave (h); return 1 << 20; }
static int my_pread (void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ if (offset == 0)
    snprintf (buf, count, "%d %d %d", most_in_one, most_in_all, most_connections);
  else { enter (h); memset (buf, 0, count); leave (h); }
  return 0; }
static int my_pwrite (void *h, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ enter (h); leave (h); return 0; }
static int my_flush (void *h, uint32_t flags) { enter (h); leave (h); return 0; }
static int my_can_multi_conn (void *h) { enter (h); leave (h); return 1; }
@MORE@
static struct nbdkit_plugin plugin = { .name = "watchful", .open = my_open, .close = my_close,
  .get_size = my_get_size, .pread = my_pread, .pwrite = my_pwrite, .flush = my_flush,
  .can_multi_conn = my_can_multi_conn, @FIELDS@ };
NBDKIT_REGISTER_PLUGIN (plugin)
"""


def watchful(folder, model, more="", fields=""):
    text = WATCHFUL.replace("@MODEL@", model).replace("@MORE@", more).replace("@FIELDS@", fields)
    return build_plugin(folder, "watchful", text)


def load(server, count=30):
    """Many requests in flight on one connection; returns when all are done."""
    with server.client() as client:
        cookies = []
        for number in range(count):
            buffer, offset = nbd.Buffer(4096), 4096 + number * 4096
            cookies.append(client.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), offset)
                           if number % 3 == 0 else client.aio_pread(buffer, offset))
        cookies.append(client.aio_flush())
        for cookie in cookies:
            while not client.aio_command_completed(cookie):
                client.poll(60000)


@pytest.mark.parametrize("how", ["macro", "callback"])
@pytest.mark.parametrize("model", ["SERIALIZE_CONNECTIONS", "SERIALIZE_ALL_REQUESTS",
                                   "SERIALIZE_REQUESTS", "PARALLEL"])
def test_thread_models(serve, folder, model, how):
    """Calls overlap as much as the plugin allows, and no more."""
    if how == "macro":
        path = watchful(folder, model)
    else:
        path = watchful(folder, "PARALLEL", "static int model (void) { return "
                        f"NBDKIT_THREAD_MODEL_{model}; }}", ".thread_model = model,")
    for program in PROGRAMS:
        server = serve(path, program=program)
        workers = [threading.Thread(target=load, args=(server,)) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        with server.client() as client:
            in_one, in_all, at_once = map(int, bytes(
                client.pread(512, 0)).partition(b"\0")[0].split())
            multi_conn = client.can_multi_conn()
        assert (in_one > 1) is (model == "PARALLEL"), (program, in_one)
        assert (in_all > 1) is (model in ("PARALLEL", "SERIALIZE_REQUESTS")), (program, in_all)
        assert (at_once > 1) is (model != "SERIALIZE_CONNECTIONS"), (program, at_once)
        assert multi_conn is (model != "SERIALIZE_CONNECTIONS")


def test_one_thread_where_the_operator_says_so(serve, folder):
    path = watchful(folder, "PARALLEL")
    for program in PROGRAMS:
        server = serve(path, program=program, options=["-t", "1"])
        load(server)
        with server.client() as client:
            assert client.pread(512, 0).split()[0] == b"1"


@pytest.mark.weft_only
@pytest.mark.parametrize("model, others", [("PARALLEL", True), ("SERIALIZE_REQUESTS", False)])
def test_a_read_that_hangs(serve, folder, model, others):
    """It delays itself and what it may not overlap with; the server ends all the same."""
    text = WATCHFUL.replace("@MODEL@", model).replace("@MORE@", "").replace(
        "@FIELDS@", "").replace("if (offset == 0)", "if (offset == 8192) pause ();\n"
                                "  if (offset == 0)")
    server = serve(build_plugin(folder, "watchful", text))
    stuck = server.connect()
    hanging = stuck.aio_pread(nbd.Buffer(512), 8192)
    # Another connection is not concerned in either model.
    with server.client() as client:
        for offset in range(16384, 32768, 4096):
            assert client.pread(512, offset) == bytes(512)
    fine = stuck.aio_pread(nbd.Buffer(512), 16384)
    end = time.monotonic() + (20 if others else 0.5)
    while time.monotonic() < end and not stuck.aio_command_completed(fine):
        stuck.poll(100)
        if others and stuck.aio_in_flight() == 1:
            break
    assert (stuck.aio_in_flight() == 1) is others
    assert not stuck.aio_command_completed(hanging)
    server.may_die = True
    server.signal(15)
    server.wait(60)
    assert "watchful" in server.log(), server.log()


THREADS = r"""
static void *talk (void *unused)
{ for (int n = 0; n < 100; n++) {
    nbdkit_error ("an error %d of its own thread", n);
    nbdkit_debug ("a message %d of its own thread", n);
    nbdkit_set_error (28);
  }
  return NULL; }
static int start (void)
{ pthread_t threads[4];
  for (int n = 0; n < 4; n++) if (pthread_create (&threads[n], NULL, talk, NULL)) return -1;
  for (int n = 0; n < 4; n++) pthread_join (threads[n], NULL);
  return 0; }
"""


def test_threads_of_its_own(serve, folder):
    """They may report errors, and their error is nobody's; no line is torn."""
    path = watchful(folder, "PARALLEL", THREADS, ".after_fork = start,")
    for program in PROGRAMS:
        server = serve(path, program=program, options=["-v"])
        with server.client() as client:
            assert outcome(client.flush) is None
        for kind in ("an error", "a message"):
            lines = [line for line in server.log().splitlines() if f"{kind} 99 of its own" in line]
            assert len(lines) == 4, lines
            assert len({line.partition(":")[2] for line in lines}) == 1, lines


SLEEPS = r"""
static int slow_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ nbdkit_error ("it sleeps");
  if (nbdkit_nanosleep (600, 0) == -1) { nbdkit_error ("woken: %m"); return -1; }
  return 0; }
"""


def test_a_sleeping_plugin_wakes_for_the_end(serve, folder):
    path = watchful(folder, "PARALLEL", SLEEPS, ".trim = slow_trim,")
    for program in PROGRAMS:
        server = serve(path, program=program, options=["--drain-timeout=90s"] * (
            name_of(program) == "weft"))
        client = server.connect()
        client.aio_trim(4096, 4096)
        client.aio_trim(4096, 8192)
        wait_until(lambda server=server: server.log().count("it sleeps") == 2, "both sleep")
        server.signal(15)
        wait_until(lambda server=server: server.log().count("woken: ") == 2, "both are woken")
        if name_of(program) != "weft":
            del client  # nbdkit waits for its clients to leave
        assert server.wait(30) == 0


def test_a_sleeping_plugin_wakes_when_its_client_goes(serve, folder):
    """Or the server could not serve others of a plugin that takes one request at a time."""
    path = watchful(folder, "SERIALIZE_REQUESTS", SLEEPS, ".trim = slow_trim,")
    server = serve(path)
    client = server.connect()
    client.aio_trim(4096, 4096)
    wait_until(lambda: "it sleeps" in server.log(), "it sleeps")
    del client
    with server.client() as other:
        assert other.pread(512, 4096) == bytes(512)


@pytest.mark.weft_only
def test_what_a_read_leaves_out_is_nobodys(serve, folder):
    """A plugin that fills a part of the buffer gives away nothing of the server's memory."""
    server = serve(watchful(folder, "PARALLEL"))
    for _ in range(5):
        with server.client() as client:
            client.pwrite(b"secret!!" * 64, 65536)
            for size in (512, 4096, 65536):
                read = bytes(client.pread(size, 0))
                assert not any(read.partition(b"\0")[2]), read[:100]


ENDS = r"""
static int end_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ if (offset == 0) nbdkit_shutdown (); return 0; }
"""


def test_a_plugin_ends_the_server(serve, folder):
    path = watchful(folder, "PARALLEL", ENDS, ".trim = end_trim,")
    for program in PROGRAMS:
        server = serve(path, program=program)
        client = server.connect()
        client.trim(512, 4096)
        assert server.alive()
        # The request itself is answered, or the connection ends.
        outcome(client.trim, 512, 0)
        del client
        assert server.wait(30) == 0


CUTS = r"""
extern void nbdkit_disconnect (int force);
static int cut_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ nbdkit_disconnect (offset == 0); return 0; }
"""


@pytest.mark.weft_only
def test_a_plugin_disconnects_its_client(serve, folder):
    """By force at once, without the reply; else after what was begun. Others stay."""
    server = serve(watchful(folder, "PARALLEL", CUTS, ".trim = cut_trim,"))
    with server.client() as other:
        for offset, replied in ((0, False), (4096, True)):
            client = server.connect()
            assert (outcome(client.trim, 512, offset) is None) is replied, offset
            wait_until(lambda client=client: isinstance(outcome(client.pread, 512, 8192), str),
                       f"the connection has ended (trim at {offset})")
        assert other.pread(512, 4096) == bytes(512)


PEERS = r"""
static int my_preconnect (int readonly)
{ nbdkit_error ("from %ld %ld %ld", (long) nbdkit_peer_pid (), (long) nbdkit_peer_uid (),
                (long) nbdkit_peer_gid ());
  return getenv ("REFUSE") ? -1 : 0; }
static int peer_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ struct sockaddr_storage address; socklen_t length = sizeof address;
  nbdkit_error ("asked by %ld: family %d, export %s, tls %d", (long) nbdkit_peer_pid (),
    nbdkit_peer_name ((struct sockaddr *) &address, &length) == 0 ? address.ss_family : -1,
    nbdkit_export_name (), nbdkit_is_tls ());
  return 0; }
"""


def test_who_the_client_is(serve, folder):
    """Known in preconnect, and in each request wherever it runs."""
    path = watchful(folder, "PARALLEL", "#include <sys/socket.h>\n" + PEERS,
                    ".preconnect = my_preconnect, .trim = peer_trim,")
    for program in PROGRAMS:
        server = serve(path, program=program)
        with server.client("some name") as client:
            client.trim(512, 0)
        log = server.log()
        assert f"from {os.getpid()} {os.getuid()} {os.getgid()}" in log, log
        assert f"asked by {os.getpid()}: family 1, export some name, tls 0" in log, log
        server = serve(path, program=program, env={"REFUSE": "1"})
        with pytest.raises(nbd.Error):
            server.connect()
        assert server.alive()


def test_strings_live_as_long_as_the_connection(serve, folder):
    """Interned strings: many, long, and each its own."""
    path = watchful(folder, "PARALLEL", r"""
static int string_trim (void *h, uint32_t count, uint64_t offset, uint32_t flags)
{ const char *kept[1000];
  for (int n = 0; n < 1000; n++)
    kept[n] = nbdkit_printf_intern ("%d of %s", n, nbdkit_strndup_intern ("strings", 3));
  for (int n = 0; n < 1000; n++)
    if (atoi (kept[n]) != n || strcmp (strchr (kept[n], ' '), " of str")) return -1;
  return 0; }
""", ".trim = string_trim,")
    for program in PROGRAMS:
        server = serve(path, program=program)
        with server.client() as client:
            for offset in range(0, MIB, 65536):
                assert outcome(client.trim, 512, offset) is None
