# SPDX-License-Identifier: BSD-3-Clause
"""The multi-conn filter does right what nbdkit's does wrong.

Each is a function check_...(start, program, ...): with weft it must pass. Where that is quick and
certain it is run with Debian's nbdkit, too, where it must fail: so it is able to.
"""
import contextlib
import errno
import itertools
import shutil
import socket
import struct
import threading
import time

import pytest

from harness import MIB, ROOT, TIMEOUT_S, WEFT, run, wait_until
from multi_conn import (COPIES_DISK, HAVE_NBDKIT, TRACKINGS, CallsDisk, error_of,
                        fails_on_nbdkit, flushes_counted, have_filter, send_flush,
                        send_write)
from rawclient import (FIXED_NEWSTYLE, IHAVEOPT, NO_ZEROES, OPT_EXPORT_NAME, OPT_GO, OPT_INFO,
                       OPT_SET_META_CONTEXT, OPT_STRUCTURED_REPLY, Raw, go_data,
                       meta_context_data)

pytestmark = [pytest.mark.weft_only]


# A flush that is lost: a change is under way, a flush comes and goes, the change ends, and the
# next flush finds nothing to do.

def check_no_flush_is_lost(start, program, connections, **parameters):
    disk = CallsDisk(start, "multi-conn", program=program, **parameters)
    for writer, first, second in itertools.product(range(connections), repeat=3):
        # Without multi-conn only the writer's own flush covers its writes.
        if second != writer and parameters.get("consistent") != "true" and (
                parameters.get("multi_conn_mode") in ("plugin", "disable", "unsafe")):
            continue
        with disk.connected(connections) as clients:
            before = len(disk.calls())
            with disk.held("pwrite"):
                write = send_write(clients[writer], b"w" * 512, 0)
                disk.wait_for("pwrite", count=disk.count("pwrite", "end") + 1)
                clients[first].flush()
            assert write.error() is None
            clients[second].flush()
            calls = [(method, what) for method, _, what in disk.calls()[before:]]
            written = calls.index(("pwrite", "end"))
            assert ("flush", "begin") in calls[written:], (
                f"written on {writer}, flushed on {first}, then on {second}: {calls}")


@pytest.mark.parametrize("connections", [1, 2])
@pytest.mark.parametrize("tracking", TRACKINGS)
@pytest.mark.parametrize("mode", ["auto", "emulate", "plugin", "disable", "unsafe"])
def test_no_flush_is_lost(serve, mode, tracking, connections):
    for consistent in ("false", "true"):
        check_no_flush_is_lost(serve, WEFT, connections, consistent=consistent,
                               multi_conn_mode=mode, multi_conn_track_dirty=tracking)


@HAVE_NBDKIT
@pytest.mark.parametrize("mode", ["emulate", "plugin"])
def test_nbdkit_loses_a_flush(mode):
    assert "written on" in fails_on_nbdkit(
        lambda start, program: check_no_flush_is_lost(start, program, 1, consistent="true",
                                                      multi_conn_mode=mode))


# A disk that takes one call of a connection at a time gets one at a time, from whomever.

def check_calls_of_a_connection_are_serialised(start, program, **parameters):
    disk = CallsDisk(start, "multi-conn", program=program, model="serialize_requests",
                     overlap="true", **parameters)

    def work(client, me):
        for turn in range(12):
            client.pwrite(bytes([me]) * 512, 4096 * me + 512 * (turn % 8))
            if turn % 3 == me % 3:
                client.flush()

    with disk.connected(4) as clients:
        workers = [threading.Thread(target=work, args=(client, me))
                   for me, client in enumerate(clients)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        overlaps = [call for call in disk.calls() if call[0] == "overlap"]
        assert not overlaps, f"calls at once: {overlaps}"
        assert disk.count("flush") > 0


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_calls_of_a_connection_are_serialised(serve, engine, tracking):
    check_calls_of_a_connection_are_serialised(
        lambda *args, **kwargs: serve(*args, **{**kwargs, "engine": engine}), WEFT,
        multi_conn_track_dirty=tracking)


@HAVE_NBDKIT
def test_nbdkit_calls_at_once():
    assert "calls at once" in fails_on_nbdkit(check_calls_of_a_connection_are_serialised)


# A client that leaves during the handshake.

def option(number, data=b""):
    return struct.pack(">QII", IHAVEOPT, number, len(data)) + data


FLAGS = struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES)
NEGOTIATION = (FLAGS + option(OPT_STRUCTURED_REPLY) +
               option(OPT_SET_META_CONTEXT, meta_context_data(b"", [b"base:allocation"])))
