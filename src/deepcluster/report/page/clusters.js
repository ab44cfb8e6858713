// The page of all clusters, a card each: the place to choose their number and to name them.
"use strict";

(() => {
  const { NO_CLUSTER, changes, h, count, images, percent, picture, clusterLink, toast, worded } = deepcluster;

  const {
    dot, heading, first, typical, nameField, otherNames, mixture, share, mergeInto,
  } = deepcluster.members;

  const orderKept = { by: null };
  const MOVING = 260; // milliseconds that a card takes to its new place
  const GHOSTS = 20; // cards, at most, that are seen to go

  function clusters() {
    orderKept.by ??= changes.hasLevels ? "kin" : "size";
    const sizeOf = (cluster) => changes.rowsOf(cluster).length;
    const orders = {
      kin: null,
      size: (a, b) => sizeOf(b) - sizeOf(a) || a - b,
      number: (a, b) => a - b,
      name: (a, b) => (changes.nameOf(a) ? 0 : 1) - (changes.nameOf(b) ? 0 : 1) || changes.titleOf(a).localeCompare(changes.titleOf(b)) || a - b,
      doubt: (a, b) => meanConfidence(a) - meanConfidence(b) || a - b,
    };
    const field = h("div", { class: "cards" });
    let texts = new Map();
    let cards = new Map(); // cluster -> its card
    let assigned = null; // the clusters of the rows when the cards were placed
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        fillCard(target, texts);
      }
    }, { rootMargin: "400px" });

    function inOrder() {
      const numbers = changes.clusters();
      if (orderKept.by !== "kin") return numbers.sort(orders[orderKept.by]);
      const places = new Map(numbers.map((cluster) => [cluster, changes.kinship(cluster)]));
      return numbers.sort((a, b) => places.get(a) - places.get(b) || a - b);
    }

    /** Put the cards in their places: those that stay move there, new ones come out of their old one. */
    function place() {
      texts = deepcluster.clusterShares();
      const numbers = inOrder();
      const before = new Map([...cards].map(([cluster, card]) => [cluster, card.getBoundingClientRect()]));
      const next = new Map();
      for (const cluster of numbers) {
        const rows = changes.rowsOf(cluster);
        let card = cards.get(cluster);
        const looks = `${changes.nameOf(cluster)}\n${texts.get(cluster)}\n${JSON.stringify(changes.othersOf(cluster))}`;
        if (!card || card.looks !== looks || !same(card.rows, rows)) {
          card ??= h("article", { class: "card", "data-cluster": cluster });
          Object.assign(card, { looks, rows });
          observer.unobserve(card); // so that it is told again
          observer.observe(card);
        }
        next.set(cluster, card);
      }
      const gone = [...cards].filter(([cluster]) => !next.has(cluster));
      for (const [, card] of gone) observer.unobserve(card);
      const focused = document.activeElement?.closest?.(".card") ? document.activeElement : null;
      const origin = (cluster) => before.get(assigned?.[changes.rowsOf(cluster)[0]]);
      cards = next;
      field.replaceChildren(...next.values());
      focused?.focus?.({ preventScroll: true });
      if (assigned && before.size && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
        for (const [cluster, card] of next) move(card, before.get(cluster) ?? origin(cluster), !before.has(cluster));
        for (const [cluster, card] of gone.slice(0, GHOSTS)) {
          vanish(card, before.get(cluster), next.get(changes.clusterOf(card.rows[0])));
        }
      }
      assigned = changes.assignment;
    }

    const order = h(
      "select", { "aria-label": "Order of the clusters", onchange: (event) => { orderKept.by = event.target.value; place(); } },
      changes.hasLevels ? h("option", { value: "kin" }, "alike side by side") : null,
      h("option", { value: "size" }, "largest first"), h("option", { value: "number" }, "by number"),
      h("option", { value: "name" }, "by name"),
      deepcluster.table.rated ? h("option", { value: "doubt" }, "most doubtful first") : null,
    );
    order.value = orderKept.by;
    const lead = h("p", { class: "lead" });
    const slider = deepcluster.levelTool();

    function refresh() {
      const numbers = changes.clusters();
      const out = changes.rowsOf(NO_CLUSTER).length;
      const named = numbers.filter((cluster) => changes.nameOf(cluster)).length;
      lead.replaceChildren(
        `${count(numbers.length)} ${numbers.length === 1 ? "cluster" : "clusters"}, ${count(named)} named. `,
        slider ? worded("Fewer are coarser, more are finer; what you name, merge or move stays with its images. ") : "",
        out ? h("a", { href: clusterLink(NO_CLUSTER) }, `${images(out)} taken out`) : "",
      );
      slider?.refresh();
      place();
    }

    const element = h(
      "div", {},
      h("header", { class: "hero" }, heading("Clusters"), lead),
      h("div", { class: "tools sticky" }, slider?.element, h("label", { class: "order" }, "Order ", order)),
      field,
    );
    return {
      title: "Clusters", element, attached: refresh, refresh, key: (event) => slider?.key(event), destroy: () => observer.disconnect(),
    };
  }

  function same(a, b) {
    if (a === b) return true;
    if (!a || a.length !== b.length) return false;
    for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
    return true;
  }

  /** Let a card come from where it was, or, a fresh one, out of the card that had its images. */
  function move(card, from, fresh) {
    const to = card.getBoundingClientRect();
    const seen = (box) => box && box.bottom > -200 && box.top < window.innerHeight + 200;
    if (!from || (!seen(from) && !seen(to))) return;
    const [x, y] = [from.left - to.left, from.top - to.top];
    if (!fresh && Math.abs(x) < 1 && Math.abs(y) < 1) return;
    const start = { transform: `translate(${x}px, ${y}px)${fresh ? " scale(0.92)" : ""}`, opacity: fresh ? 0.4 : 1 };
    card.animate([start, { transform: "none", opacity: 1 }], { duration: MOVING, easing: "ease-out" });
  }

  /** Let a card that is no more go into the one that has its images now. */
  function vanish(card, from, into) {
    if (!into || from.bottom < 0 || from.top > window.innerHeight) return;
    const to = into.getBoundingClientRect();
    card.className = "ghost";
    card.setAttribute("aria-hidden", "true");
    Object.assign(card.style, { left: `${from.left}px`, top: `${from.top}px`, width: `${from.width}px`, height: `${from.height}px` });
    document.body.append(card);
    const end = { transform: `translate(${to.left - from.left}px, ${to.top - from.top}px) scale(0.92)`, opacity: 0 };
    card.animate([{ transform: "none", opacity: 0.8 }, end], { duration: MOVING, easing: "ease-in" }).finished.finally(() => card.remove());
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
    const STRIP = 8;
    const side = window.innerWidth < 640 ? 36 : 40;
    const strip = (title, chosen) => h(
      "div", { class: "strip-row" }, h("h3", {}, title),
      h("div", { class: "strip" }, ...[...chosen].map((row) => picture(row, side))),
    );
    const shown = new Set();
    const strips = [["Typical", "typical"], ["Doubtful", "doubtful"], ["At random", "random"]].map(([title, order]) => {
      const chosen = order === "typical" ? typical(rows, STRIP) : first(rows, order, STRIP, shown);
      chosen.forEach((row) => shown.add(row));
      return chosen.length ? strip(title, chosen) : "";
    });
    card.replaceChildren(
      h("header", {}, dot(cluster), nameField(cluster)),
      h("p", { class: "card-size" }, share(cluster, texts),
        deepcluster.table.rated ? ` · mean confidence ${percent(meanConfidence(cluster))}` : ""),
      otherNames(cluster) ?? "",
      mixture(rows) ?? "",
      ...strips,
      h(
        "footer", {},
        h("span", { class: "note" }, `Shown ${count(shown.size)} of ${count(rows.length)}`),
        changes.canOpen(cluster)
          ? h("button", { type: "button", class: "quiet", title: "Show it as the two clusters it falls into", onclick: () => toast(changes.open(cluster)) }, "Open") : "",
        h("button", { type: "button", class: "quiet", onclick: () => mergeInto(cluster) }, "Merge …"),
        h("a", { class: "button", href: clusterLink(cluster) }, "See all"),
      ),
    );
  }

  deepcluster.views.clusters = clusters;
})();
