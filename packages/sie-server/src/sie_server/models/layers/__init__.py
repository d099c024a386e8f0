"""The parts that transformer families are assembled from: products, norms, attention, positions, adapters."""
