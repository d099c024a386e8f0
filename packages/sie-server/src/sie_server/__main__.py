"""`python -m sie_server …` is the same program as `sie-server …`."""

from sie_server.cli import main

if __name__ == "__main__":
    main()
