"""A small drawn world of solids that move and sound: scenes, their pictures and sounds, and what is said of them."""
