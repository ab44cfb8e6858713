// The page of one image.
"use strict";

(() => {
  const { NO_CLUSTER, changes, h, percent, picture, clusterLink, nameOf, toast, grid, worded } = deepcluster;

  const { near } = deepcluster.members;

  function image(id) {
    const { table, summary } = deepcluster;
    const row = table.rowOf.get(id);
    if (row === undefined) return deepcluster.views.missing();
    const { k, recall } = summary.neighbours;
    const view = grid.create({ label: worded("Images most like this one"), empty: worded("There are no other images.") });
    const own = h("div", { class: "one-image" });
    const original = originalOf(row);
    const look = large(row, original);
    function fill() {
      const number = changes.clusterOf(row);
      const confidence = table.confidence[row];
      const pairs = [
        ["Cluster", h("a", { href: clusterLink(number), dir: "auto" }, changes.titleOf(number))],
        ["Put there by", changes.byPerson(row) ? "a person" : "the model"],
        table.label[row] >= 0 ? ["Class", table.classes[table.label[row]]] : null,
        table.said ? ["Class by the classifier", h("a", { href: `#/classes/${table.said[row]}` }, h("bdi", {}, summary.taught.names[table.said[row]]), Number.isNaN(table.sure[row]) ? " (labelled)" : ` (${percent(table.sure[row])})`)] : null,
        Number.isNaN(confidence) || changes.moved.has(row) ? null : ["Confidence", percent(confidence)],
        Number.isNaN(table.distance[row]) || changes.moved.has(row) ? null : ["Distance to the centre", table.distance[row].toFixed(3)],
        ["Id", table.ids[row]],
        table.pathOf(row) ? ["Original", original ? h("a", { href: original, target: "_blank", rel: "noopener" }, table.pathOf(row)) : table.pathOf(row)] : null,
      ].filter(Boolean);
      const move = async () => {
        const target = await grid.chooseCluster({ title: worded("Move this image to …"), without: [number], fresh: true, first: near(number) });
        if (target !== null) toast(changes.move([row], target));
      };
      own.replaceChildren(
        look,
        h(
          "div", {},
          h("h1", { class: "image-name", dir: "auto" }, nameOf(row)),
          h("dl", { class: "facts" }, ...pairs.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, value)))),
          h(
            "div", { class: "tools" }, h("button", { type: "button", class: "primary", onclick: move }, "Move to …"),
            number === NO_CLUSTER ? "" : h("button", { type: "button", onclick: () => toast(changes.move([row], NO_CLUSTER)) }, "Not this"),
          ),
        ),
      );
    }
    const seen = summary.settings.backbone === "given" ? "" : ", as the net sees them";
    const how = [`The ${k} images most like it${seen}, the nearest first.`];
    if (recall < 1) how.push(`There are very many images, so the search is not exact: it finds ${percent(recall, 1)} of them.`);
    const element = h(
      "div", {},
      h("div", { class: "crumbs" }, h("a", { href: "#/", onclick: (event) => { if (history.length > 1) { event.preventDefault(); history.back(); } } }, "Back")),
      own,
      h("section", {}, h("h2", {}, "Most like it"), h("p", { class: "note" }, worded(how.join(" "))), view.element),
    );
    const show = () => deepcluster.load("neighbours").then(({ index }) => {
      neighbourIndex ??= deepcluster.unpack(index);
      view.setRows(Int32Array.from(neighbourIndex.subarray(row * k, (row + 1) * k)));
    });
    fill();
    return {
      title: nameOf(row), element, attached: show, destroy: view.destroy,
      refresh() {
        fill();
        show();
      },
    };
  }

  let neighbourIndex = null;

  /** Where the page finds the file of an image, or null. */
  function originalOf(row) {
    const { originals } = deepcluster.summary;
    const rest = deepcluster.table.restOf(row);
    if (!originals || rest === null) return null;
    try {
      return originals + rest.split("/").map(encodeURIComponent).join("/");
    } catch {
      return null; // half of a surrogate pair: a name that is no UTF-8
    }
  }

  /** The picture as large as may be: the original; in its place the small one, where it cannot be shown. */
  function large(row, original) {
    const small = picture(row, 256, { link: false });
    const box = h("div", { class: "large" }, small);
    if (!original) return box;
    const image = h("img", { src: original, alt: nameOf(row), decoding: "async" });
    image.addEventListener("load", () => box.replaceChildren(h("a", { href: original, target: "_blank", rel: "noopener", title: "Open the original" }, image)));
    image.addEventListener("error", () => box.append(h("p", { class: "note" }, "A small copy: the original is no longer there, or of a kind that browsers do not show.")));
    return box;
  }

  deepcluster.views.image = image;
})();
