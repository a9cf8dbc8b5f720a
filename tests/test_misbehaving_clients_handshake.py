# SPDX-License-Identifier: BSD-3-Clause
"""Clients that break the handshake: each gets what the protocol says, and nobody else notices."""
import itertools
import os
import struct

import pytest

from harness import IS_WEFT, MIB, Server
from rawclient import (ERR_INVALID, ERR_POLICY, ERR_UNKNOWN, ERR_UNSUP, ERROR_BIT, FIXED_NEWSTYLE,
                       IHAVEOPT, INFO_BLOCK_SIZE, NO_ZEROES, OPT_ABORT, OPT_EXPORT_NAME, OPT_GO,
                       OPT_INFO, OPT_LIST, OPT_LIST_META_CONTEXT, OPT_PEEK, OPT_SET_META_CONTEXT,
                       OPT_STARTTLS, OPT_STRUCTURED_REPLY, REP_ACK, REP_META_CONTEXT, Closed, Raw,
                       go_data, meta_context_data)

pytestmark = pytest.mark.sanitized


@pytest.fixture
def server(serve, engine):
    server = serve("memory", "16M", engine=engine)
    yield server
    server.check_serves()


@pytest.fixture
def raw(server):
    with Raw(server.socket) as client:
        yield client


def test_unknown_client_flag_closes(raw):
    raw.greet(FIXED_NEWSTYLE | NO_ZEROES | 1 << 5)
    # The server may close before or after it looks at more bytes, but it must close.
    raw.expect_closed()


def test_bad_option_magic_closes(raw):
    raw.greet()
    raw.option(OPT_GO, go_data(), magic=IHAVEOPT + 1)
    raw.expect_closed()


def test_abort_is_acknowledged(raw):
    raw.greet()
    assert raw.ask(OPT_ABORT) == REP_ACK
    assert raw.expect_closed() == b""


def test_abort_with_data_is_acknowledged(raw):
    raw.greet()
    assert raw.ask(OPT_ABORT, b"some data") == REP_ACK
    assert raw.expect_closed() == b""


def test_abort_from_a_client_that_is_gone_already(server):
    for _ in range(20):
        with Raw(server.socket) as client:
            client.greet()
            client.send(struct.pack(">QII", IHAVEOPT, OPT_ABORT, 0))


def test_option_of_4_gib_closes(raw):
    raw.greet()
    raw.option(OPT_GO, b"", length=0xFFFFFFFF)
    raw.expect_closed()


def test_unknown_option_of_4_gib_closes(raw):
    raw.greet()
    raw.option(4711, b"", length=0xFFFFFFFF)
    raw.expect_closed()


def test_go_with_more_infos_than_data(raw):
    raw.greet()
    assert raw.ask(OPT_GO, struct.pack(">IHH", 0, 7, INFO_BLOCK_SIZE)) == ERR_INVALID
    raw.go()


def test_go_with_a_name_longer_than_the_data(raw):
    raw.greet()
    assert raw.ask(OPT_GO, struct.pack(">IH", 0xFFFFFFF0, 0)) == ERR_INVALID
    raw.go()


@pytest.mark.parametrize("option", [OPT_INFO, OPT_GO])
@pytest.mark.parametrize("length", range(6))
def test_go_and_info_shorter_than_their_smallest_form(raw, option, length):
    raw.greet()
    assert raw.ask(option, bytes(length)) == ERR_INVALID
    raw.go()


def test_go_with_a_name_of_5000_bytes(raw):
    raw.greet()
    assert raw.ask(OPT_GO, go_data(b"n" * 5000)) in (ERR_INVALID, ERR_UNKNOWN)
    raw.go()


def test_go_with_nul_in_the_name(raw):
    raw.greet()
    assert raw.ask(OPT_GO, go_data(b"a\0b")) in (ERR_INVALID, ERR_UNKNOWN)
    raw.go()


