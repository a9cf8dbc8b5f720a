# SPDX-License-Identifier: BSD-3-Clause
"""Stacks of filters, and what small filters tell clients: next to nbdkit where it has them."""
import json
import os
import shlex
import shutil

import nbd
import pytest

from harness import KIB, MIB, NBDKIT, WEFT, run

pytestmark = pytest.mark.weft_only
FLAGS = ("can_cache", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim",
         "can_zero")
ORACLE = pytest.mark.skipif(shutil.which(NBDKIT) is None, reason="nbdkit is not installed")
EXTENTS = nbd.CONTEXT_BASE_ALLOCATION


def weft(*words, **kwargs):
    return run(WEFT, *words, check=False, timeout_s=30, **kwargs)


def advertised(program, words):
    """What nbdinfo says of the one export, while the program serves it."""
    done = run(program, "-U", "-", *words, "--run", 'nbdinfo --json "$uri"', timeout_s=30)
    export = json.loads(done.stdout)["exports"][0]
    return {flag: export[flag] for flag in FLAGS}


def explained(*words):
    done = weft("--explain", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What each mode of each filter advertises, next to nbdkit. The last: what differs here, and is.
TABLE = (
    [("fua", [f"fuamode={mode}"], {})
     for mode in ("emulate", "native", "force", "pass")] +
    [("fua", [], {}),
     # nbdkit goes on promising that a flush covers all connections.
     ("fua", ["fuamode=discard"], {"can_multi_conn": False})] +
    [("nocache", [f"cachemode={mode}"], {}) for mode in ("none", "emulate", "nop")] +
    [("nocache", [], {}), ("noextents", [], {}), ("nofilter", [], {}), ("nozero", [], {})] +
    [("nozero", [f"zeromode={zero}", f"fastzeromode={fast}"], {})
     for zero in ("none", "emulate", "notrim", "plugin")
     for fast in ("none", "slow", "ignore", "default")] +
    [("nozero", ["zeromode=plugin"], {}), ("nozero", ["zeromode=emulate"], {})] +
    [("noparallel", [f"serialize={mode}"], {})
     for mode in ("requests", "all-requests", "connections")] +
    [("noparallel", [], {}),
     # A second connection would be refused.
     ("limit", [], {"can_multi_conn": False}), ("limit", ["limit=1"], {"can_multi_conn": False}),
     ("limit", ["limit=2"], {}), ("limit", ["limit=0"], {}),
     ("ip", [], {}), ("ip", ["allow=allunix", "deny=all"], {})])


@ORACLE
@pytest.mark.parametrize("disk", ["memory", "file", "read-only"])
def test_flags_of_every_mode_are_those_of_nbdkit(disk, image):
    options = ["-r"] if disk == "read-only" else []
    plugin = ["memory", "1M"] if disk == "memory" else ["file", image(MIB, content=b"")]
    for name, parameters, differs in TABLE:
        words = [*options, f"--filter={name}", *plugin, *parameters]
        expected = advertised(NBDKIT, words) | differs
        found = advertised(WEFT, words)
        if disk == "file":  # the plugin of nbdkit 1.32 is never sure about this
            del expected["can_fast_zero"], found["can_fast_zero"]
        assert found == expected, f"{name} {parameters}"


@ORACLE
@pytest.mark.parametrize("words, in_weft", [
    (["fua", "memory", "1M", "fuamode=bogus"], "fua: fuamode=bogus: there is no such mode"),
    (["fua", "memory", "1M", "fuamode="], "fuamode="),
    (["fua", "memory", "1M", "fuamode=NATIVE"], "give none, emulate, native, force, discard or"),
    (["nocache", "memory", "1M", "cachemode=native"], "give none, emulate or nop"),
    (["nozero", "memory", "1M", "zeromode=trim"], "nozero: zeromode=trim"),
    (["nozero", "memory", "1M", "fastzeromode=plugin"], "give none, slow, ignore or default"),
    (["noparallel", "memory", "1M", "serialize=all"], "give requests, all-requests or connect"),
    (["limit", "memory", "1M", "limit=-1"], "limit: '-1' has a sign"),
    (["limit", "memory", "1M", "limit=many"], "limit: 'many' is not a number"),
    (["ip", "memory", "1M", "allow=nobody"], "allow=nobody: neither an address nor a rule"),
    (["ip", "memory", "1M", "deny=all,,all"], "between two commas"),
    (["noextents", "memory", "1M", "extents=no"], "there is no parameter 'extents'"),
    (["bogus", "memory", "1M"], "there is no filter 'bogus'; choose among"),
])
def test_wrong_words_are_one_line(words, in_weft):
    words = [f"--filter={words[0]}", *words[1:], "--run", "true"]
    done = weft("-U", "-", *words)
    assert done.returncode == 1
    assert in_weft in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert run(NBDKIT, "-U", "-", *words, check=False).returncode == 1


@ORACLE
@pytest.mark.parametrize("words, opens", [
    (["--filter=fua", "fuamode=native"], False),
    (["--filter=fua", "fuamode=force"], False),
    (["--filter=fua", "fuamode=emulate"], False),
    (["--filter=fua", "fuamode=pass"], True),
    (["--filter=fua", "fuamode=discard"], True),
    (["-r", "--filter=fua", "fuamode=force"], True),
    (["--filter=nozero", "zeromode=plugin"], True),  # there is writing
    (["--filter=nozero", "zeromode=notrim"], True),
])
def test_modes_over_a_disk_that_can_only_write(words, opens):
    """An eval script without flush, FUA, trim and zero."""
    script = ["get_size=echo 1M", "pread=head -c $3 /dev/zero", "pwrite=cat >/dev/null"]
    for program in (WEFT, NBDKIT):
        done = run(program, "-U", "-", *words[:-1], "eval", *script, words[-1], "--run",
                   'nbdinfo --size "$uri"', check=False)
        assert (done.returncode == 0) is opens, f"{program}: {done.stderr}"
        if not opens:
            assert program == NBDKIT or f"{words[-1]} needs a disk that can" in done.stderr


def test_what_nbdkit_forgets_to_know():
    assert advertised(WEFT, ["--filter=fua", "memory", "1M", "fuamode=none"])["can_fua"] is False
    assert advertised(WEFT, ["--filter=fua", "memory", "1M", "fua-mode=native"])["can_fua"] is True
    assert weft("-U", "-", "--filter=ip", "memory", "1M", "deny=10.0.0.0/8", "--run",
                "true").returncode == 0


# ---- Stacks -----------------------------------------------------------------------------------

def test_parameters_of_one_layer_alone():
    """The same filter twice, each with its own parameters."""
    zero = "--filter=nozero:zeromode="
    flags = advertised(WEFT, [f"{zero}emulate", f"{zero}plugin,fastzeromode=none", "memory", "1M"])
    assert flags["can_zero"] and flags["can_fast_zero"]  # emulate: there, and never fast
    flags = advertised(WEFT, [f"{zero}plugin", f"{zero}plugin,fastzeromode=none", "memory", "1M"])
    assert flags["can_zero"] and not flags["can_fast_zero"]
    flags = advertised(WEFT, [f"{zero}none", f"{zero}plugin", "memory", "1M"])
    assert not flags["can_zero"]


def test_the_layer_nearest_to_the_client_comes_first(serve):
    """nozero over noextents over memory, as the calls go through them."""
    server = serve("memory", "1M", "zeromode=notrim", options=[
        "-v", "--filter=nozero", "--filter=noextents", "--filter=fua:fuamode=pass"])
    with server.client() as client:
        client.zero(64 * KIB, 0)
    calls = [line.split("debug: ")[1] for line in server.log().splitlines() if ": zero off" in line]
    layers = [call.split(":")[0] for call in calls]
    assert layers == ["disk", "noextents", "fua", "memory"], calls
    assert "may_trim" in calls[0]
    assert not any("may_trim" in call for call in calls[1:])


def test_a_parameter_is_offered_from_the_outermost_inwards():
    """Both know it: the first one takes it, the second has its default."""
    words = ["--filter=limit", "--filter=limit", "memory", "1M"]
    assert advertised(WEFT, [*words, "limit=5"])["can_multi_conn"] is False
    assert advertised(WEFT, ["--filter=limit", "--filter=limit:limit=0", "memory", "1M",
                             "limit=5"])["can_multi_conn"] is True
    # The plugin gets what no filter knows; nobody knows this:
    done = weft("-U", "-", *words, "lim=5", "--run", "true")
    assert done.returncode == 1 and "there is no parameter 'lim'" in done.stderr


def test_many_layers_pass_everything_on(serve, engine, image):
    path = image(MIB)
    content = path.read_bytes()
    server = serve("file", path, engine=engine, options=[
        "--filter=nofilter", "--filter=limit:limit=8", "--filter=fua:fuamode=pass",
        "--filter=nozero:zeromode=plugin", "--filter=nocache:cachemode=nop",
        "--filter=ip:allow=allunix,,::1,deny=all", "--filter=noparallel:serialize=all-requests",
        "--filter=fua:fuamode=native"])
    with server.client(contexts=[EXTENTS]) as a, server.client() as b:
        assert a.can_multi_conn() and a.can_fua() and a.can_fast_zero()
        assert a.pread(MIB, 0) == content
        tag = os.urandom(4096)
        a.pwrite(tag, 8192, nbd.CMD_FLAG_FUA)
        assert b.pread(4096, 8192) == tag
        b.zero(4096, 8192, nbd.CMD_FLAG_FUA)
        b.trim(4096, 16384)
        b.flush()
        b.cache(MIB, 0)
        assert a.pread(4096, 8192) == bytes(4096)
        seen = []
        a.block_status(MIB, 0, lambda context, offset, entries, error: seen.extend(entries))
        assert sum(seen[::2]) == MIB


@pytest.mark.parametrize("words, told", [
    (["memory", "1M"], "advertised: decided by the disk: "),
    (["--filter=fua", "memory", "1M", "fuamode=discard"],
     "not advertised: decided by the fua filter: fuamode=discard: "),
    (["--filter=nofilter", "--filter=fua:fuamode=discard", "--filter=nozero", "memory", "1M"],
     "not advertised: decided by the fua filter: "),
    (["--filter=limit", "memory", "1M"], "not advertised: decided by the limit on connections: "),
    (["--filter=limit", "memory", "1M", "limit=2"], "advertised: decided by the disk: "),
    (["--filter=nofilter", "--filter=noparallel", "memory", "1M", "serialize=connections"],
     "not advertised: decided by the limit on connections: "),
    (["--filter=noparallel", "memory", "1M", "serialize=all-requests"],
     "advertised: decided by the disk: "),
])
def test_explain_says_which_layer_decided(words, told):
    line = next(line for line in explained(*words).splitlines() if line.startswith("multi-conn"))
    assert line.split(None, 1)[1].startswith(told), line


def test_explain_names_the_layer_of_a_line():
    text = explained("--filter=fua", "memory", "1M", "fuamode=force", "flush-on-close=1")
    lines = [line.split()[:2] for line in text.splitlines()]
    assert ["fua", "flush:"] in lines and ["fua", "close:"] in lines, text
    assert "UNSAFE" in explained("--filter=fua", "memory", "1M", "fuamode=discard")


def test_help_and_version_of_filters():
    done = weft("--help", "--filter=fua")
    assert done.returncode == 0
    assert "Filter: fua (weft fua filter)" in done.stdout and "fuamode=" in done.stdout
    done = weft("--help", "--filter=ip", "--filter=limit", "memory")
    places = [done.stdout.index(word) for word in ("Filter: ip", "Filter: limit", "Plugin: mem")]
    assert places == sorted(places)
    done = weft("--version", "--filter=ip", "--filter=limit", "memory")
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        "weft", "ip", "limit", "memory"]
    assert weft("--help", "--filter=bogus").returncode == 1
    listed = weft("--help").stdout.split("Filters:")[1]
    for name in ("fua", "ip", "limit", "nocache", "noextents", "noparallel", "nozero"):
        assert f"\n  {name} " in listed


