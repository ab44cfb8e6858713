// Which page is shown, the bar on top, and the dialog of changes.
"use strict";

(() => {
  const { changes, h, count, images, toast, views, NO_CLUSTER, clusterLink, worded } = deepcluster;
  const main = document.getElementById("main");
  const { summary } = deepcluster;
  document.getElementById("taught").hidden = !summary.taught;
  let page = null;

  const PAGES = {
    "": views.overview, clusters: views.clusters, cluster: views.cluster, map: views.map, image: views.image,
    unusual: views.unusual, curves: views.curves, classes: views.classes,
  };

  function route() {
    const [name, argument = ""] = location.hash.replace(/^#\/?/u, "").split(/\/(.*)/su);
    let decoded = argument;
    try {
      decoded = decodeURIComponent(argument);
    } catch {
      // A link with a lone % in it names no image, and the page will say so.
    }
    return { name, argument: decoded, make: Object.hasOwn(PAGES, name) ? PAGES[name] : views.missing };
  }

  /** Show the page of the address. The overview needs no table, so it does not wait for it. */
  async function show({ first = false } = {}) {
    const { name, argument, make } = route();
    if (make !== views.overview && !deepcluster.table) {
      main.replaceChildren(h("p", { class: "waiting" }, worded("Reading the table of images …")));
      await deepcluster.loadTable();
      if (route().name !== name || route().argument !== argument) return; // gone on meanwhile
    }
    place(make(argument));
    if (!first) {
      window.scrollTo(0, 0);
      main.focus({ preventScroll: true });
    }
    for (const link of document.querySelectorAll(".bar nav a")) {
      const target = link.getAttribute("href").slice(2);
      const here = target === name || (target === "clusters" && name === "cluster");
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
  }

  function place(next) {
    page?.destroy?.();
    page = next;
    document.title = `${next.title} – ${summary.title}`;
    main.replaceChildren(next.element);
    next.attached?.();
  }

  function refresh() {
    updateBar();
    if (page?.refresh) {
      page.refresh();
      return;
    }
    const { make, argument } = route();
    const { scrollX, scrollY } = window;
    const focused = document.activeElement?.getAttribute("aria-label");
    place(make(argument));
    window.scrollTo(scrollX, scrollY);
    if (focused) main.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  // -- bar -------------------------------------------------------------------------------------

  const button = document.getElementById("changes");
  const download = document.getElementById("download");

  function updateBar() {
    const n = changes.count;
    button.classList.toggle("none", n === 0);
    button.textContent = n ? `${count(n)} ${n === 1 ? "change" : "changes"}` : "No changes";
    download.classList.toggle("pending", changes.pending);
    download.title = changes.pending ? "There are changes that you have not downloaded yet" : "";
  }

  async function save() {
    await deepcluster.loadTable();
    changes.markDownloaded();
    const address = URL.createObjectURL(new Blob([changes.toCsv()], { type: "text/csv" }));
    const link = h("a", { href: address, download: "labels.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    toast(`Saved. To write it into the run, type where labels.csv went: ${summary.place.apply}`, { undo: false });
  }

  // -- dialog of changes -----------------------------------------------------------------------

  async function review() {
    await deepcluster.loadTable();
    const list = h("ul", { class: "changes" });
    const body = h("div", {});
    const dialog = h("dialog", { "aria-label": "Changes" }, body);
    const line = (text, drop) => h("li", {}, h("span", { dir: "auto" }, text), h("button", { type: "button", class: "quiet", onclick: drop }, "Drop"));
    function fill() {
      const byTarget = new Map();
      for (const row of changes.moved.keys()) byTarget.set(changes.clusterOf(row), (byTarget.get(changes.clusterOf(row)) ?? 0) + 1);
      list.replaceChildren(
        changes.atOwnLevel ? "" : line(`Shown at ${count(changes.level)} clusters; the fit gave ${count(summary.levels.own)}`, () => changes.setLevel(summary.levels.own)),
        ...[...changes.opened.keys()].map((group) => line(`Cluster ${changes.labelOf(group)} is opened into two`, () => changes.dropOpened(group))),
        ...[...changes.names].map(([group, name]) => line(name ? `Cluster ${changes.labelOf(group)} is named “${name}”` : `Cluster ${changes.labelOf(group)} has no name`, () => changes.dropName(group))),
        ...[...changes.merged].map(([from, into]) => line(`Cluster ${changes.labelOf(from)} is merged into ${changes.titleOfGroup(into)}`, () => changes.dropMerge(from))),
        ...[...byTarget].map(([cluster, n]) => line(
          cluster === NO_CLUSTER ? `${images(n)} taken out` : `${images(n)} moved to ${changes.titleOf(cluster)}`, () => changes.dropMoves(cluster),
        )),
      );
      body.replaceChildren(
        h("h2", {}, "What you changed"),
        h("p", {}, changes.any
          ? "It is kept in this browser only. Download it, then write it into the run with the command below."
          : worded("Nothing yet. Name a cluster, merge two, or move images: it will be kept in this browser until you download it.")),
        changes.kept ? "" : h("p", { class: "verdict bad" }, "This browser does not keep changes for pages from the disk. Download labels.csv before you close the page."),
        list,
        h("pre", {}, summary.place.apply),
        h(
          "div", { class: "dialog-end" },
          changes.canUndo ? h("button", { type: "button", onclick: () => toast(changes.undo(), { undo: false }) }, "Undo the last") : "",
          changes.any ? h("button", { type: "button", onclick: () => toast(changes.discard()) }, "Drop all") : "",
          h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Close"),
        ),
      );
    }
    const stop = changes.onChange(fill);
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("close", () => {
      stop();
      dialog.remove();
    });
    fill();
    document.body.append(dialog);
    dialog.showModal();
  }

  button.addEventListener("click", review);
  download.addEventListener("click", save);
  changes.onChange(refresh);
  window.addEventListener("hashchange", () => show());
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, textarea, dialog")) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      toast(changes.undo(), { undo: false });
    } else if (!event.ctrlKey && !event.metaKey && !event.altKey) {
      page?.key?.(event);
    }
  });

  show({ first: true }).then(async () => {
    // Let the first screen appear before the rest is read.
    await new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); });
    await deepcluster.loadTable();
    if (changes.any || changes.hasLevels) refresh();
    else updateBar();
    document.documentElement.dataset.ready = "yes";
  });
})();
