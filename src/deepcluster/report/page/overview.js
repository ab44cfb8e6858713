// The first page: is the fit to be trusted, the clusters, how good they are, how they were made.
"use strict";

(() => {
  const { changes, h, count, counted, images, duration, picture, clusterLink, charts, worded } = deepcluster;

  const { dot, heading, typical } = deepcluster.members;
  const COVERED = 24; // clusters on the first screen

  const MARKS = { good: "✓", fair: "~", bad: "!" };
  const LEVELS = { good: "No warning", fair: "Look closer", bad: "Warning" };

  function overview() {
    const { summary } = deepcluster;
    const title = heading("");
    const mosaic = h("div", { class: "mosaic" });
    const note = h("p", { class: "note" });
    const sizes = h("div", {});
    const slider = deepcluster.levelTool();
    const head = h("div", { class: "tools" });

    function refresh() {
      const edited = changes.any && deepcluster.table;
      const clusters = edited
        ? changes.clusters().map((number) => ({ number, size: changes.rowsOf(number).length }))
        : summary.clusters;
      const sorted = [...clusters].sort((a, b) => b.size - a.size);
      const texts = edited ? deepcluster.clusterShares() : seedShares();
      const many = `${count(clusters.length)} ${clusters.length === 1 ? "cluster" : "clusters"}`;
      title.textContent = `${images(summary.images)} in ${many}`;
      mosaic.replaceChildren(...sorted.slice(0, COVERED).map((cluster) => cover(cluster, texts, edited)));
      note.replaceChildren(
        `${sorted.length > COVERED ? `Shown: the ${COVERED} largest of ${count(sorted.length)} clusters, ` : "Each with "}`
          + worded("the images nearest its centre. "),
        h("a", { href: "#/clusters" }, "Look at all clusters and name them"),
      );
      sizes.replaceChildren(sizesPanel(sorted, texts) ?? "");
      if (deepcluster.table) {
        slider?.refresh();
        head.replaceChildren(slider?.element ?? "");
      }
    }

    refresh();
    const element = h(
      "div", { class: "overview" },
      h(
        "header", { class: "hero" }, title,
        h("p", { class: "lead", dir: "auto" }, facts(summary).join(" · ")),
      ),
      verdict(summary.verdict),
      otherStarts(summary),
      leftOut(summary),
      h("section", { "aria-label": "The clusters", class: "the-clusters" }, head, mosaic, note),
      scoreTable(summary),
      sizes,
      making(summary),
      sharing(summary),
    );
    return { title: "Overview", element, refresh, key: (event) => slider?.key(event) };
  }

  /** What else was tried on these images, one click away. */
  function otherStarts({ info }) {
    const words = { adapt: "a pretrained net, adapted to them", frozen: "a pretrained net as it is", scratch: "a net trained on them alone" };
    const starts = info.starts ?? [];
    if (starts.length < 2) return null;
    const [own, ...others] = starts;
    const said = ({ start, agreement }) => `${words[start]} (agreement ${agreement.toFixed(2)})`;
    return h(
      "section", { class: "left-out starts", "aria-label": "Other starts" },
      h("p", {}, "These clusters: ", h("b", {}, said(own)), ". The same images by ", ...others.flatMap((other, i) => [
        i ? " and by " : "", h("a", { href: `../${other.folder}/report/index.html` }, said(other)),
      ]), ". The agreement with the features of all nets needs no labels; the highest was kept."),
    );
  }

  /** What the fit did not look at, by kind, and what would let it. */
  function leftOut({ info, skippedTotal }) {
    const kinds = (info.passed_over ?? []).filter(({ count: n }) => n > 0);
    if (!kinds.length && !skippedTotal) return null;
    const wanted = kinds.filter(({ cure }) => cure);
    const rest = kinds.filter(({ cure }) => !cure);
    const others = rest.reduce((sum, { count: n }) => sum + n, 0);
    const said = wanted.map(({ kind, count: n, cure }) => h("li", {}, h("b", {}, `${count(n)} × ${kind}`), `: ${cure}`));
    if (skippedTotal) {
      said.push(h(
        "li", {}, h("b", {}, skippedTotal === 1 ? "1 file could not be read" : `${count(skippedTotal)} files could not be read`), ": ",
        h("a", { href: "#skipped", onclick: showSkipped }, skippedTotal === 1 ? "which" : "which ones"),
      ));
    }
    if (others) said.push(h("li", {}, `${count(others)} ${others === 1 ? "file" : "files"} of other kinds: ${rest.map(({ kind, count: n }) => `${count(n)} × ${kind}`).join(", ")}`));
    return h("section", { class: "left-out", "aria-label": "Left out" }, h("p", {}, "Not in these clusters:"), h("ul", {}, ...said));
  }

  /** Open the list of files that were left out, at the end of the page. */
  function showSkipped(event) {
    event.preventDefault();
    const list = document.getElementById("skipped");
    list.open = true;
    list.scrollIntoView();
  }

  function sharing({ place, item }) {
    const inside = item === "vector"
      ? " and send it: it opens in any browser, without this program. The names of all vectors are in it."
      : " and send it: it opens in any browser, without this program and without the original images. Small pictures, file names and paths of all images are in it.";
    return h(
      "section", {}, h("h2", {}, "To share this report"),
      h("p", {}, "Zip the folder ", h("code", {}, place.report), inside),
    );
  }

  function seedShares() {
    const { clusters, images: total } = deepcluster.summary;
    const sizes = clusters.map(({ size }) => size);
    const out = total - sizes.reduce((sum, size) => sum + size, 0);
    const texts = deepcluster.shares(out ? [...sizes, out] : sizes);
    return new Map(clusters.map(({ number }, i) => [number, texts[i]]));
  }

  function facts({ title, info }) {
    const list = [title];
    const seconds = info.seconds;
    const { device, gpu, cpu } = info.hardware ?? {};
    const place = gpu ?? (device === "cpu" ? cpu : device) ?? "";
    if (charts.isNumber(seconds)) list.push(`made in ${duration(seconds)}${place ? ` on ${place}` : ""}`);
    if (info.started) list.push(String(info.started).slice(0, 10));
    return list;
  }

  /** A sentence in which flags of the command line stand out and are never broken. */
  function withFlags(sentence) {
    return sentence.split(/(--[a-z][\w.-]*\w)/u).map((part) => (part.startsWith("--") ? h("code", { class: "flag" }, part) : part));
  }

  function verdict({ level, sentence, problems }) {
    const alone = problems.length === 1 && sentence.endsWith(problems[0][0]);
    const more = problems.length
      ? h("ul", {}, ...problems.map(([what, then]) => h(
        "li", {}, alone ? null : h("b", {}, `${what} `), level === "bad" ? "What to try: " : null, ...withFlags(then),
      )))
      : null;
    const lines = problems.length > 1 && sentence === problems[0][0]
      ? `${problems.length} things look ${level === "bad" ? "wrong with" : "doubtful in"} this fit.` : sentence;
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
      pictures = typical(changes.rowsOf(number), covers.columns)
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
    ["acc", "In the right place", worded("share of the images, if each cluster is given one class of its own (ACC)"), 0, 1],
    ["nmi", "What clusters tell of classes", "0 is nothing, 1 is all (NMI)", 0, 1],
    ["ari", "Pairs that belong together", "agreement of clusters and classes on them: 0 is chance, 1 is full (ARI)", 0, 1],
    ["silhouette", "Clusters apart", "below 0 they overlap, 1 is far apart; needs no labels (silhouette)", -1, 1],
    ["modularity", "Alike together", worded("share of an image's nearest images that are in its own cluster, less what chance gives: 0 is chance; needs no labels (modularity)"), 0, 1],
  ];

  function scoreTable({ scores, labelled, images: total, info, item }) {
    const fit = scores.fit ?? {};
    const pixels = scores.pixels ?? {};
    const { clusters, pixel_clusters: ofPixels = clusters } = info.counts ?? {};
    const ofOthers = ofPixels === clusters ? "" : ` in ${counted(ofPixels, "cluster")}`;
    const known = SCORES.filter(([key]) => charts.isNumber(fit[key]));
    const named = new Set([...SCORES.map(([key]) => key), "nmi_arithmetic"]);
    const other = Object.keys(fit).filter((key) => !named.has(key) && charts.isNumber(fit[key]));
    const rows = [...known, ...other.map((key) => [key, key.replaceAll("_", " "), "", 0, 1])];
    const measured = labelled
      ? `Measured on the ${images(labelled)}${labelled < total ? ` of ${count(total)}` : ""} with a label `
        + `(${count(info.counts?.classes ?? 0)} classes). The fit has not seen the labels.`
      : worded(`The source has no labels, so nothing can say how many images are in the right place. Judge by ${item === "vector" ? "what lies together" : "the pictures"}.`);
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
        h("span", { class: "reading" }, h("i", { class: "key theirs" }), `plain k-means on the pixels${ofOthers}, for comparison`),
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

  function making({ settings, info, skipped, skippedTotal, place, metrics, images: total }) {
    const list = (pairs) => h("dl", { class: "facts" }, ...pairs.filter(([, value]) => value !== undefined && value !== null && value !== "")
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", { dir: "auto" }, String(value)))));
    const { counts = {}, hardware = {}, versions = {}, timings = {} } = info;
    const command = Array.isArray(info.command) ? info.command.join(" ") : info.command;
    const phases = Object.entries(timings).filter(([, value]) => charts.isNumber(value)).map(([name, value]) => [name, duration(value)]);
    let how = [["Features", "given as vectors"]];
    if (settings.backbone !== "given") {
      const learnt = settings.start === "frozen" ? [["Features", "of a frozen net"]] : [["Method", settings.method], ["Epochs", settings.epochs]];
      how = [...learnt, ["Backbone", settings.backbone], ["Image size", `${settings.size} pixels`]];
    }
    return h(
      "section", {}, h("h2", {}, "How it was made"),
      metrics.length ? h("p", {}, h("a", { href: "#/curves" }, "How the training went, epoch by epoch")) : null,
      ...(info.notes ?? []).map((note) => h("p", { class: "remark", dir: "auto" }, ...withFlags(note))),
      h(
        "div", { class: "columns" },
        h("div", {}, h("h3", {}, "The fit"), list([
          ["Run folder", place.run], ["Command", command], [worded("Images"), count(total)], ["Left out", count(counts.skipped ?? skippedTotal)],
          ["Classes", counts.classes ? count(counts.classes) : "no labels"], ...how, ["Clusters asked for", settings["final.choose"] ? `chosen, up to ${settings.clusters}` : settings.clusters], ["Seed", info.seed],
          ["Started", info.started && String(info.started).replace("T", " ").slice(0, 16)],
        ])),
        h("div", {}, h("h3", {}, "Time"), list([["All", charts.isNumber(info.seconds) ? duration(info.seconds) : null], ...phases])),
        h("div", {}, h("h3", {}, "Machine and versions"), list([...Object.entries(hardware), ...Object.entries(versions)])),
      ),
      h("details", {}, h("summary", {}, "All settings"), list(Object.entries(settings))),
      skippedTotal ? h(
        "details", { id: "skipped" }, h("summary", {}, skippedTotal === 1 ? "1 file that was left out" : `${count(skippedTotal)} files that were left out`),
        h("p", { class: "note" }, `Shown ${count(skipped.length)} of ${count(skippedTotal)}; all are in skipped.csv.`),
        list(skipped),
      ) : null,
    );
  }

  deepcluster.views.overview = overview;
})();
