"""Work that no caller waits for: models without HTTP or behind an endpoint, a journal that resumes, and progress.

`sie-server eval` is built on this. A command that scores a file of queries has the same parts: `Piece`s of work with a
key each, a `Journal` of the finished ones, and `finish`, which does the others.
"""
