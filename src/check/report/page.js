// SPDX-License-Identifier: BSD-3-Clause
// The page around the pictures: the verdict, the findings with their stories, the tests.

const STATES = ["failed", "warned", "inconclusive", "passed", "skipped"];
const STATE_WORDS = {failed: "failed", warned: "warning", inconclusive: "could not tell",
                     passed: "passed", skipped: "skipped"};
const LEVELS = [["own", "a connection sees what it wrote"],
                ["flushed", "all see what was flushed"],
                ["at-once", "all see what was acknowledged"]];

class Page {
  constructor(report) {
    this.report = report;
    this.histories = report.histories.map((data) => new History(data));
    this.timelines = new Map();
    this.findings = [];
    const tests = [...report.tests];
    tests.sort((a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state));
    this.tests = tests;
    for (const test of tests) {
      for (const finding of test.findings) {
        const count = this.histories[finding.history]?.count ?? 0;
        this.findings.push({...finding, test, number: this.findings.length + 1,
                            operations: finding.operations.filter((i) => i < count)});
      }
    }
    document.getElementById("page").append(
        ...[this.verdict(), this.finding_section(), this.timeline_section(), this.test_section(),
            this.about()].filter((section) => section));
  }

  verdict() {
    const report = this.report;
    const words = {kept: "Promise kept", broken: "Promise broken"}[report.outcome] ??
                  "Could not tell";
    const reached = LEVELS.findIndex(([name]) => name === report.level_reached);
    const levels = element("ol", {class: "levels"}, ...LEVELS.map(([name, text], n) => {
      const test = report.tests.find((each) => each.name === `consistency.${name}`);
      const missed = ["failed", "warned"].includes(test?.state);
      const state = n <= reached ? "reached" : missed ? "missed" : "unknown";
      const sign = {unknown: "?", reached: "✓", missed: "✗"}[state];
      const promised = name === "flushed" && report.multi_conn_advertised;
      return element("li", {class: state}, element("b", {}, `${sign} ${name}`),
                     element("span", {}, text + (promised ? ": promised by CAN_MULTI_CONN" : "")));
    }));
    const facts = [["target", report.target], ...report.facts.map(({name, value}) => [name, value])];
    return element("header", {class: `verdict ${report.outcome}`},
        element("p", {class: "tool"}, `nbdcheck ${report.version}`),
        element("h1", {}, words + (report.interrupted ? " (interrupted)" : "")),
        element("p", {class: "reason"}, report.verdict),
        levels,
        element("dl", {class: "facts"}, ...facts.map(([name, value]) =>
            element("div", {}, element("dt", {}, name), element("dd", {}, value)))));
  }

  finding_section() {
    if (!this.findings.length) return null;
    return element("section", {}, element("h2", {}, "What was found"),
                   ...this.findings.map((finding) => this.finding_card(finding)));
  }

  finding_card(finding) {
    const history = this.histories[finding.history];
    const picture = finding.operations.length > 0;
    const body = element("div", {class: "body"});
    const card = element("details", {
      id: `finding-${finding.number}`, class: `finding ${finding.test.state}`,
      // The picture is made when somebody looks.
      ontoggle: () => {
        if (card.open && picture && !body.querySelector("figure")) {
          body.prepend(make_figure(history, finding.operations));
        }
      }
    }, element("summary", {},
          element("span", {class: `badge ${finding.test.state}`}, finding.kind || "finding"),
          element("span", {class: "title"}, finding.title),
          element("span", {class: "quiet"},
                  (finding.count > 1 ? `seen ${grouped(finding.count)} times · ` : "") +
                  finding.test.name)), body);
    body.append(element("ol", {class: "story"},
                        ...finding.story.map((line) =>
                            element("li", {class: line.startsWith("wrong: ") && "wrong"}, line))));
    if (finding.advice.length) {
      body.append(element("p", {class: "advice"}, element("b", {}, "Look next: "),
                          finding.advice.join(" ")));
    }
    if (finding.replay) body.append(this.replay(finding));
    if (picture) {
      body.append(element("p", {}, element("button", {
        type: "button", class: "strong", onclick: () => this.show(finding.number, true)
      }, "Show in the timeline")));
    }
    return card;
  }

