"""The report of an evaluation: tables, files and a plot."""
