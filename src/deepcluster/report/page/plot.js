// The map: every image a point on a canvas; pictures where there is room. Zoom, pan, lasso.
"use strict";

deepcluster.plot = (() => {
  const { changes, h, tileOf, colourOf, classColourOf, css, images, percent, nameOf, NO_CLUSTER, soon, worded } = deepcluster;
  const PICTURES = 500; // points in sight from which pictures are drawn
  const PICTURE = 40; // their side
  const NAMED = 60; // clusters up to which their names are on the map

  // From dark violet to yellow, even in brightness (after matplotlib's viridis).
  const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];

  function ramp(value) {
    const at = Math.max(0, Math.min(0.9999, value)) * (RAMP.length - 1);
    const [low, high] = [RAMP[Math.floor(at)], RAMP[Math.floor(at) + 1]];
    return low.map((c, i) => Math.round(c + (high[i] - c) * (at % 1)));
  }

  const NOWHERE = 65535; // place of an image that is not on the map

  /** The rows that are on the map, in a fixed random order, so that no class is always on top. */
  function shuffled({ n, places }) {
    const order = Uint32Array.from({ length: n }, (_, i) => i).filter((row) => places[2 * row] !== NOWHERE);
    let state = 1;
    for (let i = order.length - 1; i > 0; i--) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const j = Math.floor((state / 2 ** 32) * (i + 1));
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  const sheets = new Map(); // url -> image, the oldest dropped first

  function sheet(url, whenLoaded) {
    let image = sheets.get(url);
    if (!image) {
      image = new Image();
      image.src = url;
      if (sheets.size > 96) sheets.delete(sheets.keys().next().value);
    } else {
      sheets.delete(url);
    }
    sheets.set(url, image);
    if (!image.complete) image.addEventListener("load", whenLoaded, { once: true });
    return image.complete && image.naturalWidth ? image : null;
  }

  /** A map. Options: onSelect(rows), colour ("cluster", "label" or "confidence"). */
  function create({ onSelect, colour = "cluster" }) {
    const { table } = deepcluster;
    const order = shuffled(table);
    const canvas = h("canvas", {
      class: "map", tabindex: 0, role: "img",
      "aria-label": worded("Map of the images. Arrow keys move it, plus and minus zoom, 0 shows all."),
    });
    const tip = h("div", { class: "tip" });
    tip.hidden = true;
    const box = h("div", { class: "map-box" }, canvas, tip);
    const context = canvas.getContext("2d");
    const view = { x: 0.5, y: 0.5, scale: 1 }; // centre, and sides of the map per side of the canvas
    let lassoing = false;
    let lasso = null; // points of it while it is drawn, in canvas pixels
    let outline = null; // points of the one that chose, in sides of the map
    let chosen = null; // Uint8Array of rows in the selection, or null
    let only = null; // the cluster or class that is not dimmed
    let width = 0, height = 0, ratio = 1;
    let colours = new Uint32Array(table.n);

    // -- places ----------------------------------------------------------------------------

    const FULL = NOWHERE - 1;
    const px = table.places; // 0 to FULL, x and y in turn
    const side = () => Math.min(width, height) * 0.94 * view.scale;
    const toX = (row) => (px[2 * row] / FULL - view.x) * side() + width / 2;
    const toY = (row) => (1 - px[2 * row + 1] / FULL - view.y) * side() + height / 2;

    // Rows by cell of a fixed grid: what is near the pointer is found in a few cells.
    const CELLS = 128;
    const cellOf = (row) => Math.min(CELLS - 1, px[2 * row] >> 9) + CELLS * Math.min(CELLS - 1, (FULL - px[2 * row + 1]) >> 9);
    const starts = new Uint32Array(CELLS * CELLS + 1);
    for (const row of order) starts[cellOf(row) + 1]++;
    for (let i = 1; i < starts.length; i++) starts[i] += starts[i - 1];
    const filled = starts.slice();
    const byCell = new Uint32Array(order.length);
    for (const row of order) byCell[filled[cellOf(row)]++] = row;

    function nearest(x, y, reach) {
      const s = side();
      const cell = (at, from, centre) => Math.floor((((at - from / 2) / s) + centre) * CELLS);
      const clamp = (c) => Math.max(0, Math.min(CELLS - 1, c));
      let best = -1;
      let least = reach * reach;
      for (let j = clamp(cell(y - reach, height, view.y)); j <= clamp(cell(y + reach, height, view.y)); j++) {
        for (let i = clamp(cell(x - reach, width, view.x)); i <= clamp(cell(x + reach, width, view.x)); i++) {
          for (let k = starts[i + CELLS * j]; k < starts[i + CELLS * j + 1]; k++) {
            const row = byCell[k];
            const away = (toX(row) - x) ** 2 + (toY(row) - y) ** 2;
            if (away < least) [best, least] = [row, away];
          }
        }
      }
      return best;
    }

    // -- colours ---------------------------------------------------------------------------

    const pack = ([r, g, b], alpha = 255) => ((alpha << 24) | (b << 16) | (g << 8) | r) >>> 0;
    const paintOf = (key) => (colour === "label" ? classColourOf(key) : colourOf(key));
    const keyOf = (row) => (colour === "label" ? table.label[row] : changes.clusterOf(row));

    function recolour() {
      colours = new Uint32Array(table.n);
      const known = new Map();
      for (let row = 0; row < table.n; row++) {
        if (colour === "confidence") {
          const value = table.confidence[row];
          colours[row] = pack(Number.isNaN(value) ? [140, 140, 140] : ramp(value));
        } else {
          const key = keyOf(row);
          if (!known.has(key)) known.set(key, pack(paintOf(key)));
          colours[row] = known.get(key);
        }
      }
      drawSoon();
    }

    const scheme = matchMedia("(prefers-color-scheme: dark)");

    // -- drawing ---------------------------------------------------------------------------

    const drawSoon = soon(draw);

    function draw() {
      ratio = window.devicePixelRatio || 1;
      width = box.clientWidth;
      height = box.clientHeight;
      if (!width || !height) return;
      const w = Math.round(width * ratio);
      const hh = Math.round(height * ratio);
      if (canvas.width !== w || canvas.height !== hh) [canvas.width, canvas.height] = [w, hh];
      const pixels = context.createImageData(w, hh);
      const target = new Uint32Array(pixels.data.buffer);
      const crowd = Math.sqrt(order.length) / Math.min(width, height) / view.scale; // points a pixel, about
      const radius = Math.max(0.8, Math.min(4, 0.5 / crowd)) * ratio;
      const stamp = [];
      for (let dy = -Math.ceil(radius); dy <= radius; dy++) {
        for (let dx = -Math.ceil(radius); dx <= radius; dx++) {
          if (dx * dx + dy * dy <= radius * (radius + 0.7)) stamp.push(dx, dy);
        }
      }
      const ground = scheme.matches ? [29, 34, 38] : [255, 255, 255];
      const faded = new Map();
      const fade = (packed) => {
        if (!faded.has(packed)) {
          const part = (at) => Math.round(0.2 * ((packed >> (8 * at)) & 255) + 0.8 * ground[at]);
          faded.set(packed, pack([part(0), part(1), part(2)]));
        }
        return faded.get(packed);
      };
      const dimmed = (row) => (chosen && !chosen[row]) || (only !== null && keyOf(row) !== only);
      const s = side() * ratio;
      const [left, top] = [w / 2 - view.x * s, hh / 2 - view.y * s];
      const inSight = [];
      const partly = chosen !== null || only !== null;
      for (const pass of partly ? [0, 1] : [1]) {
        for (let k = 0; k < order.length; k++) {
          const row = order[k];
          if (partly && dimmed(row) === (pass === 1)) continue;
          const x = Math.round((px[2 * row] / FULL) * s + left);
          const y = Math.round((1 - px[2 * row + 1] / FULL) * s + top);
          if (x < -radius || y < -radius || x >= w + radius || y >= hh + radius) continue;
          if (inSight.length <= PICTURES) inSight.push(row);
          const paint = pass === 0 ? fade(colours[row]) : colours[row];
          for (let i = 0; i < stamp.length; i += 2) {
            const xx = x + stamp[i];
            const yy = y + stamp[i + 1];
            if (xx >= 0 && yy >= 0 && xx < w && yy < hh) target[yy * w + xx] = paint;
          }
        }
      }
      context.putImageData(pixels, 0, 0);
      context.save();
      context.scale(ratio, ratio);
      if (inSight.length <= PICTURES && (view.scale > 1 || order.length <= PICTURES)) drawPictures(inSight);
      if (colour === "cluster") drawNames();
      if (lasso) drawLasso(lasso);
      else if (outline) drawLasso(outline.map(([x, y]) => [(x - view.x) * side() + width / 2, (y - view.y) * side() + height / 2]));
      context.restore();
    }

    /** Pictures where there is room for them, each with a frame in its colour. */
    function drawPictures(rows) {
      const taken = [];
      for (const row of rows) {
        const x = toX(row);
        const y = toY(row);
        if (taken.some(([a, b]) => Math.abs(a - x) < PICTURE && Math.abs(b - y) < PICTURE)) continue;
        taken.push([x, y]);
        const { url, left, top } = tileOf(row);
        const image = sheet(url, drawSoon);
        if (!image) continue;
        const { tile } = deepcluster.summary.thumbnails;
        const half = PICTURE / 2;
        const packed = colours[row];
        context.fillStyle = css([packed & 255, (packed >> 8) & 255, (packed >> 16) & 255]);
        context.fillRect(x - half, y - half, PICTURE, PICTURE);
        context.drawImage(image, left * tile, top * tile, tile, tile, x - half + 2, y - half + 2, PICTURE - 4, PICTURE - 4);
      }
    }

    let places = null; // cluster -> where its name goes

    function drawNames() {
      if (!places) {
        places = new Map();
        const numbers = changes.clusters();
        for (const cluster of numbers.length <= NAMED ? numbers : []) {
          const rows = changes.rowsOf(cluster).filter((row) => px[2 * row] !== NOWHERE);
          if (!rows.length) continue;
          const middle = (axis) => Float64Array.from(rows, (row) => px[2 * row + axis]).sort()[rows.length >> 1];
          // The member nearest the median: a median alone may lie between two islands.
          const [mx, my] = [middle(0), middle(1)];
          let best = rows[0];
          let least = Infinity;
          for (const row of rows) {
            const away = (px[2 * row] - mx) ** 2 + (px[2 * row + 1] - my) ** 2;
            if (away < least) [best, least] = [row, away];
          }
          places.set(cluster, best);
        }
      }
      const style = getComputedStyle(box);
      context.font = `600 13px ${style.fontFamily}`;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.lineJoin = "round";
      context.lineWidth = 4;
      for (const [cluster, row] of places) {
        const named = changes.nameOf(cluster);
        const text = named ? (named.length > 24 ? `${named.slice(0, 23)}…` : named) : String(cluster);
        context.strokeStyle = style.getPropertyValue("--ground");
        context.strokeText(text, toX(row), toY(row));
        context.fillStyle = style.getPropertyValue("--ink");
        context.fillText(text, toX(row), toY(row));
      }
    }

    function drawLasso(points) {
      context.beginPath();
      points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.closePath();
      const accent = getComputedStyle(box).getPropertyValue("--accent");
      context.strokeStyle = accent;
      context.lineWidth = 2;
      context.setLineDash([5, 4]);
      context.stroke();
      context.globalAlpha = 0.1;
      context.fillStyle = accent;
      context.fill();
      context.globalAlpha = 1;
      context.setLineDash([]);
    }

    // -- pointer and keys ------------------------------------------------------------------

    function zoom(factor, x = width / 2, y = height / 2) {
      const before = side();
      const atX = (x - width / 2) / before + view.x;
      const atY = (y - height / 2) / before + view.y;
      view.scale = Math.max(0.5, Math.min(400, view.scale * factor));
      view.x = atX - (x - width / 2) / side();
      view.y = atY - (y - height / 2) / side();
      hideTip();
      drawSoon();
    }

    function pan(dx, dy) {
      view.x -= dx / side();
      view.y -= dy / side();
      hideTip();
      drawSoon();
    }

    function showAll() {
      Object.assign(view, { x: 0.5, y: 0.5, scale: 1 });
      drawSoon();
    }

    function inside(points, x, y) {
      let odd = false;
      for (let i = 0, j = points.length - 1; i < points.length; j = i++) {
        const [xi, yi] = points[i];
        const [xj, yj] = points[j];
        if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) odd = !odd;
      }
      return odd;
    }

    function choose(rows) {
      chosen = rows.length ? new Uint8Array(table.n) : null;
      for (const row of rows) chosen[row] = 1;
      if (!rows.length) outline = null;
      drawSoon();
      onSelect(rows);
    }

    function closeLasso() {
      const points = lasso;
      lasso = null;
      const rows = [];
      if (points.length > 2) {
        for (const row of order) {
          if (only !== null && keyOf(row) !== only) continue;
          if (inside(points, toX(row), toY(row))) rows.push(row);
        }
      }
      outline = points.map(([x, y]) => [(x - width / 2) / side() + view.x, (y - height / 2) / side() + view.y]);
      choose(rows);
    }

    const pointers = new Map();
    let travelled = 0;
    const at = (event) => {
      const rectangle = canvas.getBoundingClientRect();
      return [event.clientX - rectangle.left, event.clientY - rectangle.top];
    };

    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, at(event));
      travelled = 0;
      lasso = pointers.size === 1 && (lassoing || event.shiftKey) ? [at(event)] : null;
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = at(event);
      const before = pointers.get(event.pointerId);
      if (!before) {
        hover(x, y);
        return;
      }
      travelled += Math.abs(x - before[0]) + Math.abs(y - before[1]);
      if (lasso) {
        lasso.push([x, y]);
        drawSoon();
      } else if (pointers.size === 2) {
        const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, point]) => point);
        const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
        const is = Math.hypot(x - other[0], y - other[1]);
        if (was > 0) zoom(is / was, (x + other[0]) / 2, (y + other[1]) / 2);
      } else {
        pan(x - before[0], y - before[1]);
      }
      pointers.set(event.pointerId, [x, y]);
    });
    const release = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      if (lasso) {
        closeLasso();
      } else if (travelled < 4 && event.type === "pointerup") {
        const row = nearest(...at(event), 14);
        if (row >= 0 && event.pointerType !== "mouse" && tip.hidden) hover(...at(event));
        else if (row >= 0) location.hash = deepcluster.imageLink(row);
        else if (chosen) choose([]);
      }
    };
    canvas.addEventListener("pointerup", release);
    canvas.addEventListener("pointercancel", release);
    canvas.addEventListener("pointerleave", () => { if (!pointers.size) hideTip(); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), ...at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
      if (event.key in steps) pan(...steps[event.key]);
      else if (event.key === "+" || event.key === "=") zoom(1.4);
      else if (event.key === "-") zoom(1 / 1.4);
      else if (event.key === "0") showAll();
      else if (event.key === "Escape" && (chosen || lasso)) choose([]);
      else return;
      event.preventDefault();
    });

    function hideTip() {
      tip.hidden = true;
    }

    function hover(x, y) {
      const row = nearest(x, y, 14);
      canvas.classList.toggle("over", row >= 0);
      if (row < 0) {
        hideTip();
        return;
      }
      const { confidence, label, classes } = table;
      const facts = [changes.titleOf(changes.clusterOf(row))];
      if (label[row] >= 0) facts.push(`class ${classes[label[row]]}`);
      if (!Number.isNaN(confidence[row])) facts.push(`confidence ${percent(confidence[row])}`);
      tip.replaceChildren(
        deepcluster.picture(row, 96, { link: false }),
        h("span", { class: "tip-name", dir: "auto" }, nameOf(row)),
        ...facts.map((fact) => h("span", { dir: "auto" }, fact)),
      );
      tip.hidden = false;
      const wide = tip.offsetWidth;
      const high = tip.offsetHeight;
      tip.style.left = `${x + 16 + wide > width ? Math.max(0, x - 16 - wide) : x + 16}px`;
      tip.style.top = `${Math.max(0, Math.min(y - high / 2, height - high))}px`;
    }

    const observer = new ResizeObserver(drawSoon);
    observer.observe(box);
    scheme.addEventListener("change", drawSoon);
    recolour();

    return {
      element: box,
      zoom, showAll, choose,
      setColour(next) {
        colour = next;
        only = null;
        recolour();
      },
      setLasso(on) {
        lassoing = on;
        canvas.classList.toggle("lassoing", on);
      },
      highlight(key) {
        only = key;
        drawSoon();
      },
      refresh() {
        places = null;
        recolour();
      },
      /** Keys of the legend with their sizes, for the colours in use. */
      legend() {
        const sizes = new Map();
        if (colour === "confidence") return [];
        for (let row = 0; row < table.n; row++) sizes.set(keyOf(row), (sizes.get(keyOf(row)) ?? 0) + 1);
        return [...sizes].sort((a, b) => b[1] - a[1]).map(([key, size]) => ({
          key, size, colour: css(paintOf(key)),
          name: colour === "cluster" ? changes.titleOf(key) : key < 0 ? "no label" : table.classes[key],
        }));
      },
      destroy() {
        observer.disconnect();
        scheme.removeEventListener("change", drawSoon);
      },
    };
  }

  const rampCss = `linear-gradient(90deg, ${RAMP.map(css).join(", ")})`;
  return { create, rampCss, images, NO_CLUSTER };
})();
