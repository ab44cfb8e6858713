"""Which images belong together? k-means, the graph of nearest neighbours and its cuts, the map."""

from deepcluster.clustering.choose import choose_clusters
from deepcluster.clustering.graph import Prototypes, cluster_graph
from deepcluster.clustering.kmeans import KMeans
from deepcluster.clustering.pca import PCA, fit_pca

__all__ = [
    "PCA",
    "KMeans",
    "Prototypes",
    "choose_clusters",
    "cluster_graph",
    "fit_pca",
]
