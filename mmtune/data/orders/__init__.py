"""Orders in which the samples of a stream come. One file is one order; its name is the name in recipes."""
