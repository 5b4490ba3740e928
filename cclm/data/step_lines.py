"""Moved to `cclm.track.step_lines`."""

from cclm.track.step_lines import StepLines as StepLines
