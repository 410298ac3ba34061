"""`mmtune init`: a whole recipe from a few answers, looked at together with its data before it is written."""

from mmtune.commands.init.run import Answers, run

__all__ = ["Answers", "run"]
