# SPDX-License-Identifier: BSD-3-Clause
"""The multi-conn filter over a disk whose connections see different things until they flush."""
import itertools
import re

import nbd
import pytest

from harness import IS_WEFT, MIB, WEFT, run
from multi_conn import (COPIES_DISK, CallsDisk, CopiesDisk, connected, flushes_counted,
                        have_filter)
from rawclient import ERROR_BIT, OPT_GO, Raw, go_data

pytestmark = pytest.mark.skipif(not have_filter("multi-conn"),
                                reason=f"{WEFT} has no filter multi-conn")
FUA = nbd.CMD_FLAG_FUA


def need_filters(*names):
    for name in names:
        if not have_filter(name):
            pytest.skip(f"{WEFT} has no filter {name}")


# What connections see of each other.

def check_that_connections_are_apart(disk):
    """A's and B's changes meet where both have flushed, and not before."""
    with disk.connected(3) as (a, b, c):
        assert not a.can_multi_conn()
        assert a.pread(12, 0) == b"Initial cont"
        b.pwrite(b"Hello ", 0)
        assert a.pread(12, 0) == b"Initial cont"
        assert c.pread(12, 0) == b"Initial cont"
        c.flush()
        assert a.pread(12, 0) == b"Initial cont"
        assert c.pread(12, 0) == b"Initial cont"
        b.flush()
        assert a.pread(12, 0) == b"Initial cont"
        a.flush()
        assert a.pread(12, 0) == b"Hello l cont"


def test_without_the_filter_connections_are_apart(serve, engine):
    check_that_connections_are_apart(CopiesDisk(serve, engine=engine))


@pytest.mark.parametrize("mode", ["plugin", "disable"])
@pytest.mark.parametrize("tracking", ["connection", "conn", "off"])
def test_modes_plugin_and_disable_leave_connections_apart(serve, engine, mode, tracking):
    check_that_connections_are_apart(CopiesDisk(
        serve, "multi-conn", engine=engine, multi_conn_mode=mode, multi_conn_track_dirty=tracking))


def check_that_connections_agree(disk):
    with disk.connected(3) as (a, b, c):
        assert a.can_multi_conn() and b.can_multi_conn()
        a.cache(32, 0)
        b.pwrite(b"Hello ", 0, FUA)
        assert a.pread(12, 0) == b"Hello l cont"
        b.pwrite(b"world.", 6)
        c.flush()
        assert a.pread(12, 0) == b"Hello world."


@pytest.mark.parametrize("parameters", [
    {}, {"strict": "true"}, {"fua": "emulate"}, {"multi_conn_mode": "emulate"},
    {"multi_conn_mode": "emulate", "strict": "true", "multi_conn_track_dirty": "off"},
    {"multi_conn_track_dirty": "fast"},
    {"multi_conn_track_dirty": "fast", "strict": "true", "multi_conn_exportname": "true"}],
    ids=lambda parameters: " ".join(map("=".join, parameters.items())) or "auto")
def test_emulation_makes_connections_agree(serve, engine, parameters):
    check_that_connections_agree(CopiesDisk(serve, "multi-conn", engine=engine, **parameters))


def test_zero_and_trim_are_seen_as_writes_are(serve, engine):
    disk = CopiesDisk(serve, "multi-conn", engine=engine)
    with disk.connected(3) as (a, b, c):
        assert a.pread(12, 0) == b"Initial cont"
        b.zero(4, 0, FUA)
        assert a.pread(12, 0) == bytes(4) + b"ial cont"
        b.trim(2, 4, FUA)
        assert c.pread(12, 0) == a.pread(12, 0) == bytes(6) + b"l cont"
        a.zero(2, 6)
        c.trim(2, 8)
        b.flush()
        for client in (a, b, c):
            assert client.pread(12, 0) == bytes(10) + b"nt"


def test_mode_plugin_is_enough_over_a_cache(serve, engine):
    need_filters("cache")
    check_that_connections_agree(CopiesDisk(serve, "multi-conn", "cache", engine=engine,
                                            multi_conn_mode="plugin"))


