# SPDX-License-Identifier: BSD-3-Clause
"""A plugin that takes its time, one call after the other: whose turn it is, and how it ends."""
import signal

import nbd
import pytest

from harness import IS_WEFT, run, wait_until
from hosted import build_plugin, needs_compiler, needs_hosting

pytestmark = [pytest.mark.weft_only, needs_hosting, needs_compiler,
              pytest.mark.skipif(not IS_WEFT, reason="what nbdkit does otherwise")]

# Every call is a line of the file calls=; a read takes pause= microseconds.
SLOW = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>
#define THREAD_MODEL NBDKIT_THREAD_MODEL_SERIALIZE_ALL_REQUESTS
static int calls = -1, pause_us, refuse;
static void note (const char *what)
{ char line[64]; int n = snprintf (line, sizeof line, "%s\n", what);
  if (calls >= 0 && write (calls, line, n) != n) abort (); }
static int config (const char *key, const char *value)
{ if (strcmp (key, "calls") == 0) calls = open (value, O_WRONLY|O_APPEND|O_CREAT|O_CLOEXEC, 0644);
  else if (strcmp (key, "pause") == 0) pause_us = atoi (value);
  else refuse = 1;
  return 0; }
static void *my_open (int readonly)
{ note ("open");
  if (refuse) { nbdkit_error ("not today"); return NULL; }
  return NBDKIT_HANDLE_NOT_NEEDED; }
static void my_close (void *h) { note ("close"); }
static int64_t get_size (void *h) { return 1 << 20; }
static int my_pread (void *h, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{ note ("pread"); usleep (pause_us); memset (buf, 0, count); return 0; }
static void cleanup (void) { note ("cleanup"); }
static void unload (void) { note ("unload"); }
static struct nbdkit_plugin plugin = { .name = "slow", .config = config, .open = my_open,
  .close = my_close, .get_size = get_size, .pread = my_pread, .cleanup = cleanup,
  .unload = unload };
NBDKIT_REGISTER_PLUGIN (plugin)
"""
READS = 100


@pytest.fixture(name="slow")
def slow_plugin(serve, folder):
    """start(parameters, options): a server of it, and a function that gives its calls."""
    path, log = build_plugin(folder, "slow", SLOW), folder / "calls"
    log.touch()

    def start(*parameters, options=(), engine=None):
        server = serve(path, f"calls={log}", *parameters, options=options, engine=engine)
        return server, lambda: log.read_text().split()

    return start


def send_reads(client):
    return [client.aio_pread(nbd.Buffer(512), 512 * number) for number in range(READS)]


def test_clients_take_turns(slow, engine):
    """One that has many requests in progress keeps nobody out."""
    server, calls = slow("pause=30000", engine=engine)
    with server.client() as busy:
        cookies = send_reads(busy)
        wait_until(lambda: "pread" in calls(), "a read has begun")
        with server.client() as other:
            assert bytes(other.pread(512, 0)) == bytes(512)
        assert calls().count("pread") < READS
        for cookie in cookies:
            while not busy.aio_command_completed(cookie):
                busy.poll(60000)


def test_calls_for_a_client_that_left_are_not_made(slow, engine):
    server, calls = slow("pause=30000", engine=engine)
    gone = server.connect()
    send_reads(gone)
    wait_until(lambda: "pread" in calls(), "a read has begun")
    del gone  # without a word
    wait_until(lambda: "close" in calls(), "its handle is closed")
    with server.client() as other:
        assert bytes(other.pread(512, 0)) == bytes(512)
    assert calls().count("pread") < READS


def test_the_end_is_orderly_with_calls_in_line(slow, engine):
    """What was not begun in time is not begun; the plugin is still closed, cleaned up, unloaded."""
    server, calls = slow("pause=300000", options=["--drain-timeout=1"], engine=engine)
    client = server.connect()
    send_reads(client)
    wait_until(lambda: "pread" in calls(), "a read has begun")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert calls()[-3:] == ["close", "cleanup", "unload"]
    assert calls().count("pread") < READS


def test_an_export_that_cannot_be_opened_is_tried_once(slow):
    """Clients ask for its contexts, then for itself."""
    server, calls = slow("refuse=1")
    done = run("qemu-img", "info", server.uri(), check=False)
    assert done.returncode != 0 and "not available" in done.stderr
    assert calls().count("open") == 1, done.stderr
    assert server.log().count("not today") == 1
