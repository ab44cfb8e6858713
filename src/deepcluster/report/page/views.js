// The pages: overview, clusters, one cluster, map, one image, unusual images.
"use strict";

deepcluster.views = (() => {
  const {
    NO_CLUSTER, changes, h, count, images, percent, duration, picture, imageLink, clusterLink, nameOf,
    colourOf, css, toast, charts, grid,
  } = deepcluster;
  const COVERED = 24; // clusters on the first screen

  const dot = (cluster) => h("i", { class: "swatch", style: { background: css(colourOf(cluster)) }, "aria-hidden": "true" });
  const heading = (text, ...more) => h("h1", { dir: "auto" }, text, ...more);

  // -- overview --------------------------------------------------------------------------------

  const MARKS = { good: "✓", fair: "~", bad: "!" };
  const LEVELS = { good: "No warning", fair: "Look closer", bad: "Warning" };

  function overview() {
    const { summary } = deepcluster;
    const edited = changes.any && deepcluster.table;
    const clusters = edited
      ? changes.clusters().map((number) => ({ number, size: changes.rowsOf(number).length }))
      : summary.clusters;
    const sorted = [...clusters].sort((a, b) => b.size - a.size);
    const texts = edited ? deepcluster.clusterShares() : seedShares();
    const many = `${count(clusters.length)} ${clusters.length === 1 ? "cluster" : "clusters"}`;
    const element = h(
      "div", { class: "overview" },
      h(
        "header", { class: "hero" },
        heading(`${images(summary.images)} in ${many}`),
        h("p", { class: "lead", dir: "auto" }, facts(summary).join(" · ")),
      ),
      verdict(summary.verdict),
      h(
        "section", { "aria-label": "The clusters" },
        h("div", { class: "mosaic" }, ...sorted.slice(0, COVERED).map((cluster) => cover(cluster, texts, edited))),
        h(
          "p", { class: "note" },
          `${sorted.length > COVERED ? `Shown: the ${COVERED} largest of ${count(sorted.length)} clusters, ` : "Each with "}`
            + `the images nearest its centre. `,
          h("a", { href: "#/clusters" }, "Look at all clusters and name them"),
        ),
      ),
      scoreTable(summary),
      curves(summary),
      sizesPanel(sorted, texts),
      making(summary),
    );
    return { title: "Overview", element };
  }

  function seedShares() {
    const { clusters, images: total } = deepcluster.summary;
    const sizes = clusters.map(({ size }) => size);
    const out = total - sizes.reduce((sum, size) => sum + size, 0);
    const texts = deepcluster.shares(out ? [...sizes, out] : sizes);
    return new Map(clusters.map(({ number }, i) => [number, texts[i]]));
  }

  function facts({ title, settings, info }) {
    const list = [title, `${settings.method} with ${settings.backbone}`];
    const seconds = info.seconds;
    const { device, gpu, cpu } = info.hardware ?? {};
    const place = gpu ?? (device === "cpu" ? cpu : device) ?? "";
    if (charts.isNumber(seconds)) list.push(`${duration(seconds)}${place ? ` on ${place}` : ""}`);
    if (info.started) list.push(String(info.started).slice(0, 10));
    return list;
  }

  function verdict({ level, sentence, problems }) {
    const more = problems.length
      ? h("ul", {}, ...problems.map(([what, then]) => h(
        "li", {}, problems.length > 1 ? h("b", {}, `${what} `) : null, "What to try: ",
        ...then.split(/(--[\w.]+)/u).map((part) => (part.startsWith("--") ? h("code", {}, part) : part)),
      )))
      : null;
    const lines = problems.length > 1 ? `${problems.length} things look wrong with this fit.` : sentence;
    return h(
      "section", { class: `verdict ${level}`, "aria-label": "Is it to be trusted?" },
      h("span", { class: "mark", role: "img", "aria-label": LEVELS[level] }, MARKS[level]),
      h("div", {}, h("p", {}, lines), more),
    );
  }

  function cover({ number, size }, texts, edited) {
    const { covers } = deepcluster.summary;
    const at = covers.clusters.indexOf(number);
    let pictures;
    if (edited || at < 0) {
      pictures = typical(changes.rowsOf(number)).slice(0, covers.columns)
        .map((row) => squareTile(deepcluster.tileOf(row), deepcluster.summary.thumbnails.columns));
    } else {
      pictures = covers.items[at].map((_, i) => squareTile({ url: "data/covers.webp", left: i, top: at }, covers.columns, covers.clusters.length));
    }
    return h(
      "a", { class: "cover", href: clusterLink(number) },
      h("span", { class: "cover-pictures", "aria-hidden": "true" }, ...pictures),
      h(
        "span", { class: "cover-name" }, dot(number),
        h("b", { dir: "auto" }, changes.titleOf(number)),
        h("span", { class: "share" }, texts.get(number)),
      ),
      h("span", { class: "cover-size" }, images(size)),
    );
  }

  /** A picture that fills its place, whatever the size of that is. */
  function squareTile({ url, left, top }, columns, rows = null) {
    const { thumbnails } = deepcluster.summary;
    let down = rows;
    if (down === null) { // the last sheet may have fewer rows
      const number = thumbnails.sheets.indexOf(url.slice("thumbnails/".length));
      const rest = thumbnails.count - number * thumbnails.columns * thumbnails.rows;
      down = Math.min(thumbnails.rows, Math.ceil(rest / thumbnails.columns));
    }
    const share = (at, of) => (of > 1 ? `${(100 * at) / (of - 1)}%` : "0%");
    return h("span", {
      class: "fill",
      style: {
        backgroundImage: `url("${url}")`, backgroundSize: `${100 * columns}% ${100 * down}%`,
        backgroundPosition: `${share(left, columns)} ${share(top, down)}`,
      },
    });
  }

  const SCORES = [
    ["nmi", "NMI", "how much the clusters tell about the classes: 0 is nothing, 1 is all", 0, 1],
    ["acc", "ACC", "share of the images in the right place if each cluster is given one class of its own", 0, 1],
    ["ari", "ARI", "agreement on which pairs of images belong together: 0 is chance, 1 is full", 0, 1],
    ["silhouette", "Silhouette", "how clearly the clusters stand apart in feature space: below 0 they overlap, 1 is far apart; needs no labels", -1, 1],
    ["modularity", "Modularity", "share of an image's nearest images that are in its own cluster, less what chance gives: 0 is chance; needs no labels", 0, 1],
  ];

  function scoreTable({ scores, labelled, images: total, info }) {
    const fit = scores.fit ?? {};
    const pixels = scores.pixels ?? {};
    const known = SCORES.filter(([key]) => charts.isNumber(fit[key]));
    const named = new Set([...SCORES.map(([key]) => key), "nmi_arithmetic"]);
    const other = Object.keys(fit).filter((key) => !named.has(key) && charts.isNumber(fit[key]));
    const rows = [...known, ...other.map((key) => [key, key.replaceAll("_", " "), "", 0, 1])];
    const measured = labelled
      ? `Measured on the ${images(labelled)}${labelled < total ? ` of ${count(total)}` : ""} with a label `
        + `(${count(info.counts?.classes ?? 0)} classes). The fit has not seen the labels.`
      : "The source has no labels, so nothing can say how many images are in the right place. Judge by the pictures.";
    if (!rows.length) {
      return h("section", {}, h("h2", {}, "How good is it?"), h("p", {}, measured));
    }
    const beside = rows.some(([key]) => charts.isNumber(pixels[key]));
    const bar = (value, low, high, kind) => h(
      "span", { class: "meter" },
      h("i", { class: kind, style: { width: `${Math.max(0, Math.min(100, (100 * (value - low)) / (high - low)))}%` } }),
    );
    return h(
      "section", {},
      h("h2", {}, "How good is it?"),
      h("p", {}, measured),
      beside ? h(
        "p", { class: "readings" }, h("span", { class: "reading" }, h("i", { class: "key ours" }), "this fit"),
        h("span", { class: "reading" }, h("i", { class: "key theirs" }), "plain k-means on the pixels, for comparison"),
      ) : null,
      h("dl", { class: "scores" }, ...rows.map(([key, name, meaning, low, high]) => h(
        "div", {},
        h("dt", {}, name, h("small", {}, meaning, key === "nmi" && charts.isNumber(fit.nmi_arithmetic)
          ? ` (geometric mean; ${fit.nmi_arithmetic.toFixed(3)} with the arithmetic one)` : "")),
        h(
          "dd", {}, bar(fit[key], low, high, "ours"), h("b", {}, fit[key].toFixed(3)),
          ...(charts.isNumber(pixels[key])
            ? [bar(pixels[key], low, high, "theirs"), h("span", {}, pixels[key].toFixed(3))] : []),
        ),
      ))),
    );
  }

  function curves({ metrics, guessing }) {
    if (!metrics.length) return null;
    const epochs = metrics.map((line, i) => (charts.isNumber(line.epoch) ? line.epoch : i) + 1);
    const values = (key) => metrics.map((line) => (charts.isNumber(line[key]) ? line[key] : null));
    const fixed = (value) => value.toFixed(2);
    const panels = [
      charts.lines({
        title: "Loss", epochs,
        note: guessing
          ? "It must come down from ln k, the loss of guessing among k pseudo-clusters."
          : "What the training brings down. Where a new phase begins, it may jump.",
        series: [
          { name: "loss", values: values("loss"), kind: "a" },
          ...(guessing ? [{ name: "ln k", values: values("ln_k"), kind: "faint" }] : []),
        ],
      }),
      charts.lines({
        title: "Agreement", epochs, low: 0, high: 1, format: fixed,
        note: "NMI of the clusters of an epoch with those before, and with the labels if there are any. It rises, then settles.",
        series: [
          { name: "with those before", values: values("nmi_previous"), kind: "a" },
          { name: "with the labels", values: values("nmi"), kind: "b" },
        ],
      }),
      charts.lines({
        title: "Movement", epochs, low: 0, high: 1, format: percent,
        note: "Images that went to another cluster when the clusters were made anew. It should fall.",
        series: [{ name: "moved", values: values("changed"), kind: "a" }],
      }),
      charts.lines({
        title: "Occupancy", epochs, low: 0, high: 1, format: fixed,
        note: "Evenness of the sizes (1: all the same) and share of the largest cluster of an epoch. A largest share near 1 is a collapse.",
        series: [
          { name: "evenness", values: values("entropy"), kind: "a" },
          { name: "largest", values: values("largest"), kind: "b" },
        ],
      }),
      charts.lines({
        title: "Effective rank", epochs, low: 0,
        note: "Directions along which the features vary. One or two means that they have collapsed.",
        series: [{ name: "rank", values: values("effective_rank"), kind: "a" }],
      }),
      values("empty").some(Boolean) ? charts.lines({
        title: "Empty pseudo-clusters", epochs, low: 0,
        note: "Pseudo-clusters that k-means found empty and filled anew.",
        series: [{ name: "empty", values: values("empty"), kind: "a" }],
      }) : null,
    ].filter(Boolean);
    return h(
      "section", {}, h("h2", {}, "How it learned"),
      h("p", {}, `${count(metrics.length)} ${metrics.length === 1 ? "epoch" : "epochs"}. Each drawing has the epochs from left to right.`),
      h("div", { class: "panels" }, ...panels),
    );
  }

  function sizesPanel(sorted, texts) {
    if (sorted.length < 2) return null;
    const even = 100 / sorted.length;
    return h(
      "section", {}, h("h2", {}, "Sizes of the clusters"),
      h("p", {}, `From ${count(sorted[0].size)} down to ${images(sorted[sorted.length - 1].size)}. `
        + `The dashed line is an even share, ${even.toFixed(even < 2 ? 2 : 1)} %.`),
      charts.bars(sorted.map(({ number, size }) => ({
        size, title: `${changes.titleOf(number)}: ${images(size)}, ${texts.get(number)}`,
      }))),
    );
  }

  function making({ settings, info, skipped, skippedTotal, folder, images: total }) {
    const list = (pairs) => h("dl", { class: "facts" }, ...pairs.filter(([, value]) => value !== undefined && value !== null && value !== "")
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, String(value)))));
    const { counts = {}, hardware = {}, versions = {}, timings = {} } = info;
    const command = Array.isArray(info.command) ? info.command.join(" ") : info.command;
    const phases = Object.entries(timings).filter(([, value]) => charts.isNumber(value)).map(([name, value]) => [name, duration(value)]);
    return h(
      "section", {}, h("h2", {}, "How it was made"),
      ...(info.notes ?? []).map((note) => h("p", { class: "remark", dir: "auto" }, note)),
      h(
        "div", { class: "columns" },
        h("div", {}, h("h3", {}, "The fit"), list([
          ["Run folder", folder], ["Command", command], ["Images", count(total)], ["Left out", count(counts.skipped ?? skippedTotal)],
          ["Classes", counts.classes ? count(counts.classes) : "no labels"], ["Method", settings.method], ["Backbone", settings.backbone],
          ["Image size", `${settings.size} pixels`], ["Epochs", settings.epochs], ["Clusters asked for", settings["final.choose"] ? `chosen, up to ${settings.clusters}` : settings.clusters], ["Seed", info.seed],
          ["Started", info.started && String(info.started).replace("T", " ").slice(0, 16)],
        ])),
        h("div", {}, h("h3", {}, "Time"), list([["All", charts.isNumber(info.seconds) ? duration(info.seconds) : null], ...phases])),
        h("div", {}, h("h3", {}, "Machine and versions"), list([...Object.entries(hardware), ...Object.entries(versions)])),
      ),
      h("details", {}, h("summary", {}, "All settings"), list(Object.entries(settings))),
      skippedTotal ? h(
        "details", {}, h("summary", {}, skippedTotal === 1 ? "1 file that was left out" : `${count(skippedTotal)} files that were left out`),
        h("p", { class: "note" }, `Shown ${count(skipped.length)} of ${count(skippedTotal)}; all are in skipped.csv.`),
        list(skipped),
      ) : null,
    );
  }

  // -- what clusters have in common ------------------------------------------------------------

  function sortedBy(rows, key) {
    const keys = Float64Array.from(rows, key);
    const order = Uint32Array.from(rows, (_, i) => i).sort((a, b) => keys[a] - keys[b] || a - b);
    return Int32Array.from(order, (i) => rows[i]);
  }

  /** Nearest the centre first; images a person put there, whose distance is not known, last. */
  function typical(rows) {
    const { distance } = deepcluster.table;
    return sortedBy(rows, (row) => (Number.isNaN(distance[row]) || changes.moved.has(row) ? Infinity : distance[row]));
  }

  /** The least confident first; without confidences, the farthest from the centre first. */
  function doubtful(rows) {
    const { confidence, distance, rated } = deepcluster.table;
    return sortedBy(rows, (row) => {
      const value = rated ? confidence[row] : -distance[row];
      return Number.isNaN(value) || changes.moved.has(row) ? Infinity : value;
    });
  }

  /** The same order every time, with no pattern to it. */
  function random(rows) {
    return sortedBy(rows, (row) => {
      let x = Math.imul(row + 1, 2654435761) >>> 0;
      x = Math.imul(x ^ (x >>> 15), 2246822519) >>> 0;
      return (x ^ (x >>> 13)) >>> 0;
    });
  }

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

  /** The classes of the images as a striped bar, the most frequent ones in words. */
  function mixture(rows, most = 3) {
    if (!deepcluster.summary.labelled || !rows.length) return null;
    const mix = deepcluster.classMix(rows);
    const texts = deepcluster.shares(mix.map(({ size }) => size));
    const words = mix.slice(0, most).map(({ name, code }, i) => h("span", { class: "mix-word" }, dot(code), h("bdi", {}, name), h("span", {}, texts[i])));
    if (mix.length > most) words.push(h("span", { class: "mix-word" }, `${mix.length - most} more`));
    return h(
      "div", { class: "mixture" },
      h("div", { class: "stripes", role: "img", "aria-label": `Classes: ${mix.slice(0, 5).map(({ name }, i) => `${name} ${texts[i]}`).join(", ")}` },
        ...mix.slice(0, 20).map(({ code, size, name }, i) => h("i", {
          title: `${name}: ${texts[i]}`, style: { width: `${(100 * size) / rows.length}%`, background: css(colourOf(code)) },
        }))),
      h("div", { class: "mix-words" }, ...words),
    );
  }

  const share = (cluster, texts) => `${images(changes.rowsOf(cluster).length)} · ${texts.get(cluster) ?? "0 %"}`;

  async function mergeInto(cluster) {
    const known = deepcluster.summary.clusters.find(({ number }) => number === cluster);
    const target = await grid.chooseCluster({
      title: `Merge ${changes.titleOf(cluster)} into …`, without: [cluster], first: near(known),
    });
    if (target === null) return;
    const message = changes.merge(cluster, target);
    if (location.hash === clusterLink(cluster)) location.replace(clusterLink(target));
    toast(message);
  }

  /** Clusters near one, as they stand after merges. */
  function near(known) {
    const list = [];
    for (const other of known?.near ?? []) {
      const now = changes.root(other);
      if (now !== changes.root(known.number) && !list.includes(now) && changes.rowsOf(now).length) list.push(now);
    }
    return list;
  }

  // -- clusters --------------------------------------------------------------------------------

  const orderKept = { by: "size" };

  function clusters() {
    const out = changes.rowsOf(NO_CLUSTER).length;
    const numbers = changes.clusters();
    const sizeOf = (cluster) => changes.rowsOf(cluster).length;
    const orders = {
      size: (a, b) => sizeOf(b) - sizeOf(a) || a - b,
      number: (a, b) => a - b,
      name: (a, b) => (changes.nameOf(a) ? 0 : 1) - (changes.nameOf(b) ? 0 : 1) || changes.titleOf(a).localeCompare(changes.titleOf(b)) || a - b,
      doubt: (a, b) => meanConfidence(a) - meanConfidence(b) || a - b,
    };
    const field = h("div", { class: "cards" });
    const texts = deepcluster.clusterShares();
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        fillCard(target, texts);
      }
    }, { rootMargin: "400px" });
    function place() {
      observer.disconnect();
      const cards = [...numbers].sort(orders[orderKept.by]).map((cluster) => {
        const card = h("article", { class: "card", "data-cluster": cluster });
        observer.observe(card);
        return card;
      });
      field.replaceChildren(...cards);
    }
    const order = h(
      "select", { "aria-label": "Order of the clusters", onchange: (event) => { orderKept.by = event.target.value; place(); } },
      h("option", { value: "size" }, "largest first"), h("option", { value: "number" }, "by number"),
      h("option", { value: "name" }, "by name"),
      deepcluster.table.rated ? h("option", { value: "doubt" }, "most doubtful first") : null,
    );
    order.value = orderKept.by;
    const named = numbers.filter((cluster) => changes.nameOf(cluster)).length;
    place();
    const element = h(
      "div", {},
      h("header", { class: "hero" }, heading("Clusters"), h(
        "p", { class: "lead" }, `${count(numbers.length)} clusters, ${count(named)} named. `,
        out ? h("a", { href: clusterLink(NO_CLUSTER) }, `${images(out)} taken out`) : null,
      )),
      h("div", { class: "tools" }, h("label", {}, "Order ", order)),
      field,
    );
    return { title: "Clusters", element, destroy: () => observer.disconnect() };
  }

  const confidences = new Map();

  function meanConfidence(cluster) {
    const rows = changes.rowsOf(cluster);
    const known = confidences.get(cluster);
    if (known?.rows === rows) return known.mean;
    let sum = 0;
    let n = 0;
    for (const row of rows) {
      const value = deepcluster.table.confidence[row];
      if (!Number.isNaN(value)) [sum, n] = [sum + value, n + 1];
    }
    const mean = n ? sum / n : 1;
    confidences.set(cluster, { rows, mean });
    return mean;
  }

  function fillCard(card, texts) {
    const cluster = Number(card.dataset.cluster);
    const rows = changes.rowsOf(cluster);
    const first = typical(rows);
    const STRIP = 8;
    const side = window.innerWidth < 640 ? 36 : 40;
    const strip = (title, chosen) => h(
      "div", { class: "strip-row" }, h("h3", {}, title),
      h("div", { class: "strip" }, ...[...chosen].map((row) => picture(row, side))),
    );
    const shown = new Set(first.slice(0, STRIP));
    const strips = [strip("Typical", shown)];
    if (rows.length > STRIP) {
      const rest = rows.filter((row) => !shown.has(row));
      const doubted = [...doubtful(rest).slice(0, STRIP)];
      doubted.forEach((row) => shown.add(row));
      strips.push(strip("Doubtful", doubted));
      const left = random(rest.filter((row) => !shown.has(row))).slice(0, STRIP);
      left.forEach((row) => shown.add(row));
      if (left.length) strips.push(strip("At random", left));
    }
    card.replaceChildren(
      h("header", {}, dot(cluster), nameField(cluster)),
      h("p", { class: "card-size" }, share(cluster, texts),
        deepcluster.table.rated ? ` · mean confidence ${percent(meanConfidence(cluster))}` : ""),
      mixture(rows) ?? "",
      ...strips,
      h(
        "footer", {},
        h("span", { class: "note" }, `Shown ${count(shown.size)} of ${count(rows.length)}`),
        h("button", { type: "button", class: "quiet", onclick: () => mergeInto(cluster) }, "Merge …"),
        h("a", { class: "button", href: clusterLink(cluster) }, "See all"),
      ),
    );
  }

  // -- one cluster -----------------------------------------------------------------------------

  const sortKept = { by: "typical" };

  function cluster(text) {
    const number = Number(text);
    const now = changes.root(number);
    if (now !== number) {
      location.replace(clusterLink(now));
      return { title: "", element: h("div") };
    }
    const out = number === NO_CLUSTER;
    const orders = { typical, doubtful, random };
    const sort = h(
      "select", { "aria-label": "Order of the images" }, h("option", { value: "typical" }, "nearest the centre first"),
      h("option", { value: "doubtful" }, "most doubtful first"), h("option", { value: "random" }, "at random"),
    );
    sort.value = sortKept.by;
    const view = grid.create({
      label: changes.titleOf(number), tools: [h("label", {}, h("span", { class: "long" }, "Order "), sort)],
      empty: out ? "No image was taken out of its cluster." : "This cluster has no images now.",
    });
    const head = h("div", { class: "cluster-head" });
    function fill() {
      const rows = changes.rowsOf(number);
      const texts = deepcluster.clusterShares();
      const order = changes.clusters();
      const at = order.indexOf(number);
      const step = (by, name) => (at >= 0 && order.length > 1 ? h(
        "a", { class: "button", href: clusterLink(order[(at + by + order.length) % order.length]), title: `Key: ${by < 0 ? "[" : "]"}`, "data-step": by }, name,
      ) : null);
      const neighbours = near(deepcluster.summary.clusters.find((one) => one.number === number));
      head.replaceChildren(
        h("div", { class: "crumbs" }, h("a", { href: "#/clusters" }, "Clusters"), h("span", { class: "steps" }, step(-1, "Previous"), step(1, "Next"))),
        out
          ? heading("Taken out")
          : h("h1", { class: "title-field" }, dot(number), nameField(number)),
        h("p", { class: "lead" }, out ? "Images that belong in none of the clusters, as a person said. Move them where they belong, or leave them here. " : changes.nameOf(number) ? `Cluster ${number} · ` : "", share(number, texts)),
        mixture(rows, 6) ?? "",
        out || order.length < 2 ? "" : h(
          "div", { class: "near" },
          h("h2", {}, neighbours.length ? "Nearest clusters" : "Other clusters"),
          h(
            "div", { class: "chips" },
            ...neighbours.map((other) => h(
              "a", { class: "chip", href: clusterLink(other) },
              h("span", { class: "strip" }, ...[...typical(changes.rowsOf(other)).slice(0, 3)].map((row) => picture(row, 32, { link: false }))),
              h("span", { dir: "auto" }, changes.titleOf(other)),
            )),
            h("button", { type: "button", onclick: () => mergeInto(number) }, "Merge into another …"),
          ),
        ),
      );
      view.setRows(orders[sortKept.by](rows));
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

  // -- map -------------------------------------------------------------------------------------

  function map() {
    const { summary, table } = deepcluster;
    const hint = "Drag to move, scroll to zoom. Draw a lasso around images to see them here: with the lasso on, or with Shift held down.";
    const side = h("aside", { class: "map-side" });
    const view = grid.create({ label: "Images in the lasso", scroller: side, empty: hint });
    const plot = deepcluster.map.create({
      onSelect(rows) {
        view.setRows(Int32Array.from(rows), rows.length ? `${images(rows.length)} in the lasso` : "");
        side.scrollTop = 0;
      },
    });
    const legend = h("div", { class: "legend" });
    let pressed = null;
    function fillLegend() {
      pressed = null;
      if (colour.value === "confidence") {
        legend.replaceChildren(h("span", {}, "0 %"), h("i", { class: "ramp", style: { backgroundImage: deepcluster.map.rampCss } }), h("span", {}, "100 %"));
        return;
      }
      const entries = plot.legend();
      const MOST = 40;
      legend.replaceChildren(...entries.slice(0, MOST).map(({ key, name, colour: paint, size }) => {
        const button = h(
          "button", { type: "button", class: "key-button", "aria-pressed": "false", title: `${images(size)}: show only these` },
          h("i", { class: "swatch", style: { background: paint } }), h("span", { dir: "auto" }, name),
        );
        button.addEventListener("click", () => {
          const on = pressed !== button;
          pressed?.setAttribute("aria-pressed", "false");
          pressed = on ? button : null;
          button.setAttribute("aria-pressed", String(on));
          plot.highlight(on ? key : null);
        });
        return button;
      }), entries.length > MOST ? h("span", { class: "note" }, `and ${entries.length - MOST} more`) : "");
    }
    const colour = h(
      "select", { "aria-label": "Colour of the points" }, h("option", { value: "cluster" }, "cluster"),
      summary.labelled ? h("option", { value: "label" }, "label") : null, table.rated ? h("option", { value: "confidence" }, "confidence") : null,
    );
    colour.addEventListener("change", () => {
      plot.setColour(colour.value);
      fillLegend();
    });
    const lasso = h("button", { type: "button", "aria-pressed": "false" }, "Lasso");
    lasso.addEventListener("click", () => {
      const on = lasso.getAttribute("aria-pressed") !== "true";
      lasso.setAttribute("aria-pressed", String(on));
      plot.setLasso(on);
    });
    const laid = summary.map.laidOut;
    const note = laid < table.n
      ? `${count(laid)} of the ${images(table.n)} are laid out; each of the others is put beside the three of those that are most like it.`
      : "";
    side.append(view.element);
    const element = h(
      "div", { class: "map-page" },
      h("header", { class: "hero" }, heading("Map"), h("p", { class: "lead" }, `All ${images(table.n)}. Near means alike; distances between far groups mean little.`)),
      h(
        "div", { class: "tools" }, h("label", {}, "Colour ", colour), lasso,
        h("button", { type: "button", "aria-label": "Zoom in", onclick: () => plot.zoom(1.5) }, "+"),
        h("button", { type: "button", "aria-label": "Zoom out", onclick: () => plot.zoom(1 / 1.5) }, "−"),
        h("button", { type: "button", onclick: plot.showAll }, "Show all"),
      ),
      legend,
      h("div", { class: "map-split" }, plot.element, side),
      h("p", { class: "note" }, note),
    );
    fillLegend();
    return {
      title: "Map", element,
      attached: () => view.setRows(new Int32Array(0), ""),
      refresh() {
        plot.refresh();
        plot.choose([]);
        fillLegend();
      },
      destroy() {
        plot.destroy();
        view.destroy();
      },
    };
  }

  // -- one image -------------------------------------------------------------------------------

  function image(id) {
    const { table, summary } = deepcluster;
    const row = table.rowOf.get(id);
    if (row === undefined) return missing();
    const { k, recall, variance } = summary.neighbours;
    const view = grid.create({ label: "Images most like this one", empty: "There are no other images." });
    const own = h("div", { class: "one-image" });
    function fill() {
      const number = changes.clusterOf(row);
      const confidence = table.confidence[row];
      const pairs = [
        ["Cluster", h("a", { href: clusterLink(number), dir: "auto" }, changes.titleOf(number))],
        ["Put there by", changes.byPerson(row) ? "a person" : "the model"],
        table.label[row] >= 0 ? ["Class", table.classes[table.label[row]]] : null,
        Number.isNaN(confidence) || changes.moved.has(row) ? null : ["Confidence", percent(confidence)],
        Number.isNaN(table.distance[row]) || changes.moved.has(row) ? null : ["Distance to the centre", table.distance[row].toFixed(3)],
        ["Id", table.ids[row]],
        table.pathOf(row) ? ["Path", table.pathOf(row)] : null,
      ].filter(Boolean);
      const move = async () => {
        const known = summary.clusters.find((one) => one.number === number);
        const target = await grid.chooseCluster({ title: "Move this image to …", without: [number], fresh: true, first: near(known) });
        if (target !== null) toast(changes.move([row], target));
      };
      own.replaceChildren(
        picture(row, 256, { link: false }),
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
    const how = [`The ${k} nearest in feature space, the nearest first.`];
    if (recall < 1) how.push(`The search is approximate: it finds ${percent(recall, 1)} of the true neighbours.`);
    if (variance < 1) how.push(`Compared in principal components with ${percent(variance, 1)} of the variance.`);
    const element = h(
      "div", {},
      h("div", { class: "crumbs" }, h("a", { href: "#/", onclick: (event) => { if (history.length > 1) { event.preventDefault(); history.back(); } } }, "Back")),
      own,
      h("section", {}, h("h2", {}, "Most like it"), h("p", { class: "note" }, how.join(" ")), view.element),
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

  // -- unusual images --------------------------------------------------------------------------

  function unusual(what) {
    const pairs = what === "pairs";
    const tab = (target, name, on) => h("a", { class: "tab", href: target, "aria-current": on ? "page" : undefined }, name);
    const place = h("div", {});
    const view = pairs ? null : grid.create({ label: "Images farthest from all others" });
    const { duplicates, neighbours } = deepcluster.summary;
    const note = pairs
      ? `Pairs closer in feature space than ${duplicates.threshold.toPrecision(2)}, a quarter of the median distance between an image and the one nearest to it.`
      : `The images with the largest mean distance to their ${neighbours.k} nearest: damaged, odd, or alone of their kind. The farthest first.`;
    const element = h(
      "div", {},
      h("header", { class: "hero" }, heading("Unusual images"), h("p", { class: "lead" }, note)),
      h("nav", { class: "tabs", "aria-label": "Kinds of unusual images" }, tab("#/unusual", "Far from everything", !pairs), tab("#/unusual/pairs", "Nearly the same", pairs)),
      place,
    );
    const show = () => deepcluster.load("neighbours").then((data) => {
      if (!pairs) {
        const rows = Int32Array.from(deepcluster.unpack(data.outliers));
        view.setRows(rows, `Shown ${count(rows.length)} of ${count(deepcluster.table.n)}`);
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

  return { overview, clusters, cluster, map, image, unusual, missing };
})();
