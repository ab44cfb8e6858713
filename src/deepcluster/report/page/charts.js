// Small charts as SVG: lines over epochs, bars of sizes. Colours come from the style sheet.
"use strict";

deepcluster.charts = (() => {
  const { h, count, worded } = deepcluster;
  const WIDTH = 380, HEIGHT = 210, LEFT = 48, RIGHT = 10, TOP = 10, BOTTOM = 26;

  const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

  /** Round steps that cover [low, high]: at most `most` + 1 of them. */
  function ticks(low, high, most = 4) {
    const rough = (high - low) / most || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough - 1e-12);
    const first = Math.ceil(low / step - 1e-9);
    const last = Math.floor(high / step + 1e-9);
    return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  }

  const short = (value) => (Math.abs(value) >= 1000 ? count(value) : String(Number(value.toPrecision(3))));

  /**
   * Lines over epochs with their values at the pointer (else the last ones) below.
   * series: [{name, values, kind}] with a class name as kind; epochs with null are skipped.
   */
  function lines({ title, note, epochs, series, low, high, format = short }) {
    const shown = series.filter(({ values }) => values.filter(isNumber).length > (epochs.length > 1 ? 1 : 0));
    if (!shown.length) return null;
    const all = shown.flatMap(({ values }) => values.filter(isNumber));
    let bottom = low ?? Math.min(...all);
    let top = high ?? Math.max(...all);
    if (top - bottom < 1e-9) [bottom, top] = [bottom - 0.5, top + 0.5];
    if (low === undefined || high === undefined) {
      const pad = (top - bottom) * 0.06;
      if (low === undefined) bottom -= pad;
      if (high === undefined) top += pad;
    }
    const first = epochs[0];
    const last = epochs[epochs.length - 1];
    const x = (epoch) => LEFT + ((WIDTH - LEFT - RIGHT) * (last > first ? (epoch - first) / (last - first) : 0.5));
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - bottom) / (top - bottom));
    const parts = [];
    for (const value of ticks(bottom, top)) {
      parts.push(
        h("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
        h("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)),
      );
    }
    const marks = last > first ? ticks(first, last, 5).filter(Number.isInteger) : [first];
    for (const epoch of marks) {
      parts.push(h("text", { class: "tick", x: x(epoch), y: HEIGHT - 8, "text-anchor": "middle" }, String(epoch)));
    }
    for (const { values, kind } of shown) {
      let path = "";
      values.forEach((value, i) => {
        if (isNumber(value)) path += `${path ? "L" : "M"}${x(epochs[i]).toFixed(1)} ${y(value).toFixed(1)}`;
      });
      parts.push(h("path", { class: `curve ${kind}`, d: path }));
      const at = values.findLastIndex(isNumber);
      if (at >= 0) parts.push(h("circle", { class: `dot ${kind}`, cx: x(epochs[at]), cy: y(values[at]), r: 3 }));
    }
    const cursor = h("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, x1: -9, x2: -9 });
    const said = shown.map(({ name, values }) => {
      const numbers = values.filter(isNumber);
      return `${name} from ${format(numbers[0])} to ${format(numbers[numbers.length - 1])}`;
    });
    const drawing = h(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "chart", role: "img", "aria-label": `${title}: ${said.join("; ")}` },
      ...parts, cursor,
    );
    const when = h("span", { class: "when" });
    const readings = shown.map(({ name, kind }) => {
      const value = h("b", {});
      return { value, line: h("span", { class: "reading" }, h("i", { class: `key ${kind}` }), `${name} `, value) };
    });
    function read(i) {
      when.textContent = `epoch ${epochs[i]}`;
      shown.forEach(({ values }, j) => {
        const value = values.slice(0, i + 1).findLast(isNumber); // not every epoch has one
        readings[j].value.textContent = value === undefined ? "–" : format(value);
      });
    }
    const end = epochs.length - 1;
    read(end);
    drawing.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect();
      const px = ((event.clientX - box.left) / box.width) * WIDTH;
      let best = 0;
      epochs.forEach((epoch, i) => {
        if (Math.abs(x(epoch) - px) < Math.abs(x(epochs[best]) - px)) best = i;
      });
      cursor.setAttribute("x1", x(epochs[best]));
      cursor.setAttribute("x2", x(epochs[best]));
      read(best);
    });
    drawing.addEventListener("pointerleave", () => {
      cursor.setAttribute("x1", -9);
      cursor.setAttribute("x2", -9);
      read(end);
    });
    return h(
      "figure", { class: "panel" },
      h("figcaption", {}, h("h3", {}, title), h("p", {}, note)),
      drawing,
      h("div", { class: "readings" }, ...readings.map(({ line }) => line), when),
    );
  }

  /** Bars of sizes, the largest first, against an even size. bars: [{size, title, href}] */
  function bars(items) {
    const sorted = [...items].sort((a, b) => b.size - a.size);
    const total = sorted.reduce((sum, { size }) => sum + size, 0);
    const even = total / sorted.length;
    const top = sorted[0].size;
    const width = 1100, height = 180;
    const step = (width - LEFT - RIGHT) / sorted.length;
    const gap = Math.min(6, step * 0.2);
    const y = (size) => TOP + (height - TOP - 8) * (1 - size / top);
    const parts = ticks(0, top, 3).flatMap((value) => [
      h("line", { class: "grid", x1: LEFT + 14, x2: width - RIGHT, y1: y(value), y2: y(value) }),
      h("text", { class: "tick", x: LEFT + 8, y: y(value) + 4, "text-anchor": "end" }, count(value)),
    ]);
    sorted.forEach(({ size, title }, i) => {
      const bar = h("rect", {
        class: "bar-of", x: LEFT + 16 + i * step, y: y(size), width: Math.max(step - gap, 0.5),
        height: Math.max(y(0) - y(size), 0.5), rx: Math.min(3, step / 4),
      });
      bar.append(h("title", {}, title));
      parts.push(bar);
    });
    parts.push(h("line", { class: "even", x1: LEFT + 14, x2: width - RIGHT, y1: y(even), y2: y(even) }));
    return h(
      "svg",
      {
        viewBox: `0 0 ${width} ${height}`, class: "chart wide", role: "img",
        "aria-label": worded(`Sizes of ${sorted.length} clusters, from ${count(top)} to ${count(sorted[sorted.length - 1].size)} images`),
      },
      ...parts,
    );
  }

  return { lines, bars, isNumber };
})();