HANDSHAKES = {"info": NEGOTIATION + option(OPT_INFO, go_data()) + option(OPT_GO, go_data()),
              "go": NEGOTIATION + option(OPT_GO, go_data()),
              "bare go": FLAGS + option(OPT_GO, go_data()),
              "export name": FLAGS + option(OPT_EXPORT_NAME)}


def leave_after(path, sent, how):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(TIMEOUT_S)
        client.connect(path)
        if how != "unseen":
            client.recv(18, socket.MSG_WAITALL)  # the greeting
        client.sendall(sent)
        if how == "patient":
            # For what the server answers to it, for a moment.
            client.settimeout(0.02)
            with contextlib.suppress(OSError):
                while client.recv(65536):
                    pass


def check_leaving(start, program, disk, handshakes, how):
    server = start("--filter=multi-conn", *disk, "multi-conn-mode=emulate", program=program)
    with server.client() as stayer:
        stayer.pwrite(b"weft", 0)
        for sent in handshakes:
            leave_after(server.socket, sent, how)
        time.sleep(0.3)
        assert server.alive(), f"the server is gone: {server.log()}"
        stayer.flush()
        with server.client() as other:
            assert other.pread(4, 0) == b"weft"
            other.flush()


# How a client leaves: without reading anything, with the greeting read, or with the answers read.
@pytest.mark.parametrize("how", ["unseen", "greeted", "patient"])
@pytest.mark.parametrize("kind", HANDSHAKES)
@pytest.mark.parametrize("disk", [("memory", "1M"), ("sh", COPIES_DISK)], ids=["memory", "script"])
def test_leaving_at_any_byte_of_the_handshake(serve, engine, disk, kind, how):
    whole = HANDSHAKES[kind]
    check_leaving(lambda *args, **kwargs: serve(*args, **{**kwargs, "engine": engine}), WEFT,
                  disk, [whole[:end] for end in range(len(whole) + 1)], how)


@HAVE_NBDKIT
@pytest.mark.parametrize("kind", ["bare go", "export name"])
def test_nbdkit_dies_of_a_client_that_leaves(kind):
    assert "is gone" in fails_on_nbdkit(check_leaving, ("sh", COPIES_DISK), [HANDSHAKES[kind]],
                                        "greeted")


# Two names of one image, told apart by name: what is written by one is flushed by the other.

def check_two_names_of_one_image(start, program, folder):
    images = folder / "images"
    images.mkdir(exist_ok=True)
    (images / "one").write_bytes(bytes(MIB))
    (images / "two").hardlink_to(images / "one")
    statistics = folder / "stats"
    server = start("--filter=multi-conn", "--filter=stats", "file", f"dir={images}",
                   f"statsfile={statistics}", "multi-conn-exportname=true", program=program)
    with server.client("one") as one, server.client("two") as two:
        assert two.can_multi_conn()
        one.pwrite(b"w" * 512, 0)
        two.flush()
    server.stop()
    assert flushes_counted(statistics) == 1, "the flush has not reached the image"


def test_two_names_of_one_image(serve, folder):
    if not have_filter("stats"):
        pytest.skip(f"{WEFT} has no filter stats")
    check_two_names_of_one_image(serve, WEFT, folder)


@HAVE_NBDKIT
def test_nbdkit_takes_two_names_for_two_images(folder):
    assert "has not reached" in fails_on_nbdkit(check_two_names_of_one_image, folder)


# Slow flushes: of another export, of many connections, of many clients.

