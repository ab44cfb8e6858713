// The page of unusual images: far from everything, or nearly the same.
"use strict";

(() => {
  const { NO_CLUSTER, changes, h, count, images, picture, imageLink, clusterLink, nameOf, toast, grid, worded } = deepcluster;

  const { heading } = deepcluster.members;

  function unusual(what) {
    const pairs = what === "pairs";
    const tab = (target, name, on) => h("a", { class: "tab", href: target, "aria-current": on ? "page" : undefined }, name);
    const place = h("div", {});
    const view = pairs ? null : grid.create({ label: worded("Images farthest from all others") });
    const { summary } = deepcluster;
    const { duplicates, neighbours } = summary;
    const note = pairs
      ? `Pairs that are far more alike than an image and the one most like it usually are: ${summary.item === "vector" ? "copies, perhaps" : "copies, or pictures of one moment"}. Closer than ${duplicates.threshold.toPrecision(2)}, a quarter of the usual distance.`
      : `The images least like the ${neighbours.k} that are most like them: damaged, odd, or alone of their kind. The farthest first.`;
    const element = h(
      "div", {},
      h("header", { class: "hero" }, heading(worded("Unusual images")), h("p", { class: "lead" }, worded(note))),
      h("nav", { class: "tabs", "aria-label": worded("Kinds of unusual images") }, tab("#/unusual", "Far from everything", !pairs), tab("#/unusual/pairs", "Nearly the same", pairs)),
      place,
    );
    const show = () => deepcluster.load("neighbours").then((data) => {
      if (!pairs) {
        const rows = Int32Array.from(deepcluster.unpack(data.outliers));
        const { n } = deepcluster.table;
        view.setRows(rows, rows.length < n ? `The ${count(rows.length)} farthest of ${images(n)}` : `All ${images(n)}`);
        return;
      }
      const list = deepcluster.unpack(data.pairs);
      const distances = deepcluster.unpack(data.pairDistances);
      const cards = Array.from(distances, (distance, i) => pairCard(list[2 * i], list[2 * i + 1], distance));
      place.replaceChildren(
        h("p", { class: "note" }, cards.length
          ? `Shown ${count(cards.length)} of ${count(duplicates.total)}, the closest first.` : "There are none."),
        h("div", { class: "pairs" }, ...cards),
      );
    });
    if (view) place.append(view.element);
    return { title: "Unusual", element, attached: show, refresh: show, destroy: () => view?.destroy() };
  }

  function pairCard(a, b, distance) {
    const half = (row) => {
      const cluster = changes.clusterOf(row);
      return h(
        "div", { class: "pair-half" }, picture(row, 112),
        h("a", { class: "pair-name", href: imageLink(row), dir: "auto" }, nameOf(row)),
        h("a", { class: "note", href: clusterLink(cluster), dir: "auto" }, changes.titleOf(cluster)),
        cluster === NO_CLUSTER ? h("span", { class: "note" }, "taken out")
          : h("button", { type: "button", class: "quiet", onclick: () => toast(changes.move([row], NO_CLUSTER)) }, "Take out"),
      );
    };
    const { label, classes } = deepcluster.table;
    const split = changes.clusterOf(a) !== changes.clusterOf(b);
    const other = label[a] >= 0 && label[b] >= 0 && label[a] !== label[b];
    return h(
      "article", { class: "pair" }, half(a), half(b),
      h("p", { class: "note" }, `Distance ${distance.toPrecision(2)}${split ? " · in two clusters" : ""}${other ? ` · labelled ${classes[label[a]]} and ${classes[label[b]]}` : ""}`),
    );
  }

  function missing() {
    return {
      title: "Not found",
      element: h("div", { class: "hero" }, heading("There is no such page"), h("p", {}, h("a", { href: "#/" }, "Go to the overview"))),
    };
  }

  Object.assign(deepcluster.views, { unusual, missing });
})();
