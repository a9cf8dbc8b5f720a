// SPDX-License-Identifier: BSD-3-Clause
// A history as the pictures want it, and the few helpers that all scripts share.

// An error must be seen: by the reader, and by the test that loads this page.
addEventListener("error", (event) => {
  document.documentElement.dataset.error = event.message;
  const box = document.createElement("pre");
  box.className = "script-error";
  box.textContent = `This page has a fault: ${event.message} (line ${event.lineno})`;
  document.body.prepend(box);
});

// Elements are made here and nowhere else: text goes in as text, never as markup.
function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}
function shape(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}
function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function grouped(number) {
  return Number(number).toLocaleString("en-US");
}

// Nanoseconds for people, with a precision that fits `step`.
function time_text(ns, step = 0) {
  const [unit, name] = Math.abs(ns) >= 1e9 ? [1e9, "s"] : Math.abs(ns) >= 1e6 ? [1e6, "ms"] :
                       Math.abs(ns) >= 1e3 ? [1e3, "µs"] : [1, "ns"];
  const digits = step ? Math.max(0, Math.ceil(-Math.log10(step / unit) - 1e-9)) :
                        unit === 1 ? 0 : 3 - Math.min(3, Math.floor(Math.log10(Math.abs(ns) / unit)));
  return `${(ns / unit).toFixed(Math.min(digits, 9))} ${name}`;
}

const ERRORS = {1: "EPERM", 5: "EIO", 12: "ENOMEM", 22: "EINVAL", 28: "ENOSPC", 75: "EOVERFLOW",
                95: "ENOTSUP", 108: "ESHUTDOWN"};
const CHANGES = new Set(["write", "zero", "trim"]);
const PARTS = ["", " (its head)", " (its tail)", " (its middle)"];

class History {
  constructor(data) {
    Object.assign(this, data);
    this.count = this.send.length;
    // Where an operation's bar ends. One without a reply is drawn up to the last moment of its
    // connection, or to the restart: later it cannot have been answered.
    const last = new Float64Array(this.connections.length);
    for (let i = 0; i < this.count; ++i) {
      const at = this.send[i] + Math.max(0, this.took[i]);
      last[this.connection[i]] = Math.max(last[this.connection[i]] || 0, at);
    }
    this.end = new Float64Array(this.count);
    this.last = 1;
    for (let i = 0; i < this.count; ++i) {
      let end = this.send[i] + this.took[i];
      if (this.took[i] < 0) {
        end = Math.max(last[this.connection[i]], this.send[i]);
        const restart = this.restarts.find((at) => at > this.send[i]);
        if (restart !== undefined) end = Math.min(end, restart);
      }
      this.end[i] = end;
      this.last = Math.max(this.last, end);
    }
    for (const restart of this.restarts) this.last = Math.max(this.last, restart);
  }

  kind_of(i) {
    return this.kinds[this.kind[i]];
  }
  name_of(i) {
    return this.connections[this.connection[i]] ?? `#${this.connection[i]}`;
  }
  replied(i) {
    return this.took[i] >= 0;
  }
  failed(i) {
    return this.took[i] >= 0 && this.error[i] !== 0;
  }
  covers(i, cell) {
    return this.cell[i] <= cell && cell < this.cell[i] + this.cells_of[i];
  }
  // Objects with cell, tag and part.
  seen_by(i) {
    const result = [];
    for (let at = i ? this.seen_end[i - 1] : 0; at < this.seen_end[i]; ++at) {
      const [cell, tag, part] = this.seen.slice(3 * at, 3 * at + 3);
      result.push({cell, tag, part});
    }
    return result;
  }
  // The write with this tag, or undefined.
  writer(tag) {
    if (!this.writers) {
      this.writers = new Map();
      const write = this.kinds.indexOf("write");
      for (let i = 0; i < this.count; ++i) {
        if (this.kind[i] === write) this.writers.set(this.tag[i], i);
      }
    }
    return this.writers.get(tag);
  }
  tag_text(tag) {
    if (tag === 0) return "zeroes";
    return tag === this.garbage ? "bytes that nobody wrote" : `tag ${tag}`;
  }
  place(cell, cells = 1) {
    const from = this.offsets[cell], end = cell + cells - 1;
    if (from === undefined || this.offsets[end] === undefined) return `cell ${cell}`;
    return `${grouped(from)} + ${grouped(this.offsets[end] + this.lengths[end] - from)}`;
  }
  // A few words for a bar; `cell` says which of a read's observations matters.
  label(i, cell = null) {
    const kind = this.kind_of(i), fua = this.fua[i] ? " FUA" : "";
    const error = this.failed(i) ? `, ${ERRORS[this.error[i]] ?? `error ${this.error[i]}`}` : "";
    if (kind === "write") return `write ${this.tag[i]}${fua}${error}`;
    if (kind === "read" && !error) {
      const seen = this.seen_by(i).find((one) => cell === null || one.cell === cell);
      if (seen) {
        return `read → ${seen.tag === 0 ? "zeroes" : seen.tag === this.garbage ? "garbage" : seen.tag}`;
      }
    }
    if (kind === "status" && this.seen_by(i).some((one) => cell === null || one.cell === cell)) {
      return "status: zeroes";
    }
    return kind + fua + error;
  }
  // Everything that is known of an operation: lines.
  describe(i) {
    const kind = this.kind_of(i);
    const lines = [[kind, kind === "write" ? `tag ${this.tag[i]}` : "", this.fua[i] ? "FUA" : "",
                    `on connection ${this.name_of(i)}`, `(operation ${i})`]
                       .filter((word) => word).join(" ")];
    if (this.cells_of[i]) {
      const last = this.cell[i] + this.cells_of[i] - 1;
      lines.push(`bytes ${this.place(this.cell[i], this.cells_of[i])}, ` +
                 (last === this.cell[i] ? `cell ${last}` : `cells ${this.cell[i]} to ${last}`));
    }
    lines.push(`sent at ${time_text(this.send[i])}, ` +
               (this.replied(i) ? `answered ${time_text(this.took[i])} later` : "never answered"));
    if (this.failed(i)) lines.push(`error ${this.error[i]} ${ERRORS[this.error[i]] ?? ""}`);
    const seen = this.seen_by(i);
    for (const one of seen.slice(0, 6)) {
      const writer = one.tag && one.tag !== this.garbage ? this.writer(one.tag) : undefined;
      lines.push(`saw at ${this.place(one.cell)}${PARTS[one.part]}: ${this.tag_text(one.tag)}` +
                 (writer === undefined ? "" :
                  `, written by ${this.name_of(writer)} at ${time_text(this.send[writer])}`));
    }
    if (seen.length > 6) lines.push(`and ${seen.length - 6} more cells`);
    return lines;
  }
}