@pytest.mark.weft_only
@pytest.mark.parametrize("mode", ["auto", "emulate", "plugin"])
def test_over_a_consistent_disk(serve, engine, mode):
    server = serve("--filter=multi-conn", "memory", "1M", f"multi-conn-mode={mode}", engine=engine)
    with connected(server, 2) as (a, b):
        assert a.can_multi_conn()
        b.pwrite(b"weft", 0, FUA)
        assert a.pread(4, 0) == b"weft"


def test_unsafe_says_so_and_does_nothing(serve, engine):
    disk = CopiesDisk(serve, "multi-conn", engine=engine, multi_conn_mode="unsafe")
    with disk.connected(3) as (a, b, c):
        assert a.can_multi_conn()
        a.cache(32, 0)
        b.pwrite(b"Hello ", 0, FUA)
        assert a.pread(12, 0) == b"Initial cont"
        b.pwrite(b"world.", 6)
        c.flush()
        assert a.pread(12, 0) == b"Initial cont"


@pytest.mark.weft_only
def test_unsafe_is_logged(serve):
    disk = CopiesDisk(serve, "multi-conn", multi_conn_mode="unsafe")
    with disk.connected(1):
        assert "unsafe" in disk.server.log()


# What auto makes of it.

def test_auto_does_not_advertise_over_serialised_connections(serve, engine):
    disk = CopiesDisk(serve, "multi-conn", engine=engine, model="serialize_connections")
    with disk.client() as client:
        assert not client.can_multi_conn()
        client.pwrite(b"alone ", 0)
        client.flush()
        assert client.pread(12, 0) == b"alone l cont"


@pytest.mark.weft_only
def test_auto_does_not_advertise_when_only_one_client_may_connect(serve, engine):
    disk = CopiesDisk(serve, "multi-conn", engine=engine, options=["--shared=1"])
    with disk.client() as client:
        assert not client.can_multi_conn()


@pytest.mark.weft_only
@pytest.mark.parametrize("order", [("multi-conn", "limit"), ("limit", "multi-conn")], ids=" ".join)
def test_auto_does_not_advertise_under_a_limit_of_one(serve, engine, order):
    need_filters("limit")
    for limit, advertised in ((1, False), (2, True)):
        disk = CopiesDisk(serve, *order, engine=engine, limit=limit)
        with disk.client() as client:
            assert client.can_multi_conn() is advertised


@pytest.mark.weft_only
def test_auto_over_a_disk_that_cannot_flush_is_disable(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine, flushable="false")
    with disk.connected(2) as (a, b):
        assert not a.can_multi_conn() and not a.can_flush()
        b.pwrite(b"weft", 0)
        assert a.pread(4, 0) == b"weft"
        assert re.search(r"cannot flush.*multi-conn", disk.server.log()), disk.server.log()


def test_emulate_over_a_disk_that_cannot_flush_refuses_clients(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine, flushable="false",
                     multi_conn_mode="emulate")
    with pytest.raises(nbd.Error):
        disk.server.connect()
    assert disk.server.alive()


@pytest.mark.weft_only
def test_the_refusal_says_why(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine, flushable="false",
                     multi_conn_mode="emulate")
    with Raw(disk.server.socket) as raw:
        raw.greet()
        raw.option(OPT_GO, go_data())
        kind, text = raw.option_replies(OPT_GO)[-1]
        assert kind & ERROR_BIT
        assert b"flush" in text, text
    assert re.search(r"multi-conn.*flush", disk.server.log()), disk.server.log()


@pytest.mark.weft_only
def test_read_only_exports_have_nothing_to_flush(serve, engine):
    disk = CopiesDisk(serve, "multi-conn", engine=engine, options=["-r"])
    with disk.connected(2) as (a, b):
        assert a.can_multi_conn()
        assert a.pread(7, 0) == b.pread(7, 0) == b"Initial"
        a.flush()


