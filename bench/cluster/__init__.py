"""The speed and the scaling of a cluster on this machine: `python -m bench.cluster`."""
