// A grid of pictures that stays smooth with 100,000 of them: only those in sight are in the page.
// With it go the selection, the bar of what can be done with it, and the choice of a cluster.
"use strict";

deepcluster.grid = (() => {
  const { changes, h, images, nameOf, tileOf, showTile, percent, NO_CLUSTER, soon, toast, worded } = deepcluster;
  const GAP = 4;
  const SIZES = { small: 48, medium: 72, large: 112 };
  let serial = 0;

  const sizeKept = { name: "medium" };

  /**
   * A grid. Options: label (for screen readers), scroller (an element that scrolls, else the
   * window), empty (what to say when there are no rows), tools (elements for its head).
   */
  function create({ label, scroller = null, empty = worded("No images."), tools = [] }) {
    const id = `grid${++serial}`;
    let rows = [];
    let columns = 1;
    let size = SIZES[sizeKept.name]; // of a picture, grown so that a line is full
    let active = -1; // position of the focused picture
    let anchor = -1; // where a range starts
    const selected = new Set(); // rows
    const tiles = new Map(); // position -> element

    const field = h("div", {
      class: "tiles", role: "listbox", tabindex: 0, "aria-multiselectable": "true", "aria-label": label,
    });
    const sizes = h(
      "div", { class: "sizes", role: "group", "aria-label": "Size of the pictures" },
      ...Object.keys(SIZES).map((name) => h("button", {
        type: "button", class: `size ${name}`, "aria-label": `${name} pictures`, title: `${name} pictures`,
        "aria-pressed": String(name === sizeKept.name), onclick: () => resize(name),
      }, h("i", {}))),
    );
    const said = h("span", { class: "shown-of" });
    const nothing = h("p", { class: "empty" }, empty);
    const head = h("div", { class: "grid-head" }, said, ...tools, sizes);
    const bar = actionBar();
    const element = h("section", { class: "grid-box" }, head, field, nothing, bar);

    function resize(name) {
      sizeKept.name = name;
      for (const button of sizes.children) {
        button.setAttribute("aria-pressed", String(button.classList.contains(name)));
      }
      clear();
      draw();
    }

    function clear() {
      for (const tile of tiles.values()) tile.remove();
      tiles.clear();
    }

    function describe(row) {
      const confidence = deepcluster.table.confidence[row];
      const sure = Number.isNaN(confidence) ? "" : `, confidence ${percent(confidence)}`;
      return `${nameOf(row)}, ${changes.titleOf(changes.clusterOf(row))}${sure}`;
    }

    function make(position) {
      const row = rows[position];
      const text = describe(row);
      const tile = h(
        "div",
        {
          class: "tile", role: "option", id: `${id}-${position}`, title: text, "aria-label": text,
          "aria-selected": String(selected.has(row)), "aria-posinset": position + 1, "aria-setsize": rows.length,
        },
        h("span", { class: "check", "aria-hidden": "true" }),
      );
      if (changes.byPerson(row)) tile.classList.add("by-person");
      if (position === active) tile.classList.add("active");
      tile.style.width = tile.style.height = `${size}px`;
      tile.style.transform = `translate(${(position % columns) * (size + GAP)}px, ${Math.floor(position / columns) * (size + GAP)}px)`;
      showTile(tile, tileOf(row), size);
      return tile;
    }

    /** Put the pictures in sight into the page and take the others out. */
    function draw() {
      if (!element.isConnected) return;
      const width = field.clientWidth;
      if (!width) return;
      const fitting = Math.max(1, Math.floor((width + GAP) / (SIZES[sizeKept.name] + GAP)));
      const full = Math.floor((width + GAP) / fitting) - GAP;
      if (fitting !== columns || full !== size) {
        [columns, size] = [fitting, full];
        clear();
      }
      const lines = Math.ceil(rows.length / columns);
      field.style.height = `${Math.max(0, lines * (size + GAP) - GAP)}px`;
      const box = field.getBoundingClientRect();
      const view = scroller ? scroller.getBoundingClientRect() : { top: 0, bottom: window.innerHeight };
      const above = view.top - box.top - 2 * size;
      const below = view.bottom - box.top + 2 * size;
      const from = Math.max(0, Math.floor(above / (size + GAP))) * columns;
      const to = Math.min(rows.length, Math.max(0, Math.ceil(below / (size + GAP))) * columns);
      for (const [position, tile] of tiles) {
        if (position < from || position >= to) {
          tile.remove();
          tiles.delete(position);
        }
      }
      const fresh = document.createDocumentFragment();
      for (let position = from; position < to; position++) {
        if (tiles.has(position)) continue;
        const tile = make(position);
        tiles.set(position, tile);
        fresh.append(tile);
      }
      field.append(fresh);
    }

    const drawSoon = soon(draw);

    function mark() {
      for (const [position, tile] of tiles) {
        tile.setAttribute("aria-selected", String(selected.has(rows[position])));
        tile.classList.toggle("active", position === active);
      }
      if (active >= 0) field.setAttribute("aria-activedescendant", `${id}-${active}`);
      else field.removeAttribute("aria-activedescendant");
      field.classList.toggle("selecting", selected.size > 0);
      bar.update();
    }

    function select(position, { range = false } = {}) {
      if (range && anchor >= 0) {
        const [low, high] = anchor < position ? [anchor, position] : [position, anchor];
        for (let i = low; i <= high; i++) selected.add(rows[i]);
      } else {
        const row = rows[position];
        if (selected.has(row)) selected.delete(row);
        else selected.add(row);
        anchor = position;
      }
      active = position;
      mark();
    }

    function focusOn(position) {
      active = Math.max(0, Math.min(rows.length - 1, position));
      const top = Math.floor(active / columns) * (size + GAP);
      const box = field.getBoundingClientRect();
      const view = scroller ? scroller.getBoundingClientRect() : { top: 64, bottom: window.innerHeight - 80 };
      const over = view.top - (box.top + top);
      const under = box.top + top + size - view.bottom;
      if (over > 0) (scroller ?? window).scrollBy(0, -over - GAP);
      else if (under > 0) (scroller ?? window).scrollBy(0, under + GAP);
      draw();
      mark();
    }

    const open = (position) => { location.hash = deepcluster.imageLink(rows[position]); };
    const positionOf = (target) => {
      const tile = target.closest(".tile");
      return tile ? Number(tile.id.slice(id.length + 1)) : -1;
    };

    field.addEventListener("click", (event) => {
      const position = positionOf(event.target);
      if (position < 0) return;
      const choosing = event.target.closest(".check") || event.shiftKey || event.ctrlKey || event.metaKey;
      if (choosing || selected.size) select(position, { range: event.shiftKey });
      else open(position);
    });
    field.addEventListener("dblclick", (event) => {
      const position = positionOf(event.target);
      if (position >= 0 && !event.target.closest(".check")) open(position);
    });
    field.addEventListener("focus", () => {
      if (active < 0 && rows.length && field.matches(":focus-visible")) focusOn(0);
    });
    field.addEventListener("keydown", (event) => {
      const page = columns * Math.max(1, Math.floor(window.innerHeight / (size + GAP)) - 2);
      const steps = {
        ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page,
        Home: -rows.length, End: rows.length,
      };
      if (!rows.length) return;
      if (event.key in steps) {
        if (event.shiftKey && anchor < 0) anchor = Math.max(0, active);
        focusOn(active + steps[event.key]);
        if (event.shiftKey) select(active, { range: true });
      } else if (event.key === " ") {
        if (active >= 0) select(active, { range: event.shiftKey });
      } else if (event.key === "Enter") {
        if (active >= 0) open(active);
      } else if (event.key === "Escape" && selected.size) {
        clearSelection();
      } else if ((event.ctrlKey || event.metaKey) && event.key === "a") {
        for (const row of rows) selected.add(row);
        mark();
      } else if (event.key === "m" && selected.size) {
        moveSelected();
      } else if (event.key === "x" && selected.size) {
        takeOut();
      } else {
        return;
      }
      event.preventDefault();
    });

    function clearSelection() {
      selected.clear();
      anchor = -1;
      mark();
    }

    async function moveSelected() {
      const going = [...selected];
      const target = await chooseCluster({
        title: `Move ${images(going.length)} to …`, fresh: true,
      });
      if (target === null) return;
      selected.clear();
      toast(changes.move(going, target));
    }

    function takeOut() {
      const going = [...selected];
      selected.clear();
      toast(changes.move(going, NO_CLUSTER));
    }

    function actionBar() {
      const text = h("b", {});
      const box = h(
        "div", { class: "actions", role: "toolbar", "aria-label": worded("Selected images") }, text,
        h("button", { type: "button", class: "primary", title: "Key: m", onclick: moveSelected }, "Move to …"),
        h("button", { type: "button", title: "They do not belong in their cluster. Key: x", onclick: takeOut }, "Not this"),
        h("button", { type: "button", title: "Key: Escape", onclick: clearSelection }, "Clear"),
      );
      box.hidden = true;
      box.update = () => {
        box.hidden = selected.size === 0;
        text.textContent = `${deepcluster.count(selected.size)} selected`;
      };
      return box;
    }

    /** Show other rows; what is selected of them stays so. */
    function setRows(next, note = images(next.length)) {
      rows = next;
      said.textContent = note;
      nothing.hidden = rows.length > 0;
      head.hidden = rows.length === 0;
      active = Math.min(active, rows.length - 1);
      anchor = -1;
      if (selected.size) {
        const left = new Set(rows);
        for (const row of selected) if (!left.has(row)) selected.delete(row);
      }
      clear();
      draw();
      mark();
    }

    const observer = new ResizeObserver(drawSoon);
    observer.observe(field);
    (scroller ?? window).addEventListener("scroll", drawSoon, { passive: true });
    if (scroller) window.addEventListener("scroll", drawSoon, { passive: true });
    return {
      element, setRows, selected,
      select(rowsToSelect) {
        for (const row of rowsToSelect) selected.add(row);
        mark();
      },
      focus: () => field.focus(),
      destroy() {
        observer.disconnect();
        (scroller ?? window).removeEventListener("scroll", drawSoon);
        window.removeEventListener("scroll", drawSoon);
      },
    };
  }

  /**
   * Ask for a cluster: its number, or null. Options: title, without (numbers left out), fresh
   * (offer a new cluster), first (numbers to put on top).
   */
  function chooseCluster({ title, without = [], fresh = false, first = [] }) {
    return new Promise((resolve) => {
      let chosen = null;
      const rest = changes.clusters().filter((cluster) => !without.includes(cluster));
      const top = first.filter((cluster) => rest.includes(cluster));
      const order = [...top, ...rest.filter((cluster) => !top.includes(cluster))];
      const find = h("input", { type: "search", placeholder: "Name or number", "aria-label": "Find a cluster" });
      const list = h("ul", { class: "choices" });
      const looks = new Map(); // cluster -> its typical images
      const dialog = h(
        "dialog", { class: "choose", "aria-label": title }, h("h2", {}, title), find, list,
        h("div", { class: "dialog-end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel")),
      );
      const take = (cluster) => {
        chosen = cluster;
        dialog.close();
      };
      function fill() {
        const wanted = find.value.trim().toLowerCase();
        const found = order.filter((cluster) => (
          !wanted || String(cluster) === wanted || changes.titleOf(cluster).toLowerCase().includes(wanted)
        ));
        const rows = found.slice(0, 100).map((cluster) => {
          const members = changes.rowsOf(cluster);
          if (!looks.has(cluster)) looks.set(cluster, deepcluster.members.typical(members, 5));
          return h("li", {}, h(
            "button", { type: "button", onclick: () => take(cluster) },
            deepcluster.members.strip(looks.get(cluster), 36),
            h("span", { class: "choice-name", dir: "auto" }, changes.titleOf(cluster)),
            h("small", {}, images(members.length)),
          ));
        });
        if (found.length > 100) rows.push(h("li", { class: "note" }, `shown 100 of ${found.length}: type to find`));
        if (fresh) {
          const name = find.value.trim();
          rows.push(h("li", {}, h(
            "button",
            {
              type: "button", class: "new-cluster",
              onclick: () => {
                const cluster = changes.unused();
                if (name) changes.rename(cluster, name);
                take(cluster);
              },
            },
            name ? `New cluster “${name}”` : "New cluster",
          )));
        }
        list.replaceChildren(...rows);
      }
      find.addEventListener("input", fill);
      find.addEventListener("keydown", (event) => {
        if (event.key !== "Enter") return;
        event.preventDefault();
        list.querySelector("button")?.click();
      });
      dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
      dialog.addEventListener("close", () => {
        dialog.remove();
        resolve(chosen);
      });
      fill();
      document.body.append(dialog);
      dialog.showModal();
      find.focus();
    });
  }

  return { create, chooseCluster };
})();
