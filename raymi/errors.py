"""The one error that raymi shows to its user without a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something that the user can put right: a wrong setting, a missing file, too few CPUs.

    The message says what was expected, what came, and the remedy. Commands print it alone and end
    with exit code 2; everything else is a defect of ours and keeps its traceback.
    """