# ---- The examples of the manuals --------------------------------------------------------------

EXAMPLES = [
    "--filter=fua file disk.img fuamode=discard",
    "--filter=fua file disk.img",
    "--filter=fua file disk.img fuamode=force",
    "--filter=fua file disk.img fuamode=pass flush-on-close=on",
    "--filter=nocache file disk.img",
    "--filter=nocache file disk.img cachemode=nop",
    "--filter=nozero file disk.img",
    "--filter=nozero file disk.img zeromode=notrim",
    "--filter=nozero file disk.img zeromode=plugin fastzeromode=slow",
    "--filter=noparallel file disk.img",
    "--filter=noparallel file disk.img serialize=connections",
    "--filter=limit file disk.img",
    "--filter=limit file disk.img limit=4",
    "--filter=ip memory 1G deny=8.0.0.0/8",
    "-U /tmp/s --filter=ip memory 1G allow=uid:$(id -u) deny=all",
    "-U /tmp/s --filter=ip memory 1G allow=gid:$(id -g) deny=all",
]
# With TCP: in test_filter_limit_ip.py.
TCP_EXAMPLES = ["--filter=ip memory 1G allow=127.0.0.1,::1 deny=all",
                "--filter=ip memory 1G allow=anyipv6 deny=all"]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_that_serve(serve, image, example):
    path = image(MIB)
    example = example.replace("disk.img", str(path)).replace("-U /tmp/s ", "")  # it has one
    for word in ("u", "g"):
        example = example.replace(f"$(id -{word})", run("id", f"-{word}").stdout.strip())
    serve(*shlex.split(example)).check_serves()


