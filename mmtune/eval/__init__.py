"""Evaluation: ask, score, report."""