def test_go_with_a_name_that_is_no_utf8(raw):
    raw.greet()
    answer = raw.ask(OPT_GO, go_data(b"\xff\xfe"))
    assert answer in (ERR_INVALID, ERR_UNKNOWN, REP_ACK)


def test_go_to_an_unknown_export(serve, engine, folder):
    (folder / "known").write_bytes(b"known".ljust(512))
    server = serve("file", f"dir={folder}", engine=engine)
    with Raw(server.socket) as raw:
        raw.greet()
        assert raw.ask(OPT_GO, go_data(b"unknown")) == ERR_UNKNOWN
        size, _ = raw.go(b"known")
        assert size == 512
        assert raw.read(0, 5) == b"known"


@pytest.mark.parametrize("name", ["..", "../other", "/etc/passwd", "sub/inner", ".", ""])
def test_an_export_name_does_not_leave_its_directory(serve, engine, folder, name):
    (folder / "images" / "sub").mkdir(parents=True)
    (folder / "images" / "sub" / "inner").write_bytes(bytes(512))
    (folder / "other").write_bytes(bytes(512))
    server = serve("file", f"dir={folder / 'images'}", engine=engine)
    with Raw(server.socket) as raw:
        raw.greet()
        assert raw.ask(OPT_GO, go_data(name.encode())) & ERROR_BIT
        assert raw.ask(OPT_ABORT) == REP_ACK


def test_export_name_that_is_unknown_closes(serve, engine, folder):
    (folder / "known").write_bytes(bytes(512))
    server = serve("file", f"dir={folder}", engine=engine)
    with Raw(server.socket) as raw:
        raw.greet()
        raw.option(OPT_EXPORT_NAME, b"unknown")
        assert raw.expect_closed() == b""
    with Raw(server.socket) as raw:
        raw.greet()
        raw.option(OPT_EXPORT_NAME, b"known")
        assert raw.unpack(">QH")[0] == 512


def test_export_name_without_no_zeroes_gets_124_zeroes(raw):
    raw.greet(FIXED_NEWSTYLE)
    raw.option(OPT_EXPORT_NAME)
    assert raw.unpack(">QH")[0] == 16 * MIB
    assert raw.receive(124) == bytes(124)
    assert raw.read(0, 512) == bytes(512)


def test_client_without_fixed_newstyle_may_use_export_name(raw):
    raw.greet(0)
    raw.option(OPT_EXPORT_NAME)
    assert raw.unpack(">QH")[0] == 16 * MIB
    raw.receive(124)
    assert raw.read(0, 512) == bytes(512)


@pytest.mark.weft_only
def test_3000_unknown_options_are_answered(raw):
    raw.greet()
    for number in range(3000):
        raw.option(100_000 + number, b"data")
        assert raw.option_reply() == (100_000 + number, ERR_UNSUP, raw_text_of(raw))
    raw.go()


def raw_text_of(_):
    """Any text: an error reply may carry one."""
    class Any(bytes):
        def __eq__(self, other):
            return isinstance(other, bytes)
        __hash__ = bytes.__hash__
    return Any()


def test_pipelined_options_are_answered_in_order(raw):
    raw.greet()
    numbers = [1000, 1001, OPT_STRUCTURED_REPLY, OPT_LIST, 1002]
    for number in numbers:
        raw.option(number)
    for number in numbers:
        assert raw.option_replies(number)
    raw.go()


def test_withdrawn_option_peek_export(raw):
    raw.greet()
    assert raw.ask(OPT_PEEK) == ERR_UNSUP
    raw.go()


def test_list_with_data(raw):
    raw.greet()
    assert raw.ask(OPT_LIST, b"data") == ERR_INVALID
    raw.go()


def test_structured_reply_with_data(raw):
    raw.greet()
    assert raw.ask(OPT_STRUCTURED_REPLY, b"data") == ERR_INVALID
    raw.go()


