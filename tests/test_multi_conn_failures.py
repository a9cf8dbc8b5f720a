# SPDX-License-Identifier: BSD-3-Clause
"""The multi-conn filter when a flush fails, and when a connection ends with unflushed changes."""
import errno
import itertools

import nbd
import pytest

from harness import WEFT, wait_until
from multi_conn import (HAVE_NBDKIT, TRACKINGS, CallsDisk, CopiesDisk, error_of, fails_on_nbdkit,
                        have_filter, send_flush, send_write)
from rawclient import CMD_FLUSH, Raw

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(not have_filter("multi-conn"),
                                 reason=f"{WEFT} has no filter multi-conn")]
FUA = nbd.CMD_FLAG_FUA


def with_engine(serve, engine):
    return lambda *args, **kwargs: serve(*args, **{**kwargs, "engine": engine})


# A flush that fails on one connection.

def check_the_others_are_flushed(start, program, failing, flusher, **parameters):
    disk = CallsDisk(start, "multi-conn", program=program, multi_conn_mode="emulate",
                     **parameters)
    with disk.connected(3) as clients:
        for number, client in enumerate(clients):
            client.pwrite((b"FAIL" if number == failing else b"good") * 128, 4096 * number)
        assert error_of(clients[flusher].flush) == errno.EIO
        flushed = {handle for method, handle, what in disk.calls()
                   if method == "flush" and what in ("end", "failed")}
        assert len(flushed) == 3, f"not all are flushed: {disk.calls()}"


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_when_one_flush_fails_the_others_are_flushed(serve, engine, tracking):
    for failing, flusher in itertools.product(range(3), (0, 2)):
        check_the_others_are_flushed(with_engine(serve, engine), WEFT, failing, flusher,
                                     multi_conn_track_dirty=tracking)


@HAVE_NBDKIT
def test_nbdkit_leaves_the_others_unflushed():
    def check(start, program):
        for failing in range(3):  # in its order of connections, one of them comes first
            check_the_others_are_flushed(start, program, failing, 0)
    assert "not all" in fails_on_nbdkit(check)


def check_failure_stays(start, program, tracking):
    """The disk itself fails once. Acknowledged data may be lost, so it is never good again."""
    disk = CallsDisk(start, "multi-conn", program=program, multi_conn_mode="emulate",
                     multi_conn_track_dirty=tracking)
    with disk.connected(3) as (a, b, c):
        a.pwrite(b"FAIL" * 128, 0)
        assert error_of(b.flush) == errno.EIO
        for client in (b, a, c, b):
            assert error_of(client.flush) == errno.EIO, "a failed flush is forgotten"
        b.pwrite(b"good" * 128, 4096)  # what promises nothing still works
        assert c.pread(4, 4096) == b"good"
        assert error_of(c.pwrite, b"good" * 128, 8192, FUA) == errno.EIO
        assert error_of(c.zero, 4096, 8192, FUA) == errno.EIO
        with disk.client() as late:
            assert error_of(late.flush) == errno.EIO
    with disk.client() as last:
        assert error_of(last.flush) == errno.EIO, "the failure left with the last client"


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_a_failed_flush_is_never_forgotten(serve, engine, tracking):
    check_failure_stays(with_engine(serve, engine), WEFT, tracking)


@HAVE_NBDKIT
def test_nbdkit_forgets_a_failed_flush():
    assert "forgotten" in fails_on_nbdkit(check_failure_stays, "connection")


