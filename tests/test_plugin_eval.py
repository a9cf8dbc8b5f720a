# SPDX-License-Identifier: BSD-3-Clause
"""The eval plugin; and, since it needs no files, what answers mean to clients.

Where nbdkit is installed, they must mean the same to its clients.
"""
import os

import nbd
import pytest

from harness import KIB, MIB, ROOT, WEFT, run
from script_disks import PROGRAMS, capabilities, extents, files_of, outcome, refusal

pytestmark = pytest.mark.weft_only

BASE = {"get_size": "echo 1M", "pread": "head -c $3 /dev/zero", "pwrite": "cat >/dev/null"}


def parameters(**methods):
    given = {**BASE, **methods}
    return [f"{name}={text}" for name, text in given.items() if text is not None]


def everywhere(serve, look, **methods):
    """What look(client) sees, which is the same for every program; None: no client is served."""
    seen = {}
    for program in PROGRAMS:
        server = serve("eval", *parameters(**methods), program=program)
        try:
            with server.client(contexts=["base:allocation"], strict=False) as client:
                seen[program] = look(client)
        except nbd.Error:
            seen[program] = None
        server.stop()
    assert all(other == seen[WEFT] for other in seen.values()), seen
    return seen[WEFT]


NOTHING = {"is_read_only": False, "can_flush": False, "can_fua": False, "can_trim": False,
           "can_zero": True, "can_fast_zero": True, "can_cache": False, "can_multi_conn": False,
           "is_rotational": False}
READ_ONLY = {**NOTHING, "is_read_only": True, "can_zero": False, "can_fast_zero": False}


@pytest.mark.parametrize("methods, expected", [
    ({}, NOTHING),
    ({"pwrite": None}, READ_ONLY),
    ({"can_write": "exit 3"}, READ_ONLY),
    ({"flush": "exit 0"}, {**NOTHING, "can_flush": True, "can_fua": True}),
    ({"flush": "exit 0", "can_flush": "exit 3"}, NOTHING),
    ({"flush": "exit 0", "can_fua": "echo none"}, {**NOTHING, "can_flush": True}),
    ({"can_fua": "echo NATIVE"}, {**NOTHING, "can_fua": True}),
    ({"can_fua": "echo emulate"}, {**NOTHING, "can_fua": True}),
    ({"trim": "exit 0"}, {**NOTHING, "can_trim": True}),
    ({"trim": "exit 0", "can_trim": "exit 3"}, NOTHING),
    ({"zero": "exit 0"}, {**NOTHING, "can_fast_zero": False}),
    ({"zero": "exit 0", "can_fast_zero": "exit 0"}, NOTHING),
    ({"zero": "exit 0", "can_zero": "exit 3"}, NOTHING),
    ({"cache": "exit 0"}, {**NOTHING, "can_cache": True}),
    ({"cache": "exit 0", "can_cache": "echo none"}, NOTHING),
    ({"can_cache": "echo native"}, {**NOTHING, "can_cache": True}),
    ({"can_multi_conn": "exit 0", "is_rotational": "exit 0"},
     {**NOTHING, "can_multi_conn": True, "is_rotational": True}),
    ({"missing": "case $1 in can_flush|is_rotational) exit 0;; *) exit 2; esac"},
     {**NOTHING, "can_flush": True, "can_fua": True, "is_rotational": True}),
    ({"can_write": "exit 1"}, None),
    ({"can_fua": "echo junk"}, None),
    ({"can_cache": "echo junk"}, None),
    ({"open": "exit 1"}, None),
    ({"open": "exit 3"}, None),
    ({"open": "exit 2"}, NOTHING),
    ({"preconnect": "exit 1"}, None),
    ({"get_size": None}, None),
    ({"get_size": "exit 3"}, None),
])
def test_capabilities(serve, methods, expected):
    assert everywhere(serve, capabilities, **methods) == expected


@pytest.mark.parametrize("size, expected", [
    ("1", 1), ("64K", 65536), (" 2048", 2048), ("3s", 1536), ("0", 0), ("7E", 7 << 60),
    ("", None), ("junk", None), ("1M 2", None), ("-1", None), ("1\\n", None)])