@pytest.mark.parametrize("example", [
    "--filter=nofilter memory 1G --run 'nbdcopy \"$uri\" null:'",
    "--filter=noextents memory 64M --run 'nbdcopy \"$uri\" null:'",
])
def test_examples_that_run_a_command(example):
    run(WEFT, *shlex.split(example))


def test_examples_are_those_of_the_manuals():
    """A new example needs a test."""
    tested = {f"weft {line}" for line in EXAMPLES + TCP_EXAMPLES}
    folder = os.path.join(os.path.dirname(__file__), "../src/filters")
    for name in ("fua", "ip", "nocache", "nozero", "noparallel", "limit"):
        with open(f"{folder}/{name}/weft-{name}-filter.md", encoding="utf-8") as manual:
            examples = manual.read().split("# EXAMPLES")[1].split("# PROMISES")[0]
        lines = [line.strip() for line in examples.splitlines() if line.startswith("    ")]
        assert lines and set(lines) <= tested, name


# ---- What the data does -----------------------------------------------------------------------

@ORACLE
@pytest.mark.parametrize("zero, fast", [
    (zero, fast) for zero in ("emulate", "notrim", "plugin")
    for fast in ("slow", "ignore", "default") if (zero, fast) != ("emulate", "ignore")])
def test_fast_zeroes_end_as_in_nbdkit(zero, fast):
    code = ("import nbd, sys\nh = nbd.NBD()\nh.connect_uri(sys.argv[1])\n"
            "try:\n    h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)\n    print('done')\n"
            "except nbd.Error as error:\n    print(error.errno)\n")
    words = ["-U", "-", "--filter=nozero", "memory", "1M", f"zeromode={zero}",
             f"fastzeromode={fast}", "--run", f'/usr/bin/python3 -c {shlex.quote(code)} "$uri"']
    outcomes = [run(program, *words).stdout.strip() for program in (WEFT, NBDKIT)]
    assert outcomes[0] == outcomes[1]
    slow = fast == "slow" or zero == "emulate"
    assert outcomes[0] == ("ENOTSUP" if slow else "done")


