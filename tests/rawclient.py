# SPDX-License-Identifier: BSD-3-Clause
"""A client that sends any bytes at all, and reads what the server answers.

It knows the protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md) but checks nothing that
it sends: this is what the misbehaving clients are made of.
"""
import contextlib
import socket
import struct

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OLDSTYLE_MAGIC = 0x00420281861253
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_REPLY_MAGIC = 0x6E8A278C

FIXED_NEWSTYLE, NO_ZEROES = 1, 2

(OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_PEEK, OPT_STARTTLS, OPT_INFO, OPT_GO,
 OPT_STRUCTURED_REPLY, OPT_LIST_META_CONTEXT, OPT_SET_META_CONTEXT,
 OPT_EXTENDED_HEADERS) = range(1, 12)
REP_ACK, REP_SERVER, REP_INFO, REP_META_CONTEXT = 1, 2, 3, 4
ERROR_BIT = 1 << 31
(ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_PLATFORM, ERR_TLS_REQD, ERR_UNKNOWN, ERR_SHUTDOWN,
 ERR_BLOCK_SIZE_REQD, ERR_TOO_BIG) = (ERROR_BIT + n for n in range(1, 10))
INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_BLOCK_SIZE = range(4)

(CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_TRIM, CMD_CACHE, CMD_WRITE_ZEROES,
 CMD_BLOCK_STATUS, CMD_RESIZE) = range(9)
FLAG_FUA, FLAG_NO_HOLE, FLAG_DF, FLAG_REQ_ONE, FLAG_FAST_ZERO, FLAG_PAYLOAD_LEN = (
    1 << bit for bit in range(6))
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_STATUS_EXT = 0, 1, 2, 5, 6
CHUNK_ERROR, CHUNK_ERROR_OFFSET = 0x8001, 0x8002

EPERM, EIO, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN = 1, 5, 22, 28, 75, 95, 108


class Closed(Exception):
    """The server closed the connection."""


class Reply:
    def __init__(self, cookie):
        self.cookie = cookie
        self.error = 0
        self.data = bytearray()
        self.extents = []   # (length, flags) of base:allocation
        self.kinds = []     # chunk types, in their order; empty for a simple reply
        self.offsets = []   # offsets in extended headers


