"""`python -m entrypoints` is the `zishu` program where no console script is installed."""

from entrypoints.cli import main

if __name__ == "__main__":
    main()
