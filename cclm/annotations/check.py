"""Is a data folder what a task needs? What was recognised, what is missing and where it is published, what is broken.

check_folder("xvnli", folder, images) ─▶ FolderReport ─ report_text ─▶ a table and sentences
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cclm.annotations.images import find_image
from cclm.annotations.layouts import EVERY, DataSet, FoundFile, annotation_paths, recognised
from cclm.annotations.questions import read_answers
from cclm.annotations.rows import images_of
from cclm.annotations.tasks import DATA_SETS, TASKS
from cclm.errors import ConfigError, DataError
from cclm.files.text import did_you_mean, table
from cclm.types import Language

IMAGE_ROWS = 50
"""Of each file so many rows' images are looked for: hundreds of thousands would take a shared disk minutes."""
_MOST_SHOWN = 10
_HEAD = ("data set", "split", "language", "rows", "published", "usable", "dropped", "file")
_NUMBERS = ("rows", "published", "usable")


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """A recognised file, read to its end."""

    file: FoundFile
    num_entries: int
    num_rows: int
    dropped: Mapping[str, int]
    problems: Sequence[DataError]
    """Format errors, each with file and line (`where`)."""
    num_images: int = 0
    """How many images were looked for."""
    missing_images: Sequence[str] = ()
    """Those that are in no folder, as the rows name them."""

    @property
    def has_published_rows(self) -> bool:
        """Return whether it has as many rows as are published, where that number is known."""
        return self.file.published_rows() in (None, self.num_entries)


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A split that no file was found for, or a set's answers."""

    data_set: DataSet
    split: str
    """Its name, or the set's `vocabulary_name`."""
    languages: Sequence[Language]
    is_needed: bool
    """Whether the zero-shot protocol needs it."""


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What a folder holds of a task's data."""

    task: str
    folder: Path
    files: Sequence[FileReport]
    answers: Mapping[Path, int | DataError]
    """File of the answers' vocabulary → how many it has, or what is wrong with it."""
    missing: Sequence[Missing]
    image_folders: Sequence[Path]
    """Where images were looked for; none: nowhere."""
    unrecognised: Sequence[Path]
    """Files with a suffix of annotations that belong to no data set that is known here."""

    @property
    def problems(self) -> list[DataError]:
        """Return every format error."""
        broken = [found for found in self.answers.values() if isinstance(found, DataError)]
        return [problem for report in self.files for problem in report.problems] + broken

    @property
    def is_complete(self) -> bool:
        """Return whether all that zero-shot needs is there, whole and sound, as far as it was looked for."""
        whole = all(one.has_published_rows and not (one.missing_images and one.file.is_needed) for one in self.files)
        return whole and not self.problems and not any(one.is_needed for one in self.missing)


def check_folder(task: str, folder: Path, images: Sequence[Path] = ()) -> FolderReport:
    """Read every annotation file of a task below a folder; look for the images of its first rows in folders of images.

    Raises:
        ConfigError: there is no such task or folder.
    """
    if task not in TASKS:
        do = f"Choose one of {', '.join(TASKS)}."
        raise ConfigError(expected="a task", got=task + did_you_mean(task, TASKS), do=do)
    if not folder.is_dir():
        raise ConfigError(where=str(folder), expected="a folder of data", got="no such folder", do="Correct the path.")
    data_sets, paths = TASKS[task], annotation_paths(folder)
    files = {path: found for path in paths if (found := recognised(data_sets, folder, path))}
    vocabularies = [path for path in paths if any(one.fits(one.vocabulary, folder, path) for one in data_sets)]
    reports = [_read(file, images) for found in files.values() for file in found]
    return FolderReport(
        task=task,
        folder=folder,
        files=reports,
        answers={path: _answers(path) for path in vocabularies},
        missing=[
            *(one for data_set in data_sets for one in _missing(data_set, [report.file for report in reports])),
            *(
                Missing(data_set=one, split=one.vocabulary_name, languages=[EVERY], is_needed=True)
                for one in data_sets
                if one.vocabulary and not any(one.fits(one.vocabulary, folder, path) for path in vocabularies)
            ),
        ],
        image_folders=images,
        unrecognised=[path for path in paths if not _is_known(folder, path)],
    )


def _is_known(folder: Path, path: Path) -> bool:
    """Return whether a file is one of any data set's."""
    beside = any(one.fits(one.companions, folder, path) or one.fits(one.vocabulary, folder, path) for one in DATA_SETS)
    return beside or bool(recognised(DATA_SETS, folder, path))


