// The page of the training: figures over the epochs.
"use strict";

(() => {
  const { h, count, percent, charts } = deepcluster;

  const { heading } = deepcluster.members;

  function curves() {
    const { metrics, guessing, settings } = deepcluster.summary;
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
    const element = h(
      "div", {},
      h("header", { class: "hero" }, heading("How it learned"), h(
        "p", { class: "lead" },
        metrics.length
          ? `${count(metrics.length)} ${metrics.length === 1 ? "epoch" : "epochs"} of ${settings.method} with ${settings.backbone}. Each drawing has the epochs from left to right.`
          : settings.start === "frozen" ? "Nothing was trained." : "Nothing is known of the training.",
      )),
      h("div", { class: "panels" }, ...panels),
    );
    return { title: "How it learned", element };
  }

  deepcluster.views.curves = curves;
})();
