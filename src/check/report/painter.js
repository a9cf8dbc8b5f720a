// SPDX-License-Identifier: BSD-3-Clause
// How the timeline is drawn: one Painter for each drawing.

class Painter {
  constructor(timeline) {
    this.t = timeline;
    this.h = timeline.history;
    const style = getComputedStyle(document.documentElement);
    this.colour = (name) => style.getPropertyValue(`--${name}`).trim() || "#888";
    this.kinds = this.h.kinds.map((kind) => this.colour(kind));
    this.ink = this.colour("ink");
    this.soft = this.colour("soft");
    this.paper = this.colour("paper");
    this.line = this.colour("line");
    this.bad = this.colour("bad");
    this.must = this.colour("must");
    this.flush = this.colour("flush");
    this.drawn = 0;
  }

  // Sized for the screen's own pixels; returns the context.
  prepare(canvas, height) {
    const ratio = devicePixelRatio || 1, width = canvas.clientWidth || 800;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d", {alpha: false});
    context.scale(ratio, ratio);
    context.fillStyle = this.paper;
    context.fillRect(0, 0, width, height);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    return context;
  }

  paint() {
    const t = this.t;
    this.c = this.prepare(t.canvas, t.height);
    this.full = t.canvas.clientWidth || 800;
    t.width = this.full - VIEW.gutter;
    this.axis();
    this.c.save();
    this.c.beginPath();
    this.c.rect(VIEW.gutter, 0, t.width, t.height);
    this.c.clip();
    // Others step back while a finding is looked at.
    const alpha = !t.finding || t.scope === "finding" ? 0.9 : t.scope === "cell" ? 0.7 : 0.4;
    for (const lane of t.lanes) {
      if (!this.crowd(lane, alpha)) for (const row of lane.rows) this.row(row, alpha);
    }
    this.c.globalAlpha = 1;
    this.restarts();
    if (t.finding) this.finding();
    else this.marks();
    if (t.selected !== null) this.selection();
    this.c.restore();
    this.lanes();
    this.overview();
    return this.drawn;
  }