def test_emulated_zeroes_with_the_flag_ignored(serve, engine):
    server = serve("memory", "1M", "zeromode=emulate", "fastzeromode=ignore", engine=engine,
                   options=["--filter=nozero"])
    with server.client() as client:
        client.pwrite(b"x" * 4096, 0)
        client.zero(4096, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert client.pread(4096, 0) == bytes(4096)


def test_noextents_hides_holes_in_every_reply(serve, engine):
    for name, chunks in (("nofilter", {nbd.READ_HOLE}), ("noextents", {nbd.READ_DATA})):
        server = serve("memory", "8M", engine=engine, options=[f"--filter={name}"])
        with server.client(contexts=[EXTENTS]) as client:
            seen = []
            client.block_status(8 * MIB, 0,
                                lambda context, at, entries, error: seen.extend(entries))
            assert bool(seen[1]) is (name == "nofilter")
            kinds = set()
            for length in (4 * KIB, 64 * KIB, MIB):
                client.pread_structured(length, 0,
                                        lambda data, at, kind, error: kinds.add(kind))
            assert kinds == chunks, name
        server.stop()


def test_notrim_allocates(serve, engine, folder, image):
    """The file's blocks stay, where a zero that may trim gives them back."""
    for mode, stays in (("plugin", False), ("notrim", True)):
        path = image(MIB, name=f"{mode}.img")
        server = serve("file", path, f"zeromode={mode}", engine=engine, options=["--filter=nozero"])
        with server.client() as client:
            client.zero(MIB, 0)
            client.flush()
        server.stop()
        assert path.read_bytes() == bytes(MIB)
        assert (os.stat(path).st_blocks * 512 >= MIB) is stays, mode


def test_cache_requests_read_or_do_not(serve):
    for mode, reads in (("emulate", True), ("nop", False)):
        server = serve("memory", "1M", f"cachemode={mode}", options=["-v", "--filter=nocache"])
        with server.client() as client:
            client.cache(MIB, 0)
        log = server.log()
        assert ("memory: read " in log) is reads and "memory: cache offset" not in log
        server.stop()
