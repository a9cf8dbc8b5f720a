# SPDX-License-Identifier: BSD-3-Clause
"""The noparallel filter: who waits for whom. (src/disk/serializer_test.cc has the details.)"""
import os
import random
import threading
import time

import pytest

from harness import KIB, MIB, close, wait_until
from rawclient import CMD_FLUSH, CMD_READ, CMD_WRITE_ZEROES, OPT_GO, Raw, go_data

pytestmark = pytest.mark.weft_only


@pytest.mark.parametrize("mode", ["requests", "all-requests", "connections"])
def test_replies_come_in_the_order_of_the_requests(serve, engine, image, mode):
    server = serve("file", image(16 * MIB), f"serialize={mode}", engine=engine,
                   options=["--filter=noparallel"])
    seed = random.randrange(1 << 32)
    pick = random.Random(seed)
    with Raw(server.socket) as raw:
        raw.negotiate()
        lengths = {}
        for _ in range(200):
            kind, offset = pick.randrange(4), pick.randrange(15) * MIB
            if kind == 0:
                cookie = raw.write(offset, os.urandom(64 * KIB))
            elif kind == 1:
                cookie = raw.request(CMD_FLUSH)
            elif kind == 2:
                cookie = raw.request(CMD_WRITE_ZEROES, offset, 256 * KIB)
            else:
                length = pick.choice([512, 4 * KIB, 32 * KIB])
                cookie = raw.request(CMD_READ, offset, length)
                lengths[cookie] = length
        for cookie in range(1, 201):
            reply = raw.reply(lengths.get(cookie, 0))
            assert (reply.cookie, reply.error) == (cookie, 0), f"seed {seed}"


@pytest.mark.parametrize("mode", ["requests", "all-requests"])
def test_many_connections_work_side_by_side(serve, engine, mode):
    server = serve("memory", "8M", f"serialize={mode}", engine=engine,
                   options=["--filter=noparallel", "-t", "8"])
    failures = []

    def work(number):
        try:
            with server.client() as client:
                assert client.can_multi_conn()
                for turn in range(30):
                    tag = os.urandom(4 * KIB)
                    client.pwrite(tag, number * MIB + turn * 4 * KIB)
                    client.flush()
                    if client.pread(4 * KIB, number * MIB + turn * 4 * KIB) != tag:
                        failures.append((number, turn))
        except Exception as error:  # a thread's failure must reach the test
            failures.append(error)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


class Waiting:
    """A client in line: it has asked for the export, and has no answer yet."""

    def __init__(self, server):
        self.raw = Raw(server.socket)
        self.raw.greet()
        self.raw.option(OPT_GO, go_data())

    def has_answer(self):
        self.raw.socket.setblocking(False)
        try:
            return bool(self.raw.socket.recv(1, 0x2))  # MSG_PEEK
        except BlockingIOError:
            return False
        finally:
            self.raw.socket.settimeout(20)

    def use(self):
        self.raw.option_replies(OPT_GO)
        assert self.raw.read(0, 512) == bytes(512)


def start_line(serve, engine, *options):
    server = serve("memory", "1M", "serialize=connections", engine=engine,
                   options=["--filter=noparallel", *options])
    return server, server.connect()


def test_the_next_client_has_its_turn_when_the_first_has_left(serve, engine):
    """However long that takes: waiting in line is not the client's lateness."""
    server, first = start_line(serve, engine, "--timeout=1")
    assert first.can_multi_conn() is False
    second = Waiting(server)
    end = time.monotonic() + 2.7
    while time.monotonic() < end:
        assert first.pread(512, 0) == bytes(512)
        assert not second.has_answer()
        time.sleep(0.05)
    close(first)
    second.use()
    assert "not finished" not in server.log()
    second.raw.close()


def test_after_its_turn_has_come_a_client_has_all_its_time(serve, engine):
    """It waited for longer than --timeout, was served an INFO, and may think a while."""
    server, first = start_line(serve, engine, "--timeout=2")
    second = Raw(server.socket)
    second.greet()
    second.option(6, go_data())  # INFO
    time.sleep(3.6)
    close(first)
    second.option_replies(6)
    time.sleep(0.8)  # the old deadline, in the middle of its second period, is over
    second.go()
    assert second.read(0, 512) == bytes(512)
    second.close()


def test_a_silent_client_is_still_late(serve, engine):
    server, first = start_line(serve, engine, "--timeout=1")
    with Raw(server.socket) as silent:
        silent.greet()
        assert silent.expect_closed() == b""
    assert "was not finished within 1000 ms" in server.log()
    assert first.pread(512, 0) == bytes(512)
    close(first)


@pytest.mark.parametrize("how", ["politely", "abruptly"])
def test_clients_that_leave_the_line_wedge_nobody(serve, engine, how):
    server, first = start_line(serve, engine, "-t", "4")
    line = [Waiting(server) for _ in range(6)]
    for index in (0, 2, 3, 5):
        line[index].raw.close()
    if how == "politely":
        close(first)
    del first  # drops its socket
    for index in (1, 4):
        line[index].use()
        line[index].raw.close()
    server.check_serves()


def test_first_come_first_served(serve, engine):
    server, first = start_line(serve, engine)
    line = []
    for number in range(5):
        line.append(Waiting(server))
        # The next one comes after this one is in line.
        wait_until(lambda n=number: len(os.listdir(f"/proc/{server.pid}/fd")) > n, "accepted")
        time.sleep(0.05)
    close(first)
    for number, client in enumerate(line):
        client.use()
        assert not any(later.has_answer() for later in line[number + 1:])
        client.raw.close()


def test_stopping_with_a_line(serve, engine):
    server, first = start_line(serve, engine)
    line = [Waiting(server) for _ in range(4)]
    server.stop()  # insists on a clean end
    for client in line:
        client.raw.expect_closed()
    del first