def check_slow_flush_stalls_no_other_export(start, program):
    disk = CallsDisk(start, "multi-conn", program=program, multi_conn_exportname="true",
                     multi_conn_mode="emulate")
    path = disk.server.socket
    with disk.client("slow") as slow, disk.client("quick") as quick, Raw(path, 5) as third:
        slow.pwrite(b"s" * 512, 0)
        quick.pwrite(b"q" * 512, 4096)
        with disk.held("flush.slow"):
            flush = send_flush(slow)
            disk.wait_for("flush")
            # A raw client: its waits are bounded.
            third.negotiate(b"quick")
            third.write(8192, b"t" * 512)
            assert third.reply().error == 0
            assert third.error_of(3) == 0  # a flush
            assert third.read(0, 512) == b"s" * 512
            assert not flush.arrived()
        assert flush.error() is None


def test_slow_flush_stalls_no_other_export(serve, engine):
    check_slow_flush_stalls_no_other_export(
        lambda *args, **kwargs: serve(*args, **{**kwargs, "engine": engine}), WEFT)


@HAVE_NBDKIT
def test_nbdkit_stalls_other_exports():
    assert "timed out" in fails_on_nbdkit(check_slow_flush_stalls_no_other_export)


def check_one_round_flushes_all_at_once(start, program, **parameters):
    disk = CallsDisk(start, "multi-conn", program=program, multi_conn_mode="emulate",
                     **parameters)
    with disk.connected(6) as clients:
        for number, client in enumerate(clients):
            client.pwrite(b"w" * 512, 4096 * number)
        with disk.held("flush"):
            flush = send_flush(clients[0])
            try:
                wait_until(lambda: disk.count("flush") == 6, "six flushes under way", 5)
            finally:
                clients = None
        assert flush.error() is None
        assert disk.count("flush", "end") == 6


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_one_round_flushes_all_at_once(serve, engine, tracking):
    check_one_round_flushes_all_at_once(
        lambda *args, **kwargs: serve(*args, **{**kwargs, "engine": engine}), WEFT,
        multi_conn_track_dirty=tracking)


@HAVE_NBDKIT
def test_nbdkit_flushes_one_after_the_other():
    assert "six flushes" in fails_on_nbdkit(check_one_round_flushes_all_at_once)


def let_arrive(client):
    """Returns when the server has seen all that this client has sent.

    A request that the server refuses by itself: the filter does not take it for activity.
    """
    client.set_strict_mode(0)
    assert error_of(client.pread, 512, 1 << 30) == errno.EINVAL


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_flushes_asked_for_at_once_are_merged(serve, engine, tracking):
    """Eight clients write and flush; the first flush begins, and the other seven share the next."""
    disk = CallsDisk(serve, "multi-conn", engine=engine, multi_conn_mode="emulate",
                     multi_conn_track_dirty=tracking)
    with disk.connected(8) as clients:
        for number, client in enumerate(clients):
            client.pwrite(b"w" * 512, 4096 * number)
        with disk.held("flush"):
            flushes = [send_flush(clients[0])]
            disk.wait_for("flush", count=8)
            flushes += [send_flush(client) for client in clients[1:]]
            for client in clients[1:]:
                let_arrive(client)
        assert [flush.error() for flush in flushes] == [None] * 8
        # The first round has covered everything: the second has nothing to do, but where all are
        # always flushed.
        most = {"connection": 8, "fast": 8, "off": 16}[tracking]
        assert disk.count("flush") <= most, disk.calls()


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_a_merged_flush_covers_what_ended_during_the_round_before(serve, engine, tracking):
    disk = CallsDisk(serve, "multi-conn", engine=engine, multi_conn_mode="emulate",
                     multi_conn_track_dirty=tracking)
    with disk.connected(3) as (a, b, c):
        a.pwrite(b"a" * 512, 0)
        with disk.held("flush"):
            first = send_flush(a)
            disk.wait_for("flush")
            b.pwrite(b"b" * 512, 4096)
            rounds = disk.count("flush")
            second = send_flush(c)
            let_arrive(c)
            assert disk.count("flush") == rounds, "a round in a round"
        assert first.error() is None and second.error() is None
        calls = [call for call in disk.calls() if call[0] in ("pwrite", "flush")]
        writer = [handle for method, handle, what in calls if method == "pwrite"][-1]
        last = calls.index(("pwrite", writer, "end"))
        assert ("flush", writer, "begin") in calls[last:], calls