  replay(finding) {
    const code = element("code", {}, finding.replay);
    const copy = element("button", {type: "button", onclick: async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(finding.replay);
      } catch {
        // A file: page may have no clipboard; a selection can be copied by hand.
        getSelection().selectAllChildren(code);
        done = document.execCommand?.("copy") ?? false;
      }
      copy.textContent = done ? "Copied" : "Selected";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    }}, "Copy");
    return element("div", {class: "replay"},
        element("span", {class: "quiet"},
                finding.seed === null ? "Again:" : `Again (seed ${finding.seed}):`), code, copy);
  }

  timeline_section() {
    if (!this.histories.length) return null;
    this.stage = element("div");
    this.chosen = element("select", {
      "aria-label": "history", onchange: () => this.show_history(Number(this.chosen.value), null)
    }, ...this.histories.map((history, n) =>
        element("option", {value: n}, `${short(history.title, 60)} (${grouped(history.count)} operations)`)));
    return element("section", {id: "timeline"},
        element("div", {class: "heading"}, element("h2", {}, "Timeline"), this.chosen,
                this.caption = element("span", {class: "quiet"})), this.stage);
  }

  show_history(number, finding) {
    if (!this.timelines.has(number)) {
      const marks = this.findings.filter((each) => each.history === number)
                                 .flatMap((each) => each.operations);
      this.timelines.set(number, new Timeline(this.histories[number], marks));
    }
    const timeline = this.timelines.get(number);
    this.chosen.value = String(number);
    if (timeline.node.parentNode !== this.stage) this.stage.replaceChildren(timeline.node);
    timeline.focus(finding ? finding.operations : null);
    this.caption.textContent = finding ? `finding ${finding.number}: ${finding.kind}` : "";
    return timeline;
  }

  // Opens a finding and shows it in the timeline; `go`: the reader wants to see the timeline.
  show(number, go) {
    const finding = this.findings[number - 1];
    if (!finding) return;
    document.getElementById(`finding-${number}`).open = true;
    if (!finding.operations.length) return;
    const timeline = this.show_history(finding.history, finding);
    if (!go) return;
    history.replaceState(null, "", `#finding-${number}`);
    document.getElementById("timeline").scrollIntoView({behavior: "smooth"});
    timeline.canvas.focus({preventScroll: true});
  }

  test_section() {
    const rows = this.tests.map((test) => ({test, node: this.test_row(test)}));
    const list = element("div", {class: "tests"}, ...rows.map(({node}) => node));
    const none = element("p", {class: "quiet", hidden: true}, "No test fits.");
    let state = "";
    const search = element("input", {type: "search", placeholder: "filter by name or text",
                                     "aria-label": "filter the tests", oninput: () => apply()});
    const apply = () => {
      const words = search.value.toLowerCase();
      let shown = 0;
      for (const {test, node} of rows) {
        const text = `${test.name} ${test.title} ${test.basis} ${test.detail}`.toLowerCase();
        node.hidden = (state && test.state !== state) || !text.includes(words);
        shown += !node.hidden;
      }
      none.hidden = shown > 0;
    };
    const chips = ["", ...STATES].map((each) => {
      const count = each ? this.report.summary[each] : this.tests.length;
      const chip = element("button", {
        type: "button", class: `chip ${each}`, "aria-pressed": String(each === ""),
        disabled: !count,
        onclick: () => {
          state = each;
          chips.forEach((one) => one.setAttribute("aria-pressed", String(one === chip)));
          apply();
        }
      }, `${each ? STATE_WORDS[each] : "all"} ${count}`);
      return chip;
    });
    return element("section", {id: "tests"}, element("h2", {}, "Tests"),
                   element("div", {class: "tools"}, ...chips, search), list, none);
  }

  test_row(test) {
    const links = this.findings.filter((finding) => finding.test === test).map((finding) =>
        element("a", {href: `#finding-${finding.number}`},
                `${finding.kind}: ${finding.title}`));
    return element("details", {class: "test"},
        element("summary", {},
            element("span", {class: `badge ${test.state}`}, STATE_WORDS[test.state]),
            element("span", {class: "name"}, test.name), element("span", {}, test.title),
            element("span", {class: "quiet"}, test.seconds ? `${test.seconds.toFixed(2)} s` : "")),
        element("div", {class: "body"}, element("p", {class: "quiet"}, test.basis),
                test.detail ? element("p", {}, test.detail) : null,
                ...links.map((link) => element("p", {}, link))));
  }

  about() {
    const report = this.report, seen = report.witnesses;
    const witnesses = [["judged", seen.reads], ["own changes", seen.own],
                       ["flushed elsewhere", seen.flushed], ["acknowledged elsewhere", seen.at_once],
                       ["before a restart", seen.survived],
                       ["flushes over a change", seen.overlapped_flushes]];
    const table = (title, rows) => element("div", {}, element("h3", {}, title),
        element("table", {}, ...rows.map(([name, value]) => element("tr", {},
            element("th", {scope: "row"}, name), element("td", {}, value)))));
    const numbers = (rows) => rows.map(([name, value]) => [name, grouped(value)]);
    return element("footer", {}, element("h2", {}, "How much could be seen"),
        element("p", {class: "quiet"}, "A clean verdict is worth what its witnesses are: reads " +
                "that had to see a change of each kind, and would have shown its absence."),
        element("div", {class: "columns"},
            table("Witnesses", numbers(witnesses)),
            table("Counts", numbers(Object.entries(report.counts))),
            table("Run", [["started", report.started], ["seconds", report.seconds?.toFixed(1) ?? ""],
                          ["seed", String(report.seed)], ["command", report.command_line]])),
        this.times = element("p", {class: "quiet"}));
  }

  // "#finding-2" shows that; "#all" all of the first history.
  follow() {
    const number = Number(/^#finding-(\d+)$/.exec(location.hash)?.[1] ?? 0);
    if (this.findings[number - 1]) {
      this.show(number, false);
      document.getElementById(`finding-${number}`).scrollIntoView();
    } else if (location.hash === "#all" && this.histories.length) {
      this.show_history(0, null);
    }
  }

  start() {
    const first = this.findings.find((finding) => finding.operations.length) ?? this.findings[0];
    if (this.histories.length && !first?.operations.length) this.show_history(0, null);
    if (first) this.show(first.number, false);
    this.follow();
    addEventListener("hashchange", () => this.follow());
    // The first drawing at once: who looks at the page when it has loaded sees it.
    for (const timeline of this.timelines.values()) {
      if (timeline.node.isConnected) timeline.draw();
    }
  }
}

const begin = performance.now();
const report = JSON.parse(document.getElementById("data").textContent);
const page = new Page(report);
page.start();
const ready = performance.now() - begin;
page.times.textContent = `This page was ready after ${ready.toFixed(0)} ms.`;
Object.assign(document.documentElement.dataset, {
  ready: ready.toFixed(1), tests: page.tests.length, findings: page.findings.length,
  histories: page.histories.length,
  operations: page.histories.reduce((sum, each) => sum + each.count, 0)
});
