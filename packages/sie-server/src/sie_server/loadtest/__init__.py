"""`sie-server bench`: latency and throughput of a rerank endpoint, of this server or of another one.

`dialects` holds a client's side of each API, `connection` one kept HTTP connection, `probe` finds the dialect, `run`
sends requests from several clients, and `report` writes the figures.
"""