class Raw:
    """One connection. Every wait is bounded by timeout_s, so a silent server fails a test."""

    def __init__(self, path, timeout_s=20):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout_s)
        self.socket.connect(path)
        self.extended = False
        self.next_cookie = 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self, count):
        data = bytearray()
        while len(data) < count:
            try:
                piece = self.socket.recv(min(count - len(data), 1 << 20))
            except ConnectionResetError as error:
                raise Closed from error
            if not piece:
                raise Closed(f"after {len(data)} of {count} bytes")
            data += piece
        return bytes(data)

    def unpack(self, form):
        return struct.unpack(form, self.receive(struct.calcsize(form)))

    def expect_closed(self):
        """Reads until the server closes; returns what it still sent."""
        data = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while piece := self.socket.recv(1 << 16):
                data += piece
        return bytes(data)

    # Handshake

    def greet(self, client_flags=FIXED_NEWSTYLE | NO_ZEROES):
        """Reads the greeting, sends the client's flags, returns the server's."""
        magic, option_magic, flags = self.unpack(">QQH")
        assert (magic, option_magic) == (NBDMAGIC, IHAVEOPT)
        self.send(struct.pack(">I", client_flags))
        return flags

    def option(self, number, data=b"", length=None, magic=IHAVEOPT):
        self.send(struct.pack(">QII", magic, number, len(data) if length is None else length) +
                  data)

    def option_reply(self):
        """(option, reply type, data)"""
        magic, option, kind, length = self.unpack(">QIII")
        assert magic == OPTION_REPLY_MAGIC, hex(magic)
        assert length <= 1 << 20
        return option, kind, self.receive(length)

    def option_replies(self, number):
        """All replies to one option up to its ACK or error: [(type, data)...]"""
        replies = []
        while True:
            option, kind, data = self.option_reply()
            assert option == number, f"reply to option {option}, not {number}"
            replies.append((kind, data))
            if kind == REP_ACK or kind & ERROR_BIT:
                return replies

    def ask(self, number, data=b"", length=None):
        """Sends an option and returns the type of the last reply."""
        self.option(number, data, length)
        return self.option_replies(number)[-1][0]

    def go(self, export=b"", number=OPT_GO, infos=()):
        """(size, transmission flags)"""
        self.option(number, go_data(export, infos))
        replies = self.option_replies(number)
        assert replies[-1][0] == REP_ACK, hex(replies[-1][0])
        info = next(data for kind, data in replies
                    if kind == REP_INFO and data[:2] == b"\0\0")
        return struct.unpack(">QH", info[2:])

    def negotiate(self, export=b"", structured=False, allocation=False, extended=False):
        """The whole handshake; returns (size, transmission flags)."""
        self.greet()
        if extended:
            assert self.ask(OPT_EXTENDED_HEADERS) == REP_ACK
        elif structured or allocation:
            assert self.ask(OPT_STRUCTURED_REPLY) == REP_ACK
        if allocation:
            data = meta_context_data(export, [b"base:allocation"])
            assert self.ask(OPT_SET_META_CONTEXT, data) == REP_ACK
        answer = self.go(export)
        self.extended = extended  # only now: the options keep their form
        return answer

    # Transmission

    def request(self, command, offset=0, length=0, flags=0, payload=b"", cookie=None,
                magic=None):
        """Sends one request and returns its cookie."""
        if cookie is None:
            cookie = self.next_cookie
            self.next_cookie += 1
        if self.extended:
            header = struct.pack(">IHHQQQ", magic or EXTENDED_REQUEST_MAGIC, flags, command,
                                 cookie, offset, length)
        else:
            header = struct.pack(">IHHQQI", magic or REQUEST_MAGIC, flags, command, cookie,
                                 offset, length)
        self.send(header + payload)
        return cookie

    def write(self, offset, data, flags=0, cookie=None):
        if self.extended:
            flags |= FLAG_PAYLOAD_LEN
        return self.request(CMD_WRITE, offset, len(data), flags, data, cookie)

    def reply(self, read_length=0):
        """The next whole reply; read_length is what a simple reply to a READ carries."""
        (magic,) = self.unpack(">I")
        if magic == SIMPLE_REPLY_MAGIC:
            error, cookie = self.unpack(">IQ")
            reply = Reply(cookie)
            reply.error = error
            if not error:
                reply.data = bytearray(self.receive(read_length))
            return reply
        reply = None
        while True:
            if magic == STRUCTURED_REPLY_MAGIC:
                flags, kind, cookie, length = self.unpack(">HHQI")
            else:
                assert magic == EXTENDED_REPLY_MAGIC, hex(magic)
                flags, kind, cookie, offset, length = self.unpack(">HHQQQ")
            if reply is None:
                reply = Reply(cookie)
            assert reply.cookie == cookie, "this simple reader knows no interleaved chunks"
            if magic == EXTENDED_REPLY_MAGIC:
                reply.offsets.append(offset)
            reply.kinds.append(kind)
            self.take_chunk(reply, kind, self.receive(length))
            if flags & 1:
                return reply
            (magic,) = self.unpack(">I")

    @staticmethod
    def take_chunk(reply, kind, data):
        if kind == CHUNK_DATA:
            reply.data += data[8:]
        elif kind == CHUNK_HOLE:
            reply.data += bytes(struct.unpack(">QI", data)[1])
        elif kind == CHUNK_STATUS:
            reply.extents += struct.iter_unpack(">II", data[4:])
        elif kind == CHUNK_STATUS_EXT:
            count = struct.unpack(">I", data[4:8])[0]
            reply.extents += struct.iter_unpack(">QQ", data[8:])
            assert len(reply.extents) == count
        elif kind in (CHUNK_ERROR, CHUNK_ERROR_OFFSET):
            reply.error = struct.unpack(">I", data[:4])[0]
        else:
            assert kind == CHUNK_NONE, kind

    def error_of(self, command, offset=0, length=0, flags=0, payload=b""):
        """Sends one request, returns the error of its reply (0: success)."""
        cookie = self.request(command, offset, length, flags, payload)
        reply = self.reply(length if command == CMD_READ else 0)
        assert reply.cookie == cookie
        return reply.error

    def read(self, offset, length):
        self.request(CMD_READ, offset, length)
        reply = self.reply(length)
        assert reply.error == 0, reply.error
        return bytes(reply.data)

    def disconnect(self):
        self.request(CMD_DISC)


def go_data(export=b"", infos=()):
    return (struct.pack(">I", len(export)) + export + struct.pack(">H", len(infos)) +
            b"".join(struct.pack(">H", info) for info in infos))


def meta_context_data(export, queries):
    return (struct.pack(">I", len(export)) + export + struct.pack(">I", len(queries)) +
            b"".join(struct.pack(">I", len(query)) + query for query in queries))