# A write that comes late: it is stalled, its connection is cut, and the same block is written
# again and flushed on another.

def check_late_write(server, stalled, go_on, offset=0):
    """stalled() is true once the slow write is in the disk; go_on() lets it end."""
    raw = Raw(server.socket)
    raw.negotiate()
    raw.write(offset, b"SLOW" * 128)
    wait_until(stalled, "the slow write is in the disk")
    raw.close()
    with server.client() as client, server.client() as reader:
        second = send_write(client, b"2nd_" * 128, offset)
        third = send_write(client, b"3rd_" * 128, offset)
        waiter = threading.Timer(0.3, go_on)
        waiter.start()
        try:
            assert second.error() is None and third.error() is None
            client.flush()
        finally:
            waiter.join()
        # The slow write may end a moment after the gate is open.
        client.pread(512, offset)
        threading.Event().wait(0.3)
        assert reader.pread(512, offset) == b"3rd_" * 128, "the late write has come back"


def check_late_write_of_a_script(start, program, *stack):
    disk = CallsDisk(start, *stack, program=program)
    gate = disk.folder / "hold-slow"
    gate.touch()
    check_late_write(disk.server, lambda: disk.count("pwrite") == 1, gate.unlink)


@pytest.mark.parametrize("stack", [(), ("multi-conn",)], ids=["alone", "multi-conn"])
def test_late_write_of_a_script(serve, stack):
    check_late_write_of_a_script(serve, WEFT, *stack)


@HAVE_NBDKIT
def test_nbdkit_lets_a_late_write_come_back():
    assert "come back" in fails_on_nbdkit(check_late_write_of_a_script, "multi-conn")


@pytest.fixture
def stall_library(folder):
    compiler = next(filter(None, map(shutil.which, ("clang-19", "clang", "gcc", "cc"))), None)
    if compiler is None:
        pytest.skip("no C compiler here")
    library = folder / "stall.so"
    run(compiler, "-O1", "-shared", "-fPIC", "-o", library, ROOT / "tests/stall_preload.c", "-ldl")
    return library


def check_late_write_of_a_file(start, program, image, library, *stack):
    gate, seen = image.with_suffix(".gate"), image.with_suffix(".gate.seen")
    gate.touch()
    seen.unlink(missing_ok=True)
    server = start(*stack, "file", image, program=program,
                   env={"LD_PRELOAD": str(library), "WEFT_STALL_FILE": str(gate)})
    check_late_write(server, seen.exists, gate.unlink)


@pytest.mark.skipif("asan" in WEFT or "tsan" in WEFT, reason="sanitizers are preloaded first")
@pytest.mark.parametrize("stack", [(), ("--filter=multi-conn",)], ids=["alone", "multi-conn"])
def test_late_write_of_a_file(serve, engine, image, stall_library, stack):
    check_late_write_of_a_file(
        lambda *args, **kwargs: serve(*args, **{**kwargs, "engine": engine}), WEFT,
        image(MIB), stall_library, *stack)


@HAVE_NBDKIT
def test_nbdkit_lets_a_late_write_of_a_file_come_back(image, stall_library):
    assert "come back" in fails_on_nbdkit(check_late_write_of_a_file, image(MIB), stall_library)


@pytest.mark.parametrize("plugin", [("memory", "1M"), ("data", "0", "size=1M")],
                         ids=["memory", "data"])
def test_late_write_of_memory(serve, engine, plugin):
    """All writes are slow here: those on the second connection must not overtake the first."""
    if not have_filter("delay"):
        pytest.skip(f"{WEFT} has no filter delay")
    server = serve("--filter=multi-conn", "--filter=delay", *plugin, "delay-write=200ms",
                   engine=engine)
    check_late_write(server, lambda: True, lambda: None)
