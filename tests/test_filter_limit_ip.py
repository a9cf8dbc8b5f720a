# SPDX-License-Identifier: BSD-3-Clause
"""Who may connect: the filters limit and ip."""
import os
import socket
import struct
import subprocess
import threading

import nbd
import pytest

from harness import MIB, WEFT, free_port, run, wait_until
from rawclient import (ERR_POLICY, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO, OPT_INFO, OPT_LIST,
                       REP_ACK, Closed, Raw, go_data)

pytestmark = pytest.mark.weft_only


def is_served(server):
    with Raw(server.socket) as raw:
        try:
            raw.negotiate()
            return raw.read(0, 512) == bytes(512)
        except Closed:
            return False


def wait_for_place(server):
    """A client's end is heard of a moment after it has left."""
    wait_until(lambda: is_served(server), "a place is free again")


# ---- limit ------------------------------------------------------------------------------------

def test_the_second_client_is_turned_away(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--filter=limit"])
    with server.client() as first:
        assert first.can_multi_conn() is False
        with Raw(server.socket) as second:
            assert second.expect_closed() == b""
        wait_until(lambda: "refused: too many clients are connected" in server.log(), "the log")
        assert first.pread(512, 0) == bytes(512)
    wait_for_place(server)


@pytest.mark.parametrize("limit, places", [(2, 2), (5, 5), (0, 12)])
def test_as_many_as_the_limit_says(serve, engine, limit, places):
    server = serve("memory", "1M", f"limit={limit}", engine=engine, options=["--filter=limit"])
    clients = []
    for _ in range(places):
        clients.append(Raw(server.socket))
        clients[-1].negotiate()
    assert is_served(server) is (limit == 0)
    clients.pop().close()
    wait_for_place(server)
    for client in clients:
        assert client.read(0, 512) == bytes(512)
        client.close()


def test_of_two_that_negotiate_the_first_to_open_gets_the_place(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--filter=limit"])
    with Raw(server.socket) as first, Raw(server.socket) as second:
        first.greet()
        second.greet()
        first.go()
        second.option(OPT_GO, go_data())
        kind, text = second.option_replies(OPT_GO)[-1]
        assert kind == ERR_POLICY and b"too many clients are connected" in text
        assert first.read(0, 512) == bytes(512)
        first.disconnect()
        # The same connection may try again.
        wait_until(lambda: second.ask(OPT_INFO, go_data()) == REP_ACK, "the place is free")
        second.go()
        assert second.read(0, 512) == bytes(512)


def test_a_client_that_asks_first_and_opens_then_takes_one_place(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--filter=limit"])
    with Raw(server.socket) as client:
        client.greet()
        for _ in range(3):
            assert client.ask(OPT_INFO, go_data()) == REP_ACK
        client.go()
        assert client.read(0, 512) == bytes(512)


# Where a client can leave. Those that have opened the disk (INFO) give it back.
STAGES = {
    "connected": lambda raw: None,
    "greeted": lambda raw: raw.receive(18),
    "flags": lambda raw: raw.greet(),
    "half an option": lambda raw: (raw.greet(), raw.send(b"IHAVEOPT\0\0")),
    "listed": lambda raw: (raw.greet(), raw.ask(OPT_LIST)),
    "asked": lambda raw: (raw.greet(), raw.ask(OPT_INFO, go_data())),
    "asked, not read": lambda raw: (raw.greet(), raw.option(OPT_INFO, go_data())),
    "gone, not read": lambda raw: (raw.greet(), raw.option(OPT_GO, go_data())),
    "named, not read": lambda raw: (raw.greet(), raw.option(OPT_EXPORT_NAME)),
    "aborted": lambda raw: (raw.greet(), raw.ask(OPT_INFO, go_data()), raw.ask(OPT_ABORT)),
    "open": lambda raw: raw.negotiate(),
    "in a request": lambda raw: (raw.negotiate(), raw.send(struct.pack(">I", 0x25609513))),
    "in a write": lambda raw: (raw.negotiate(), raw.request(1, 0, 4096, payload=b"half")),
    "disconnected": lambda raw: (raw.negotiate(), raw.disconnect()),
}


@pytest.mark.parametrize("stage", STAGES)
def test_leaving_anywhere_gives_the_place_back(serve, stage):
    server = serve("memory", "1M", "limit=2", options=["--filter=limit"])
    for _ in range(6):
        for abortive in (False, True):
            raw = Raw(server.socket)
            try:
                STAGES[stage](raw)
            except Closed:  # the one before has not been heard of yet
                pass
            if abortive:
                raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                      struct.pack("ii", 1, 0))
            raw.close()
    # Both places can be had at once.
    with Raw(server.socket) as first:
        wait_until(lambda: is_served(server), "a place is free")
        first.close()

    def both():
        with Raw(server.socket) as one, Raw(server.socket) as two:
            try:
                one.negotiate()
                two.negotiate()
                return True
            except (Closed, AssertionError):
                return False
    wait_until(both, "both places are free")


def test_never_more_than_the_limit_with_many_who_try(serve, engine):
    server = serve("memory", "1M", "limit=3", engine=engine, options=["--filter=limit"])
    lock = threading.Lock()
    now, most, served, failures = 0, 0, 0, []

    def client():
        nonlocal now, most, served
        for _ in range(40):
            try:
                with Raw(server.socket) as raw:
                    raw.negotiate()
                    with lock:
                        now += 1
                        most = max(most, now)
                        served += 1
                    if raw.read(0, 512) != bytes(512):
                        failures.append("content")
                    with lock:
                        now -= 1
            except (Closed, AssertionError):
                pass
    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and most <= 3 and served >= 40, (most, served)
    wait_for_place(server)


def test_the_oldstyle_handshake_is_limited_too(serve):
    server = serve("memory", "1M", options=["--filter=limit", "-o"])
    with server.client() as first:
        with Raw(server.socket) as second:
            assert second.expect_closed() == b""
        assert first.pread(512, 0) == bytes(512)


# ---- ip ---------------------------------------------------------------------------------------

def can_connect(address, port):
    client = nbd.NBD()
    try:
        client.connect_tcp(address, str(port))
        size = client.get_size()
        client.shutdown()
        return size == MIB
    except nbd.Error:
        return False


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


# Rules, and whether a client of 127.0.0.1 and of ::1 is admitted.
TCP = [
    ("", True, True),
    ("allow=127.0.0.1,::1 deny=all", True, True),
    ("deny=all allow=127.0.0.1", True, False),
    ("deny=8.0.0.0/8", True, True),
    ("deny=127.0.0.0/8", False, True),
    ("allow=anyipv6 deny=all", False, True),
    ("allow=anyipv4 deny=all", True, False),
    ("deny=::/0", True, False),
    ("deny=any", False, False),
    ("allow=10.0.0.0/8,allunix deny=all", False, False),
    ("allow=127.0.0.0/31 deny=all", True, False),
    ("allow=126.0.0.0/7,::/127 deny=all", True, True),
    ("allow=127.0.0.0/32 deny=all", False, False),
    ("deny=uid:0 deny=pid:1", True, True),
]


@pytest.mark.parametrize("rules, ipv4, ipv6", TCP)
def test_addresses(serve, rules, ipv4, ipv6):
    port = free_port()
    server = serve("memory", "1M", *rules.split(), unix=False,
                   options=["--filter=ip", "-p", str(port)])
    assert can_connect("127.0.0.1", port) is ipv4
    if has_ipv6():
        assert can_connect("::1", port) is ipv6
    assert ("refused: the ip filter denies clients" in server.log()) is not (ipv4 and ipv6)


@pytest.mark.parametrize("rules, admitted", [
    ("allow=uid:{uid} deny=all", True),
    ("allow=gid:{gid} deny=all", True),
    ("allow=pid:{pid} deny=all", True),
    ("allow=uid:{other} deny=all", False),
    ("deny=uid:{uid}", False),
    ("deny=gid:{gid}", False),
    ("deny=pid:{pid}", False),
    ("deny=pid:1", True),
    ("allow=allunix deny=all", True),
    ("deny=allipv4,allipv6,allvsock", True),
    ("deny=127.0.0.1,::/0", True),
    ("deny=anyunix", False),
])
def test_unix_peers(serve, engine, rules, admitted):
    rules = rules.format(uid=os.getuid(), gid=os.getgid(), pid=os.getpid(),
                         other=os.getuid() + 1)
    server = serve("memory", "1M", *rules.split(), engine=engine, options=["--filter=ip"])
    assert is_served(server) is admitted
    if not admitted:
        wait_until(lambda: f"pid {os.getpid()}" in server.log(), "the log names the client")


def test_two_layers_each_with_its_lists(serve):
    server = serve("memory", "1M", options=["--filter=ip:deny=allvsock",
                                            "--filter=ip:deny=allunix"])
    assert not is_served(server)
    server = serve("memory", "1M", options=["--filter=ip:deny=allvsock",
                                            "--filter=ip:allow=allunix,,::1,deny=all"])
    assert is_served(server)


def test_a_pipe_has_no_address():
    """Only `all` matches it."""
    for rules, greeted in (("deny=uid:0,allunix,0.0.0.0/0", True), ("deny=all", False)):
        done = subprocess.run([WEFT, "-s", "--filter=ip", "memory", "1M", rules], input=b"",
                              capture_output=True, timeout=30, check=False)
        assert done.stdout.startswith(b"NBDMAGIC") is greeted, rules


@pytest.mark.parametrize("rules, words", [
    ("deny=1.2.3.4/33", "deny=1.2.3.4/33: '33' is out of range"),
    ("allow=uid:me", "allow=uid:me: 'me' is not a number"),
    ("allow=dn:CN=me", "which this build of weft has not"),
    ("deny=fe80::1%lo", "neither an address nor a rule"),
])
def test_wrong_rules(rules, words):
    done = run(WEFT, "-U", "-", "--filter=ip", "memory", "1M", rules, "--run", "true", check=False)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
