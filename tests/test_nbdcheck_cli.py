# SPDX-License-Identifier: BSD-3-Clause
"""nbdcheck's command line: what it refuses, how it ends, and what it leaves alone."""
import json
import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree

import pytest

from faulty import Faulty
from harness import KIB, MIB, ROOT, free_port, run
from nbdcheck_runs import BROKEN, KEPT, NBDCHECK, UNKNOWN, USAGE, Run, faulty, why_not

pytestmark = [pytest.mark.weft_only,
              pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]
SHORT = ["--seed=5", "--duration=1"]


@pytest.fixture
def server():
    """server(options...) starts a faulty-server."""
    servers = []

    def start(*options):
        servers.append(Faulty(*options))
        return servers[-1]

    yield start
    for one in servers:
        one.stop()


def nbdcheck(*words, timeout_s=60):
    return run(NBDCHECK, *words, check=False, timeout_s=timeout_s)


@pytest.mark.parametrize("words, says", [
    ([], "no server"),
    (["--consistensy", "nbd://localhost/"], "--consistensy"),
    (["--"], "nothing after --"),
    (["--", "true"], "{socket}"),
    (["--power-cut", "--destroy", "nbd://localhost/"], "{disk}"),
    (["--power-cut", "--", "server", "{socket}"], "{disk}"),
    (["nbd+unix:///?socket=/nowhere/s", "--", "server", "{socket}"], "give one of them"),
    (["--range=4096", "--destroy", "nbd://localhost/"], "OFFSET:LENGTH"),
    (["--kinds=read,wrote", "--destroy", "nbd://localhost/"], "wrote"),
    (["--seed=0", "--destroy", "nbd://localhost/"], "--seed"),
    (["--block-size=1000", "--destroy", "nbd://localhost/"], "--block-size"),
    (["http://localhost/"], "http"),
    (["--destroy", "nbd+unix:///?socket=/nowhere/s"], "is the server running"),
    (["--", "/nowhere/server", "{socket}"], "--destroy"),
    (["--destroy", "--", "/nowhere/server", "{socket}"], "/nowhere/server"),
    (["--destroy", "--", "false", "{socket}"], "false"),
    (["--html=/nowhere/page.html", "--destroy", "nbd://localhost/"], "/nowhere/page.html"),
])
def test_wrong_usage_is_one_line_and_status_3(words, says):
    done = nbdcheck(*words)
    assert done.returncode == USAGE, done
    assert says in done.stderr and done.stderr.startswith("nbdcheck: "), done.stderr
    assert done.stdout == ""


def test_help_and_version():
    done = nbdcheck("--help")
    assert done.returncode == 0 and "Exit status" in done.stdout
    manual = (ROOT / "src/check/nbdcheck.md").read_text()
    for word in re.findall(r"--[a-z-]+", done.stdout):
        assert word.removeprefix("--") in manual, f"{word} is not in the manual page"
    assert nbdcheck("--version").stdout.startswith("nbdcheck ")


