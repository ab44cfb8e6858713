// What the pages share: the order of a cluster's images, its name, classes and nearest clusters.
"use strict";

(() => {
  const { changes, h, count, images, picture, colourOf, classColourOf, css, toast, clusterLink, grid } = deepcluster;

  const dot = (cluster) => h("i", { class: "swatch", style: { background: css(colourOf(cluster)) }, "aria-hidden": "true" });
  const classDot = (code) => h("i", { class: "swatch of-class", style: { background: css(classColourOf(code)) }, "aria-hidden": "true" });
  const heading = (text, ...more) => h("h1", { dir: "auto" }, text, ...more);

  // -- orders ------------------------------------------------------------------------------------

  function sortedBy(rows, key) {
    const keys = Float64Array.from(rows, key);
    const order = Uint32Array.from(rows, (_, i) => i).sort((a, b) => keys[a] - keys[b] || a - b);
    return Int32Array.from(order, (i) => rows[i]);
  }

  /** How far from the centre; images a person put there, whose distance is not known, last. */
  function farness(row) {
    const distance = deepcluster.table.distance[row];
    return Number.isNaN(distance) || changes.moved.has(row) ? Infinity : distance;
  }

  /** The least confident first; without confidences, the farthest from the centre first. */
  function doubt(row) {
    const { confidence, distance, rated } = deepcluster.table;
    const value = rated ? confidence[row] : -distance[row];
    return Number.isNaN(value) || changes.moved.has(row) ? Infinity : value;
  }

  /** The same order every time, with no pattern to it. */
  function chance(row) {
    let x = Math.imul(row + 1, 2654435761) >>> 0;
    x = Math.imul(x ^ (x >>> 15), 2246822519) >>> 0;
    return (x ^ (x >>> 13)) >>> 0;
  }

  const ORDERS = { typical: farness, doubtful: doubt, random: chance };

  /** All rows in an order. */
  const ordered = (rows, order) => sortedBy(rows, ORDERS[order]);

  /** The first `most` rows of an order, without sorting all; those in `without` are left out. */
  function first(rows, order, most, without = null) {
    const key = ORDERS[order];
    const best = [];
    const keys = [];
    for (const row of rows) {
      const value = key(row);
      if ((best.length === most && value >= keys[most - 1]) || without?.has(row)) continue;
      let at = keys.length;
      while (at > 0 && keys[at - 1] > value) at--;
      keys.splice(at, 0, value);
      best.splice(at, 0, row);
      if (best.length > most) {
        best.pop();
        keys.pop();
      }
    }
    return best;
  }

  /**
   * The `most` that show best what is in a cluster: nearest the centre, of each cluster of the fit
   * in it by its share, since there is no other centre.
   */
  function typical(rows, most) {
    const kinds = new Map();
    for (const row of rows) {
      const kind = deepcluster.table.cluster[row];
      if (!kinds.has(kind)) kinds.set(kind, []);
      kinds.get(kind).push(row);
    }
    if (kinds.size < 2) return first(rows, "typical", most);
    const chosen = [];
    let left = rows.length;
    for (const kind of [...kinds.values()].sort((a, b) => b.length - a.length)) {
      const room = Math.min(kind.length, Math.round(((most - chosen.length) * kind.length) / left));
      chosen.push(...first(kind, "typical", room));
      left -= kind.length;
    }
    return chosen;
  }

  // -- a cluster in short ------------------------------------------------------------------------

  function nameField(cluster) {
    const field = h("input", {
      class: "name-field", type: "text", value: changes.nameOf(cluster), placeholder: `Cluster ${cluster}: give it a name`,
      "aria-label": `Name of cluster ${cluster}`, maxlength: 200, dir: "auto", spellcheck: "false",
    });
    field.addEventListener("change", () => toast(changes.rename(cluster, field.value)));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") field.blur();
      if (event.key === "Escape") {
        field.value = changes.nameOf(cluster);
        field.blur();
      }
    });
    return field;
  }

  /** Names that parts of the cluster have at a finer level, or null. */
  function otherNames(cluster) {
    const others = changes.othersOf(cluster);
    if (!others.length) return null;
    const shown = others.slice(0, 4);
    return h(
      "p", { class: "other-names" }, changes.nameOf(cluster) && !others.some(({ size }) => size === changes.rowsOf(cluster).length) ? "Also in it: " : "In it: ",
      ...shown.flatMap(({ name, size }, i) => [i ? ", " : "", h("bdi", {}, name), ` (${count(size)})`]),
      others.length > shown.length ? ` and ${others.length - shown.length} more names` : "",
    );
  }

  /** The classes of the images as a striped bar, the most frequent ones in words. */
  function mixture(rows, most = 3) {
    if (!deepcluster.summary.labelled || !rows.length) return null;
    const mix = deepcluster.classMix(rows);
    const texts = deepcluster.shares(mix.map(({ size }) => size));
    const words = mix.slice(0, most).map(({ name, code }, i) => h("span", { class: "mix-word" }, classDot(code), h("bdi", {}, name), h("span", {}, texts[i])));
    if (mix.length > most) words.push(h("span", { class: "mix-word" }, `${mix.length - most} more`));
    return h(
      "div", { class: "mixture" },
      h("div", { class: "stripes", role: "img", "aria-label": `Classes: ${mix.slice(0, 5).map(({ name }, i) => `${name} ${texts[i]}`).join(", ")}` },
        ...mix.slice(0, 20).map(({ code, size, name }, i) => h("i", {
          title: `${name}: ${texts[i]}`, style: { width: `${(100 * size) / rows.length}%`, background: css(classColourOf(code)) },
        }))),
      h("div", { class: "mix-words" }, ...words),
    );
  }

  /** What the classifier makes of the images, the most frequent classes first. */
  function taught(rows, most = 6) {
    const { said } = deepcluster.table;
    if (!said || !rows.length) return null;
    const sizes = new Map();
    for (const row of rows) sizes.set(said[row], (sizes.get(said[row]) ?? 0) + 1);
    const found = [...sizes].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const texts = deepcluster.shares(found.map(([, size]) => size));
    return h(
      "p", { class: "mix-words" }, "By the classifier: ",
      ...found.slice(0, most).map(([code], i) => h("a", { class: "mix-word", href: `#/classes/${code}` }, h("bdi", {}, deepcluster.summary.taught.names[code]), texts[i])),
      found.length > most ? `${count(found.length - most)} more` : "",
    );
  }

  const share = (cluster, texts) => `${images(changes.rowsOf(cluster).length)} · ${texts.get(cluster) ?? "0 %"}`;

  async function mergeInto(cluster) {
    const target = await grid.chooseCluster({
      title: `Merge ${changes.titleOf(cluster)} into …`, without: [cluster], first: near(cluster),
    });
    if (target === null) return;
    const message = changes.merge(cluster, target);
    if (location.hash === clusterLink(cluster)) location.replace(clusterLink(target));
    toast(message);
  }

  /** Clusters near one, as they stand: by the fit at its own number, by the tree at others. */
  function near(number) {
    const known = changes.atOwnLevel && deepcluster.summary.clusters.find((one) => one.number === number);
    if (!known) return changes.kin(number);
    const list = [];
    for (const other of known.near) {
      const now = changes.root(other);
      if (now !== number && !list.includes(now) && changes.rowsOf(now).length) list.push(now);
    }
    return list;
  }

  /** Small pictures side by side. */
  const strip = (rows, size) => h("span", { class: "strip" }, ...rows.map((row) => picture(row, size, { link: false })));

  deepcluster.members = {
    dot, heading, ordered, first, typical, nameField, otherNames, mixture, taught, share, mergeInto, near, strip,
  };
})();
