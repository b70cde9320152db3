r"""Adapters by name for one base: in memory, or in a folder of adapter folders, read when they are asked for.

    bank = AdapterBank(base, "adapters", most_bytes=1 << 26)
    bank["support"]        # read now, or found where it was kept; the one asked for longest ago is let go
    bank.skipped           # {"broken": "adapters/broken/adapter.safetensors is truncated or corrupted: …"}

What is kept never takes more than `most_bytes`, whatever the number of folders; what somebody uses at the moment is
theirs: the stacks of a running batch, beside the bank's own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

from ..files import digest
from ..formats.folders import is_foreign
from ..model import Transformer
from ..names import nearest_first
from .adapter import Adapter, adapted_maps
from .reading import check_description, check_name, folders_in, read_folder

MOST = 1 << 28  # bytes: five thousand adapters of rank 4 on the base that ships


class AdapterBank:
    """The adapters of one base.

    base          the frozen model                  digest     of it, by which adapters say what they were trained on
    folder        of adapter folders                source     where the base was read from, for PEFT's names
    most_bytes    of factors kept in memory         skipped    folders that cannot be used, and why

    Raises OSError for a folder that cannot be read. One that cannot be used is named in `skipped` and hurts no other.
    """

    def __init__(
        self,
        base: Transformer,
        folder: str | Path | None = None,
        *,
        most_bytes: int = MOST,
        source: str | Path | None = None,
    ) -> None:
        if most_bytes < 1:
            raise ValueError(f"most_bytes must be at least 1, got {most_bytes}")
        self.base, self.digest, self.most_bytes = base, digest(base), most_bytes
        self.source = Path(source) if source is not None and is_foreign(source) else None
        self.skipped: dict[str, str] = {}
        self.reads = 0  # how often a folder was read
        self._given: dict[str, Adapter] = {}
        self._folders: dict[str, Path] = {}
        self._kept: OrderedDict[str, Adapter] = OrderedDict()  # the one used last stands last
        if folder is not None:
            self._open(Path(folder))

    @property
    def names(self) -> tuple[str, ...]:
        """All that can be asked for."""
        return (*self._given, *self._folders)

    @property
    def kept_bytes(self) -> int:
        """What the factors that were read and kept take now."""
        return sum(adapter.nbytes for adapter in self._kept.values())

    def add(self, adapter: Adapter) -> None:
        """One more, kept as long as the bank; raises ValueError for a name that is taken, or where it does not fit."""
        check_name(adapter.name)
        if adapter.name in self.names:
            raise ValueError(f"there is an adapter {adapter.name!r} already: give this one another name")
        adapted_maps(self.base, adapter)
        self._given[adapter.name] = adapter

    def check(self, names: Iterable[str | None]) -> None:
        """Raise ValueError for the first name that nothing can be asked for by; those of `skipped` are known."""
        known = {*self.names, *self.skipped}
        for name in names:
            if name is not None and name not in known:
                raise self._unknown(name)

    def __getitem__(self, name: str) -> Adapter:
        """The adapter of this name. Raises ValueError or OSError where there is none, or it cannot be used; a folder
        that fails now stands in `skipped` from then on."""
        if name in self._given:
            return self._given[name]
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        if name in self.skipped:
            raise ValueError(f"adapter {name!r} was skipped: {self.skipped[name]}")
        if name not in self._folders:
            raise self._unknown(name)
        try:
            adapter = self._read(name)
        except (OSError, ValueError) as error:
            self.skipped[name] = str(error)
            del self._folders[name]
            raise
        self._kept[name] = adapter
        while self.kept_bytes > self.most_bytes:
            self._kept.popitem(last=False)
        return adapter

    def _read(self, name: str) -> Adapter:
        self.reads += 1
        adapter = read_folder(self._folders[name], name, self.base, self.digest, self.source)
        if adapter.nbytes > self.most_bytes:
            raise ValueError(
                f"adapter {name!r} takes {adapter.nbytes:,} bytes, more than the {self.most_bytes:,} that are allowed "
                "for all"
            )
        return adapter

    def _unknown(self, name: str) -> ValueError:
        try:
            check_name(name)
        except ValueError as error:
            return error
        if not self.names:
            return ValueError(f"there is no adapter {name!r}: the bank is empty")
        return ValueError(f"there is no adapter {name!r}: one of {_few(nearest_first(name, self.names))}")

    def _open(self, folder: Path) -> None:
        found, self.skipped = folders_in(folder)
        for name, path in found.items():
            try:
                check_description(path, self.digest, self.source is not None)
            except (OSError, ValueError) as error:
                self.skipped[name] = str(error)
            else:
                self._folders[name] = path


def _few(names: str, most: int = 5) -> str:
    """The nearest of a thousand names."""
    first = names.split(", ")
    return ", ".join(first[:most]) + (f" and {len(first) - most} more" if len(first) > most else "")
