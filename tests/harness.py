# SPDX-License-Identifier: BSD-3-Clause
"""Starts and stops the server under test, and finds out what this machine can do.

The program is build/release/bin/weft, or what the environment variable WEFT names. Naming
Debian's nbdkit runs the tests against another implementation of the same command line; what
only weft promises is then skipped.
"""
import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import nbd

ROOT = pathlib.Path(__file__).resolve().parent.parent
WEFT = os.environ.get("WEFT", str(ROOT / "build/release/bin/weft"))
NBDKIT = "/usr/bin/nbdkit"  # the oracle of test_command_line.py
IS_WEFT = os.path.basename(WEFT) != "nbdkit"
# The program's own folder says how it was built; a sanitizer changes what memory costs.
SANITIZED = any(part in ("asan", "tsan") for part in pathlib.Path(WEFT).parts)
ENGINES = ["io_uring", "epoll"] if IS_WEFT else [None]
TIMEOUT_S = 20  # for one step: starting, stopping, one message; far above what is normal

# mkfs, losetup and e2fsck live where an ordinary user's PATH does not look.
os.environ["PATH"] += ":/usr/sbin:/sbin"

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# What a sanitized server prints when it finds something.
SANITIZER_REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:",
                     "WARNING: ThreadSanitizer")


def wait_until(condition, what, timeout_s=TIMEOUT_S):
    """Polls until condition() is true; fails with `what` in the message."""
    end = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f"waited {timeout_s} s in vain: {what}"
        time.sleep(0.005)


