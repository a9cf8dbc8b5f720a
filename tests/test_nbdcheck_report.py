# SPDX-License-Identifier: BSD-3-Clause
"""The reports of nbdcheck, as their readers take them: XML by an XML parser, the page by a browser.

report_sample writes made-up reports; the browser is headless Chromium, which runs the page and
prints the document that came of it. A fault of a script is in that document, and fails the test.
"""
import contextlib
import html
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import xml.etree.ElementTree

import pytest

import faulty
from harness import ROOT, WEFT

SAMPLE = pathlib.Path(WEFT).absolute().parent.parent / "tests" / "report_sample"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
BROWSER_TIMEOUT_S = 90
MANY = 100_000

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module", name="sample")
def sample_fixture(tmp_path_factory):
    """sample(what, operations): the folder of that report's files, made once."""
    if not SAMPLE.exists():
        pytest.skip(f"{SAMPLE} is not built")
    made = {}

    def make(what, operations=2000):
        key = (what, operations)
        if key not in made:
            folder = tmp_path_factory.mktemp(what)
            done = subprocess.run([SAMPLE, what, str(operations), folder], timeout=60, check=False,
                                  stderr=subprocess.PIPE)
            made[key] = (folder, done.returncode)
            assert not done.stderr, done.stderr
        return made[key]
    return make


def load(page, folder, *options, fragment=""):
    """The document that the browser makes of a page, as text, and what <html> says of itself.

    On a machine with much else to do the browser may take its picture too early: then it gets more
    time.
    """
    wanted = {"results" if page.name == "played.html" else "ready", "error"}
    for budget_ms in (3000, 10_000, 30_000):
        document, root = load_once(page, folder, f"--virtual-time-budget={budget_ms}", *options,
                                   fragment=fragment)
        if wanted & root.keys():
            break
    return document, root


