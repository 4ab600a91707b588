"""Forms of the MI term, one module each; none imports torch before its use."""

from raymi.mi.forms.base import MITerm, TermContext

__all__ = ["MITerm", "TermContext"]
