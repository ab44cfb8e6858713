// Labelling: one image large, the images it speaks for beside it, a key a class.
"use strict";

(async () => {
  const { h, count, counted, showTile, toast, worded } = deepcluster;
  const data = await deepcluster.load("label");
  const main = document.getElementById("main");
  const KEYS = "123456789abcdefghijklmnopqrstuvwxyz";
  const PAUSE = 60; // seconds without an act after which nobody is at work
  const STORE = `deepcluster:label:${data.id}`;

  // -- what a person said ----------------------------------------------------------------------

  const classes = []; // names, in the order of their keys
  const labels = new Map(); // id -> {name, group}
  const history = []; // what to put back, newest last
  const left = new Set(); // ids that are not to be labelled with their group
  let at = 0; // which of data.groups is shown
  let seconds = 0; // at work
  let given = 0; // labels given in that time
  let last = 0; // when the last act was
  let kept = true;

  function start() {
    let saved = {};
    try {
      saved = JSON.parse(localStorage.getItem(STORE) ?? "{}") ?? {};
    } catch {
      kept = false;
    }
    for (const [id, name] of Object.entries(data.labels)) labels.set(id, { name, group: id });
    for (const [id, entry] of Object.entries(saved.labels ?? {})) {
      if (entry && typeof entry.name === "string") labels.set(id, { name: entry.name, group: String(entry.group) });
      else labels.delete(id); // taken back
    }
    const names = [...(saved.classes ?? []).map(String), ...[...labels.values()].map((entry) => entry.name).sort()];
    for (const name of names) if (!classes.includes(name)) classes.push(name);
    seconds = Number(saved.seconds) || 0;
    given = Number(saved.given) || 0;
    const first = data.groups.findIndex(([lead]) => !labels.has(data.ids[lead]));
    at = first < 0 ? data.groups.length : first;
  }

  function keep() {
    const own = {};
    for (const [id, entry] of labels) {
      if (data.labels[id] !== entry.name) own[id] = entry;
    }
    for (const id of Object.keys(data.labels)) if (!labels.has(id)) own[id] = null;
    try {
      localStorage.setItem(STORE, JSON.stringify({ classes, labels: own, seconds, given }));
      kept = true;
    } catch {
      kept = false;
    }
  }

  /** Count the time since the last act, unless it was a pause. */
  function tick() {
    const now = Date.now() / 1000;
    if (last && now - last < PAUSE) seconds += now - last;
    last = now;
  }

  function say(name, { all = false } = {}) {
    if (at >= data.groups.length) return;
    const group = data.groups[at];
    const lead = data.ids[group[0]];
    const chosen = all ? together() : [lead];
    const before = chosen.map((id) => [id, labels.get(id)]);
    tick();
    for (const id of chosen) labels.set(id, { name, group: all ? lead : id });
    history.push({ before, at, given: chosen.length });
    given += chosen.length;
    at = nextOpen(at);
    keep();
    draw();
    toast(chosen.length > 1 ? `${deepcluster.images(chosen.length)} are “${name}”` : `“${name}”`, { undo: false });
  }

  /** The images that a whole-group act labels: not those left out, not those that have a label. */
  function together() {
    const group = data.groups[at].map((member) => data.ids[member]);
    return group.filter((id, i) => i === 0 || (!left.has(id) && !labels.has(id)));
  }

  function skip() {
    if (at >= data.groups.length) return;
    tick();
    history.push({ before: [], at, given: 0 });
    at += 1;
    draw();
  }

  function undo() {
    const act = history.pop();
    if (!act) return;
    tick();
    for (const [id, entry] of act.before) {
      if (entry) labels.set(id, entry);
      else labels.delete(id);
    }
    given -= act.given;
    at = act.at;
    keep();
    draw();
    toast("Undone", { undo: false });
  }

  function nextOpen(from) {
    let next = from + 1;
    while (next < data.groups.length && labels.has(data.ids[data.groups[next][0]])) next += 1;
    return next;
  }

  function addClass(text) {
    const name = text.replace(/\s+/gu, " ").trim().slice(0, 200);
    if (!name) return null;
    const same = classes.find((known) => known.toLowerCase() === name.toLowerCase());
    if (same) return same;
    classes.push(name);
    keep();
    return name;
  }

  function toCsv() {
    const quote = (text) => (/[",\r\n]|^\s|\s$/u.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = ["id,label,group"];
    for (const [id, { name, group }] of labels) lines.push([id, name, group].map(quote).join(","));
    return lines.join("\r\n") + "\r\n";
  }

  // -- what is shown ---------------------------------------------------------------------------

  function tileOf(member) {
    const { columns, rows, sheets } = data.thumbnails;
    const tile = data.tiles[member];
    const place = tile % (columns * rows);
    return {
      url: `thumbnails/${sheets[Math.floor(tile / (columns * rows))]}`,
      left: place % columns, top: Math.floor(place / columns), columns,
    };
  }

  function large(member) {
    const box = h("div", { class: "subject" });
    requestAnimationFrame(() => showTile(box, tileOf(member), box.clientWidth));
    const file = data.files[member];
    if (data.originals !== null && file !== null) {
      const address = data.originals + file.split(/[\\/]/u).map(encodeURIComponent).join("/");
      const image = h("img", { alt: "", src: address });
      image.addEventListener("error", () => image.remove()); // not there, or no picture for browsers
      box.append(image);
    }
    return box;
  }

  function classButton(name, i) {
    const lead = data.ids[data.groups[at][0]];
    return h(
      "button",
      {
        type: "button", class: `class-button ${labels.get(lead)?.name === name ? "given" : ""}`,
        onclick: (event) => say(name, { all: event.shiftKey || wholeGroup() }),
      },
      h("kbd", {}, KEYS[i] ?? "–"), h("span", { dir: "auto" }, name),
    );
  }

  const wholeGroup = () => Boolean(document.getElementById("all")?.checked);

  function beside(group) {
    return group.slice(1).map((member) => {
      const id = data.ids[member];
      const done = labels.get(id);
      const tile = h("button", {
        type: "button", title: id, "aria-label": id, "aria-pressed": String(!left.has(id)), "data-class": done?.name ?? "",
        class: `picture ${left.has(id) ? "out" : ""} ${done ? "done" : ""}`, style: { width: "64px", height: "64px" },
        onclick: () => {
          if (left.has(id)) left.delete(id);
          else left.add(id);
          draw();
        },
      });
      showTile(tile, tileOf(member), 64);
      return tile;
    });
  }

  function draw() {
    const done = data.groups.filter(([lead]) => labels.has(data.ids[lead])).length;
    const hourly = seconds > 5 ? ` · ${count(Math.round((given / seconds) * 3600))} labels an hour` : "";
    document.getElementById("progress").textContent = `${done} of ${data.groups.length} · ${counted(labels.size, "label")}${hourly}`;
    document.getElementById("undo").disabled = history.length === 0;
    const line = h("div", { class: "progress-line" }, h("i", { style: { width: `${(100 * done) / data.groups.length}%` } }));
    const notice = kept ? "" : h("p", { class: "verdict bad" }, "This browser does not keep what you do here. Download labels.csv before you close the page.");
    if (at >= data.groups.length) {
      main.replaceChildren(
        line, notice, h("h1", {}, "That was all"),
        h("p", {}, "Download labels.csv, then make the classifier:"),
        h("pre", {}, `deepcluster teach ${data.folder} labels.csv`),
        h("p", {}, worded("More images to label, those that it doubts first:")),
        h("pre", {}, `deepcluster suggest ${data.folder}`),
      );
      return;
    }
    const group = data.groups[at];
    const wasAll = wholeGroup();
    const field = h("input", { id: "new-class", "aria-label": "Name of a new class", placeholder: classes.length ? "another class" : "What is it?", autocomplete: "off" });
    const form = h("form", {
      class: "new-class",
      onsubmit: (event) => {
        event.preventDefault();
        const name = addClass(field.value);
        if (name) say(name, { all: wholeGroup() });
      },
    }, field, h("button", {}, "Add"));
    const many = together().length;
    const all = h("input", { type: "checkbox", id: "all", checked: wasAll });
    main.replaceChildren(
      line, notice,
      h(
        "div", { class: "labelling" },
        h("div", {}, large(group[0]), h("p", { class: "subject-name", dir: "auto" }, data.ids[group[0]])),
        h(
          "div", {}, h("h2", {}, "What is it?"), h("div", { class: "class-list" }, ...classes.map(classButton)), form,
          h("p", { class: "note hands" }, worded("A class's key labels the large image; with Shift, all images at the right with it. Space skips, Backspace takes back.")),
        ),
        h(
          "div", {}, h("h2", {}, "Like it"),
          group.length > 1 ? h("label", { class: "all" }, all, h("span", {}, `All ${count(many)} are the same: label them in one act. Click those that are not.`)) : h("p", { class: "note" }, "It stands for itself only."),
          h("div", { class: "together" }, ...beside(group)),
        ),
      ),
    );
    if (!classes.length) field.focus();
  }

  // -- acts ------------------------------------------------------------------------------------

  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input:not([type=checkbox])")) return;
    if ((event.ctrlKey || event.metaKey) && event.key === "z") {
      event.preventDefault();
      undo();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Backspace") {
      event.preventDefault();
      undo();
    } else if (event.key === " ") {
      event.preventDefault();
      skip();
    } else {
      // Shift changes what a digit's key says; the place of the key does not.
      const key = /^Digit[1-9]$/u.test(event.code) ? event.code.slice(5) : event.key.toLowerCase();
      const name = key.length === 1 ? classes[KEYS.indexOf(key)] : undefined;
      if (KEYS.includes(key) && name !== undefined) {
        event.preventDefault();
        say(name, { all: event.shiftKey || wholeGroup() });
      }
    }
  });
  document.getElementById("undo").addEventListener("click", undo);
  document.getElementById("download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
    const link = h("a", { href: address, download: "labels.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
    toast(`Now make the classifier: deepcluster teach ${data.folder} labels.csv`, { undo: false });
  });

  start();
  draw();
  document.documentElement.dataset.ready = "yes";
})();
