// SPDX-License-Identifier: BSD-3-Clause
// A history on a canvas: a lane for each connection, a bar for each operation, from its sending to
// its reply. What overlaps in a lane gets rows of its own. Only what is in view is drawn, found by
// binary search; from afar a lane shows how many operations were sent when, and a bar narrower than
// a pixel stands for all in it. So drawing costs as much as the canvas is wide, however long the
// history is.

const VIEW = {gutter: 76, axis: 24, rows_max: 48, overview: 46, floor: 30};

// The first index from `from` on whose value is at least `value`.
function lower_bound(values, value, from = 0) {
  let low = from, high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

class Timeline {
  // `marks`: operations of findings. Shows nothing before focus() was called.
  constructor(history, marks) {
    this.history = history;
    this.marks = marks;
    this.finding = null;  // {operations, arrows, cell}
    this.scope = "all";   // or "cell", "finding"
    this.hidden = new Set();
    this.selected = null;
    this.from = 0;
    this.to = history.last;
    this.pending = false;
    this.node = this.build();
  }

  build() {
    const button = (text, title, action) =>
        element("button", {type: "button", title, onclick: action}, text);
    this.scopes = element("select", {
      "aria-label": "which operations are shown",
      onchange: () => { this.scope = this.scopes.value; this.arrange(); this.draw(); }
    }, element("option", {value: "all"}, "all operations"),
       element("option", {value: "cell"}, "only this finding's cell"),
       element("option", {value: "finding"}, "only this finding's operations"));
    const legend = element("div", {class: "legend", role: "group", "aria-label": "kinds shown"});
    this.history.kinds.forEach((kind, number) => {
      if (!this.history.kind.includes(number)) return;
      const toggle = element("button", {
        type: "button", class: `kind ${kind}`, "aria-pressed": "true",
        onclick: () => {
          const hide = !this.hidden.has(number);
          if (hide) this.hidden.add(number);
          else this.hidden.delete(number);
          toggle.setAttribute("aria-pressed", String(!hide));
          this.arrange();
          this.draw();
        }
      }, element("i"), kind);
      legend.append(toggle);
    });
    for (const [name, text] of [["fua", "FUA"], ["failed", "error"], ["open", "no reply"]]) {
      legend.append(element("span", {class: `kind ${name}`}, element("i"), text));
    }
    this.canvas = element("canvas", {
      tabindex: 0, role: "application",
      "aria-label": "Timeline. Arrows left and right pan, plus and minus zoom, 0 shows all, " +
                    "F shows the finding, square brackets walk from operation to operation."
    });
    this.overview = element("canvas", {class: "overview", "aria-hidden": "true"});
    this.status = element("span", {class: "status"});
    this.details = element("pre", {class: "details", "aria-live": "polite"});
    this.tip = element("div", {class: "tip", hidden: true});
    this.listen();
    return element("div", {class: "timeline"},
      element("div", {class: "tools"},
        button("−", "zoom out (-)", () => this.zoom(2)),
        button("+", "zoom in (+)", () => this.zoom(0.5)),
        button("All", "show the whole history (0)", () => this.show_all()),
        this.to_finding = button("Finding", "show the finding (F)", () => this.show_finding()),
        this.scopes, legend),
      this.overview, element("div", {class: "stage"}, this.canvas), this.details,
      element("p", {class: "hint"},
        this.status, " Drag to pan; pinch, Ctrl and wheel, or the wheel once the picture has the " +
        "focus, to zoom; ", element("kbd", {}, "←"), element("kbd", {}, "→"),
        element("kbd", {}, "+"), element("kbd", {}, "−"), element("kbd", {}, "0"),
        element("kbd", {}, "F"), " do the same; ", element("kbd", {}, "["),
        element("kbd", {}, "]"), " walk from operation to operation."),
      this.tip);
  }

  // Lanes and rows of what the scope and the kinds let through.
  arrange() {
    const h = this.history, operations = new Set(this.finding?.operations ?? []);
    const marks = new Set(this.marks);
    const cell = this.finding?.cell ?? null;
    const passes = (i) => {
      if (operations.has(i)) return true;
      if (this.hidden.has(h.kind[i])) return false;
      if (this.scope === "finding") return false;
      return this.scope === "all" || cell === null || h.cells_of[i] === 0 || h.covers(i, cell);
    };
    // A connection that was dialled again ("A2") goes on in the lane of the one before.
    const lanes = new Map();
    const lane_of = h.connections.map((name) => {
      const base = /^[A-Za-z]+\d+$/.test(name) ? name.replace(/\d+$/, "") : name;
      if (!lanes.has(base)) lanes.set(base, {name: base, rows: [], begins: [], operations: [], sends: []});
      return lanes.get(base);
    });
    const begun = new Set();
    this.place = new Map();  // of the findings' operations: their rows
    for (let i = 0; i < h.count; ++i) {
      const lane = lane_of[h.connection[i]];
      if (!lane) continue;
      if (!begun.has(h.connection[i])) {
        begun.add(h.connection[i]);
        lane.begins.push({at: h.send[i], name: h.name_of(i)});
      }
      if (!passes(i)) continue;
      let row = lane.rows.find((each) => each.end <= h.send[i]);
      if (!row && lane.rows.length < VIEW.rows_max) {
        row = {end: 0, operations: [], sends: []};
        lane.rows.push(row);
      }
      row ??= lane.rows[lane.rows.length - 1];
      for (const list of [lane, row]) {
        list.operations.push(i);
        list.sends.push(h.send[i]);
      }
      row.end = Math.max(row.end, h.end[i]);
      if (marks.has(i) || operations.has(i)) this.place.set(i, row);
    }
    this.lanes = [...lanes.values()];
    // Few rows are drawn higher: there is room.
    const rows = this.lanes.reduce((sum, lane) => sum + Math.max(1, lane.rows.length), 0);
    this.row_height = rows <= 6 ? 26 : rows <= 12 ? 20 : 15;
    const gap = rows <= 12 ? 36 : 16;
    let y = VIEW.axis;
    for (const lane of this.lanes) {
      lane.y = y;
      y += gap / 2;
      if (!lane.rows.length) y += this.row_height;
      for (const row of lane.rows) {
        row.y = y;
        y += this.row_height;
      }
      y += gap / 2;
      lane.bottom = y;
    }
    // Below the lanes: the way of what a read returned.
    this.floor = y + VIEW.floor / 2;
    this.height = y + (this.finding ? VIEW.floor : 8);
    this.canvas.style.height = `${this.height}px`;
    this.density = null;
  }

  // Shows a finding's operations with their arrows; null: none.
  focus(operations) {
    this.finding = operations ? {operations, ...relations(this.history, operations)} : null;
    this.scopes.disabled = this.to_finding.disabled = !this.finding;
    if (!this.finding) this.scopes.value = this.scope = "all";
    this.arrange();
    if (this.finding) this.show_finding();
    else this.show_all();
  }
  show_all() {
    this.show(0, this.history.last);
  }
  show_finding() {
    if (!this.finding) return;
    const {operations} = this.finding, h = this.history;
    const from = Math.min(...operations.map((i) => h.send[i]));
    const to = Math.max(...operations.map((i) => h.end[i]));
    const margin = Math.max((to - from) * 0.12, 1000);
    this.show(from - margin, to + margin);
  }
  show(from, to) {
    const h = this.history, span = Math.min(Math.max(to - from, 200), h.last * 1.1);
    const middle = (from + to) / 2;
    this.from = Math.max(-0.05 * h.last, Math.min(middle - span / 2, h.last * 1.05 - span));
    this.to = this.from + span;
    this.draw_soon();
  }
  zoom(factor, x = null) {
    const width = this.canvas.clientWidth - VIEW.gutter;
    const share = x === null ? 0.5 : Math.min(1, Math.max(0, (x - VIEW.gutter) / width));
    const span = this.to - this.from, pivot = this.from + span * share;
    this.show(pivot - span * factor * share, pivot + span * factor * (1 - share));
  }
  pan(pixels) {
    const by = pixels * (this.to - this.from) / (this.canvas.clientWidth - VIEW.gutter);
    this.show(this.from + by, this.to + by);
  }

  select(i) {
    this.selected = i;
    this.details.textContent = i === null ? "" : this.history.describe(i).join("\n");
    if (i !== null && (this.history.end[i] < this.from || this.history.send[i] > this.to)) {
      const half = (this.to - this.from) / 2;
      this.show(this.history.send[i] - half, this.history.send[i] + half);
    }
    this.draw_soon();
  }
  // The next operation of the same connection that is shown, or the one before.
  step(by) {
    const h = this.history;
    let i = this.selected ?? this.finding?.operations[0] ?? lower_bound(h.send, this.from) - by;
    const connection = this.selected === null ? null : h.connection[i];
    if (this.selected === null && this.finding) return this.select(i);
    const shown = new Set(this.lanes.flatMap((lane) => lane.operations));
    for (i += by; i >= 0 && i < h.count; i += by) {
      if (shown.has(i) && (connection === null || h.connection[i] === connection)) {
        return this.select(i);
      }
    }
  }

  // The operation under a point of the canvas, or null.
  hit(x, y) {
    const h = this.history, time = this.time_at(x), slack = this.time_at(x + 4) - time;
    for (const i of [...this.finding?.operations ?? [], ...this.marks]) {
      const row = this.place.get(i);
      if (row && y >= row.y && y < row.y + this.row_height && time > h.send[i] - slack &&
          time < h.end[i] + 2 * slack) return i;
    }
    for (const lane of this.lanes) {
      for (const row of lane.rows) {
        if (y < row.y || y >= row.y + this.row_height) continue;
        const at = lower_bound(row.sends, time + slack) - 1;
        if (at >= 0 && h.end[row.operations[at]] + slack >= time) return row.operations[at];
      }
    }
    return null;
  }

  listen() {
    const canvas = this.canvas, touches = new Map();
    let moved = 0;
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && document.activeElement !== canvas) return;
      event.preventDefault();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(event.deltaX);
      else this.zoom(Math.exp(Math.max(-200, Math.min(200, event.deltaY)) / 300), event.offsetX);
    }, {passive: false});
    canvas.addEventListener("pointerdown", (event) => {
      touches.set(event.pointerId, event.offsetX);
      canvas.setPointerCapture(event.pointerId);
      moved = 0;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!touches.has(event.pointerId)) return this.point(event);
      const before = touches.get(event.pointerId);
      const others = [...touches].filter(([id]) => id !== event.pointerId).map(([, x]) => x);
      touches.set(event.pointerId, event.offsetX);
      moved += Math.abs(event.offsetX - before);
      if (others.length) {
        const was = Math.abs(before - others[0]), is = Math.abs(event.offsetX - others[0]);
        if (was > 5 && is > 5) this.zoom(was / is, (event.offsetX + others[0]) / 2);
      } else if (moved > 3) {
        this.tip.hidden = true;
        this.pan(before - event.offsetX);
      }
    });
    canvas.addEventListener("pointerup", (event) => {
      touches.delete(event.pointerId);
      if (moved <= 3) {
        this.select(this.hit(event.offsetX, event.offsetY));
        this.point(event);
      }
    });
    canvas.addEventListener("pointercancel", (event) => touches.delete(event.pointerId));
    canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const width = canvas.clientWidth / 8;
      const action = {
        ArrowLeft: () => this.pan(-width), ArrowRight: () => this.pan(width),
        "+": () => this.zoom(0.6), "=": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6),
        "0": () => this.show_all(), f: () => this.show_finding(), F: () => this.show_finding(),
        "[": () => this.step(-1), "]": () => this.step(1), Escape: () => this.select(null)
      }[event.key];
      if (!action) return;
      event.preventDefault();
      action();
    });
    const jump = (event) => {
      if (event.buttons !== 1) return;
      const share = (event.offsetX - VIEW.gutter) / (this.overview.clientWidth - VIEW.gutter);
      const middle = share * this.history.last, half = (this.to - this.from) / 2;
      this.show(middle - half, middle + half);
    };
    this.overview.addEventListener("pointerdown", jump);
    this.overview.addEventListener("pointermove", jump);
    addEventListener("resize", () => { this.density = null; this.draw_soon(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw_soon());
  }

  point(event) {
    const i = this.hit(event.offsetX, event.offsetY);
    this.canvas.style.cursor = i === null ? "grab" : "pointer";
    this.tip.hidden = i === null;
    if (i === null) return;
    this.tip.textContent = this.history.describe(i).join("\n");
    const right = event.clientX + 16 + this.tip.offsetWidth > innerWidth;
    const below = event.clientY + 16 + this.tip.offsetHeight > innerHeight;
    this.tip.style.left =
        `${Math.max(4, right ? event.clientX - 12 - this.tip.offsetWidth : event.clientX + 14)}px`;
    this.tip.style.top =
        `${Math.max(4, below ? event.clientY - 12 - this.tip.offsetHeight : event.clientY + 14)}px`;
  }

  x_at(time) {
    return VIEW.gutter + (time - this.from) / (this.to - this.from) * this.width;
  }
  time_at(x) {
    return this.from + (x - VIEW.gutter) / this.width * (this.to - this.from);
  }
  draw_soon() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => { this.pending = false; this.draw(); });
  }
  draw() {
    const begin = performance.now();
    const drawn = new Painter(this).paint();
    const took = performance.now() - begin;
    this.status.textContent = `${grouped(this.history.count)} operations; ${grouped(drawn)} marks ` +
                              `drawn in ${took.toFixed(1)} ms.`;
    Object.assign(document.documentElement.dataset, {drawn, drawMs: took.toFixed(2)});
  }
}
