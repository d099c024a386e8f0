"""Rankings of many queries from files to a file: `sie-server score --queries` (docs/offline.md)."""
