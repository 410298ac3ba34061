"""What each command of the `mmtune` program does; `mmtune.cli` has parsed the words before."""