// What the operations of a finding are to each other. Returns the cell they are about and arrows
// {from, to, kind: "must" | "saw" | "order", text}: "must" leads from the write that had to be seen
// over the flush to the read, "saw" from the write whose content was returned.
function relations(history, operations) {
  const kind = (i) => history.kind_of(i);
  const reads = operations.filter((i) => kind(i) === "read" || kind(i) === "status");
  const writes = operations.filter((i) => CHANGES.has(kind(i)));
  const flushes = operations.filter((i) => kind(i) === "flush");
  const arrows = [];
  if (!reads.length) return {cell: null, arrows, read: null};
  const read = reads[reads.length - 1];
  const tags_at = (cell) =>
      history.seen_by(read).filter((one) => one.cell === cell).map((one) => one.tag);
  const written = (i) => kind(i) === "write" ? history.tag[i] : 0;
  const shared = [];
  for (let cell = history.cell[read]; cell < history.cell[read] + history.cells_of[read]; ++cell) {
    if (writes.every((i) => history.covers(i, cell))) shared.push(cell);
  }
  const newest = writes[writes.length - 1];
  const cell = shared.find((each) => newest !== undefined &&
                                     !tags_at(each).includes(written(newest))) ??
               shared[0] ?? history.cell[read];
  const tags = tags_at(cell);
  const seen = writes.filter((i) => tags.includes(written(i)));
  const missed = writes.filter((i) => !seen.includes(i));
  const must = missed[missed.length - 1];
  for (const i of seen) {
    const future = history.send[i] > history.end[read];
    arrows.push({from: i, to: read, kind: "saw",
                 text: future ? "returned before it was written" :
                       kind(read) === "read" ? "but this is what it returned" :
                                               "but it was told of this"});
  }
  if (must !== undefined) {
    const flush = flushes.find((i) => history.end[must] <= history.send[i]);
    const later = history.restarts.some((at) => at > history.end[must] && at < history.send[read]);
    const then = (later ? "restarted, then " : "then ") + (kind(read) === "read" ? "read" : "asked");
    if (flush !== undefined) {
      arrows.push({from: must, to: flush, kind: "must", text: "acknowledged, then flushed"});
      arrows.push({from: flush, to: read, kind: "must", text: `flushed, ${then}`});
    } else {
      const why = history.fua[must] ? "durable by FUA" :
                  history.connection[must] === history.connection[read] ? "its own write" :
                  "acknowledged";
      arrows.push({from: must, to: read, kind: "must", text: `${why}, ${then}`});
    }
    for (const i of seen) {
      if (history.end[i] <= history.send[must]) {
        arrows.push({from: i, to: must, kind: "order", text: "overwritten by"});
      }
    }
  }
  for (let i = 1; i < reads.length; ++i) {
    arrows.push({from: reads[i - 1], to: reads[i], kind: "order", text: "read again"});
  }
  return {cell, arrows, read};
}
