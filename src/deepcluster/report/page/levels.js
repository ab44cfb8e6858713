// The tree of clusters: any number of clusters is a cut of it.
//
// The finest clusters of a run are its parts. Two nodes of the tree merge into one, from the parts
// up to the root, in the order of the tree's nodes; a cut at k has made all but the last k - 1
// merges. A node has a number: of the two that it splits into, the larger keeps it.
//
// What a person says is said of groups and holds at every cut. A group is a node of the tree, or a
// cluster of the run, or one made by hand. As every image lies in one part and in one cluster of
// the run, the images with both in common are never told apart: they are a cell. Changes join
// cells, a cut and the clusters of the run place them.
"use strict";

deepcluster.levels = (() => {
  const { NO_CLUSTER } = deepcluster;
  const NODE = -10; // group of node t: NODE - t; other groups are numbers of clusters, or NO_CLUSTER
  const NONE = -1; // no part, no node

  const groupOfNode = (node) => NODE - node;
  const nodeOf = (group) => (group <= NODE ? NODE - group : NONE);

  /** The tree. merges: two nodes each, the node they give is `parts` + their place; numbers: of all nodes. */
  function plant({ parts, merges, numbers }) {
    const nodes = 2 * parts - 1;
    const parent = new Int32Array(nodes).fill(NONE);
    const children = merges.map(([a, b], i) => {
      parent[a] = parent[b] = parts + i;
      return [a, b];
    });
    // The parts in an order in which every node is an interval.
    const first = new Int32Array(nodes);
    const size = new Int32Array(nodes).fill(1);
    children.forEach(([a, b], i) => { size[parts + i] = size[a] + size[b]; });
    for (let node = nodes - 1; node >= parts; node--) {
      const [a, b] = children[node - parts];
      first[a] = first[node];
      first[b] = first[node] + size[a];
    }
    const holds = (node, part) => first[node] <= first[part] && first[part] < first[node] + size[node];

    /** The node that holds a part once `k` nodes are left; nodes in `opened` give way to theirs. */
    function cut(part, k, opened) {
      let node = part;
      while (parent[node] !== NONE && parent[node] < 2 * parts - k) node = parent[node];
      while (node >= parts && opened.has(groupOfNode(node))) {
        const [a, b] = children[node - parts];
        node = holds(a, part) ? a : b;
      }
      return node;
    }

    /** Nodes that a node falls into, at most `most`, the last merges undone first. */
    function pieces(node, most) {
      const found = [node];
      while (found.length < most) {
        const top = Math.max(...found);
        if (top < parts) break;
        found.splice(found.indexOf(top), 1, ...children[top - parts]);
      }
      return found;
    }

    return {
      parts, nodes, numbers, parent, holds, cut, pieces,
      childrenOf: (node) => (node < parts ? null : children[node - parts]),
      /** The number of clusters from which on a node is split. */
      splitAt: (node) => (node < parts ? Infinity : 2 * parts - node),
      place: (node) => first[node],
    };
  }

  /**
   * The cells of a run, and the groups over them.
   * Options: tree (or null), partOf (of each row, or null), clusterOf (of each row), byPerson (of each row).
   */
  function survey({ tree, partOf, clusterOf, byPerson }) {
    const n = clusterOf.length;
    const part = []; // of each cell; NONE for one made by hand
    const cluster = []; // of each cell, the run's
    const found = new Map();
    const home = new Int32Array(n).fill(NONE); // the cell of each row as the run has it
    const span = tree ? tree.parts + 1 : 1;

    const keyOf = (p, c) => (c + 1) * span + p + 1;

    function cell(p, c) {
      const key = keyOf(p, c);
      let at = found.get(key);
      if (at === undefined) {
        at = part.length;
        found.set(key, at);
        part.push(p);
        cluster.push(c);
      }
      return at;
    }
    for (let row = 0; row < n; row++) {
      const c = clusterOf[row];
      if (byPerson[row] && c !== NO_CLUSTER) continue; // beside those that the fit put there, below
      home[row] = cell(tree && c !== NO_CLUSTER ? partOf[row] : NONE, c);
    }
    const weight = new Float64Array(part.length); // images, as the run has them
    for (let row = 0; row < n; row++) if (home[row] >= 0) weight[home[row]]++;

    // Clusters of the run that are a node of the tree, image for image.
    const nodeOfCluster = new Map();
    const total = new Map();
    if (tree) {
      const whole = new Float64Array(tree.nodes);
      part.forEach((p, i) => {
        if (p !== NONE) for (let node = p; node !== NONE; node = tree.parent[node]) whole[node] += weight[i];
      });
      const held = new Map();
      part.forEach((p, i) => {
        if (p === NONE) return;
        total.set(cluster[i], (total.get(cluster[i]) ?? 0) + weight[i]);
        if (!held.has(cluster[i])) held.set(cluster[i], new Map());
        const mine = held.get(cluster[i]);
        for (let node = p; node !== NONE; node = tree.parent[node]) mine.set(node, (mine.get(node) ?? 0) + weight[i]);
      });
      for (const [c, mine] of held) {
        for (const [node, inside] of [...mine].sort((a, b) => b[0] - a[0])) {
          if (inside === total.get(c) && inside === whole[node]) {
            nodeOfCluster.set(c, node);
            break;
          }
        }
      }
    }

    /** The one name of a group that has two. */
    const canon = (group) => (nodeOfCluster.has(group) ? groupOfNode(nodeOfCluster.get(group)) : group);

    function inGroup(at, group) {
      const node = nodeOf(group);
      if (node === NONE) return cluster[at] === group;
      return part[at] !== NONE && node < tree.nodes && tree.holds(node, part[at]);
    }

    /** The cell of a group that has most images, of those that `accept` takes; NONE if it has none. */
    function heart(group, accept = () => true) {
      let best = NONE;
      for (let at = 0; at < part.length; at++) {
        if (!inGroup(at, group) || !accept(at)) continue;
        if (best === NONE || (weight[at] ?? 0) > (weight[best] ?? 0)) best = at;
      }
      return best;
    }

    /** See to it that a group made by hand has a cell. */
    function make(group) {
      if (group >= NO_CLUSTER && heart(group) === NONE) cell(NONE, group);
    }

    /** What a cell is called where it is kept: it lasts longer than its place. */
    const codeOf = (at) => (part[at] === NONE ? cluster[at] : `${part[at]}/${cluster[at]}`);

    /** The cell of a code; if the run has other clusters since, one of the same part; makes one by hand. */
    function cellOf(code) {
      const [p, c] = typeof code === "number" ? [NONE, code] : code.split("/").map(Number);
      const at = found.get(keyOf(p, c)) ?? heart(p === NONE ? c : groupOfNode(p));
      return at === NONE ? cell(NONE, c) : at;
    }

    const hearts = new Map(); // of the clusters with images that a person put there
    for (let row = 0; row < n; row++) {
      if (home[row] !== NONE) continue;
      const c = clusterOf[row];
      if (!hearts.has(c)) {
        make(c);
        hearts.set(c, heart(c));
      }
      home[row] = hearts.get(c);
    }
    return {
      part, cluster, home, canon, inGroup, heart, make, codeOf, cellOf,
      get count() { return part.length; },
      known: (group) => nodeOf(group) < (tree ? tree.nodes : 0),
    };
  }

  /** Cells that belong together. joins: [from, into] groups each, in the order they were made. */
  function join(cells, joins) {
    const hearts = joins.map(([, into]) => cells.heart(into));
    const rep = Int32Array.from({ length: cells.count }, (_, i) => i); // the cell that each goes with
    joins.forEach(([from, into], i) => {
      let heart = cells.heart(into, (at) => cells.inGroup(rep[at], into));
      if (heart < 0) heart = hearts[i];
      const target = rep[heart];
      const going = [];
      for (let at = 0; at < rep.length; at++) {
        if (cells.inGroup(rep[at], from) || cells.inGroup(rep[at], into)) going.push(at);
      }
      for (const at of going) rep[at] = target;
    });
    return rep;
  }

  return { NODE, NONE, groupOfNode, nodeOf, plant, survey, join };
})();
