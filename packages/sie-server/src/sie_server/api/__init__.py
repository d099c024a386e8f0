"""HTTP layer: decodes requests to wire types, calls `serving.Service` and encodes its results."""
