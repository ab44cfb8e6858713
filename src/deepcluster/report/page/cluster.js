// The page of one cluster.
"use strict";

(() => {
  const { NO_CLUSTER, changes, h, count, images, clusterLink, grid, toast, worded } = deepcluster;

  const {
    dot, heading, ordered, typical, nameField, otherNames, mixture, taught, share, mergeInto, near, strip,
  } = deepcluster.members;

  const sortKept = { by: "typical" };

  function cluster(text) {
    const number = Number(text);
    const now = changes.root(number);
    if (now !== number) {
      location.replace(clusterLink(now));
      return { title: "", element: h("div") };
    }
    const out = number === NO_CLUSTER;
    const sort = h(
      "select", { "aria-label": worded("Order of the images") }, h("option", { value: "typical" }, "nearest the centre first"),
      h("option", { value: "doubtful" }, "most doubtful first"), h("option", { value: "random" }, "at random"),
    );
    sort.value = sortKept.by;
    const view = grid.create({
      label: changes.titleOf(number), tools: [h("label", {}, h("span", { class: "long" }, "Order "), sort)],
      empty: worded(out ? "No image was taken out of its cluster." : "This cluster has no images now."),
    });
    const head = h("div", { class: "cluster-head" });
    let only = null; // the part that is shown alone
    function fill() {
      const rows = changes.rowsOf(number);
      const texts = deepcluster.clusterShares();
      const order = changes.clusters();
      const at = order.indexOf(number);
      const step = (by, name) => (at >= 0 && order.length > 1 ? h(
        "a", { class: "button", href: clusterLink(order[(at + by + order.length) % order.length]), title: `Key: ${by < 0 ? "[" : "]"}`, "data-step": by }, name,
      ) : null);
      const neighbours = near(number);
      const parts = out ? [] : changes.partsOf(number);
      const alone = parts.length > 1 ? parts.find((part) => part.number === only) : undefined;
      head.replaceChildren(
        h("div", { class: "crumbs" }, h("a", { href: "#/clusters" }, "Clusters"), h("span", { class: "steps" }, step(-1, "Previous"), step(1, "Next"))),
        out
          ? heading("Taken out")
          : h("h1", { class: "title-field" }, dot(number), nameField(number)),
        h("p", { class: "lead" }, out ? worded("Images that belong in none of the clusters, as a person said. Move them where they belong, or leave them here. ") : changes.nameOf(number) ? `Cluster ${number} · ` : "", share(number, texts)),
        otherNames(number) ?? "",
        mixture(rows, 6) ?? "",
        taught(rows) ?? "",
        parts.length > 1 ? fallsInto(parts, alone) : "",
        out || order.length < 2 ? "" : h(
          "div", { class: "near" },
          h("h2", {}, neighbours.length ? "Nearest clusters" : "Other clusters"),
          h(
            "div", { class: "chips" },
            ...neighbours.map((other) => h(
              "a", { class: "chip", href: clusterLink(other) },
              strip(typical(changes.rowsOf(other), 3), 32),
              h("span", { dir: "auto" }, changes.titleOf(other)),
            )),
            h("button", { type: "button", onclick: () => mergeInto(number) }, "Merge into another …"),
          ),
        ),
      );
      if (alone) view.setRows(ordered(alone.rows, sortKept.by), `Shown ${count(alone.rows.length)} of ${images(rows.length)}`);
      else view.setRows(ordered(rows, sortKept.by));
    }

    /** The parts of the cluster: a click shows one alone. */
    function fallsInto(parts, alone) {
      return h(
        "div", { class: "near" }, h("h2", {}, "It falls into"),
        h(
          "div", { class: "chips" },
          ...parts.map((part) => h(
            "button",
            {
              type: "button", class: "chip", "aria-pressed": String(part === alone), title: "Show only these", "aria-label": `Part of ${images(part.rows.length)}`,
              onclick: () => {
                only = part === alone ? null : part.number;
                fill();
              },
            },
            strip(typical(part.rows, 4), 32), h("span", {}, count(part.rows.length)),
          )),
          changes.canOpen(number) ? h("button", { type: "button", onclick: () => toast(changes.open(number)) }, "Open into two") : "",
        ),
      );
    }
    sort.addEventListener("change", () => {
      sortKept.by = sort.value;
      fill();
    });
    const element = h(
      "div", {}, head,
      h(
        "p", { class: "note keys" }, "Click a picture to see what is most like it; click its corner to select it. ",
        h("span", { class: "long" }, "Keys: arrows, space selects, Shift a range, m moves, x takes out."),
      ),
      view.element,
    );
    return {
      title: changes.titleOf(number), element, attached: fill, refresh: fill, destroy: view.destroy,
      key(event) {
        const by = { "[": "-1", "]": "1" }[event.key];
        if (by) head.querySelector(`[data-step="${by}"]`)?.click();
      },
    };
  }

  deepcluster.views.cluster = cluster;
})();