def test_starttls_is_refused_and_changes_nothing(raw):
    """As CVE-2021-3716: what came before STARTTLS and what is sent behind it stays in step."""
    raw.greet()
    assert raw.ask(OPT_STRUCTURED_REPLY) == REP_ACK
    raw.option(OPT_STARTTLS)
    raw.option(OPT_LIST)
    assert raw.option_replies(OPT_STARTTLS)[-1][0] in (ERR_POLICY, ERR_UNSUP)
    assert raw.option_replies(OPT_LIST)[-1][0] == REP_ACK
    raw.go()
    raw.request(0, 0, 512)
    assert raw.reply().kinds, "the structured replies were negotiated before STARTTLS"


def test_starttls_with_data(raw):
    raw.greet()
    assert raw.ask(OPT_STARTTLS, b"data") in (ERR_INVALID, ERR_POLICY, ERR_UNSUP)
    raw.go()


def test_meta_context_without_structured_replies(raw):
    raw.greet()
    answer = raw.ask(OPT_SET_META_CONTEXT, meta_context_data(b"", [b"base:allocation"]))
    assert answer == ERR_INVALID
    raw.go()


BAD_META_CONTEXTS = {
    "empty": b"",
    "name longer than data": struct.pack(">I", 100) + b"x",
    "no count": struct.pack(">I", 0),
    "more queries than data": struct.pack(">III", 0, 2, 1) + b"x",
    "2^32-1 queries": struct.pack(">II", 0, 0xFFFFFFFF),
    "query longer than data": struct.pack(">III", 0, 1, 0xFFFFFFFF) + b"x",
}
if IS_WEFT:
    BAD_META_CONTEXTS["trailing bytes"] = meta_context_data(b"", [b"base:allocation"]) + b"x"


@pytest.mark.parametrize("option", [OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT])
@pytest.mark.parametrize("data", BAD_META_CONTEXTS.values(), ids=BAD_META_CONTEXTS.keys())
def test_meta_context_with_bad_lengths(raw, option, data):
    raw.greet()
    assert raw.ask(OPT_STRUCTURED_REPLY) == REP_ACK
    assert raw.ask(option, data) == ERR_INVALID
    raw.go()


def test_meta_context_of_an_unknown_namespace_is_ignored(raw):
    raw.greet()
    assert raw.ask(OPT_STRUCTURED_REPLY) == REP_ACK
    raw.option(OPT_SET_META_CONTEXT, meta_context_data(b"", [b"x-other:thing"]))
    assert [kind for kind, _ in raw.option_replies(OPT_SET_META_CONTEXT)] == [REP_ACK]
    raw.go()
    # Nothing was selected, so there is no status to ask for.
    assert raw.error_of(7, 0, 4096) == 22


@pytest.mark.weft_only
def test_failed_set_meta_context_forgets_the_earlier_one(raw):
    raw.greet()
    assert raw.ask(OPT_STRUCTURED_REPLY) == REP_ACK
    good = meta_context_data(b"", [b"base:allocation"])
    raw.option(OPT_SET_META_CONTEXT, good)
    assert raw.option_replies(OPT_SET_META_CONTEXT)[0][0] == REP_META_CONTEXT
    assert raw.ask(OPT_SET_META_CONTEXT, good + b"x") == ERR_INVALID
    raw.go()
    assert raw.error_of(7, 0, 4096) == 22


def test_list_meta_context_without_queries_lists_all(raw):
    raw.greet()
    assert raw.ask(OPT_STRUCTURED_REPLY) == REP_ACK
    raw.option(OPT_LIST_META_CONTEXT, meta_context_data(b"", []))
    replies = raw.option_replies(OPT_LIST_META_CONTEXT)
    assert (REP_META_CONTEXT, b"\0\0\0\0base:allocation") in replies
    raw.go()


def test_request_in_the_middle_of_the_handshake_closes(raw):
    raw.greet()
    raw.request(0, 0, 512)
    raw.expect_closed()