def load_once(page, folder, *options, fragment):
    profile = folder / "profile"
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
               "--disable-extensions", f"--user-data-dir={profile}", "--window-size=1400,1800",
               *options, "--dump-dom", page.as_uri() + fragment]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          stdin=subprocess.DEVNULL, start_new_session=True) as browser:
        try:
            document, log = browser.communicate(timeout=BROWSER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.communicate()
            pytest.fail(f"the browser was not done with {page} after {BROWSER_TIMEOUT_S} s")
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(profile)
    assert "<html" in document, log[-2000:]
    root = re.search(r"<html[^>]*>", document).group()
    return document, {name: html.unescape(value)
                      for name, value in re.findall(r'data-([\w-]+)="([^"]*)"', root)}


def with_script(folder, script):
    """A copy of the page in which a script plays the reader, with the policy of the page."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = folder / "played.html"
    page.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return page


@pytest.mark.parametrize("what, status", [("kept", 0), ("broken", 1), ("empty", 2), ("hostile", 1)])
def test_junit_is_well_formed_and_counts_what_it_contains(sample, what, status):
    folder, exit_status = sample(what)
    assert exit_status == status
    root = xml.etree.ElementTree.parse(folder / "report.xml").getroot()
    suite = root.find("testsuite")
    cases = suite.findall("testcase")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert len(cases) == len(report["tests"]) + 1
    for attribute, tag in [("failures", "failure"), ("errors", "error"), ("skipped", "skipped")]:
        found = sum(case.find(tag) is not None for case in cases)
        assert int(root.get(attribute)) == int(suite.get(attribute)) == found
    red = int(root.get("failures")) + int(root.get("errors"))
    assert (red > 0) == (report["exit_status"] != 0)
    assert cases[0].get("name") == "verdict"


def test_a_failed_test_tells_its_story_to_the_ci_system(sample):
    folder, _ = sample("broken")
    root = xml.etree.ElementTree.parse(folder / "report.xml").getroot()
    failure = root.find(".//testcase[@name='consistency.flushed']/failure")
    assert failure.get("type") == "stale-read"
    assert failure.get("message") == "1,203 of 9,310 reads saw what was there before"
    assert "sent a flush" in failure.text and "--seed=17" in failure.text
    warned = root.find(".//testcase[@name='handshake.list']")
    assert warned.find("failure") is None and "listed" in warned.find("system-out").text


def test_every_field_of_the_json_report_is_documented(sample):
    folder, _ = sample("broken")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    manual = (ROOT / "src/check/nbdcheck.md").read_text(encoding="utf-8")

    def fields(value, path):
        if isinstance(value, list):
            for each in value:
                yield from fields(each, path)
        elif isinstance(value, dict):
            for name, each in value.items():
                yield f"{path}.{name}", name
                if name != "counts":  # its names are for people
                    yield from fields(each, f"{path}.{name}")

    for where, name in set(fields(report, "report")):
        if not where.startswith("report.counts."):
            assert f"**{name}**" in manual, f"{where} is not in nbdcheck.md"
    history = report["histories"][1]
    proof = report["tests"][3]["findings"][0]
    kinds = [history["operations"][i]["kind"] for i in proof["operations"]]
    assert kinds == ["write", "write", "flush", "read"]
    assert any(each["reply_ns"] is None for each in history["operations"])


def test_text_fits_a_terminal(sample):
    for what in ("broken", "kept", "empty"):
        lines = (sample(what)[0] / "report.txt").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("nbdcheck: ")
        for line in lines:
            assert len(line) <= 100 or "again" in line or "target:" in line, line


@needs_browser
def test_page_shows_the_violation(sample):
    folder, _ = sample("broken")
    document, root = load(folder / "report.html", folder)
    assert "error" not in root, root["error"]
    assert (root["tests"], root["findings"], root["histories"]) == ("7", "3", "2")
    assert int(root["drawn"]) > 20
    assert "<h1>Promise broken</h1>" in document
    # The first finding is open, with its picture: writer, flusher, reader, and what joins them.
    figure = document[document.index("<figure"):document.index("</figure>")]
    assert figure.count('class="bar ') == 4
    for words in ("overwritten by", "acknowledged, then flushed", "flushed, then read",
                  "but this is what it returned"):
        assert words in figure, words
    assert document.count("<figure") == 1  # the others are made when they are opened


@needs_browser
def test_page_shows_what_survives_of_a_power_cut(sample):
    folder, _ = sample("broken")
    document, root = load(folder / "report.html", folder,
                          fragment="#finding-3")
    assert "error" not in root, root["error"]
    assert "flushed, restarted, then read" in document
    assert "finding 3: lost-write" in document


READER = """
const seen = document.documentElement.dataset;
const drawn = () => { timeline.draw(); return Number(seen.drawn); };
const timeline = [...page.timelines.values()][0];
const key = (name) => timeline.canvas.dispatchEvent(
    new KeyboardEvent("keydown", {key: name, bubbles: true, cancelable: true}));
const span = () => timeline.to - timeline.from;
const results = {};
results.finding_span = span();
results.finding_drawn = drawn();
key("+"); results.zoomed_in = span();
key("-"); key("-"); results.zoomed_out = span();
const from = timeline.from; key("ArrowRight"); results.panned = timeline.from - from;
key("0"); results.all_span = span(); results.all_drawn = drawn();
key("F"); results.back = span();
timeline.scopes.value = "finding"; timeline.scopes.dispatchEvent(new Event("change"));
results.only_finding = drawn();
timeline.scopes.value = "cell"; timeline.scopes.dispatchEvent(new Event("change"));
results.only_cell = drawn();
timeline.scopes.value = "all"; timeline.scopes.dispatchEvent(new Event("change"));
key("]"); results.first = timeline.selected; key("]"); results.second = timeline.selected;
results.details = timeline.details.textContent;
const row = timeline.place.get(timeline.finding.operations[3]);
const i = timeline.finding.operations[3];
results.hit = timeline.hit(timeline.x_at((timeline.history.send[i] + timeline.history.end[i]) / 2),
                           row.y + 3) === i;
timeline.node.querySelector("button.kind.write").click();
results.without_writes = drawn();
document.querySelector("button.chip.failed").click();
results.failed_rows = document.querySelectorAll("details.test:not([hidden])").length;
document.querySelector("button.chip").click();
const search = document.querySelector("input[type=search]");
search.value = "HANDSHAKE"; search.dispatchEvent(new Event("input"));
results.found_rows = document.querySelectorAll("details.test:not([hidden])").length;
[...document.querySelectorAll("#finding-2 button.strong")][0].click();
results.hash = location.hash;
results.open = document.getElementById("finding-2").open;
seen.results = JSON.stringify(results);
"""


@needs_browser
def test_page_obeys_its_reader(sample):
    folder, _ = sample("broken", MANY)
    _, root = load(with_script(folder, READER), folder)
    assert "error" not in root, root["error"]
    results = json.loads(root["results"])
    assert results["zoomed_in"] < results["finding_span"] < results["zoomed_out"]
    assert results["panned"] > 0
    assert results["all_span"] > 50 * results["finding_span"]
    assert results["back"] == pytest.approx(results["finding_span"])
    assert results["only_finding"] < results["only_cell"] < results["finding_drawn"]
    assert 0 < results["without_writes"] < results["finding_drawn"]
    # However many operations: no more marks than the canvas has columns for kinds and lanes.
    assert 1000 < results["all_drawn"] < 30_000
    assert results["second"] > results["first"]
    assert f"(operation {results['second']})" in results["details"]
    assert results["hit"]
    assert results["failed_rows"] == 2 and results["found_rows"] == 2
    assert results["hash"] == "#finding-2" and results["open"]


@needs_browser
def test_any_operations_make_a_picture(sample):
    """A checker may prove a finding with operations of any kind, in any number."""
    folder, _ = sample("broken", MANY)
    script = """
      const results = {pictures: 0, arrows: 0, bad: []};
      let state = 1;
      const random = (limit) => {
        state = (state * 48271) % 2147483647;
        return state % limit;
      };
      for (const history of page.histories) {
        for (let n = 0; n < 400; ++n) {
          const near = random(history.count), operations = new Set();
          for (let left = 1 + random(6); left; --left) {
            operations.add(Math.min(history.count - 1, near + random(60)));
          }
          const chosen = [...operations].sort((a, b) => a - b);
          const text = make_figure(history, chosen).outerHTML;
          ++results.pictures;
          results.arrows += relations(history, chosen).arrows.length;
          if (/NaN|undefined|Infinity/.test(text)) results.bad.push(chosen);
          const timeline = [...page.timelines.values()][0];
          if (n % 20 === 0 && history === page.histories[0]) {
            timeline.focus(chosen);
            timeline.draw();
          }
        }
      }
      document.documentElement.dataset.results = JSON.stringify(results);"""
    _, root = load(with_script(folder, script), folder)
    assert "error" not in root, root["error"]
    results = json.loads(root["results"])
    assert results["pictures"] == 800 and results["arrows"] > 100
    assert not results["bad"]


@needs_browser
def test_nbdcheck_writes_the_page(tmp_path):
    """All of it: a server with a fault, what nbdcheck finds in it, and what its reader sees."""
    program = SAMPLE.parent.parent / "bin" / "nbdcheck"
    if not program.exists() or not os.path.exists(faulty.FAULTY):
        pytest.skip("nbdcheck and faulty-server are not built")
    server = faulty.Faulty("--fault=own-flush")
    try:
        page = tmp_path / "report.html"
        done = subprocess.run([program, "--consistency", "--destroy", "--duration=2", "--seed=7",
                               f"--html={page}", server.uri], timeout=120, text=True,
                              capture_output=True, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        document, root = load(page, tmp_path)
    finally:
        server.stop()
    assert "error" not in root, root["error"]
    assert int(root["findings"]) >= 1 and int(root["operations"]) > 100
    assert "stale-read" in document and "<figure" in document
    assert "but this is what it returned" in document


@needs_browser
def test_page_of_100000_operations_is_quick(sample, record_property):
    folder, _ = sample("broken", MANY)
    script = """
      const timeline = [...page.timelines.values()][0], times = [];
      timeline.show_all();
      for (let n = 0; n < 20; ++n) {
        timeline.draw();
        timeline.canvas.getContext("2d").getImageData(0, 0, 1, 1);  // waits for the drawing
        times.push(Number(document.documentElement.dataset.drawMs));
      }
      times.sort((a, b) => a - b);
      document.documentElement.dataset.median = times[10];"""
    page = with_script(folder, script)
    document, root = load(page, folder)
    assert "error" not in root, root["error"]
    assert int(root["operations"]) >= MANY
    record_property("ready_ms", root["ready"])
    record_property("draw_ms", root["median"])
    print(f"{page.stat().st_size >> 10} KiB, ready after {root['ready']} ms, "
          f"all of it drawn in {root['median']} ms")
    assert page.stat().st_size < 12 << 20
    # Far above what it takes (0.4 s, 15 ms): a machine may have other things to do.
    assert float(root["ready"]) < 8000
    assert float(root["median"]) < 400
    assert document.count("<") < 5000, "operations must not be elements of the document"


@needs_browser
@pytest.mark.parametrize("what", ["kept", "empty", "hostile"])
def test_page_takes_anything(sample, what):
    folder, _ = sample(what)
    document, root = load(folder / "report.html", folder)
    assert "error" not in root, root["error"]
    assert "ready" in root
    assert "harmed" not in root, "what a server said was run as a script"
    words = {"kept": "Promise kept", "empty": "Could not tell", "hostile": "Promise broken"}[what]
    assert f"<h1>{words}</h1>" in document
    if what == "hostile":
        assert document.count("<script") == 2
        # It is shown as it is.
        assert "&lt;script&gt;document.documentElement.dataset.harmed" in document


@needs_browser
def test_a_fault_of_a_script_is_noticed(sample):
    """The control of all the others: they would see it."""
    folder, _ = sample("kept")
    _, root = load(with_script(folder, "throw new Error('planted')"), folder)
    assert "planted" in root["error"]


@needs_browser
def test_page_reaches_nobody(sample):
    """Its policy lets nothing out, whatever a script tries."""
    folder, _ = sample("kept")
    script = """
      document.addEventListener("securitypolicyviolation", (event) => {
        document.documentElement.dataset.refused =
            (document.documentElement.dataset.refused ?? "") + event.effectiveDirective + " ";
      });
      fetch("http://127.0.0.1:9/").catch(() => {});
      new Image().src = "http://127.0.0.1:9/x.png";"""
    _, root = load(with_script(folder, script), folder)
    assert "connect-src" in root["refused"] and "img-src" in root["refused"]
