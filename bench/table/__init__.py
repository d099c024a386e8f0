"""The table of `make bench`: this engine and server next to other libraries, in one command and one budget."""
