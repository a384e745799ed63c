"""Which model a name means, where its engine is, and one of it for all sessions of the process."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

from llmsql.budget import Budget, BudgetedModel
from llmsql.caching_model import CachingModel
from llmsql.demo import MODEL_FOLDER
from llmsql.embedded import EmbeddedModel
from llmsql.errors import ClosedError, ModelError, SettingError
from llmsql.fingerprint import folder_fingerprint, model_folder
from llmsql.model import Answer, Model
from llmsql.result_cache import ResultCache, default_path
from llmsql.settings import NODE, Settings

if TYPE_CHECKING:
    from llmsql.serving.remote_model import RemoteModel

DEMO = "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

_lock = threading.RLock()  # the garbage collector may give a session's model back in a thread that holds it
_open: dict[tuple[object, ...], tuple[EmbeddedModel | RemoteModel, int]] = {}
_caches: weakref.WeakValueDictionary[Path, ResultCache] = weakref.WeakValueDictionary()


def resolve(name: str | os.PathLike[str]) -> str:
    """The folder or hub id that `name` means; `'demo'` is the model that comes with llmsql.

    Folders are looked at here, before anything is loaded, so that a mistake shows at `connect`.

    Raises:
        ModelError: no such folder, or one without config, safetensors weights or tokenizer.
    """
    text = os.fspath(name)
    if text == DEMO:
        if not MODEL_FOLDER.is_dir():
            raise ModelError(
                f"model 'demo': it is inside the archive that llmsql was imported from ({MODEL_FOLDER}), where it "
                "cannot be read: install llmsql, or give a model folder"
            )
        return str(MODEL_FOLDER)
    folder = Path(text).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder.resolve())
    looks_like_path = folder.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or folder.exists()
    if looks_like_path or not text.strip():
        raise ModelError(f"model {text!r}: there is no such folder; give a model folder, a hub id, or 'demo'")
    return text


def acquire(name: str | os.PathLike[str], settings: Settings) -> EmbeddedModel | RemoteModel:
    """The process's model of this name, in the engine that the settings mean; give it back with `release`.

    Raises:
        ModelError: see `resolve`; or there is no engine at the settings' address, or one with another model.
    """
    if settings.address is not None:
        key: tuple[object, ...] = (settings.address, settings.token, settings.tls_root, os.fspath(name))
    else:
        resolved = resolve(name)
        key = (resolved, *settings.engine_options().values())
        if settings.engine == NODE:
            key = (NODE, *key, settings.engine_linger)
    with _lock:
        if key in _open:
            model, users = _open[key]
        elif settings.address is not None:
            from llmsql.serving.remote_model import model_at

            model, users = model_at(settings.address, os.fspath(name), settings, key), 0
        elif settings.engine == NODE:
            from llmsql.serving.node_engine import node_model

            model, users = node_model(resolved, settings, key), 0
        else:
            model, users = EmbeddedModel(resolved, settings.engine_options(), key), 0
        _open[key] = (model, users + 1)
    if settings.address is not None:
        try:
            _ = model.about  # type: ignore[union-attr]  # what is wrong shows now
        except BaseException:
            release(model)
            raise
    return model


def open_model(model: str | os.PathLike[str] | Model | None, settings: Settings) -> Model:
    """The model that a user's `model=` argument means: a name, a folder, or an object that answers.

    None is the demo model, or whatever model the engine at the settings' address has.

    Raises:
        ModelError: see `resolve`; SettingError: the argument is none of these.
    """
    if model is None:
        model = DEMO if settings.address is None else ""
    if isinstance(model, (str, os.PathLike)):
        return acquire(model, settings)
    if not isinstance(model, Model):
        raise SettingError(
            f"'model' must be a name, a folder, or an object with answer() and close(), not {type(model).__name__}"
        )
    return model


def share(model: Model) -> Model:
    """The same model for one more user, who gives it back with `release`."""
    if _is_ours(model):
        with _lock:
            kept, users = _open.get(model.key, (model, 0))
            _open[model.key] = (kept, users + 1)
    return model


def release(model: Model) -> None:
    """Give an acquired model back; the engine closes with its last user. Models of the user's own are left alone."""
    if not _is_ours(model):
        return
    with _lock:
        kept, users = _open.get(model.key, (None, 0))
        if kept is not model:
            return
        if users > 1:
            _open[model.key] = (model, users - 1)
            return
        del _open[model.key]
    model.close()


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise ModelError(f"model folder {folder}: there is no config.json in it")
    try:
        parsed = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise ModelError(f"model folder {folder}: config.json cannot be read ({problem})") from problem
    if not isinstance(parsed, dict):
        raise ModelError(f"model folder {folder}: config.json holds no JSON object")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"model folder {folder}: no *.safetensors weights in it (other weight formats can run code when loaded "
            "and are not read; convert them with transformers' save_pretrained)"
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"model folder {folder}: no tokenizer in it (one of {', '.join(TOKENIZER_FILES)})")


def files_fingerprint(model: Model) -> bytes:
    """The fingerprint of a model whose files are on this machine; the digests of large files are kept in the cache.

    Raises:
        ModelError: they cannot be read.
    """
    cache = open_cache(model, Settings())
    assert cache is not None
    return _fingerprint(model, cache)


