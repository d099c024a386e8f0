"""One module per vendor, with the dialects that its clients use."""
