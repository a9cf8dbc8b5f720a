# SPDX-License-Identifier: BSD-3-Clause
"""The examples of the manuals, to be run as they stand."""
import os
import shlex

from harness import ROOT, WEFT, run


def examples(page):
    """The commands of the section EXAMPLES of src/PAGE, in order; continued lines joined."""
    text = (ROOT / "src" / page).read_text()
    section = text.split("\n# EXAMPLES\n", 1)[1].split("\n# ", 1)[0]
    blocks, block = [], []
    for line in [*section.splitlines(), ""]:
        if line.startswith("    "):
            block.append(line[4:])
        elif block:
            blocks.append("\n".join(block))
            block = []
    return blocks


def words(example):
    """The arguments of an example that is one call of weft."""
    first, *rest = shlex.split(example.replace("\\\n", " "))
    assert first == "weft", example
    return rest


def run_example(example, folder, **options):
    """Runs an example that ends by itself, in `folder`, with the program under test as weft."""
    path = os.path.dirname(os.path.abspath(WEFT)) + ":" + os.environ["PATH"]
    return run("bash", "-ec", example, cwd=folder, env={**os.environ, "PATH": path}, **options)


def in_folder(folder):
    """For Server(preexec=): the server's relative paths are below `folder`."""
    return lambda: os.chdir(folder)
