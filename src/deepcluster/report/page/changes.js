// What a person changed, and the clusters as they stand after it at the chosen level. Kept in the
// browser under the run's id; images are kept by theirs.
"use strict";

deepcluster.changes = (() => {
  const { NO_CLUSTER, levels, count } = deepcluster;
  const { NONE, groupOfNode, nodeOf } = levels;
  const names = new Map(); // group -> name
  const merged = new Map(); // group -> the one it is now part of
  const moved = new Map(); // row -> code of the cell that it is put beside
  const opened = new Map(); // group of a node -> true: shown as its two at any level
  const history = []; // what to put back, newest last
  const listeners = new Set();
  let tree = null;
  let cells = null;
  let rep = null; // cell -> the cell it goes with
  let shown = new Map(); // number -> group, of the nodes that this level shows
  let numberOf = null; // cell -> the number of its cluster at this level
  let weight = null; // cell -> images in it now
  let current = null; // the cluster of each row, after all changes
  let groups = null; // cluster -> its rows
  let said = null; // cluster -> { name, others }
  let level = null; // clusters asked for, or null: those of the run
  let revision = 0;
  let downloaded = 0;
  let mark = ""; // of what was last downloaded
  let kept = true; // whether the browser keeps what is changed

  const { summary } = deepcluster;
  const table = () => deepcluster.table;
  const key = () => `deepcluster:${summary.id}`;
  const own = () => (level === null || level === summary.levels.own);

  /** The run's own clusters are shown as the run has them, unless they are a cut of the tree. */
  const byRun = () => !tree || (own() && !summary.levels.exact);
  const depth = () => level ?? summary.levels.own;

  // -- groups ------------------------------------------------------------------------------------

  function numberOfCell(at) {
    const one = rep[at];
    if (byRun() || cells.part[one] === NONE) return cells.cluster[one];
    return tree.numbers[tree.cut(cells.part[one], depth(), opened)];
  }

  /** The group that a number stands for at this level. */
  const groupOf = (number) => shown.get(number) ?? cells.canon(number);

  /** A number for a group that it keeps at every level. */
  const labelOf = (group) => (nodeOf(group) === NONE ? group : tree.numbers[nodeOf(group)]);

  /** The cell where a group is at home after all merges. */
  function heartOf(group) {
    const at = cells.heart(group, (cell) => cells.inGroup(rep[cell], group));
    return at >= 0 ? at : cells.heart(group);
  }

  /** The cluster that a group is in, or is, at this level. */
  function clusterOfGroup(group) {
    const at = heartOf(group);
    return at < 0 ? NO_CLUSTER : numberOfCell(at);
  }

  // -- the clusters as they stand ------------------------------------------------------------------

  /** Merges that the run knows of: what is in such a cluster stays together. */
  const known = () => summary.glued.map((cluster) => [cluster, cluster]);

  function refresh() {
    if (!table()) return;
    const targets = new Map([...new Set(moved.values())].map((code) => [code, cells.cellOf(code)]));
    for (const group of merged.values()) cells.make(group);
    rep = levels.join(cells, [...known(), ...merged]);
    shown = new Map();
    for (let at = 0; at < cells.count && !byRun(); at++) {
      if (cells.part[at] === NONE) continue;
      const node = tree.cut(cells.part[at], depth(), opened);
      shown.set(tree.numbers[node], groupOfNode(node));
    }
    const { n } = table();
    numberOf = Int32Array.from({ length: cells.count }, (_, at) => numberOfCell(at));
    const cellOf = (row) => (moved.size && moved.has(row) ? targets.get(moved.get(row)) : cells.home[row]);
    weight = new Float64Array(cells.count);
    const sizes = new Map();
    current = new Int32Array(n);
    for (let row = 0; row < n; row++) {
      const at = cellOf(row);
      weight[at]++;
      current[row] = numberOf[at];
    }
    for (let at = 0; at < cells.count; at++) {
      if (weight[at]) sizes.set(numberOf[at], (sizes.get(numberOf[at]) ?? 0) + weight[at]);
    }
    groups = new Map();
    const filled = new Map();
    for (const cluster of [...sizes.keys()].sort((a, b) => a - b)) {
      groups.set(cluster, new Int32Array(sizes.get(cluster)));
      filled.set(cluster, 0);
    }
    for (let row = 0; row < n; row++) {
      const cluster = current[row];
      const place = filled.get(cluster);
      groups.get(cluster)[place] = row;
      filled.set(cluster, place + 1);
    }
    call(sizes);
  }

  /** All groups that have a name (or had one taken), the run's first. */
  function allNames() {
    const all = new Map();
    for (const [cluster, name] of Object.entries(summary.names)) all.set(cells.canon(Number(cluster)), name);
    for (const [group, name] of names) {
      all.delete(group); // the latest comes last
      all.set(group, name);
    }
    return all;
  }

  /**
   * Name the clusters. One that was named itself has that name; else the name that covers most of
   * its images, and of two that cover as many the one of the smaller group.
   */
  function call(sizes) {
    said = new Map();
    const all = allNames();
    if (!all.size) return;
    const called = new Map(); // cell -> name -> images of the smallest group of that name
    for (const [group, name] of all) {
      const inside = [];
      let extent = 0;
      for (let at = 0; at < cells.count && name; at++) {
        if (!weight[at] || !cells.inGroup(rep[at], group)) continue;
        inside.push(at);
        extent += weight[at];
      }
      for (const at of inside) {
        if (!called.has(at)) called.set(at, new Map());
        called.get(at).set(name, Math.min(extent, called.get(at).get(name) ?? Infinity));
      }
    }
    const covered = new Map(); // cluster -> name -> { held, extent }
    for (const [at, list] of called) {
      const cluster = numberOf[at];
      if (cluster === NO_CLUSTER) continue;
      if (!covered.has(cluster)) covered.set(cluster, new Map());
      const here = covered.get(cluster);
      for (const [name, extent] of list) {
        const before = here.get(name) ?? { held: 0, extent: Infinity };
        here.set(name, { held: before.held + weight[at], extent: Math.min(extent, before.extent) });
      }
    }
    for (const cluster of sizes.keys()) {
      const group = groupOf(cluster);
      const ranked = [...covered.get(cluster) ?? []].sort(([, a], [, b]) => b.held - a.held || a.extent - b.extent);
      const name = all.has(group) ? all.get(group) : ranked[0]?.[0] ?? "";
      // A wider group's name is known from the wider level; here only those given to parts of this one.
      const others = ranked.filter(([other, { extent }]) => other !== name && extent < sizes.get(cluster)).map(([other, { held }]) => ({ name: other, size: held }));
      said.set(cluster, { name, others });
    }
    const bearers = new Map();
    for (const { name } of said.values()) bearers.set(name, (bearers.get(name) ?? 0) + 1);
    for (const [cluster, entry] of said) entry.title = bearers.get(entry.name) > 1 ? `${entry.name} · ${cluster}` : entry.name;
  }

  // -- keeping -----------------------------------------------------------------------------------

  // Kept by id: the order of the images means nothing outside this page.
  function toText() {
    const byCode = {};
    for (const [row, code] of moved) (byCode[code] ??= []).push(table().ids[row]);
    return JSON.stringify({
      names: [...names], merged: [...merged], moved: byCode, opened: [...opened.keys()], level, revision, downloaded, mark,
    });
  }

  const pairs = (value) => (Array.isArray(value) ? value : Object.entries(value ?? {}));

  function fromText(text) {
    for (const map of [names, merged, moved, opened]) map.clear();
    let saved = {};
    try {
      saved = JSON.parse(text ?? "{}") ?? {};
    } catch {
      // What another program wrote under our key is not ours to mend.
    }
    revision = Number(saved.revision) || 0;
    downloaded = Number(saved.downloaded) || 0;
    mark = String(saved.mark ?? "");
    level = null;
    if (mark && mark === summary.edit && revision === downloaded) saved = {}; // the run has taken all of it over
    const group = (value) => cells.canon(Number(value));
    for (const [at, name] of pairs(saved.names)) if (cells.known(group(at))) names.set(group(at), String(name));
    for (const [from, into] of pairs(saved.merged)) {
      if (cells.known(group(from)) && cells.known(group(into))) merged.set(group(from), group(into));
    }
    for (const [at, ids] of Object.entries(saved.moved ?? {})) {
      const code = /^-?\d+$/u.test(at) ? Number(at) : at;
      if (typeof code === "string" && !(tree && /^\d+\/\d+$/u.test(at) && parseInt(at, 10) < tree.parts)) continue;
      for (const id of ids) {
        const row = table().rowOf.get(id);
        if (row !== undefined) moved.set(row, code);
      }
    }
    for (const at of saved.opened ?? []) if (tree && cells.known(at)) opened.set(at, true);
    forget();
    level = tree && summary.levels.all.includes(saved.level) && saved.level !== summary.levels.own ? saved.level : null;
  }

  /** The run may have taken some of it over since (`deepcluster apply`): that is done with. */
  function forget() {
    refresh();
    for (const [row, code] of moved) {
      if (table().byPerson[row] && numberOf[cells.cellOf(code)] === table().cluster[row]) moved.delete(row);
    }
    const done = levels.join(cells, known());
    for (const [from, into] of merged) {
      const inside = Array.from(done.keys()).filter((at) => cells.inGroup(at, from) || cells.inGroup(at, into));
      if (new Set(inside.map((at) => done[at])).size < 2) merged.delete(from);
    }
    refresh();
    for (const [group, name] of [...names]) {
      const cluster = clusterOfGroup(group);
      if (cells.canon(cluster) !== group || (summary.names[cluster] ?? "") !== name) continue;
      const all = [...names];
      names.delete(group);
      refresh();
      if (changes.nameOf(cluster) === name) continue;
      names.clear(); // it is still needed, in its place
      for (const [at, kept] of all) names.set(at, kept);
      refresh();
    }
  }

  function keep() {
    try {
      if (changes.any) localStorage.setItem(key(), toText());
      else localStorage.removeItem(key());
      kept = true;
    } catch {
      kept = false; // private mode, or full: the page says so
    }
  }

  function changed() {
    refresh();
    for (const listener of listeners) listener();
  }

  /** Set values in the maps as one step that can be undone. */
  function step(description, writes) {
    const before = writes.map(([map, at]) => [map, at, map.get(at)]);
    for (const [map, at, value] of writes) {
      if (value === undefined) map.delete(at);
      else map.set(at, value);
    }
    history.push({ description, before });
    if (history.length > 100) history.shift();
    revision++;
    keep();
    changed();
    return description;
  }

  const changes = {
    start() {
      const { levels: shape } = summary;
      tree = shape ? levels.plant(shape) : null;
      cells = levels.survey({ tree, partOf: table().part, clusterOf: table().cluster, byPerson: table().byPerson });
      try {
        fromText(localStorage.getItem(key()));
      } catch {
        kept = false;
        fromText(null);
      }
      refresh();
      keep();
      window.addEventListener("storage", (event) => {
        if (event.key !== key()) return;
        fromText(event.newValue);
        history.length = 0;
        changed();
      });
    },
    /** Call `listener` after each change; returns what ends that. */
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },

    // -- the level -------------------------------------------------------------------------------

    get hasLevels() { return tree !== null; },
    get level() { return tree ? depth() : groups.size; },
    get atOwnLevel() { return !tree || own(); },
    /** Show another number of clusters. `settled`: it is not on the way to yet another. */
    setLevel(next, { settled = true } = {}) {
      if (!tree || !summary.levels.all.includes(next)) return;
      const target = next === summary.levels.own ? null : next;
      if (target !== level) {
        level = target;
        revision++;
        changed();
      }
      if (settled) keep();
    },
    /** The parts that a cluster falls into, the largest first: [{ rows, number }]; none if it is one. */
    partsOf(cluster, most = 6) {
      const node = tree ? nodeOf(groupOf(cluster)) : NONE;
      if (node === NONE || node < tree.parts) return [];
      const found = tree.pieces(node, most).map((piece) => ({ number: tree.numbers[piece], piece, rows: [] }));
      for (const row of this.rowsOf(cluster)) {
        const at = moved.has(row) ? cells.cellOf(moved.get(row)) : cells.home[row];
        const p = cells.part[at];
        const here = p === NONE ? undefined : found.find(({ piece }) => tree.holds(piece, p));
        (here ?? found[0]).rows.push(row);
      }
      return found.filter(({ rows }) => rows.length).sort((a, b) => b.rows.length - a.rows.length)
        .map(({ number, rows }) => ({ number, rows: Int32Array.from(rows) }));
    },
    canOpen(cluster) {
      const node = byRun() ? NONE : nodeOf(groupOf(cluster));
      if (node === NONE || node < tree.parts) return false;
      const within = cells.part.map((_, at) => at).filter((at) => weight[at] && numberOf[at] === cluster);
      return tree.childrenOf(node).every((child) => within.some((at) => cells.inGroup(rep[at], groupOfNode(child))));
    },
    /** Show a cluster as the two that the tree merges into it, whatever the level. */
    open(cluster) {
      const group = groupOf(cluster);
      const [a, b] = tree.childrenOf(nodeOf(group)).map((node) => tree.numbers[node]);
      return step(`Cluster ${cluster} opened into ${Math.min(a, b)} and ${Math.max(a, b)}`, [[opened, group, true]]);
    },
    /** Where a cluster stands among those that the tree has beside it: close ones lie near. */
    kinship(cluster) {
      const at = heartOf(groupOf(cluster));
      if (!tree || at < 0 || cells.part[at] === NONE) return Infinity;
      return tree.place(byRun() ? cells.part[at] : tree.cut(cells.part[at], depth(), opened));
    },
    /** Clusters that the tree would merge with this one first. */
    kin(cluster, most = 5) {
      const at = heartOf(groupOf(cluster));
      if (!tree || at < 0 || cells.part[at] === NONE) return [];
      const found = [];
      for (let node = cells.part[at]; node !== NONE && found.length < most; node = tree.parent[node]) {
        const here = new Map();
        for (let cell = 0; cell < cells.count; cell++) {
          const p = cells.part[rep[cell]];
          const other = numberOf[cell];
          if (p === NONE || !tree.holds(node, p) || other === cluster || found.includes(other) || !groups.has(other)) continue;
          here.set(other, groups.get(other).length);
        }
        found.push(...[...here].sort((a, b) => b[1] - a[1]).map(([other]) => other));
      }
      return found.slice(0, most);
    },

    // -- changes ---------------------------------------------------------------------------------

    rename(cluster, name) {
      const clean = name.replace(/\s+/gu, " ").trim().slice(0, 200);
      if (clean === this.nameOf(cluster)) return null;
      const group = groupOf(cluster);
      const before = names.get(group);
      names.delete(group);
      refresh();
      const anyway = this.nameOf(cluster); // its name if nobody had said any here
      if (before !== undefined) names.set(group, before);
      return step(
        clean ? `Cluster ${cluster} is now “${clean}”` : `Cluster ${cluster} has no name now`,
        [[names, group, clean === anyway ? undefined : clean]],
      );
    },
    move(rows, cluster) {
      const going = [...rows].filter((row) => current[row] !== cluster);
      if (!going.length) return null;
      const at = heartOf(groupOf(cluster));
      const code = at < 0 ? groupOf(cluster) : cells.codeOf(at);
      const home = (row) => numberOf[cells.home[row]] === cluster;
      const writes = going.map((row) => [moved, row, home(row) ? undefined : code]);
      const what = deepcluster.images(going.length);
      return step(
        cluster === NO_CLUSTER ? `${what} taken out` : `${what} moved to ${this.titleOf(cluster)}`,
        writes,
      );
    },
    merge(from, into) {
      const [source, target] = [groupOf(from), groupOf(into)];
      const writes = [[merged, source, target]];
      const name = this.nameOf(from);
      if (name && !this.nameOf(into)) writes.push([names, target, name]);
      return step(`${this.titleOf(from)} merged into ${this.titleOf(into)}`, writes);
    },
    undo() {
      const last = history.pop();
      if (!last) return null;
      for (const [map, at, value] of last.before) {
        if (value === undefined) map.delete(at);
        else map.set(at, value);
      }
      revision++;
      keep();
      changed();
      return `Undone: ${last.description}`;
    },
    discard() {
      const writes = [];
      for (const map of [names, merged, moved, opened]) {
        for (const at of map.keys()) writes.push([map, at, undefined]);
      }
      level = null;
      return step("All changes of this browser dropped", writes);
    },
    dropMerge: (from) => step(`Merge of cluster ${labelOf(from)} dropped`, [[merged, from, undefined]]),
    dropName: (group) => step(`Name of cluster ${labelOf(group)} dropped`, [[names, group, undefined]]),
    dropOpened: (group) => step(`Cluster ${labelOf(group)} closed`, [[opened, group, undefined]]),
    dropMoves: (cluster) => step(
      "Moves dropped",
      [...moved.keys()].filter((row) => current[row] === cluster).map((row) => [moved, row, undefined]),
    ),
    nameOf(cluster) {
      if (!said) return summary.names[cluster] ?? "";
      if (said.has(cluster)) return said.get(cluster).name;
      return allNames().get(groupOf(cluster)) ?? "";
    },
    /** Names of parts of a cluster that is called otherwise: [{ name, size }], the largest first. */
    othersOf: (cluster) => said?.get(cluster)?.others ?? [],
    titleOf(cluster) {
      if (cluster === NO_CLUSTER) return "Taken out";
      const name = this.nameOf(cluster);
      return name ? said?.get(cluster)?.title ?? name : `Cluster ${cluster}`; // with its number, if two have the name
    },
    titleOfGroup(group) {
      return group === NO_CLUSTER ? this.titleOf(group) : allNames().get(group) || `Cluster ${labelOf(group)}`;
    },
    labelOf,
    /** A number that no cluster has or had, at any level. */
    unused() {
      let top = -1;
      for (const cluster of table().cluster) top = Math.max(top, cluster);
      for (const number of tree?.numbers ?? []) top = Math.max(top, number);
      for (const group of [...cells.cluster, ...names.keys()]) top = Math.max(top, group);
      for (const cluster of [...Object.keys(summary.merged), ...Object.keys(summary.names)]) {
        top = Math.max(top, Number(cluster));
      }
      return top + 1;
    },
    clusterOf: (row) => current[row],
    /** The cluster of each row; another array after each change. */
    get assignment() { return current; },
    byPerson: (row) => moved.has(row) || Boolean(table().byPerson[row]),
    /** Numbers of the clusters that have images, NO_CLUSTER left out. */
    clusters: () => [...groups.keys()].filter((cluster) => cluster !== NO_CLUSTER),
    rowsOf: (cluster) => groups.get(cluster) ?? new Int32Array(0),
    /** The cluster that a number leads to: itself, or the one that its images are in now. */
    root(number) {
      if (groups.has(number) || number === NO_CLUSTER) return number;
      let cluster = number;
      for (const seen = new Set(); summary.merged[cluster] !== undefined && !seen.has(cluster); cluster = summary.merged[cluster]) seen.add(cluster);
      let group = groupOf(cluster);
      if (nodeOf(group) === NONE && tree) {
        const node = tree.numbers.lastIndexOf(cluster); // the largest of that number
        if (node >= 0) group = groupOfNode(node);
      }
      const at = cells.heart(group);
      return at < 0 ? number : numberOfCell(at);
    },
    names, merged, moved, opened,
    get any() { return this.count > 0; },
    get count() { return names.size + merged.size + moved.size + opened.size + (this.atOwnLevel ? 0 : 1); },
    get pending() { return this.any && revision !== downloaded; },
    get kept() { return kept; },
    get canUndo() { return history.length > 0; },
    toCsv() {
      const quote = (text) => (/[",\r\n]|^\s|\s$/u.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
      const other = !this.atOwnLevel || opened.size > 0; // not the clusters of the run: it must be told so
      const plain = levels.join(cells, known());
      const lines = [`id,path,cluster,name,by,run,edit${other ? ",level" : ""}`];
      const { ids, pathOf, n } = table();
      for (let row = 0; row < n; row++) {
        const cluster = current[row];
        const name = cluster === NO_CLUSTER ? "" : this.nameOf(cluster);
        const line = [quote(ids[row]), quote(pathOf(row)), cluster, quote(name), this.byPerson(row) ? "person" : "model", summary.run, mark];
        const joined = rep[cells.home[row]] !== plain[cells.home[row]]; // a person merged it: that is no matter of the level
        if (other) line.push(joined ? "" : groups.size);
        lines.push(line.join(","));
      }
      return lines.join("\r\n") + "\r\n";
    },
    /** What is downloaded next can be told from all else: see toCsv. */
    markDownloaded() {
      downloaded = revision;
      mark = `e${crypto.getRandomValues(new Uint32Array(2)).join("-")}`;
      keep();
      for (const listener of listeners) listener();
    },
  };
  return changes;
})();
