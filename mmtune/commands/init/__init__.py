"""`mmtune init`: a whole recipe from a few answers, looked at together with its data before it is written."""

from mmtune.commands.init.run import Answers, check_data, check_method, check_out, run

__all__ = ["Answers", "check_data", "check_method", "check_out", "run"]