@pytest.mark.weft_only
def test_fast_over_an_inconsistent_disk_in_mode_plugin_warns(serve):
    for consistent in ("false", "true"):
        disk = CopiesDisk(serve, "multi-conn", multi_conn_mode="plugin",
                          multi_conn_track_dirty="fast", consistent=consistent)
        with disk.connected(1):
            warned = re.search(r"does not say .* consistent.*track-dirty=fast", disk.server.log())
            assert bool(warned) is (consistent == "false"), disk.server.log()


@pytest.mark.parametrize("word", ["multi-conn-mode=often", "multi-conn-track-dirty=slow",
                                  "multi-conn-exportname=perhaps"])
def test_wrong_values_are_refused(serve, word):
    server = serve("--filter=multi-conn", "memory", "1M", word, wait=False)
    server.may_die = True
    assert server.wait() == 1
    assert word.split("=")[0] in server.log() or not IS_WEFT, server.log()


@pytest.mark.weft_only
@pytest.mark.parametrize("word", [
    "multi-conn-track-dirty=conn", "multi-conn-track-dirty=connection", "multi-conn-mode=auto",
    "multi-conn-exportname=on", "multi-conn-export-name=1"])
def test_values_that_are_understood(serve, word):
    server = serve("--filter=multi-conn", "memory", "1M", word)
    server.check_serves()


# The examples of the manual, and what --explain says.

@pytest.mark.weft_only
def test_example_a_script(serve, engine):
    check_that_connections_agree(CopiesDisk(serve, "multi-conn", engine=engine))


def explain(*args):
    """What --explain says, as {topic: text} and as it is."""
    text = run(WEFT, "--filter=multi-conn", "--explain", *args).stdout
    topics, topic = {}, ""
    for line in text.splitlines():
        if not line.startswith(" "):
            topic, _, line = line.partition(" ")
        topics[topic] = f"{topics.get(topic, '')} {line.strip()}".strip()
    return topics, text


@pytest.mark.weft_only
def test_example_explain():
    topics, text = explain("memory", "1G")
    assert topics["multi-conn"].startswith("advertised: decided by the disk"), text


@pytest.mark.weft_only
def test_example_known_to_be_consistent(serve, image):
    disk = image(MIB, content=b"")
    server = serve("--filter=multi-conn", "file", disk, "multi-conn-mode=plugin",
                   "multi-conn-track-dirty=fast")
    with connected(server, 2) as (a, b):
        assert a.can_multi_conn()
        a.pwrite(b"weft", 0)
        b.flush()
        assert b.pread(4, 0) == b"weft"
    assert disk.read_bytes()[:4] == b"weft"


