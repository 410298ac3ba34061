"""`python -m mmtune` is the `mmtune` command."""

from mmtune.cli import main

if __name__ == "__main__":
    main()
