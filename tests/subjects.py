# SPDX-License-Identifier: BSD-3-Clause
"""The servers that nbdcheck is run against: for the tests, and for bench/scoreboard.

A Subject is a command with {socket}, and with {disk} where its disk can be harmed.
"""
import dataclasses
import pathlib
import shutil

TESTS = pathlib.Path(__file__).resolve().parent
COPIES_DISK = "tests/multi_conn_disk.sh"  # relative: commands are to be read, and to be repeated
NBD_SERVER = "tests/nbd_server.sh"

# Each call of a script disk starts a shell: few small blocks, so that something happens there.
SCRIPT_LOAD = {"options": ("--blocks=4", "--block-size=512", "--kinds=read,write,flush"),
               "slow": 2}


@dataclasses.dataclass(frozen=True)
class Subject:
    server: str          # who: "weft", "nbdkit" ...
    name: str            # what of it, in a few words; unique for a server
    words: tuple         # the command
    options: tuple = ()  # nbdcheck's
    slow: int = 1        # so many times as long as others, to see as much
    # What its author says that it does not do: then a loss is no news.
    volatile: str = ""

    @property
    def title(self):
        return f"{self.server} {self.name}"

    @property
    def harmable(self):
        return "{disk}" in " ".join(self.words)

    def missing(self):
        """Why it cannot be run here, or None."""
        program = "nbd-server" if self.words[0] == NBD_SERVER else self.words[0]
        return None if shutil.which(program) else f"{program} is not installed"

    def command(self, weft):
        """The words, with this program for weft."""
        return [str(weft) if word == "weft" else word for word in self.words]


def copies_disk(mode, **parameters):
    """Words for a script disk of which every connection has a copy until it flushes."""
    words = ["--filter=multi-conn", "sh", COPIES_DISK, "size=8192"]
    return (*words, f"multi-conn-mode={mode}", *(f"{k}={v}" for k, v in parameters.items()))


def nbdkit(name, *words, **more):
    return Subject("nbdkit", name, ("nbdkit", "-f", "-U", "{socket}", *words), **more)


def qemu(name, *words, **more):
    return Subject("qemu-nbd", name, ("qemu-nbd", "-k", "{socket}", "-t", "-e", "8", "-f", "raw",
                                      *words, "{disk}"), **more)


def nbd_server(name, disk, *words, options=()):
    return Subject("nbd-server", name, (NBD_SERVER, "{socket}", disk, *words),
                   options=("--export=export", *options))


def weft(name, *words, **more):
    return Subject("weft", name, ("weft", "-f", "-U", "{socket}", *words), **more)


NBDKIT = [
    nbdkit("file", "file", "{disk}"),
    nbdkit("memory", "memory", "16M"),
    nbdkit("cache filter", "--filter=cache", "file", "{disk}"),
    nbdkit("cache filter, unsafe", "--filter=cache", "file", "{disk}", "cache=unsafe",
           volatile="cache=unsafe ignores flushes"),
    nbdkit("cow filter", "--filter=cow", "memory", "16M"),
    nbdkit("multi-conn filter over file", "--filter=multi-conn", "file", "{disk}"),
    *(nbdkit(f"multi-conn filter, {mode}", *copies_disk(mode), **SCRIPT_LOAD)
      for mode in ("emulate", "disable")),
    nbdkit("multi-conn filter, unsafe", *copies_disk("unsafe"), **SCRIPT_LOAD,
           volatile="multi-conn-mode=unsafe advertises the flag, true or not"),
]
QEMU = [
    qemu("threads, writeback"),
    qemu("threads, none", "--aio=threads", "--cache=none"),
    qemu("threads, writethrough", "--aio=threads", "--cache=writethrough"),
    qemu("threads, unsafe", "--aio=threads", "--cache=unsafe",
         volatile="cache=unsafe ignores flushes"),
    qemu("native, none", "--aio=native", "--cache=none"),
    qemu("io_uring, writeback", "--aio=io_uring", "--cache=writeback"),
    qemu("io_uring, none", "--aio=io_uring", "--cache=none"),
]
NBD_SERVERS = [
    nbd_server("plain", "{disk}"),
    nbd_server("copyonwrite", "-", "copyonwrite=true"),
    nbd_server("waitfile", "-", "waitfile=true"),
    nbd_server("waitfile, one request at a time", "-", "waitfile=true",
               options=("--depth=1", "--kinds=read,write,flush")),
]

WEFT_DISKS = [
    weft("file", "file", "{disk}"),
    weft("file, epoll", "--engine=epoll", "file", "{disk}"),
    weft("memory", "memory", "16M"),
    weft("data", "data", "0", "size=16M"),
    weft("multi-conn filter, emulate", *copies_disk("emulate"), **SCRIPT_LOAD),
]
# Filters over a disk that can be harmed.
WEFT_FILTERS = [
    weft(name, *(f"--filter={word}" for word in stack.split()), "file", "{disk}",
         *parameters.split())
    for name, stack, parameters in [
        ("cache filter, writeback", "cache", "cache=writeback"),
        ("cache filter, writethrough", "cache", "cache=writethrough"),
        ("cache filter, small", "cache", "cache-max-size=128K cache-min-block-size=4K"),
        ("cache filter, on read", "cache", "cache-on-read=true"),
        ("multi-conn filter over file", "multi-conn", ""),
        ("multi-conn filter over file, emulate", "multi-conn", "multi-conn-mode=emulate"),
        ("multi-conn and cache filters", "multi-conn cache", "multi-conn-mode=emulate"),
        ("readahead filter", "readahead", ""),
        ("readahead and cache filters", "readahead cache", ""),
        ("blocksize filter", "blocksize", "minblock=4K maxdata=64K"),
        ("fua filter, emulate", "fua", "fuamode=emulate"),
        ("fua filter, force", "fua", "fuamode=force"),
        ("nozero filter", "nozero", "zeromode=emulate"),
        ("noparallel filter", "noparallel", "serialize=all-requests"),
        ("nocache filter", "nocache", "cachemode=emulate"),
        ("noextents filter", "noextents", ""),
        ("cacheextents filter", "cacheextents", ""),
        ("extentlist filter", "extentlist", "extentlist=/dev/null"),
        ("limit filter", "limit", "limit=16"),
        ("delay filter", "delay", "delay-write=1ms delay-flush=2ms"),
    ]
]
# An overlay that goes with the server: nothing of it is meant to survive.
WEFT_OVERLAYS = [
    weft("cow filter", "--filter=cow", "memory", "16M"),
    weft("cow filter, small blocks", "--filter=cow", "memory", "16M", "cow-block-size=4K"),
    weft("readahead and cow filters", "--filter=readahead", "--filter=cow", "memory", "16M",
         "cow-on-cache=true"),
    weft("cow and cache filters", "--filter=cow", "--filter=cache", "memory", "16M",
         "cow-on-read=true"),
]
WEFT = WEFT_DISKS + WEFT_OVERLAYS + WEFT_FILTERS
PEERS = NBDKIT + QEMU + NBD_SERVERS
