// The page of the map.
"use strict";

(() => {
  const { h, count, images, grid, worded } = deepcluster;

  const { heading } = deepcluster.members;

  function map() {
    const { summary, table } = deepcluster;
    const hint = worded("Drag to move, scroll to zoom. Draw a lasso around images to see them here: with the lasso on, or with Shift held down.");
    const side = h("aside", { class: "map-side" });
    const view = grid.create({ label: worded("Images in the lasso"), scroller: side, empty: hint });
    const plot = deepcluster.plot.create({
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
        legend.replaceChildren(h("span", {}, "0 %"), h("i", { class: "ramp", style: { backgroundImage: deepcluster.plot.rampCss } }), h("span", {}, "100 %"));
        return;
      }
      const entries = plot.legend();
      const MOST = 40;
      legend.replaceChildren(...entries.slice(0, MOST).map(({ key, name, colour: paint, size }) => {
        const button = h(
          "button", { type: "button", class: "key-button", "aria-pressed": "false", title: `${images(size)}: show only these` },
          h("i", { class: colour.value === "label" ? "swatch of-class" : "swatch", style: { background: paint } }), h("span", { dir: "auto" }, name),
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
    const shown = summary.map.shown;
    const which = shown < table.n ? `Shown ${count(shown)} of ${images(table.n)}, drawn at random.` : `All ${images(table.n)}.`;
    const slider = deepcluster.levelTool();
    plot.element.append(h(
      "div", { class: "map-zoom" },
      h("button", { type: "button", "aria-label": "Zoom in", title: "Zoom in", onclick: () => plot.zoom(1.5) }, "+"),
      h("button", { type: "button", "aria-label": "Zoom out", title: "Zoom out", onclick: () => plot.zoom(1 / 1.5) }, "−"),
    ));
    side.append(view.element);
    const element = h(
      "div", { class: "map-page" },
      h("header", { class: "hero" }, heading("Map"), h("p", { class: "lead" }, `${which} Near means alike; distances between far groups mean little.`)),
      h(
        "div", { class: "tools" }, slider?.element, h("label", {}, "Colour ", colour), lasso,
        h("button", { type: "button", onclick: plot.showAll }, "Show all"),
      ),
      legend,
      h("div", { class: "map-split" }, plot.element, side),
    );
    slider?.refresh();
    fillLegend();
    return {
      title: "Map", element,
      attached: () => view.setRows(new Int32Array(0), ""),
      refresh() {
        slider?.refresh();
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

  deepcluster.views.map = map;
})();
