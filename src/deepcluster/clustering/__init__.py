"""Which images belong together? k-means, the graph of nearest neighbours and its cuts, the map."""

from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.graph import cluster_graph, cluster_tree
from deepcluster.clustering.pca import PCA, fit_pca
from deepcluster.clustering.prototypes import Prototypes
from deepcluster.clustering.tree import Tree

__all__ = [
    "PCA",
    "Prototypes",
    "Tree",
    "choose_clusters",
    "cluster_graph",
    "cluster_tree",
    "fit_pca",
]
