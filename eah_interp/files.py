"""Files that are written whole or not at all."""

import contextlib
import os
import platform
import re
import time
import uuid
from pathlib import Path, PurePosixPath, PureWindowsPath

from eah_interp.errors import SettingsError

_HOUR = 3600.0


def save_bytes(content: bytes, path: Path, *, replace: bool = True) -> bool:
    """Write a file, whole or not at all, also if the power fails.

    The content goes to a hidden file beside it, to the disk, and only then under its
    name; two processes that write the same file leave one or the other, whole.

    Args:
        content: What to write.
        path: Where.
        replace: Whether a file of that name gives way.

    Returns:
        Whether it was written: False if `replace` is False and it is there already.

    Raises:
        SettingsError: If it cannot be written.
    """
    if not path.name:
        raise SettingsError(f"expected a file to write to, got {str(path)!r}")
    part = path.with_name(f".{path.name}.{_SELF}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            part.replace(path)
        else:
            _link(part, path)
        _sync_folder(path.parent)
    except FileExistsError:
        return False
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"cannot write {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            part.unlink(missing_ok=True)
    return True


_SELF = "".join(c if c.isalnum() else "-" for c in platform.node()) or "here"


def _link(part: Path, path: Path) -> None:
    # A link is refused where the name is taken, in one step; a rename would replace it.
    try:
        path.hardlink_to(part)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        part.replace(path)


def _sync_folder(folder: Path) -> None:
    """Write a folder's names to the disk, where folders can be synced."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def clear_parts(folder: Path) -> None:
    """Clear away what killed processes had half written, and nothing of live ones.

    A part belongs to a dead process if it is of this machine and the process is
    gone, or if it is older than an hour: parts live for moments.
    """
    for part in folder.glob(".*.part"):
        with contextlib.suppress(OSError, ValueError):
            *_, host, process, _, _ = part.name.split(".")
            gone = host == _SELF and not _is_alive(int(process))
            if gone or time.time() - part.stat().st_mtime > _HOUR:
                part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # signal 0 asks nothing elsewhere: it would be sent
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is there, and another user's
        return True
    return True


def name_file(path: str) -> str:
    """Return a file's or folder's name alone, if its path is an absolute one.

    Pages that are mailed show it: where somebody keeps files is nobody else's to know.
    Relative paths, names on the Hub and scenes of the toy stay as they are.

    Example:
        >>> name_file("/home/me/a.png"), name_file("photos/a.png"), name_file("toy:a:3")
        ('a.png', 'photos/a.png', 'toy:a:3')
        >>> name_file("C:/me/a.png"), name_file("~/models/mine/")
        ('a.png', 'mine')
    """
    if path.startswith(("/", "~")):
        return PurePosixPath(path).name or "/"
    if re.match(r"[A-Za-z]:[\\/]|\\", path):
        return PureWindowsPath(path).name
    return path


def make_folder(path: Path) -> None:
    """Make a folder to write into, before any work is done for it.

    Raises:
        SettingsError: If there cannot be one.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: no name that a folder can have
        reason = getattr(error, "strerror", None) or str(error)
        msg = f"cannot make the folder {path}: {reason}"
        raise SettingsError(msg) from error