def test_sizes(serve, size, expected):
    assert everywhere(serve, nbd.NBD.get_size, get_size=f"printf '{size}\\n'") == expected


@pytest.mark.parametrize("sizes, expected", [
    ("512 4096 1M", [512, 4096, MIB]), ("1 64K 32M", [1, 65536, 32 * MIB]),
    ("512 4K", None), ("", None), ("junk", None), ("3 512 1M", None), ("1 1 1M", None),
    ("512 4096 0xffffffff", None), ("512 4096 5000", None)])
def test_block_sizes(serve, sizes, expected):
    assert everywhere(serve, lambda client: [client.get_block_size(n) for n in range(3)],
                      block_size=f"echo {sizes}") == expected


@pytest.mark.parametrize("text, expected", [
    ("0 1M", [(0, [MIB, 0])]),
    ("0 1M hole,zero", [(0, [MIB, 3])]),
    ("0 1M zero,hole", [(0, [MIB, 3])]),
    ("0 1M 3", [(0, [MIB, 3])]),
    ("0 1M 7", [(0, [MIB, 3])]),
    ("0 1M junk", [(0, [MIB, 0])]),
    ("0 512K zero\\n512K 512K hole", [(0, [512 * KIB, 2, 512 * KIB, 1])]),
    ("0 4K\\n4K 8K zero", [(0, [4096, 0, 8192, 2])]),
    ("0 0\\n0 1M", [(0, [MIB, 0])]),
    ("0 8M", [(0, [MIB, 0])]),
    ("1K 1M", "EINVAL"), ("", "EINVAL"), ("4K 1M\\n0 4K", "EINVAL"), ("0 512\\n1024 512", "EINVAL"),
    ("0 1K\\n512 1M", "EINVAL"), ("0 junk", "EIO")])
def test_extents(serve, text, expected):
    script = f"printf '{text}\\n'" if text else "exit 0"
    assert everywhere(serve, extents, extents=script) == expected


def test_extents_that_are_announced_and_missing(serve):
    assert everywhere(serve, extents, can_extents="exit 0") == "EIO"


@pytest.mark.parametrize("methods, request_, expected", [
    ({"trim": "exit 2"}, lambda c: c.trim(512, 0), None),
    ({"cache": "exit 2"}, lambda c: c.cache(512, 0), None),
    ({"can_cache": "echo native"}, lambda c: c.cache(512, 0), None),
    ({"can_cache": "echo emulate", "pread": "exit 1"}, lambda c: c.cache(512, 0), "EIO"),
    ({"can_cache": "echo emulate"}, lambda c: c.cache(512, 0), None),
    ({"zero": "exit 2"}, lambda c: c.zero(512, 0), None),
    ({"zero": "echo EOPNOTSUPP >&2; exit 1",
      "pwrite": "cat >/dev/null; echo ENOSPC >&2; exit 1"},
     lambda c: c.zero(512, 0), "ENOSPC"),
    ({"zero": "exit 1"}, lambda c: c.zero(512, 0), "EIO"),
    ({"pwrite": "cat >/dev/null; echo ENOSPC >&2; exit 1"}, lambda c: c.zero(512, 0), "ENOSPC"),
    ({"flush": "exit 2"}, lambda c: c.flush(), None),
    ({"pread": "exit 2"}, lambda c: c.pread(512, 0), "EIO"),
    ({"pread": "exit 3"}, lambda c: c.pread(512, 0), "EIO"),
    ({"pwrite": "kill -9 $$"}, lambda c: c.pwrite(bytes(512), 0), "EIO"),
    ({"pwrite": None, "can_write": "exit 0"}, lambda c: c.pwrite(bytes(512), 0), "EIO"),
])
def test_requests(serve, methods, request_, expected):
    assert everywhere(serve, lambda client: outcome(request_, client), **methods) == expected


