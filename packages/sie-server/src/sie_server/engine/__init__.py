"""Everything between text and scores that is not serving: checkpoints, tokenisation, batches, read-out.

The rest of the server sees `Engine` and `Job` and nothing else of it.
"""
