"""Why networks become low-rank: clusters of features, gradients of centroids, bounds, and when layers collapse."""

from rankfold.collapse.bounds import LayerBound, chain
from rankfold.collapse.layers import LayerClusters, measure_layers
from rankfold.collapse.losses import LOSSES, binary_cross_entropy, cross_entropy, mean_squared_error, squared_error
from rankfold.collapse.neural_collapse import NeuralCollapse
from rankfold.collapse.partition import Partition, kmeans
from rankfold.collapse.paths import Paths, paths
from rankfold.collapse.probe import CollapseProbe
from rankfold.collapse.scatter import Clusters, Scatter, scatter_of
from rankfold.collapse.theory.transition import Transitions, critical_decay, transitions

__all__ = [
    "LOSSES",
    "Clusters",
    "CollapseProbe",
    "LayerBound",
    "LayerClusters",
    "NeuralCollapse",
    "Partition",
    "Paths",
    "Scatter",
    "Transitions",
    "binary_cross_entropy",
    "chain",
    "critical_decay",
    "cross_entropy",
    "kmeans",
    "mean_squared_error",
    "measure_layers",
    "paths",
    "scatter_of",
    "squared_error",
    "transitions",
]
