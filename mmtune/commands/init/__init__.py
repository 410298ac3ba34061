"""`mmtune init`: a complete recipe from a few answers, checked together with its data before it is written."""

from mmtune.commands.init.run import Answers, check_data, check_encoders, check_method, check_out, check_prompt, run

__all__ = ["Answers", "check_data", "check_encoders", "check_method", "check_out", "check_prompt", "run"]