  axis() {
    const t = this.t, c = this.c;
    const rough = (t.to - t.from) / Math.max(2, t.width / 110);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough);
    c.textAlign = "center";
    for (let n = Math.ceil(t.from / step); n * step <= t.to; ++n) {
      const x = t.x_at(n * step);
      if (x < VIEW.gutter) continue;
      c.fillStyle = this.line;
      c.fillRect(Math.round(x), VIEW.axis - 4, 1, t.height);
      c.fillStyle = this.soft;
      if (x > VIEW.gutter + 24 && x < this.full - 24) {
        c.fillText(time_text(n * step, step), x, VIEW.axis / 2);
      }
    }
  }

  lanes() {
    const c = this.c;
    c.fillStyle = this.paper;
    c.fillRect(0, 0, VIEW.gutter, this.t.height);
    c.textAlign = "left";
    for (const lane of this.t.lanes) {
      c.fillStyle = this.line;
      c.fillRect(0, Math.round(lane.y), this.full, 1);
      c.fillStyle = this.ink;
      c.font = "600 13px system-ui, sans-serif";
      c.fillText(short(lane.name, 9), 4, (lane.y + lane.bottom) / 2);
      c.font = "11px system-ui, sans-serif";
      c.fillStyle = this.soft;
      for (const begin of lane.begins.slice(1)) {
        const x = this.t.x_at(begin.at);
        if (x < VIEW.gutter || x > this.full) continue;
        c.fillRect(x, lane.y, 1, lane.bottom - lane.y);
        c.fillText(short(begin.name, 6), x + 3, lane.y + 6);
      }
    }
  }

  // From afar: columns that tell how many operations of each kind were sent, instead of bars too
  // narrow to be seen. False: there is room for bars.
  crowd(lane, alpha) {
    const {h, t, c} = this, {sends, operations} = lane, column = 3;
    const first = lower_bound(sends, t.from), end = lower_bound(sends, t.to, first);
    if ((end - first) * 2 < t.width * Math.max(1, lane.rows.length)) return false;
    const columns = Math.ceil(t.width / column) + 1, kinds = h.kinds.length;
    const counts = new Uint32Array(columns * kinds), failures = new Uint8Array(columns);
    const scale = t.width / column / (t.to - t.from);
    for (let n = first; n < end; ++n) {
      const i = operations[n], at = Math.floor((sends[n] - t.from) * scale);
      ++counts[at * kinds + h.kind[i]];
      if (h.took[i] < 0 || h.error[i]) failures[at] = 1;
    }
    let most = 1;
    for (let at = 0; at < columns; ++at) {
      let sum = 0;
      for (let kind = 0; kind < kinds; ++kind) sum += counts[at * kinds + kind];
      most = Math.max(most, sum);
    }
    const bottom = lane.bottom - 4, room = lane.bottom - lane.y - 12;
    c.globalAlpha = alpha * 0.85;
    const tops = new Float64Array(columns).fill(bottom);
    for (let kind = 0; kind < kinds; ++kind) {
      c.fillStyle = this.kinds[kind];
      for (let at = 0; at < columns; ++at) {
        const height = counts[at * kinds + kind] / most * room;
        if (!height) continue;
        tops[at] -= height;
        c.fillRect(VIEW.gutter + at * column, tops[at], column - 0.6, height);
        ++this.drawn;
      }
    }
    c.globalAlpha = 1;
    c.fillStyle = this.bad;
    failures.forEach((failed, at) => {
      if (failed) c.fillRect(VIEW.gutter + at * column, bottom + 1, column - 0.6, 2);
    });
    return true;
  }

  row(row, alpha) {
    const {h, t, c} = this, {sends, operations} = row;
    const y = row.y + 1, height = t.row_height - 3;
    let at = Math.max(0, lower_bound(sends, t.from) - 1);
    while (at < sends.length && sends[at] < t.to) {
      const i = operations[at];
      const x = t.x_at(h.send[i]), end = t.x_at(h.end[i]);
      c.fillStyle = this.kinds[h.kind[i]];
      ++this.drawn;
      if (end - x < 1.5) {
        // Whatever else begins in this pixel is left out.
        c.globalAlpha = alpha * 0.8;
        c.fillRect(x, y, 1, height);
        at = Math.max(at + 1, lower_bound(sends, t.time_at(Math.floor(x) + 1), at + 1));
        continue;
      }
      c.globalAlpha = alpha;
      this.bar(i, x, end, y, height);
      ++at;
    }
  }

  // With what it needs to be told apart once there is room for it.
  bar(i, x, end, y, height, bare = false) {
    const {h, c} = this, left = Math.max(x, VIEW.gutter - 4), right = Math.min(end, this.full + 4);
    const width = Math.max(1, right - left - 0.5);
    if (!h.replied(i)) {
      // Open at its end: nobody knows when it took effect, or whether.
      const fade = c.createLinearGradient(left, 0, left + width, 0);
      fade.addColorStop(0, c.fillStyle);
      fade.addColorStop(1, this.paper);
      c.fillStyle = fade;
    }
    c.fillRect(left, y, width, height);
    if (h.failed(i) && width > 3) this.hatch(left, y, width, height);
    if (h.fua[i] && width > 5) {
      c.fillStyle = this.flush;
      c.fillRect(left + width - 3, y, 3, height);
    }
    if (width > 54 && !bare) {
      c.textAlign = "left";
      const before = c.globalAlpha;
      c.fillStyle = before < 0.5 ? this.ink : this.paper;
      c.globalAlpha = before < 0.5 ? 0.55 : 1;
      c.save();
      c.beginPath();
      c.rect(left, y, width - 4, height);
      c.clip();
      c.fillText(h.label(i, this.t.finding?.cell ?? null), left + 4, y + height / 2 + 0.5);
      c.restore();
      c.globalAlpha = before;
    }
  }

  hatch(x, y, width, height) {
    const c = this.c;
    c.save();
    c.beginPath();
    c.rect(x, y, width, height);
    c.clip();
    c.strokeStyle = this.paper;
    c.lineWidth = 2;
    c.beginPath();
    for (let at = x - height; at < x + width; at += 6) {
      c.moveTo(at, y + height);
      c.lineTo(at + height, y);
    }
    c.stroke();
    c.restore();
  }

  restarts() {
    const {c, t} = this;
    for (const restart of this.h.restarts) {
      const x = t.x_at(restart);
      if (x < VIEW.gutter || x > this.full) continue;
      c.fillStyle = this.bad;
      c.fillRect(x - 1, VIEW.axis - 4, 2, t.height);
      c.textAlign = "left";
      c.fillText("restart", x + 4, VIEW.axis - 8);
    }
  }

  // Where a bar of the finding is drawn: never too narrow to be seen.
  box(i) {
    const row = this.t.place.get(i);
    if (!row) return null;
    const x = this.t.x_at(this.h.send[i]);
    return {x, end: Math.max(this.t.x_at(this.h.end[i]), x + 5), y: row.y, height: this.t.row_height - 1,
            middle: row.y + this.t.row_height / 2 - 0.5};
  }

  finding() {
    const {c, h, t} = this, {operations, arrows, read, cell} = t.finding;
    const texts = [], boxes = [];
    for (const i of operations) {
      const box = this.box(i);
      if (!box || box.end < VIEW.gutter || box.x > this.full) continue;
      const width = box.end - box.x;
      boxes.push({x: (box.x + box.end) / 2, half: width / 2, top: box.y, height: box.height});
      c.fillStyle = this.paper;
      c.fillRect(box.x - 2, box.y - 2, width + 4, box.height + 4);
      c.fillStyle = this.kinds[h.kind[i]];
      const label = h.label(i, cell);
      const outside = c.measureText(label).width + 12 > width;
      this.bar(i, box.x, box.end, box.y, box.height, outside);
      c.strokeStyle = i === read ? this.bad : this.ink;
      c.lineWidth = 2;
      c.strokeRect(box.x - 1, box.y - 1, width + 1, box.height + 2);
      if (outside) {
        texts.push({text: `${short(h.name_of(i), 9)}: ${label}`, x: (box.x + box.end) / 2,
                    y: box.y - 11, colour: i === read ? this.bad : this.ink});
      }
    }
    for (const arrow of arrows) this.arrow(arrow, texts);
    this.labels(texts, boxes);
  }

  // Where findings are, while none is looked at.
  marks() {
    const {c, t} = this;
    c.fillStyle = this.bad;
    for (const i of t.marks) {
      const box = this.box(i);
      if (box) c.fillRect(box.x, box.y, Math.max(3, box.end - box.x), box.height);
    }
  }

  arrow(arrow, texts) {
    const {c, t} = this, from = this.box(arrow.from), to = this.box(arrow.to);
    if (!from || !to) return;
    const saw = arrow.kind === "saw", colour = saw ? this.bad : arrow.kind === "must" ? this.must :
                                               this.soft;
    const x1 = saw ? (from.x + from.end) / 2 : from.end, x2 = saw ? (to.x + to.end) / 2 : to.x;
    const y1 = saw ? from.y + from.height + 1 : from.middle;
    const y2 = saw ? to.y + to.height + 2 : to.middle;
    const bend = Math.max(16, Math.abs(x2 - x1) * 0.4);
    c.strokeStyle = c.fillStyle = colour;
    c.lineWidth = arrow.kind === "order" ? 1.5 : 2;
    c.setLineDash(saw ? [6, 4] : arrow.kind === "order" ? [2, 3] : []);
    c.beginPath();
    c.moveTo(x1, y1);
    if (saw) {
      const round = Math.min(10, Math.abs(x2 - x1) / 2);
      c.arcTo(x1, t.floor, x2, t.floor, round);
      c.arcTo(x2, t.floor, x2, y2, round);
      c.lineTo(x2, y2);
    } else {
      c.bezierCurveTo(x1 + bend, y1, x2 - bend, y2, x2, y2);
    }
    c.stroke();
    c.setLineDash([]);
    c.save();
    c.translate(x2, y2);
    c.rotate(saw ? -Math.PI / 2 : 0);
    c.beginPath();
    c.moveTo(1, 0);
    c.lineTo(-8, -4.5);
    c.lineTo(-8, 4.5);
    c.fill();
    c.restore();
    // Between bars that are close together there is no room for words; the figure has them.
    const needs = c.measureText(arrow.text).width + 30;
    const room = saw || Math.abs(y2 - y1) > 40 || Math.abs(x2 - x1) > needs;
    if (arrow.kind === "order" || !room) return;
    const left = Math.max(VIEW.gutter, Math.min(x1, x2)), right = Math.min(this.full, Math.max(x1, x2));
    texts.push({text: arrow.text, x: (left + right) / 2, y: saw ? t.floor : (y1 + y2) / 2, colour});
  }

  // Words on paper of their own; each goes down until it covers nothing of what is `taken`.
  labels(texts, taken) {
    const {c} = this;
    c.textAlign = "center";
    c.font = "600 11px system-ui, sans-serif";
    for (const {text, x, y, colour} of texts) {
      const half = c.measureText(text).width / 2 + 4;
      const middle = Math.min(this.full - half, Math.max(VIEW.gutter + half, x));
      let top = Math.max(VIEW.axis, y - 8);
      for (let tries = 0; tries < 12; ++tries) {
        const clash = taken.find((one) => Math.abs(one.x - middle) < one.half + half &&
                                          top < one.top + one.height && one.top < top + 16);
        if (!clash) break;
        top = clash.top + clash.height + 1;
      }
      taken.push({x: middle, half, top, height: 16});
      c.fillStyle = this.paper;
      c.globalAlpha = 0.9;
      c.fillRect(middle - half, top, half * 2, 16);
      c.globalAlpha = 1;
      c.fillStyle = colour;
      c.fillText(text, middle, top + 8.5);
    }
    c.font = "11px system-ui, sans-serif";
  }

  selection() {
    const i = this.t.selected;
    for (const lane of this.t.lanes) {
      for (const row of lane.rows) {
        const at = lower_bound(row.sends, this.h.send[i]);
        for (let n = at; n < row.sends.length && row.sends[n] === this.h.send[i]; ++n) {
          if (row.operations[n] !== i) continue;
          const x = this.t.x_at(this.h.send[i]), end = this.t.x_at(this.h.end[i]);
          this.c.strokeStyle = this.ink;
          this.c.lineWidth = 2;
          this.c.strokeRect(x - 2, row.y - 1, Math.max(4, end - x) + 3, this.t.row_height);
        }
      }
    }
  }

  // The whole history: how many operations were sent when, where the finding is, what is in view.
  overview() {
    const {h, t} = this, c = this.prepare(t.overview, VIEW.overview);
    const width = (t.overview.clientWidth || 800) - VIEW.gutter;
    const bottom = VIEW.overview - 6, x_at = (time) => VIEW.gutter + time / h.last * width;
    if (!t.density) {
      t.density = new Float64Array(Math.max(1, Math.ceil(width / 2)));
      for (const lane of t.lanes) {
        for (const row of lane.rows) {
          for (const time of row.sends) {
            ++t.density[Math.min(t.density.length - 1,
                                 Math.floor(time / h.last * t.density.length))];
          }
        }
      }
      t.density_max = t.density.reduce((most, each) => Math.max(most, each), 1);
    }
    c.fillStyle = this.soft;
    c.fillText("all", 4, VIEW.overview / 2);
    c.globalAlpha = 0.45;
    t.density.forEach((count, n) => {
      const height = count / t.density_max * (bottom - 8);
      c.fillRect(VIEW.gutter + n * 2, bottom - height, 1.6, height);
    });
    c.globalAlpha = 1;
    c.fillStyle = this.bad;
    for (const restart of h.restarts) c.fillRect(x_at(restart) - 1, 4, 2, bottom);
    for (const i of t.marks) c.fillRect(x_at(h.send[i]) - 1, bottom, 2, 6);
    for (const i of t.finding?.operations ?? []) c.fillRect(x_at(h.send[i]) - 1, 2, 2.5, bottom);
    const left = Math.max(VIEW.gutter, x_at(t.from)), right = Math.min(x_at(t.to), this.full);
    c.strokeStyle = this.ink;
    c.lineWidth = 1.5;
    c.strokeRect(left - 1, 1, Math.max(6, right - left) + 1, VIEW.overview - 3);
  }
}
