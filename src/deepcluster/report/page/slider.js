// The slider: how many clusters there are.
"use strict";

(() => {
  const { changes, h, count } = deepcluster;

  /** The tool that sets the number of clusters; null where the run has no tree. `refresh` it before it is shown and after changes. */
  function levelTool() {
    const { levels } = deepcluster.summary;
    if (!levels) return null;
    const { all, own } = levels;
    const range = h("input", {
      type: "range", class: "level-range", min: 0, max: all.length - 1, step: 1, "aria-label": "Number of clusters",
    });
    const said = h("output", { class: "level-said" });
    const ownMark = h("button", { type: "button", class: "quiet level-own", onclick: () => changes.setLevel(own) }, `Back to the ${count(own)} of the fit`);
    let asked = 0;
    let wanted = null;
    const at = () => all.indexOf(wanted ?? changes.level);
    function go(position, settled) {
      wanted = all[Math.max(0, Math.min(all.length - 1, position))];
      asked ||= requestAnimationFrame(() => {
        asked = 0;
        const next = wanted;
        wanted = null;
        changes.setLevel(next, { settled });
      });
    }
    range.addEventListener("input", () => go(Number(range.value), false));
    range.addEventListener("change", () => go(Number(range.value), true));
    const step = (by) => go(at() + by, true);
    const button = (by, name, text) => h(
      "button", { type: "button", class: "step", "aria-label": name, title: `${name}. Key: ${text}`, onclick: () => step(by) }, text,
    );
    const fewer = button(-1, "Fewer clusters", "−");
    const more = button(1, "More clusters", "+");
    function refresh() {
      const { level } = changes;
      if (document.activeElement !== range || Number(range.value) !== all.indexOf(level)) range.value = all.indexOf(level);
      range.setAttribute("aria-valuetext", `${level} clusters`);
      const shown = changes.clusters().length;
      said.textContent = `${count(shown)} ${shown === 1 ? "cluster" : "clusters"}`;
      said.title = shown === level ? "" : `${count(level)} before what you merged, opened or made by hand`;
      fewer.disabled = level === all[0];
      more.disabled = level === all.at(-1);
      ownMark.hidden = changes.atOwnLevel;
    }
    const element = h(
      "div", { class: "level", role: "group", "aria-label": "How many clusters" },
      fewer, h("span", { class: "level-end" }, count(all[0])), range, h("span", { class: "level-end" }, count(all.at(-1))), more, said, ownMark,
    );
    /** Answer the keys + and −. */
    function key({ key: pressed }) {
      if (!deepcluster.table) return; // not yet
      if (pressed === "+" || pressed === "=") step(1);
      else if (pressed === "-") step(-1);
    }
    return { element, refresh, key };
  }

  deepcluster.levelTool = levelTool;
})();