class ModelSet:
    """The models of one session: its own, and those that calls name with `model := '...'`.

    Args:
        own: the session's model.
        settings: of the session; `cache` says whether answers are kept.
        cache: where, if not where the settings say.
    """

    def __init__(self, own: Model, settings: Settings, cache: ResultCache | None = None):
        self.own = own
        self.cache = open_cache(own, settings) if cache is None else cache
        self._settings = settings
        self._named: dict[str, Model] = {}
        self._fingerprints: dict[str | None, bytes] = {}
        self._lock = threading.Lock()

    def add(self, name: str, model: str | os.PathLike[str] | Model) -> None:
        """Let calls name a model: `model := 'name'`. A name that is in use is given to the new model.

        Raises:
            ModelError, SettingError: see `open_model`.
        """
        opened = open_model(model, self._settings)
        with self._lock:
            replaced = self._named.pop(name, None)
            self._named[name] = opened
            self._fingerprints.pop(name, None)
        if replaced is not None:
            release(replaced)

    def share_named(self, other: ModelSet) -> None:
        """Give another set the models that calls can name here."""
        with self._lock:
            named = dict(self._named)
        for name, model in named.items():
            other.add(name, share(model))

    def get(self, name: str | None, budget: Budget | None = None) -> Model:
        """The model called `name`, opened at its first use; the session's own for None.

        It stands behind the result cache, and what the cache does not know is asked within `budget`.
        """
        model = self._opened(name)
        asked: Model = model if budget is None else BudgetedModel(model, budget)
        if self.cache is None or isinstance(model, _Released):
            return asked
        if not has_fingerprint(model):
            return asked
        return CachingModel(asked, self.cache, partial(self._fingerprint, name, model, self.cache))

    def _opened(self, name: str | None) -> Model:
        if name is None or isinstance(self.own, _Released):
            return self.own
        with self._lock:
            if name not in self._named:
                self._named[name] = acquire(name, self._settings)
            return self._named[name]

    def _fingerprint(self, name: str | None, model: Model, cache: ResultCache) -> bytes:
        with self._lock:
            if name not in self._fingerprints:
                self._fingerprints[name] = _fingerprint(model, cache)
            return self._fingerprints[name]

    def release(self) -> None:
        """Give all models back. Idempotent."""
        with self._lock:
            named, self._named = self._named, {}
            for model in (self.own, *named.values()):
                release(model)
            self.own = _Released()


def open_cache(model: Model, settings: Settings) -> ResultCache | None:
    """The cache that the settings mean, one per file and process; None where answers are not kept.

    Raises:
        SettingError: answers are to be kept of a model that has no fingerprint.
    """
    wanted = settings.cache
    if wanted is None:
        wanted = _is_ours(model)
    if wanted is False:
        return None
    if not has_fingerprint(model):
        raise SettingError(
            f"setting 'cache': {type(model).__name__} has no 'fingerprint' (bytes) under which to keep its answers"
        )
    if wanted == ":memory:":
        return ResultCache(None, max_bytes=settings.cache_bytes())
    path = default_path() if isinstance(wanted, bool) else Path(wanted)
    path = path.expanduser().absolute()
    with _lock:
        cache = _caches.get(path)
        if cache is None:
            cache = _caches[path] = ResultCache(path, max_bytes=settings.cache_bytes())
        cache.max_bytes = settings.cache_bytes()
        return cache


def has_fingerprint(model: Model) -> bool:
    """Whether answers of the model can be kept."""
    return _is_ours(model) or isinstance(getattr(model, "fingerprint", None), bytes)


def _is_ours(model: Model) -> TypeGuard[EmbeddedModel | RemoteModel]:
    """Whether the model is read from files, here or elsewhere, and not an object of the user's own."""
    return isinstance(getattr(model, "key", None), tuple)


def _fingerprint(model: Model, cache: ResultCache) -> bytes:
    if not isinstance(model, EmbeddedModel):
        files = getattr(model, "files", None)  # on this machine
        folder = None if files is None else model_folder(files)
        found = getattr(model, "fingerprint", None) if folder is None else _folder_fingerprint(folder, cache)
        assert isinstance(found, bytes)
        return found
    folder = model_folder(model.name)
    if folder is None:
        _ = model.engine  # fetches it
        folder = model_folder(model.name)
    if folder is None:
        raise ModelError(f"model {model.name!r} was loaded, but its files are not found; use cache=False")
    return _folder_fingerprint(folder, cache)


def _folder_fingerprint(folder: Path, cache: ResultCache) -> bytes:
    try:
        return folder_fingerprint(folder, cache)
    except OSError as problem:
        raise ModelError(f"model folder {folder}: its files cannot be read ({problem})") from problem


class _Released:
    """Stands for the model of a closed session."""

    def answer(self, *_: object) -> Iterator[Answer]:
        """Refuse.

        Raises:
            ClosedError: always.
        """
        raise ClosedError("the session whose model this was is closed")

    def close(self) -> None:
        """Nothing to release."""
