"""Moved to `cclm.atomic`."""

from cclm.atomic import replace_text as replace_text