@pytest.mark.weft_only
@pytest.mark.parametrize("words, advertised, because", [
    ([], True, "the multi-conn filter"),
    (["multi-conn-mode=disable"], False, "the multi-conn filter"),
    (["multi-conn-mode=plugin"], False, "the script"),
    (["consistent=true"], True, "the script"),
    (["model=serialize_connections"], False, "the limit on connections"),
    (["--shared=1"], False, "the limit on connections")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_explain_names_what_decided(words, advertised, because):
    topics, text = explain("sh", COPIES_DISK, *words)
    answer = "advertised" if advertised else "not advertised"
    assert topics["multi-conn"].startswith(f"{answer}: decided by {because}"), text
    assert ("seen by all others" in topics["visibility"]) is advertised, text


@pytest.mark.weft_only
def test_explain_does_not_promise_what_is_only_ordered():
    topics, text = explain("sh", COPIES_DISK, "multi-conn-mode=unsafe")
    assert topics["multi-conn"].startswith("advertised"), text
    assert "seen by all others" not in topics["visibility"], text
    assert "on any connection" not in topics["durability"], text


# How many flushes reach the disk.

def flush_read_flush(a, *_):
    a.flush()
    a.pread(1, 0)
    a.flush()


def four_connections(a, b, c, d):
    a.pread(1, 0)
    b.zero(1, 0)
    d.flush()
    c.zero(1, 1)
    a.pread(1, 0)
    d.flush()
    d.flush()


def three_connections(a, b, c):
    a.pread(1, 0)
    b.trim(1, 0)
    a.flush()
    b.flush()
    a.pread(1, 0)
    c.trim(1, 1)
    a.flush()
    c.flush()


SEQUENCES = [(flush_read_flush, 3), (four_connections, 4), (three_connections, 3)]
# (mode, cache below, tracking): flushes that reach the disk in each sequence.
FLUSHES = {
    ("emulate", False, "off"): (6, 12, 12),
    ("emulate", True, "off"): (6, 12, 12),
    ("plugin", False, "off"): (2, 3, 4),
    ("plugin", True, "off"): (2, 3, 4),
    ("emulate", False, "connection"): (0, 4, 4),
    ("emulate", True, "connection"): (0, 4, 4),
    ("plugin", False, "connection"): (0, 3, 4),
    ("plugin", True, "connection"): (0, 2, 2),
    ("emulate", False, "fast"): (0, 8, 6),
    ("emulate", True, "fast"): (0, 8, 6),
    ("plugin", False, "fast"): (0, 2, 2),
    ("plugin", True, "fast"): (0, 2, 2),
}


@pytest.mark.parametrize("mode, cached, tracking", FLUSHES,
                         ids=lambda value: {True: "cache", False: ""}.get(value, value))
def test_count_of_flushes(serve, folder, mode, cached, tracking):
    need_filters("stats", *(["cache"] if cached else []))
    counts = []
    for number, (sequence, connections) in enumerate(SEQUENCES):
        statistics = folder / f"stats{number}"
        disk = CopiesDisk(serve, "multi-conn", "stats", *(["cache"] if cached else []),
                          statsfile=statistics, multi_conn_mode=mode,
                          multi_conn_track_dirty=tracking)
        with disk.connected(connections) as clients:
            sequence(*clients)
        disk.server.stop()
        counts.append(flushes_counted(statistics))
    assert tuple(counts) == FLUSHES[mode, cached, tracking]


# Which of two changes stays.

CHANGES = {"write": lambda client, offset: client.pwrite(b"later", offset),
           "zero": lambda client, offset: client.zero(5, offset),
           "trim": lambda client, offset: client.trim(5, offset)}


@pytest.mark.weft_only
@pytest.mark.parametrize("tracking", ["connection", "fast", "off"])
def test_the_later_of_two_acknowledged_changes_stays(serve, tracking):
    """Whichever connection is flushed first."""
    for (early, late), (kind, change), offset in itertools.product(
            ((0, 1), (1, 0), (2, 1), (0, 2)), CHANGES.items(), (0, 3)):
        if kind != "write" and (early, offset) != (0, 3) and (early, offset) != (1, 3):
            continue  # a script is slow: the rest is as with writes
        disk = CopiesDisk(serve, "multi-conn", multi_conn_track_dirty=tracking)
        with disk.connected(3) as clients:
            clients[early].pwrite(b"early", 0)
            change(clients[late], offset)
            clients[0].flush()
            expected = bytearray(b"earlyal contents")
            expected[offset:offset + 5] = b"later" if kind == "write" else bytes(5)
            for client in clients:
                assert client.pread(16, 0) == expected, (early, late, kind, offset)
        disk.server.stop()


@pytest.mark.weft_only
def test_a_change_that_overlaps_nothing_flushes_nothing(serve, engine):
    disk = CallsDisk(serve, "multi-conn", engine=engine)
    with disk.connected(2) as (a, b):
        a.pwrite(b"x" * 4096, 0)
        b.pwrite(b"y" * 4096, 4096)
        a.pwrite(b"z" * 4096, 0)
        assert disk.count("flush") == 0
        b.pwrite(b"y" * 4096, 4095)
        # One round, of both, who have changed something; and before the change.
        assert disk.count("flush") == 2, disk.calls()
        assert [call[0] for call in disk.calls()][-3:] == ["flush", "pwrite", "pwrite"]