def test_handles_and_names(serve):
    """A handle is any text; one newline goes."""
    handle = everywhere(serve, lambda client: bytes(client.pread(16, 0)),
                        open="printf 'a  \"b\\n%s\\n\\n' \"$3\"",
                        default_export="printf 'NAMES\\nfoo\\nx'",
                        pread="printf '%-16s' \"$2\"")
    assert handle == b'a  "b\nfoo\n'.ljust(16)


def test_the_size_of_the_names_is_no_matter(serve):
    """Handles of any length; text that is full of blanks and quotes."""
    server = serve("eval", *parameters(open="cat $tmpdir/handle", pread='printf %s "$2" | wc -c',
                                       get_ready="printf \"%20000s\" \"x'y\" >$tmpdir/handle"))
    with server.client() as client:
        assert client.pread(6, 0) == b"20000\n"


def test_refusals(folder):
    environment = {**os.environ, "TMPDIR": str(folder)}
    assert "open= is given twice" in refusal("eval", "open=a", "open=b", env=environment)
    assert "there is no parameter 'foo'" in refusal("eval", *parameters(), "foo=1",
                                                    env=environment)
    assert "there is no parameter 'load'" in refusal("eval", "load=true", env=environment)
    assert "bad key" in refusal("eval", "config=echo EINVAL bad key >&2; exit 1", "a=b",
                                env=environment)
    assert files_of(folder) == []


def test_config_and_dump_plugin():
    for program in PROGRAMS:
        lines = run(program, "--dump-plugin", "eval", "config=echo $2=$3 >$tmpdir/mine",
                    "dump_plugin=cat $tmpdir/mine", "thread_model=echo parallel",
                    "foo=bar").stdout.splitlines()
        assert "foo=bar" in lines and "thread_model=parallel" in lines


# ---- The examples of the manuals -----------------------------------------------------------------

def examples(manual):
    """The blocks of code of the section EXAMPLES, without their margin."""
    section = (ROOT / manual).read_text().partition("\n# EXAMPLES\n")[2].partition("\n# ")[0]
    blocks, current = [], []
    for line in section.splitlines() + ["end"]:
        if line.startswith("    ") or (not line and current):
            current.append(line[4:])
        elif current:
            blocks.append("\n".join(current).strip() + "\n")
            current = []
    return blocks


def run_example(folder, text):
    program = folder / "bin"
    program.mkdir(exist_ok=True)
    if not (program / "weft").exists():
        (program / "weft").symlink_to(os.path.realpath(WEFT))
    return run("bash", "-c", text, cwd=folder, check=False,
               env={**os.environ, "PATH": f"{program}:{os.environ['PATH']}"})


def test_examples_of_the_sh_manual(folder, image):
    zeroes, filedisk, uses = examples("src/plugins/sh/weft-sh-plugin.md")
    done = run_example(folder, zeroes)
    assert (done.returncode, done.stdout) == (0, f"{64 * MIB}\n"), done.stderr

    path = folder / "filedisk.sh"
    path.write_text(filedisk)
    path.chmod(0o755)
    disk = image(MIB)
    before = disk.read_bytes()
    copy, change, explain, dump = uses.splitlines()
    done = run_example(folder, copy)
    assert done.returncode == 0, done.stderr
    assert (folder / "copy.img").read_bytes() == before
    done = run_example(folder, change)
    assert done.returncode == 0, done.stderr + done.stdout
    assert disk.read_bytes() == b"\1" * 65536 + before[65536:]
    assert "multi-conn  advertised" in run_example(folder, explain).stdout
    assert "thread_model=parallel" in run_example(folder, dump).stdout


def test_examples_of_the_eval_manual(folder, image):
    zeroes, file, bad = examples("src/plugins/eval/weft-eval-plugin.md")
    done = run_example(folder, zeroes)
    assert done.returncode == 0 and "64M" in done.stdout, done.stderr
    disk = image(MIB)
    other = image(MIB, "disk2.img")
    done = run_example(folder, file)
    assert done.returncode == 0, done.stderr
    assert disk.read_bytes() == other.read_bytes()
    done = run_example(folder, bad)
    assert "read 4096/4096 bytes at offset 0" in done.stdout
    assert "Input/output error" in done.stdout + done.stderr
    assert "bad block" in done.stderr