def test_the_links_of_the_readme_lead_somewhere():
    for link in re.findall(r"\]\(([^):#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), f"README.md: {link} is not there"


@pytest.mark.sanitized
def test_nothing_is_written_without_leave(server):
    plain = server()
    handle = plain.connect()
    handle.pwrite(b"mine" * KIB, 0)
    done = nbdcheck(plain.uri)
    assert done.returncode == USAGE and "--destroy" in done.stderr
    done = nbdcheck("--conformance", "-q", plain.uri)
    assert done.returncode in (KEPT, UNKNOWN), done.stdout
    assert handle.pread(4 * KIB, 0) == b"mine" * KIB


def test_a_range_confines_it(server, tmp_path):
    plain = server()
    handle = plain.connect()
    size = handle.get_size()
    before = os.urandom(1 * MIB)
    for at in range(0, size, MIB):
        handle.pwrite(before, at)
    words = ["-q", "--seed=3", "--destroy", "--all", "--duration=1", "--range=5000:70k", plain.uri]
    assert nbdcheck(*words, timeout_s=90).returncode == KEPT
    handle = plain.connect()
    for at in range(0, size, MIB):
        now = bytearray(handle.pread(MIB, at))
        if at == 0:
            end = 5000 + 70 * KIB
            assert now[5000:end] != before[5000:end]
            now[5000:end] = before[5000:end]
        assert now == before, f"something at {at} was changed"


@pytest.mark.sanitized
def test_the_reports_agree(tmp_path):
    paths = {name: tmp_path / name for name in ("json", "junit", "html")}
    done = nbdcheck(*SHORT, *(f"--{name}={path}" for name, path in paths.items()),
                    *faulty("--fault=own-flush"))
    assert done.returncode == BROKEN, done.stdout
    assert done.stdout.startswith("nbdcheck: PROMISE BROKEN")
    report = json.loads(paths["json"].read_text())
    assert report["outcome"] == "broken"
    failed = {test["name"] for test in report["tests"] if test["state"] == "failed"}
    assert "consistency.flushed" in failed
    cases = xml.etree.ElementTree.parse(paths["junit"]).iter("testcase")
    assert any(case.find("failure") is not None for case in cases)
    assert "<html" in paths["html"].read_text()


def test_the_json_report_may_go_to_the_standard_output():
    done = nbdcheck("-q", "--json=-", *SHORT, *faulty())
    assert json.loads(done.stdout)["tests"]
    assert "PROMISE KEPT" in done.stderr


# What a finding says to run is run, with a shell as a person would.
def test_a_finding_is_seen_again_by_its_replay():
    found = Run(*SHORT, *faulty("--fault=private-overlay"))
    assert found.status == BROKEN, found
    finding = next(test for test in found.tests("failed") if test["findings"])["findings"][0]
    replay = finding["replay"]
    assert replay.startswith("nbdcheck "), replay
    again = subprocess.run(NBDCHECK + replay.removeprefix("nbdcheck"), shell=True, cwd=ROOT,
                           stdout=subprocess.PIPE, text=True, timeout=60, check=False)
    assert again.returncode == BROKEN, f"{replay}\n{again.stdout}"
    assert finding["kind"] in again.stdout


def test_what_is_accepted_only_warns():
    for name in ("stale-read", "consistency.flushed"):
        done = Run(*SHORT, f"--accept={name}", *faulty("--fault=own-flush"))
        assert done.status == KEPT, done
        assert "consistency.flushed" in done.kinds("warned")
    assert Run(*SHORT, "--accept=late-write", *faulty("--fault=own-flush")).status == BROKEN


def test_only_some_tests():
    done = Run("--conformance", "--only=options", *faulty())
    assert done.status == KEPT, done
    names = {test["name"] for test in done.report["tests"]}
    assert names and all(name.startswith("options") for name in names), names


# A server is not failed for what it does not promise: it is told how far it comes.
def test_without_the_flag_the_level_is_told():
    done = Run("--seed=5", "--duration=4", *faulty("--no-multi-conn", "--fault=own-flush"))
    assert done.status == KEPT, done
    assert "not advertised" in done.text and "own" in done.report["level_reached"], done
    assert Run(*SHORT, *faulty("--no-multi-conn", "--fault=ignored-zero:0.5")).status == BROKEN


def test_a_read_only_export_cannot_be_judged(serve, engine):
    server = serve("memory", "1M", options=["-r"], engine=engine)
    done = nbdcheck("-q", "--destroy", server.uri())
    assert done.returncode == UNKNOWN and "read-only" in done.stdout, done.stdout


def test_one_connection_cannot_show_what_others_see(serve):
    done = nbdcheck("-q", "--destroy", "--connections=1", *SHORT,
                    serve("memory", "1M").uri())
    assert done.returncode == UNKNOWN and "one connection" in done.stdout, done.stdout


# The second connection of a server that takes one at a time waits for ever.
def test_a_server_for_one_client(serve):
    server = serve("--filter=noparallel", "memory", "1M", "serialize=connections")
    done = nbdcheck("-q", "--destroy", "--duration=4", "--seed=4", server.uri(), timeout_s=90)
    assert done.returncode == KEPT and "not advertised" in done.stdout, done.stdout


def test_too_few_races_are_no_verdict(server):
    slow = server("--delay=100000")
    done = nbdcheck("-q", "--destroy", "--depth=1", "--blocks=2", *SHORT, slow.uri)
    assert done.returncode == UNKNOWN and "not enough races" in done.stdout, done.stdout


@pytest.mark.sanitized
def test_ctrl_c_gives_the_verdict_so_far(server):
    plain = server()
    process = subprocess.Popen([NBDCHECK, "--destroy", "--duration=300", plain.uri],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == KEPT, out + err
    assert "interrupted" in out and "PROMISE KEPT" in out, out


def test_tcp():
    port = free_port()
    done = Run("--destroy", *SHORT, "--", "true", "{socket}")
    assert done.status == USAGE
    with subprocess.Popen(["nbdkit", "-f", "-p", str(port), "-i", "127.0.0.1", "memory", "4M"],
                          stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10
            while True:
                done = nbdcheck("-q", "--destroy", *SHORT, f"nbd://127.0.0.1:{port}/")
                if done.returncode != USAGE or time.monotonic() > deadline:
                    break
                time.sleep(0.1)
            assert done.returncode == KEPT, done.stdout + done.stderr
        finally:
            process.kill()


def test_a_report_that_does_not_fit_is_told_after_the_verdict():
    done = nbdcheck("-q", *SHORT, "--json=/dev/full", *faulty())
    assert done.returncode == USAGE and "No space left" in done.stderr, done.stderr
    assert done.stdout.startswith("nbdcheck: PROMISE"), done.stdout


def test_a_range_outside_is_wrong_usage(server):
    done = nbdcheck("-q", "--destroy", "--range=1g:4k", server().uri)
    assert done.returncode == USAGE and "--range" in done.stderr, done.stderr


# What was not tested to its end is no promise kept: a limit of time turns no build green.
@pytest.mark.parametrize("mode, seconds", [("--all", 3), ("--reconnect", 1), ("--conformance", 0.2),
                                           ("--power-cut", 1)])
def test_an_interrupted_run_is_no_success(mode, seconds):
    if mode != "--conformance" and why_not("power-cut"):
        pytest.skip(why_not("power-cut"))
    process = subprocess.Popen([NBDCHECK, mode, "--duration=60", *faulty(disk=True)], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    if process.returncode != USAGE:  # it may have been starting the server still
        assert process.returncode == UNKNOWN and "interrupted" in out, out + err