def test_a_failed_fua_is_never_forgotten(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.connected(2) as (a, b):
        assert error_of(a.pwrite, b"FAIL" * 128, 0, FUA) == errno.EIO
        assert error_of(b.flush) == errno.EIO
        assert error_of(a.flush) == errno.EIO


def test_flushes_that_wait_get_the_error_too(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.connected(4) as clients:
        clients[0].pwrite(b"FAIL" * 128, 0)
        with disk.held("flush"):
            flushes = [send_flush(clients[1])]
            disk.wait_for("flush")
            flushes += [send_flush(client) for client in clients]
            for client in clients:
                client.pread(4, 0)
        assert [flush.error() for flush in flushes] == [errno.EIO] * 5


def test_a_failed_round_before_a_change_is_remembered(serve, engine):
    """A change that overlaps another connection's is preceded by a round: it may fail."""
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.connected(2) as (a, b):
        a.pwrite(b"FAIL" * 128, 0)
        error_of(b.pwrite, b"next" * 128, 0)
        assert disk.count("flush", "failed") == 1, disk.calls()
        assert error_of(b.flush) == errno.EIO
        assert error_of(a.flush) == errno.EIO


def test_exports_are_one_group_unless_told_otherwise(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.client("one") as one, disk.client("two") as two:
        one.pwrite(b"good" * 128, 0)
        two.flush()
        assert any(method == "flush" and handle.startswith("one.")
                   for method, handle, _ in disk.calls()), disk.calls()


def test_exports_are_apart_where_told_so(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine, multi_conn_exportname="true",
                     multi_conn_track_dirty="off")
    with disk.client("one") as one, disk.client("two") as two:
        one.pwrite(b"good" * 128, 0)
        two.flush()
        assert {handle.split(".")[0] for method, handle, _ in disk.calls()
                if method == "flush"} == {"two"}, disk.calls()


# A connection that ends.

def check_what_a_leaver_wrote_is_flushed(start, program, polite):
    disk = CopiesDisk(start, "multi-conn", program=program)
    with disk.connected(2) as (b, c):
        if polite:
            with disk.client() as a:
                a.pwrite(b"Goodby", 0)
        else:
            with Raw(disk.server.socket) as a:
                a.negotiate()
                a.write(0, b"Goodby")
                assert a.reply().error == 0
        b.flush()
        assert c.pread(12, 0) == b"Goodbyl cont", "what a connection wrote has left with it"


@pytest.mark.parametrize("polite", [True, False])
def test_what_a_leaver_wrote_is_flushed(serve, engine, polite):
    for _ in range(3):
        check_what_a_leaver_wrote_is_flushed(with_engine(serve, engine), WEFT, polite)


@HAVE_NBDKIT
def test_nbdkit_forgets_what_a_leaver_wrote():
    assert "has left" in fails_on_nbdkit(check_what_a_leaver_wrote_is_flushed, True)


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_the_last_to_leave_is_flushed(serve, engine, tracking):
    disk = CallsDisk(serve, "multi-conn", engine=engine, multi_conn_track_dirty=tracking)
    with disk.client() as a:
        a.pwrite(b"good" * 128, 0)
    disk.wait_for("flush", "end")
    disk.server.stop()


@pytest.mark.parametrize("tracking", TRACKINGS)
def test_when_the_flush_of_a_leaver_fails_all_later_ones_do(serve, engine, tracking):
    disk = CallsDisk(serve, "multi-conn", engine=engine, multi_conn_track_dirty=tracking)
    with disk.connected(2) as (b, c):
        with disk.client() as a:
            a.pwrite(b"FAIL" * 128, 0)
        assert error_of(b.flush) == errno.EIO
        disk.wait_for("flush", "failed")
        assert error_of(c.flush) == errno.EIO
        with disk.client() as late:
            assert error_of(late.flush) == errno.EIO


def test_a_flush_waits_for_the_flush_of_a_leaver(serve, engine):
    """The leaver's last flush is under way: somebody else's does not succeed before it has."""
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.client() as b:
        with disk.held("flush"):
            raw = Raw(disk.server.socket)
            raw.negotiate()
            raw.write(0, b"good" * 128)
            assert raw.reply().error == 0
            raw.close()
            disk.wait_for("flush")
            flush = send_flush(b)
            b.pread(4, 0)
            b.pread(4, 0)
            assert not flush.arrived()
        assert flush.error() is None
        assert disk.count("flush", "end") >= 1


def test_a_client_that_leaves_during_its_flush(serve, engine):
    """Its round ends, and the others get theirs."""
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.connected(2) as (b, c):
        c.pwrite(b"good" * 128, 4096)
        with disk.held("flush"):
            raw = Raw(disk.server.socket)
            raw.negotiate()
            raw.write(0, b"good" * 128)
            assert raw.reply().error == 0
            raw.request(CMD_FLUSH)
            disk.wait_for("flush", count=2)
            raw.close()
            flush = send_flush(b)
            b.pread(4, 0)
        assert flush.error() is None
        c.pwrite(b"good" * 128, 4096)
        b.flush()
        flushed = [handle for method, handle, what in disk.calls() if (method, what) ==
                   ("flush", "end")]
        assert len(set(flushed)) >= 2


def test_a_client_that_leaves_during_its_write(serve, engine):
    """What a cut connection still has under way is flushed once it has ended, or was never
    acknowledged: either way a flush that follows stands for what was acknowledged."""
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.client() as b:
        with disk.held("slow"):
            raw = Raw(disk.server.socket)
            raw.negotiate()
            raw.write(0, b"SLOW" * 128)
            disk.wait_for("pwrite")
            raw.close()
            late = send_write(b, b"good" * 128, 0)
            b.pread(4, 4096)
            assert not late.arrived()
        assert late.error() is None
        b.flush()
        assert disk.content(0, 4) == b"good"
        wait_until(lambda: disk.count("flush", "end") >= 1, "a flush")


def test_many_clients_come_write_flush_and_go(serve, engine):
    """Joining and leaving while rounds run: nothing is stuck, nothing is lost."""
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.client() as stayer:
        for turn in range(12):
            with disk.client() as one, disk.client() as two:
                one.pwrite(bytes([turn + 1]) * 512, 512 * turn)
                flushes = [send_flush(stayer), send_flush(two)]
                two.pwrite(bytes([turn + 1]) * 512, 32768 + 512 * turn)
                flushes.append(send_flush(two))
                assert [flush.error() for flush in flushes] == [None] * 3
        stayer.flush()
        calls = disk.calls()
        for number, (method, handle, what) in enumerate(calls):
            if (method, what) == ("pwrite", "end"):
                assert ("flush", handle, "end") in calls[number:], (handle, calls)
