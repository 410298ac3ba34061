"""Published checkpoint layouts, in and out. One file per layout."""
