// The page of the classes that a classifier made of a few labels gives the images.
"use strict";

(() => {
  const { changes, h, count, counted, images, percent, clusterLink, grid, worded } = deepcluster;

  const { dot, heading, strip, first } = deepcluster.members;

  /** Images of each class, by its number. */
  function rowsByClass() {
    const rows = deepcluster.summary.taught.names.map(() => []);
    deepcluster.table.said.forEach((code, row) => rows[code].push(row));
    return rows;
  }

  /** The least sure first; images that a person labelled last. */
  function doubtfulFirst(rows) {
    const { sure } = deepcluster.table;
    const key = (row) => (Number.isNaN(sure[row]) ? 2 : sure[row]);
    return Int32Array.from(rows).sort((a, b) => key(a) - key(b) || a - b);
  }

  function classes(text) {
    const { taught } = deepcluster.summary;
    if (!taught) return deepcluster.views.missing();
    const byClass = rowsByClass();
    const chosen = text === "" ? -1 : Number(text);
    if (chosen !== -1 && !byClass[chosen]) return deepcluster.views.missing();
    const view = grid.create({
      label: chosen < 0 ? worded("Images to label next") : `${worded("Images")} of class ${taught.names[chosen]}`, empty: "There are none.",
    });
    const chip = (target, on, rows, name, note) => h(
      "a", { class: "chip", href: target, "aria-current": on ? "page" : undefined },
      strip(rows, 32), h("bdi", {}, name), h("span", { class: "note" }, note),
    );
    const chips = h(
      "nav", { class: "chips", "aria-label": "Classes" },
      chip("#/classes", chosen < 0, taught.next.slice(0, 3), "To label next", count(taught.next.length)),
      ...byClass.map((rows, code) => chip(`#/classes/${code}`, code === chosen, first(rows, "random", 3), taught.names[code], count(rows.length))),
    );
    const element = h(
      "div", {},
      h("header", { class: "hero" }, heading("Classes"), h(
        "p", { class: "lead" },
        `What ${counted(taught.labels, "label")} make of ${images(deepcluster.table.n)}. Expected to be right on ${percent(taught.accuracy)} of them; nine times in ten that is between ${percent(taught.low)} and ${percent(taught.high)}.`,
      )),
      chips,
      ...(chosen < 0 ? toLabel(taught) : ofClass(chosen, byClass[chosen])),
      view.element,
    );
    return {
      title: chosen < 0 ? "Classes" : taught.names[chosen], element, destroy: view.destroy,
      attached: () => view.setRows(chosen < 0 ? Int32Array.from(taught.next) : doubtfulFirst(byClass[chosen])),
    };
  }

  function toLabel(taught) {
    return [
      h("h2", {}, taught.next.length === 1 ? "Label this one next" : `Label these ${count(taught.next.length)} next`),
      h("p", { class: "note" }, worded("The classifier doubts them, and what is most like them: their labels would help most. This makes the page to label such images in:")),
      h("pre", {}, taught.suggest),
    ];
  }

  function ofClass(code, rows) {
    const { names, expectedOf } = deepcluster.summary.taught;
    const sizes = new Map();
    for (const row of rows) sizes.set(changes.clusterOf(row), (sizes.get(changes.clusterOf(row)) ?? 0) + 1);
    const inside = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, 12);
    const expected = expectedOf[code] === null ? "" : `, ${percent(expectedOf[code])} of them expected to be right`;
    return [
      h("h2", { dir: "auto" }, names[code]),
      h("p", { class: "note" }, `${images(rows.length)}${expected}. The most doubtful first.`),
      h(
        "div", { class: "mix-words" }, inside.length ? "In clusters: " : "",
        ...inside.map(([cluster, size]) => h("a", { class: "mix-word", href: clusterLink(cluster) }, dot(cluster), h("span", { dir: "auto" }, changes.titleOf(cluster)), count(size))),
      ),
    ];
  }

  deepcluster.views.classes = classes;
})();
