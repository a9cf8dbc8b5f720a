// SPDX-License-Identifier: BSD-3-Clause
// The picture of one finding: only the operations that prove it, in their order. Time is not to
// scale: what took microseconds and what took seconds is as wide as its words need.

const FIGURE = {gutter: 92, lane: 78, bar: 26, gap: 58, wide: 112, top: 16, saw: 22};

let figures = 0;  // each has arrow heads of its own: those of a closed one are not drawn

function make_figure(history, operations) {
  ++figures;
  const {cell, arrows, read} = relations(history, operations);
  const restarts = history.restarts.filter(
      (at) => operations.some((i) => history.send[i] < at) &&
              operations.some((i) => history.send[i] > at));
  const xs = figure_columns(history, operations, restarts);
  // Lanes in the order in which connections come into play.
  const lanes = [...new Set(operations.map((i) => history.connection[i]))];
  const returns = arrows.filter((arrow) => arrow.kind === "saw");
  const floor = FIGURE.top + lanes.length * FIGURE.lane + 4;
  returns.forEach((arrow, n) => { arrow.floor = floor + n * FIGURE.saw; });
  const width = xs.width, height = floor + returns.length * FIGURE.saw + 34;
  const picture = shape("svg", {
    viewBox: `0 0 ${width} ${height}`, width, height, class: "figure", role: "img",
    "aria-label": operations.map((i) => `${history.name_of(i)}: ${history.label(i, cell)}`).join("; ")
  }, arrow_heads());
  const middle = (i) => FIGURE.top + (lanes.indexOf(history.connection[i]) + 0.5) * FIGURE.lane + 6;
  lanes.forEach((connection, lane) => {
    const y = FIGURE.top + (lane + 0.5) * FIGURE.lane + 6;
    picture.append(
        shape("line", {x1: FIGURE.gutter - 8, x2: width, y1: y, y2: y, class: "lane"}),
        shape("text", {x: 0, y: y + 5, class: "lane-name"},
              short(history.connections[connection] ?? "", 9)));
  });
  for (const restart of restarts) {
    const x = xs.at.get(restart);
    picture.append(
        shape("line", {x1: x, x2: x, y1: 4, y2: height - 30, class: "restart"}),
        shape("text", {x: x + 4, y: 12, class: "restart-name"}, "restart"));
  }
  // Under the bars, so that labels stay legible.
  for (const arrow of arrows) picture.append(figure_arrow(history, xs, middle, arrow));
  for (const i of operations) {
    const x = xs.at.get(history.send[i]), end = xs.at.get(history.end[i]), y = middle(i);
    const bar = shape("rect", {
      x, y: y - FIGURE.bar / 2, width: Math.max(4, end - x), height: FIGURE.bar, rx: 4,
      class: `bar ${history.kind_of(i)}${i === read ? " wrong" : ""}` +
             `${history.replied(i) ? "" : " open"}`
    }, shape("title", {}, history.describe(i).join("\n")));
    picture.append(bar, shape("text", {x: (x + end) / 2, y: y + 4.5, class: "bar-name"},
                              history.label(i, cell)));
  }
  for (const arrow of arrows) {
    const path = arrow_path(history, xs, middle, arrow);
    picture.append(shape("text", {x: path.x, y: path.y, class: `arrow-name ${arrow.kind}`},
                         arrow.text));
  }
  xs.order.forEach((time, i) => {
    const start = xs.order[0];
    picture.append(shape("text", {x: xs.at.get(time), y: height - (i % 2 ? 2 : 15), class: "tick"},
                         i ? `+${time_text(time - start)}` : "0"));
  });
  return element("figure", {}, element("div", {class: "scroll", tabindex: 0}, picture),
                 element("figcaption", {},
                         (cell === null ? "" : `Bytes ${history.place(cell)}. `) +
                         "The operations that prove it, each from its sending to its reply; time " +
                         "is not to scale." +
                         (returns.length ? " Solid arrows: why the read had to see a write. " +
                          "Dashed red: the write whose content it returned." : "")));
}

function short(text, length) {
  return text.length > length ? `${text.slice(0, length - 1)}…` : text;
}

// A column for each moment; wide where an operation without company needs room for its words.
function figure_columns(history, operations, restarts) {
  const moments = new Set(restarts);
  for (const i of operations) moments.add(history.send[i]).add(history.end[i]);
  const order = [...moments].sort((a, b) => a - b);
  const at = new Map();
  let x = FIGURE.gutter;
  order.forEach((time, n) => {
    at.set(time, x);
    const next = order[n + 1];
    const alone = operations.some((i) => history.send[i] === time && history.end[i] === next);
    x += alone ? FIGURE.wide : FIGURE.gap;
  });
  return {order, at, width: x + 24};
}

function arrow_heads() {
  const head = (name) => shape("marker", {
    id: `head-${name}-${figures}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8,
    orient: "auto", markerUnits: "userSpaceOnUse"
  }, shape("path", {d: "M0,0 L8,4 L0,8 z", class: `head ${name}`}));
  return shape("defs", {}, head("must"), head("saw"), head("order"));
}

// From the reply of one to the sending of the other; what was returned comes round below all lanes,
// where the path of what had to be seen does not run. x and y: where its text stands.
function arrow_path(history, xs, middle, arrow) {
  const {from, to} = arrow;
  const same = history.connection[from] === history.connection[to];
  const half = FIGURE.bar / 2;
  if (arrow.kind === "saw") {
    const x1 = (xs.at.get(history.send[from]) + xs.at.get(history.end[from])) / 2;
    const x2 = (xs.at.get(history.send[to]) + xs.at.get(history.end[to])) / 2;
    const y1 = middle(from) + half, y2 = middle(to) + half + 3, floor = arrow.floor;
    const round = 10 * Math.sign(x2 - x1 || 1);
    return {d: `M${x1},${y1} V${floor - 10} Q${x1},${floor} ${x1 + round},${floor} ` +
               `H${x2 - round} Q${x2},${floor} ${x2},${floor - 10} V${y2}`,
            x: (x1 + x2) / 2, y: floor + 4};
  }
  const x1 = xs.at.get(history.end[from]), x2 = xs.at.get(history.send[to]);
  const y1 = middle(from), y2 = middle(to);
  if (same) return {d: `M${x1},${y1} L${x2 - 1},${y2}`, x: (x1 + x2) / 2, y: y1 - half - 6};
  const bend = Math.max(20, (x2 - x1) / 2);
  return {d: `M${x1},${y1} C${x1 + bend},${y1} ${x2 - bend},${y2} ${x2 - 1},${y2}`,
          x: (x1 + x2) / 2, y: (y1 + y2) / 2 - 4};
}

function figure_arrow(history, xs, middle, arrow) {
  return shape("path", {d: arrow_path(history, xs, middle, arrow).d, class: `arrow ${arrow.kind}`,
                        "marker-end": `url(#head-${arrow.kind}-${figures})`});
}
