"""One module per kind: its input (texts → job) and its reader (hidden states → results)."""
