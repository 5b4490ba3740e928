"""Files of a corpus: which there are, what becomes of every other file beside them, and languages as recipes name them.

path --named_files--> read, by a short name
                 `--> left out, with its reason, in the FileAccount of whoever asked (`accounting`)
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from cclm.languages import language_tag
from cclm.rows.guard import mistaken
from cclm.rows.lines import COMPRESSIONS, plain_suffix, unpacked
from cclm.types import LANGUAGE
from shards.parts import Part, file_stamp

Value = TypeVar("Value")
HIDDEN: Final = "hidden"
"""Names that begin with "." (macOS's "._x", .DS_Store), without suffixes also "_" (_SUCCESS), and __MACOSX."""
EMPTY, TWICE, BAD_NAME = "empty", "the same name, compressed or not", "a name that is not UTF-8"
LINK_AGAIN, NO_FILE = "a link to a folder that is read already", "no regular file"
LINK_TO_FILE = "a link to a file that is read already"
_MOST_KINDS: Final = 20
"""More kinds of files than this are counted together."""


class LanguageTag(str):
    """The tag of a language that a recipe names; "": none is named (ValueError: it is no text, or no language)."""

    reader_notes: ClassVar = (LANGUAGE,)

    def __new__(cls, name: object) -> LanguageTag:
        """Return the tag of a name."""
        if not isinstance(name, str):
            raise ValueError(f'expected a language, got {name!r} (YAML takes a bare no for false: write "no")')
        tag = language_tag(name) if name else ""
        if tag is None:
            raise ValueError(f"expected a language, such as en, pt-BR or zh-Hant, got {name!r}")
        return super().__new__(cls, tag)


NO_LANGUAGE: Final = LanguageTag("")
ENGLISH: Final = str.__new__(LanguageTag, "en")  # without the table, which takes a moment to load


def by_tag(named: Mapping[str, Value], option: str) -> dict[str, Value]:
    """Return a recipe's map by languages (ConfigError: a key is no language, or two are the same one)."""
    tags: dict[str, Value] = {}
    for name, value in named.items():
        try:
            tag = LanguageTag(name)
            if tag in tags or not tag:
                raise ValueError(f"expected each language once, got {name!r} again")
        except ValueError as error:
            got = str(error).partition("got ")[2]
            mistaken("languages as keys, each once", got, f"Correct `{option}`.", option)
        tags[tag] = value
    return tags


@dataclass
class FileAccount:
    """What became of the files under the paths that a recipe names."""

    read: set[Path] = field(default_factory=set)
    left_out: dict[Path, tuple[str, str]] = field(default_factory=dict)
    """File -> (why, its name below the path that the recipe names). Why: a suffix that is not read, or a reason."""

    def kinds(self) -> dict[str, dict[str, Any]]:
        """Return why -> {"files": how many, "first": one of them}; what is read in another place is not left out."""
        left = sorted(why_and_name for path, why_and_name in self.left_out.items() if path not in self.read)
        common = {why for why, _ in Counter(why for why, _ in left).most_common(_MOST_KINDS)}
        kinds: dict[str, dict[str, Any]] = {}
        for why, name in left:
            plain = name.encode("utf-8", "backslashreplace").decode()
            entry = kinds.setdefault(why if why in common else "others", {"files": 0, "first": plain})
            entry["files"] += 1
        return kinds


_ACCOUNT: ContextVar[FileAccount | None] = ContextVar("account", default=None)


@contextmanager
def accounting() -> Iterator[FileAccount]:
    """Collect what becomes of the files that are looked for inside the block."""
    account = FileAccount()
    token = _ACCOUNT.set(account)
    try:
        yield account
    finally:
        _ACCOUNT.reset(token)


def note_read(paths: Iterable[Path]) -> None:
    """Account for files that are read, but were not looked for by `named_files`."""
    if account := _ACCOUNT.get():
        account.read.update(paths)


def note_left_out(path: Path, why: str, name: str = "") -> None:
    """Account for a file that is not read after all."""
    if account := _ACCOUNT.get():
        account.read.discard(path)
        account.left_out[path] = (why, name or path.name)


def path_list(paths: Path | Sequence[Path]) -> list[Path]:
    """Return the paths of an option that takes one or several."""
    return [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def named_files(paths: Path | Sequence[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """Return name -> file for files, folders (all files below with such a suffix) and patterns (`part-*.tsv.gz`).

    No suffixes: every file whose name does not begin with "." or "_" (as in "_SUCCESS"). Suffixes in capitals count, a
    compression's is looked through. Linked folders are followed, each folder once. A name is as short as it can be
    while it differs from the others: the same wherever the corpus lies. Sorted by path. ConfigError: a path holds no
    such file.
    """
    found: set[Path] = set()
    for path in path_list(paths):
        if path.is_file():
            found.add(path)
            continue
        files, left = _sorted_out(path, suffixes)
        if not files:
            kinds = ", ".join(f"{why} {count}" for why, count in Counter(left.values()).most_common(4))
            none = "a folder without one" if path.is_dir() else "no such file"
            expected = f"a file that ends in {', '.join(suffixes)}" if suffixes else "a file"
            got = f"none, and {len(left)} other files ({kinds})" if left else none
            mistaken(expected, got, "Correct the path.", path)
        if account := _ACCOUNT.get():
            account.left_out |= {file: (why, _name_below(file, path)) for file, why in left.items()}
        found.update(files)
    note_read(found)
    return _short_names(sorted(found, key=lambda path: path.parts))


def files_by_language(captions: Mapping[str, Path | Sequence[Path]], suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (language, file) for every file of every language; see `named_files`."""
    by_language = by_tag(captions, "captions").items()
    return [(tag, path) for tag, paths in by_language for path in named_files(paths, suffixes).values()]


def _sorted_out(path: Path, suffixes: Sequence[str]) -> tuple[list[Path], dict[Path, str]]:
    """Return the files at a folder or pattern that are read, and those that are not, with the reason."""
    read: dict[Path, Path] = {}
    left: dict[Path, str] = {}
    files = sorted(_files_at(path), key=lambda file: file.parts)
    reasons = {file: _why_not(file, path, suffixes) for file in files}
    held = {_inode(file) for file, why in reasons.items() if not why and not file.is_symlink()}
    for file, why in reasons.items():
        if not why and file.is_symlink():
            why = LINK_TO_FILE if _inode(file) in held else why
            held.add(_inode(file))
        plain = file.with_name(unpacked(file).name)
        if not why and plain in read:
            # The file that was unpacked is read, and not its package too. By name, ".gz" follows what it holds.
            why = TWICE
        if why:
            left[file] = why
        else:
            read[plain] = file
    return list(read.values()), left


def _inode(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino


def _why_not(file: Path, root: Path, suffixes: Sequence[str]) -> str:
    if file.is_dir():
        return LINK_AGAIN
    below = _name_below(file, root)
    if below.encode("utf-8", "replace").decode() != below:
        return BAD_NAME
    if is_hidden(below) or (not suffixes and file.name.startswith("_")):
        return HIDDEN
    if not file.is_file():
        return NO_FILE
    if suffixes and plain_suffix(file) not in suffixes:
        packed = file.suffix.lower() in COMPRESSIONS
        return f"{Path(file.stem).suffix}{file.suffix}" if packed else file.suffix or "no suffix"
    return "" if file.stat().st_size else EMPTY


def is_hidden(name: str) -> bool:
    """Tell whether a file below a folder, or in a zip, is another program's note."""
    return any(part.startswith(".") or part == "__MACOSX" for part in Path(name).parts)


def _name_below(file: Path, root: Path) -> str:
    return "/".join(file.parts[_fixed_parts(root) :])


def _fixed_parts(root: Path) -> int:
    """Return how many parts of a path are no pattern."""
    wild = (number for number, part in enumerate(root.parts) if set("*?[") & set(part))
    return len(root.parts) if root.is_dir() else next(wild, len(root.parts) - 1)


def _files_at(path: Path) -> Iterator[Path]:
    """Yield the files below a folder or at a pattern, and folders that were there before, by another way."""
    fixed = _fixed_parts(path)
    seen: set[tuple[int, int]] = set()
    for match in [path] if path.exists() else sorted(Path(*path.parts[:fixed]).glob("/".join(path.parts[fixed:]))):
        if not match.is_dir():
            yield match
            continue
        for at, inner, names in os.walk(match, followlinks=True, onerror=_unreadable):
            folder = Path(at)
            if _inode(folder) in seen:
                inner.clear()
                yield folder
                continue
            seen.add(_inode(folder))
            inner.sort(key=lambda name: ((folder / name).is_symlink(), name))
            yield from (folder / name for name in names)


def _unreadable(error: OSError) -> None:
    mistaken("a folder that can be read", str(error.strerror), "Mend its permissions.", error.filename)


def _short_names(paths: Sequence[Path]) -> dict[str, Path]:
    names: dict[Path, str] = {}
    for length in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        endings = Counter(path.parts[-length:] for path in paths)
        names |= {
            path: "/".join(path.parts[-length:])
            for path in paths
            if path not in names and endings[path.parts[-length:]] == 1
        }
    return {names[path]: path for path in paths}


def part_of_each(files: Mapping[str, Path], read: Any) -> list[Part]:
    """Return a part per file: `read(name, path)` yields its records."""
    return [Part(name=name, read=partial(read, name, path), stamp=file_stamp(path)) for name, path in files.items()]


def one_part(name: str, read: Any, files: Iterable[Path]) -> list[Part]:
    """Return one part for many files: `read()` yields their records, joined."""
    return [Part(name=name, read=read, stamp="-".join(map(file_stamp, files)))]
