"""Experts: media to short text at inference, each in a child process with a deadline."""
