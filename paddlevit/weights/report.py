"""What loading a weights file did, and the error that says why it did not work."""

from __future__ import annotations

from dataclasses import dataclass, field

from paddlevit.errors import UserError

_SHOWN = 10


class WeightsError(UserError):
    """A weights file that cannot be read, is not recognised, or does not fit the model.

    `reinit` are the prefixes of parameters to start from scratch with which it would fit: it lacks only a classifier,
    or has one for other classes.
    """

    def __init__(self, message: str, reinit: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reinit = reinit


def listing(items: list[str]) -> str:
    """The first ten items, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


@dataclass
class LoadReport:
    """Names of parameters and buffers, ours except in `unexpected`, by what became of them.

    `source` is the project whose names the file has. `loaded` were filled (`resized` are those among them that were
    interpolated to another image size), `missing` are not in the file, `mismatched` have another shape there,
    `unexpected` are only in the file, `reinitialised` were left as they were because the caller asked for it, and
    `nonfinite` have NaN or infinite values. `notes` say where in the file the weights were, and what else to know.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    reinitialised: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    nonfinite: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} parameters and buffers loaded, source {self.source}"]
        for what in ("resized", "reinitialised", "missing", "mismatched", "unexpected", "nonfinite"):
            names = getattr(self, what)
            if names:
                lines.append(f"{len(names)} {what}: {listing(names)}")
        return "\n".join(lines + self.notes)
