"""A Ray cluster of three nodes on one machine, faults in it, and clients that watch it (`bench.cluster_faults`)."""
