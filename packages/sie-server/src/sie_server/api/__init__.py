"""HTTP: bytes → wire types → `serving.Service` → wire types → bytes."""