def _read(file: FoundFile, images: Sequence[Path]) -> FileReport:
    problems: list[DataError] = []
    try:
        read = file.read(problems)
    except DataError as error:
        return FileReport(file=file, num_entries=0, num_rows=0, dropped={}, problems=[error])
    names = {name: None for row in read.rows[:IMAGE_ROWS] for name in images_of(row)} if images else {}
    return FileReport(
        file=file,
        num_entries=read.num_entries,
        num_rows=len(read.rows),
        dropped=read.dropped,
        problems=problems,
        num_images=len(names),
        missing_images=[name for name in names if not _is_there(images, name)],
    )


def _is_there(folders: Sequence[Path], name: str) -> bool:
    try:
        return bool(find_image(folders, name))
    except (DataError, OSError):  # OSError: a folder that may not be entered, a name that is too long for the disk
        return False


def _answers(path: Path) -> int | DataError:
    try:
        return len(read_answers(path))
    except DataError as error:
        return error


def _missing(data_set: DataSet, files: Sequence[FoundFile]) -> list[Missing]:
    own = [file for file in files if file.data_set is data_set and not file.is_translated]
    there = {(split, file.language) for file in own for split in (file.split, *file.kind.also_splits)}
    missing = []
    for split in data_set.splits:
        languages = [language for language in split.languages if (split.name, language) not in there]
        if languages:
            missing.append(Missing(data_set=data_set, split=split.name, languages=languages, is_needed=split.is_needed))
    return missing


def report_text(report: FolderReport) -> str:
    """Return a report as a table of the files, and sentences about what is wrong or missing."""
    lines = [table(_HEAD, [_cells(one, report.folder) for one in report.files], right=_NUMBERS)] if report.files else []
    for path, found in report.answers.items():
        if isinstance(found, int):
            lines.append(f"{path.relative_to(report.folder)}: {found:,} answers")
    lines += _listed("Format errors", [str(problem) for problem in report.problems])
    short = [one for one in report.files if not one.has_published_rows]
    lines += _listed(
        "Not as many rows as published",
        [f"{one.file.path}: {one.num_entries:,}, not {one.file.published_rows():,}" for one in short],
    )
    for title, is_needed in (("Missing", True), ("Not there, and not needed for zero-shot", False)):
        lines += _listed(title, [_said(one) for one in report.missing if one.is_needed is is_needed])
    for name, data_set in {one.data_set.name: one.data_set for one in report.missing if one.is_needed}.items():
        images = f"; {data_set.images}" if data_set.images else ""
        lines.append(f"{name} is published at {data_set.source}{images}")
    lines += _image_lines(report)
    lines += _listed("Not recognised", [str(path) for path in report.unrecognised])
    whole = "Complete." if report.image_folders else "Complete but for the images, which were not looked for."
    lines.append(whole if report.is_complete else "Not complete.")
    return "\n".join(lines)


def _cells(report: FileReport, folder: Path) -> list[str]:
    file, published = report.file, report.file.published_rows()
    language = file.language or "several"
    return [
        file.data_set.name,
        file.split,
        f"{language}, translated" if file.is_translated else language,
        f"{report.num_entries:,}",
        "" if published is None else f"{published:,}",
        f"{report.num_rows:,}",
        ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.items()),
        str(file.path.relative_to(folder)),
    ]


def _image_lines(report: FolderReport) -> list[str]:
    if not report.image_folders:
        return ["Images: not looked for, no folder of image files is given (--images) or known"]
    folders = ", ".join(map(str, report.image_folders))
    items = [
        f"{one.file.path}: {len(one.missing_images)} of {one.num_images}, such as {one.missing_images[0]}"
        + ("" if one.file.is_needed else " (not needed for zero-shot)")
        for one in sorted(report.files, key=lambda one: not one.file.is_needed)
        if one.missing_images
    ]
    looked_for = sum(one.num_images for one in report.files)
    sound = f"Images: all {looked_for:,} that the first {IMAGE_ROWS} rows of each file name are in {folders}"
    missing = _listed(f"Missing images, of the first {IMAGE_ROWS} rows of each file, in {folders}", items)
    return missing or ([sound] if looked_for else [])


def _listed(title: str, items: Sequence[str]) -> list[str]:
    more = [f"  … and {len(items) - _MOST_SHOWN:,} more"] if len(items) > _MOST_SHOWN else []
    return [f"{title}:", *(f"  {item}" for item in items[:_MOST_SHOWN]), *more] if items else []


def _said(missing: Missing) -> str:
    languages = "" if list(missing.languages) == [EVERY] else f" in {', '.join(missing.languages)}"
    return f"{missing.data_set.name} {missing.split}{languages}"
