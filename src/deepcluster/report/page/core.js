// What all pages share: the data as they come in, and small tools for the page. Whatever comes
// from the run is put in as text, never as HTML.
"use strict";

const deepcluster = (() => {
  // -- data ------------------------------------------------------------------------------------

  const NO_CLUSTER = -1; // of images that were taken out of theirs
  const received = {};
  const waiting = {};

  /** Called by the data scripts. */
  function receive(name, value) {
    received[name] = value;
    if (waiting[name]) waiting[name].resolve(value);
  }

  /** The value of a data script, which is loaded once. */
  function load(name) {
    if (received[name]) return Promise.resolve(received[name]);
    if (!waiting[name]) {
      const promise = new Promise((resolve, reject) => {
        waiting[name] = { resolve };
        const script = document.createElement("script");
        script.src = `data/${name}.js`;
        script.onerror = () => reject(new Error(`data/${name}.js is missing: copy the whole folder`));
        document.head.append(script);
      });
      waiting[name].promise = promise;
    }
    return waiting[name].promise;
  }

  const TYPES = {
    uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array,
    float32: Float32Array,
  };

  /** An array that was packed as base64 (all machines that run browsers are little-endian). */
  function unpack({ type, base64 }) {
    const text = atob(base64);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new TYPES[type](bytes.buffer);
  }

  // -- the table of images ---------------------------------------------------------------------

  let table = null;
  let tableLoading = null;

  /** The table of images; rows are positions in it, ids are what is kept and written. */
  function loadTable() {
    tableLoading ??= load("items").then((items) => {
      const columns = {};
      for (const name of ["label", "cluster", "byPerson", "distance", "confidence", "tile", "places"]) {
        columns[name] = unpack(items[name]);
      }
      const rowOf = new Map(items.ids.map((id, row) => [id, row]));
      const restOf = (row) => (items.paths[row] === 0 ? items.ids[row] : items.paths[row]);
      const pathOf = (row) => (restOf(row) === null ? "" : items.prefix + restOf(row));
      table = {
        ...columns, part: items.part ? unpack(items.part) : null,
        said: items.said ? unpack(items.said) : null, sure: items.sure ? unpack(items.sure) : null, n: items.ids.length, ids: items.ids, classes: items.classes, rowOf, restOf, pathOf,
        rated: columns.confidence.some((value) => !Number.isNaN(value)),
      };
      deepcluster.changes.start();
      return table;
    });
    return tableLoading;
  }

  /** Short name of an image for people: the last part of its path, or its id. */
  function nameOf(row) {
    const whole = table.pathOf(row) || table.ids[row];
    return whole.slice(Math.max(whole.lastIndexOf("/"), whole.lastIndexOf("\\")) + 1) || whole;
  }

  // -- shares ----------------------------------------------------------------------------------

  /** Percentages of `sizes` as texts that add up to exactly 100 (largest remainder). */
  function shares(sizes) {
    const total = sizes.reduce((sum, size) => sum + size, 0);
    const unit = sizes.length > 100 ? 100 : 10; // parts of a percent
    const exact = sizes.map((size) => (total ? (size / total) * 100 * unit : 0));
    const parts = exact.map(Math.floor);
    let missing = total ? 100 * unit - parts.reduce((sum, part) => sum + part, 0) : 0;
    const order = exact.map((_, i) => i).sort((a, b) => exact[b] - parts[b] - (exact[a] - parts[a]) || a - b);
    for (let i = 0; missing > 0; i++, missing--) parts[order[i % order.length]]++;
    const digits = unit === 100 ? 2 : 1;
    return parts.map((part) => `${(part / unit).toFixed(digits)} %`);
  }

  /** Share of each cluster (and of the images taken out) as a text, by number. */
  function clusterShares() {
    const { changes } = deepcluster;
    const numbers = changes.clusters();
    if (changes.rowsOf(NO_CLUSTER).length) numbers.push(NO_CLUSTER);
    const texts = shares(numbers.map((cluster) => changes.rowsOf(cluster).length));
    return new Map(numbers.map((cluster, i) => [cluster, texts[i]]));
  }

  /** Classes among `rows`, the most frequent first: [{code, name, size}]; unlabelled is code -1. */
  function classMix(rows) {
    const sizes = new Map();
    for (const row of rows) sizes.set(table.label[row], (sizes.get(table.label[row]) ?? 0) + 1);
    return [...sizes]
      .map(([code, size]) => ({ code, size, name: code < 0 ? "no label" : table.classes[code] }))
      .sort((a, b) => b.size - a.size || a.code - b.code);
  }

  // -- texts and elements ----------------------------------------------------------------------

  const grouped = new Intl.NumberFormat("en");
  const count = (n) => grouped.format(n);
  const counted = (n, what) => `${count(n)} ${n === 1 ? what : `${what}s`}`;
  /** A sentence about images, as it is said of vectors where no images are beside them. */
  function worded(text) {
    if ((received.summary ?? received.label)?.item !== "vector") return text;
    return text.replace(/\b([Aa])n image\b/gu, "$1 vector").replace(/\bimage(s?)\b/gu, "vector$1").replace(/\bImage(s?)\b/gu, "Vector$1");
  }
  const images = (n) => worded(counted(n, "image"));
  const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;

  function duration(seconds) {
    if (seconds < 100) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
    if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
    return `${(seconds / 3600).toFixed(1)} h`;
  }

  const SVG = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "polyline"]);

  /** An element. Children are elements or texts; a property that starts with "on" is a listener. */
  function h(tag, properties = {}, ...children) {
    const element = SVG.has(tag)
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (value === undefined || value === null || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "style") Object.assign(element.style, value);
      else if (name === "value") element.value = value;
      else element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  // -- pictures --------------------------------------------------------------------------------

  /** Where the picture of a row is: sheet, and left and top in tiles. */
  function tileOf(row) {
    const { columns, rows, sheets } = received.summary.thumbnails;
    const tile = table.tile[row];
    const place = tile % (columns * rows);
    return {
      url: `thumbnails/${sheets[Math.floor(tile / (columns * rows))]}`,
      left: place % columns, top: Math.floor(place / columns), columns,
    };
  }

  /** Show a part of a sheet in an element of `size` pixels. */
  function showTile(element, { url, left, top, columns }, size) {
    const style = element.style;
    style.backgroundImage = `url("${url}")`;
    style.backgroundSize = `${columns * size}px auto`;
    style.backgroundPosition = `${-left * size}px ${-top * size}px`;
  }

  /** The picture of a row. */
  function picture(row, size, { link = true } = {}) {
    const look = { width: `${size}px`, height: `${size}px` };
    const element = link
      ? h("a", { class: "picture", href: imageLink(row), title: nameOf(row), "aria-label": nameOf(row), style: look })
      : h("span", { class: "picture", style: look });
    showTile(element, tileOf(row), size);
    return element;
  }

  const imageLink = (row) => `#/image/${encodeURIComponent(table.ids[row])}`;
  const clusterLink = (cluster) => `#/cluster/${cluster}`;

  const HUES = [
    "#3b76c4", "#e08a1e", "#3f9b57", "#cf4b4b", "#8a63c7", "#8c6a4f", "#d573b4", "#6f7f8c",
    "#a9a02c", "#2aa3b3",
  ];

  /** A colour for the number of a cluster, as [r, g, b]. */
  function colourOf(number) {
    if (number < 0) return [140, 140, 140];
    if (number < HUES.length) {
      const hex = HUES[number];
      return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    }
    return spun(number, 0.42, 0.55);
  }

  /** A colour for the number of a class: paler and brighter, for no class is a cluster. */
  const classColourOf = (number) => (number < 0 ? [140, 140, 140] : spun(number, 0.6, 0.9));

  /** Golden angle: neighbours in number differ, and it never runs out. */
  function spun(number, darkest, strength) {
    const hue = (number * 137.508) % 360;
    const light = darkest + 0.2 * ((number * 0.37) % 1);
    const chroma = strength * Math.min(light, 1 - light);
    return [0, 8, 4].map((shift) => {
      const k = (shift + hue / 30) % 12;
      return Math.round(255 * (light - chroma * Math.max(-1, Math.min(k - 3, 9 - k, 1))));
    });
  }

  const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

  /** `draw` with the next frame, once however often it is asked for until then. */
  function soon(draw) {
    let asked = 0;
    return () => {
      asked ||= requestAnimationFrame(() => {
        asked = 0;
        draw();
      });
    };
  }

  // -- messages --------------------------------------------------------------------------------

  let toastTimer = 0;

  /** Say what was done, for a while, with a way back. */
  function toast(message, { undo = true } = {}) {
    if (!message) return;
    const box = document.getElementById("toast");
    const { changes } = deepcluster;
    const children = [h("span", {}, message)];
    if (undo && changes.canUndo) {
      children.push(h("button", { type: "button", onclick: () => toast(changes.undo(), { undo: false }) }, "Undo"));
    }
    box.replaceChildren(...children);
    box.classList.add("shown");
    clearTimeout(toastTimer);
    toastTimer = setTimeout(() => box.classList.remove("shown"), 7000);
  }

  return {
    NO_CLUSTER, receive, load, loadTable, unpack, shares, clusterShares, classMix, count, counted,
    images, worded, percent, duration, h, tileOf, showTile, picture, imageLink, clusterLink, nameOf,
    colourOf, classColourOf, css, soon, toast, views: {},
    get summary() { return received.summary; },
    get table() { return table; },
  };
})();
