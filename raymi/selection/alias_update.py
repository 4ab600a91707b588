"""Change of the registry's alias by a selection."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AliasUpdate:
    """Change of an alias in the registry.

    Attributes:
        name: of the registered model.
        alias: in the registry.
        version: that the alias is for; None: not registered yet.
        before: version that had the alias; None: none.
        changed: whether alias or reasons differ from those in the registry.
        applied: False: dry run.
    """

    name: str
    alias: str
    version: str | None
    before: str | None
    changed: bool
    applied: bool

    def text(self) -> str:
        """Returns the change for messages."""
        alias = f"alias '{self.alias}'"
        if self.version is None:
            target = f"a new version of {self.name}"
        else:
            target = f"{self.name} v{self.version}"
        if not self.changed:
            return f"{alias} already points to {target}, with the same reasons"
        moved = self.before not in (None, self.version)
        if not self.applied:
            now = f" (now: v{self.before})" if moved else ""
            return f"{alias} would point to {target}{now}; nothing was changed"
        return f"{alias} now points to {target}" + (f" (before: v{self.before})" if moved else "")
