"""Vendors that serve their own models; their client libraries take another base URL. One file each."""
