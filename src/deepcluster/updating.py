"""New images a day later: where they belong, which fit nowhere, and when a new fit is due.

What fits nowhere is told by the features alone: an image is odd if its few nearest images of the
fit are far, by the measure of its cluster: how far those of the cluster are from their own (deep
nearest neighbours, Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors"; here
the distance is divided by the cluster's median, since a rare kind lies thinner than a frequent one).
"""