def run(*command, check=True, timeout_s=60, **options):
    """Runs a client program; its output is in the assertion when it fails."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("errors", "replace")  # a program may print what a disk holds
    done = subprocess.run([str(word) for word in command], text=True, timeout=timeout_s,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, **options)
    if check:
        assert done.returncode == 0, (f"{' '.join(map(str, command))} ended with "
                                      f"{done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server process on a private Unix socket, in the foreground, with its log in a file."""

    def __init__(self, *args, engine=None, unix=True, options=(), env=None, launcher=(),
                 wait=True, pass_fds=(), preexec=None, dir_mode=0o700, program=WEFT):
        # A short name: the kernel takes 107 bytes for the path of a Unix socket.
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="weft-"))
        self.dir.chmod(dir_mode)
        self.socket = str(self.dir / "s")
        self.pidfile = self.dir / "pid"
        self.log_path = self.dir / "log"
        self.args = [str(arg) for arg in args]
        self.may_die = False  # set by a test that kills the server itself
        command = [*launcher, program, "-f", "-P", str(self.pidfile)]
        if unix:
            command += ["-U", self.socket]
        if engine and program == WEFT and IS_WEFT:
            command.append(f"--engine={engine}")
        command += [*options, *self.args]
        self.command = command
        self.process = None
        try:
            with open(self.log_path, "wb") as log:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=pass_fds,
                    env={**os.environ, **(env or {})}, preexec_fn=preexec)
            if wait:
                self.wait_ready()
        except BaseException:
            self.kill()
            self.remove()
            raise

    @property
    def pid(self):
        return self.process.pid

    def wait_ready(self):
        # The pidfile comes after the sockets are bound and costs the server no connection.
        def ready():
            assert self.process.poll() is None, f"{self.command} ended at once:\n{self.log()}"
            return self.pidfile.exists() and self.pidfile.read_text().strip()
        wait_until(ready, f"{self.command} writes its pidfile")

    def log(self):
        return self.log_path.read_text(errors="replace")

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def alive(self):
        return self.process.poll() is None

    def connect(self, export="", contexts=(), strict=True):
        """A libnbd handle; strict=False lets it send what the protocol forbids."""
        handle = nbd.NBD()
        if export:
            handle.set_export_name(export)
        for context in contexts:
            handle.add_meta_context(context)
        if not strict:
            handle.set_strict_mode(0)
        handle.connect_unix(self.socket)
        return handle

    @contextlib.contextmanager
    def client(self, *args, **kwargs):
        handle = self.connect(*args, **kwargs)
        try:
            yield handle
        finally:
            close(handle)

    def check_serves(self, stores=True):
        """A well-behaved client is served: it reads, and where it may it writes too.

        stores=False: the disk forgets what is written.
        """
        assert self.alive(), f"the server is gone:\n{self.log()}"
        with self.client() as client:
            size = min(client.get_size(), 4096)
            before = client.pread(size, 0)
            if not client.is_read_only():
                tag = os.urandom(size)
                client.pwrite(tag, 0)
                assert client.pread(size, 0) == (tag if stores else bytes(size))
                client.pwrite(before, 0)

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self, timeout_s=TIMEOUT_S):
        return self.process.wait(timeout=timeout_s)

    def stop(self):
        """Ends the server as an operator would, and insists on a clean end."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                log = self.log()
                self.kill()
                raise AssertionError(f"{self.command} ignores SIGTERM:\n{log}") from None
        log = self.log()
        for report in SANITIZER_REPORTS:
            assert report not in log, log
        if not self.may_die:
            assert self.process.returncode == 0, (
                f"{self.command} ended with {self.process.returncode}:\n{log}")

    def kill(self):
        self.may_die = True
        if self.process:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()

    def remove(self):
        shutil.rmtree(self.dir, ignore_errors=True)


def on_connections(count, connect, work, seed):
    """work(me, client, random numbers) in so many threads, each with a connection of its own."""
    failures = []

    def run_one(me):
        client = connect()
        try:
            work(me, client, random.Random(seed * 100 + me))
        except BaseException as error:  # pylint: disable=broad-except
            failures.append(f"thread {me}: {error!r}")
        finally:
            close(client)

    workers = [threading.Thread(target=run_one, args=(me,)) for me in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures, f"seed {seed}: {failures}"


def close(handle):
    """Says goodbye where the connection still lives, and drops it in any case."""
    with contextlib.suppress(nbd.Error):
        if handle.aio_is_ready():
            handle.shutdown()


class Watchdog:
    """Ends a test that hangs: kills its servers, so that whoever waits for one gets an error.

    A call into libnbd that never returns cannot be interrupted from Python itself.
    """

    def __init__(self, servers, timeout_s):
        self.servers = servers
        self.fired = False
        self.timer = threading.Timer(timeout_s, self.bite)
        self.timer.daemon = True
        self.timer.start()

    def bite(self):
        self.fired = True
        for server in list(self.servers):
            if server.process.poll() is None:
                server.process.kill()

    def cancel(self):
        self.timer.cancel()


def qemu_nbd_major():
    first = run("qemu-nbd", "--version").stdout.split()
    return int(first[1].split(".")[0])


def why_no_loop():
    """Why loop devices cannot be used here, or None."""
    if os.geteuid() != 0:
        return "loop devices need root"
    if run("losetup", "-f", check=False).returncode != 0:
        return "no loop devices here"
    return None


def why_no_fuse():
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse here"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return None


def why_no_mount():
    if os.geteuid() != 0:
        return "mounting needs root"
    return None


class Mounts:
    """Loop devices and mounts of one test; undone in reverse order, whatever happened."""

    def __init__(self):
        self.undo = contextlib.ExitStack()

    def tmpfs(self, where, size):
        os.makedirs(where, exist_ok=True)
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "weft-test", where)
        self.undo.callback(run, "umount", where, check=False)

    def loop(self, image, *options):
        device = run("losetup", "-f", "--show", *options, image).stdout.strip()
        self.undo.callback(run, "losetup", "-d", device, check=False)
        return device

    def mount(self, device, where, *options):
        os.makedirs(where, exist_ok=True)
        run("mount", *options, device, where)
        self.undo.callback(run, "umount", where, check=False)

    def close(self):
        self.undo.close()