def test_every_order_of_options(server):
    """As CVE-2019-14851: no order of the options may confuse the server."""
    options = {
        OPT_LIST: b"",
        OPT_STRUCTURED_REPLY: b"",
        OPT_INFO: go_data(),
        OPT_SET_META_CONTEXT: meta_context_data(b"", [b"base:allocation"]),
    }
    for order in itertools.permutations(options):
        for last in (OPT_GO, OPT_EXPORT_NAME, None):
            with Raw(server.socket) as raw:
                raw.greet()
                for number in order:
                    raw.ask(number, options[number])
                if last == OPT_GO:
                    raw.go()
                elif last == OPT_EXPORT_NAME:
                    raw.option(last)
                    raw.receive(10)
                if last:
                    assert raw.read(4096, 512) == bytes(512)


def handshake_bytes():
    """All that a client sends from the first byte to a first read."""
    def option(number, data=b""):
        return struct.pack(">QII", IHAVEOPT, number, len(data)) + data
    return (struct.pack(">I", FIXED_NEWSTYLE | NO_ZEROES) + option(OPT_STRUCTURED_REPLY) +
            option(OPT_SET_META_CONTEXT, meta_context_data(b"", [b"base:allocation"])) +
            option(OPT_GO, go_data(b"", [INFO_BLOCK_SIZE])) +
            struct.pack(">IHHQQI", 0x25609513, 0, 0, 1, 0, 512))


def test_disconnect_at_every_byte_of_the_handshake(server):
    whole = handshake_bytes()
    for cut in range(len(whole) + 1):
        with Raw(server.socket) as raw:
            raw.send(whole[:cut])


def test_half_close_at_every_byte_of_the_handshake(server):
    whole = handshake_bytes()
    for cut in range(len(whole) + 1):
        with Raw(server.socket) as raw:
            raw.send(whole[:cut])
            raw.socket.shutdown(1)
            raw.expect_closed()


def test_handshake_byte_by_byte(raw):
    raw.unpack(">QQH")
    for byte in handshake_bytes():
        raw.send(bytes([byte]))
    assert raw.option_replies(OPT_STRUCTURED_REPLY)[-1][0] == REP_ACK
    assert raw.option_replies(OPT_SET_META_CONTEXT)[-1][0] == REP_ACK
    assert raw.option_replies(OPT_GO)[-1][0] == REP_ACK
    assert raw.reply().data == bytes(512)


def test_garbage_instead_of_a_handshake(server):
    for _ in range(30):
        with Raw(server.socket) as raw:
            try:
                raw.send(os.urandom(2000))
                raw.expect_closed()
            except Closed:
                pass


def test_silent_clients_delay_nobody(server):
    """Half-open handshakes of every depth stay open while a well-behaved client is served."""
    whole = handshake_bytes()
    clients = []
    try:
        for cut in (0, 2, 4, 10, 20, 40):
            for _ in range(20):
                client = Raw(server.socket)
                clients.append(client)
                client.send(whole[:cut])
        server.check_serves()
    finally:
        for client in clients:
            client.close()


@pytest.mark.weft_only
def test_silent_clients_are_dropped_after_the_timeout(serve, engine):
    server = serve("memory", "1M", engine=engine, options=["--timeout=300ms"])
    with Raw(server.socket) as silent, Raw(server.socket) as half, server.client() as good:
        half.greet()
        silent.expect_closed()
        half.expect_closed()
        # Who has finished the handshake may be as silent as they like.
        assert good.pread(512, 0) == bytes(512)


def test_harness_notices_a_server_that_dies(serve):
    """The harness itself: a dead server is no passed test."""
    server = serve("memory", "1M")
    server.process.kill()
    server.process.wait()
    with pytest.raises(AssertionError):
        server.check_serves()
    with pytest.raises(AssertionError):
        Server.stop(server)
    server.may_die = True
