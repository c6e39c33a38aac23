"""Separate an object from its background: one rembg session per process, with time limits.

Importing this module imports neither rembg nor onnxruntime, and creating a remover loads nothing. The first import
of rembg on a machine compiles for half a minute, so all heavy work runs in the remover's own thread: a caller can
stop waiting for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visual_search.exceptions import ConfigurationError

if TYPE_CHECKING:
    from PIL.Image import Image

RETRY_SECONDS = 60  # after a failed load; without it, every photo would try to load the model again

# The name that rembg gives this file; rembg looks in its own folder before it uses the network.
U2NET_FILE = "u2net.onnx"
U2NET_MD5 = "60024c5c889badc19c04ad937298a77b"  # the checksum that rembg itself verifies


class BackgroundSlow(Exception):
    """The mask was not ready in time."""


class BackgroundRemover:
    """Find the mask of the object in an image with one of rembg's models.

    model: rembg's name for the model. Never rembg's own default, which needs a paid licence for commercial use.
    device: `cpu` rules out a GPU; anything else leaves the choice to rembg. threads: CPU threads, None for all.

    Threads may share a remover, which processes one image at a time. A forked child creates its own.
    Source: U2-Net, arXiv:2005.09007; rembg.
    """

    def __init__(self, model: str, *, device: str = "auto", threads: int | None = None) -> None:
        self.model = model
        self.device = device
        self.threads = threads
        self._session: Any = None
        self._failure: tuple[float, ConfigurationError] | None = None
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether this process has the model in memory. Loads nothing."""
        return self._session is not None

    def warm_up(self) -> None:
        """Load the model and wait for it. Raises ConfigurationError if the model can't be loaded."""
        self._submit(self._load).result()

    def find_mask(self, image: Image, *, seconds: float | None = None) -> Image:
        """Return how much each pixel belongs to the object: mode L, 0 to 255, of the image's size.

        image: RGB. seconds: how long to wait for the model, the masks queued earlier and this one.
        Raises BackgroundSlow when that time is over, ConfigurationError if the model can't be loaded, and whatever
        the model raises.
        """
        future = self._submit(self._predict, image)
        try:
            mask: Image = future.result(timeout=seconds)
        except FutureTimeoutError:
            future.cancel()
            raise BackgroundSlow(f"No mask within {seconds:g} s.") from None
        return mask

    def _submit(self, function: Any, *arguments: Any) -> Future[Any]:
        with self._lock:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="visual_search-background")
            return self._worker.submit(function, *arguments)

    def _predict(self, image: Image) -> Image:
        mask: Image = self._load().predict(image)[0]
        return mask

    def _load(self) -> Any:
        """Return the session. Only the worker thread calls this."""
        if self._session is None:
            if self._failure is not None and time.monotonic() - self._failure[0] < RETRY_SECONDS:
                raise self._failure[1]
            try:
                self._session = _new_session(self.model, device=self.device, threads=self.threads)
            except ConfigurationError as error:
                self._failure = time.monotonic(), error
                raise
        return self._session


def model_folder() -> Path:
    """Return the folder where rembg looks for U2NET_FILE, according to its environment variables."""
    if home := os.environ.get("U2NET_HOME"):
        return Path(home).expanduser() / "models" / "u2net"
    data = os.environ.get("XDG_DATA_HOME")
    default = Path(data) / "rembg" if data else Path("~/.rembg")
    return Path(os.environ.get("REMBG_HOME", default)).expanduser() / "models" / "u2net"


def find_u2net() -> Path | None:
    """Return the weights that rembg would load, from its folder or from the folder of older versions."""
    data, home = os.environ.get("XDG_DATA_HOME", "~"), os.environ.get("U2NET_HOME")
    older_folder = Path(home) if home else Path(data) / ".u2net"
    places = (folder.expanduser() / U2NET_FILE for folder in (model_folder(), older_folder))
    return next((place for place in places if place.exists()), None)


def md5_of(path: Path) -> str:
    """Return the file's MD5, the only checksum published for the model."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _new_session(model: str, *, device: str, threads: int | None) -> Any:
    missing = [name for name in ("rembg", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:  # checked first: without onnxruntime, importing rembg ends the process
        raise ConfigurationError(
            f'Background removal needs {" and ".join(missing)}. Run `pip install "django-visual-search[background]"`.'
        )
    import onnxruntime
    from rembg import new_session
    from rembg.sessions import sessions_class

    session_class = next((known for known in sessions_class if known.name() == model), None)
    if session_class is None:
        names = ", ".join(sorted(known.name() for known in sessions_class))
        raise ConfigurationError(f"rembg has no model {model!r}. It has: {names}.")
    if not getattr(session_class, "is_local", lambda: True)():
        raise ConfigurationError(
            f"rembg's model {model!r} would send shoppers' photos to another company. Choose one that runs locally."
        )
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    providers = {"providers": ["CPUExecutionProvider"]} if device == "cpu" else {}
    try:
        return new_session(model, sess_opts=options, **providers)
    except Exception as error:  # from the network, from pooch, or from onnxruntime on a damaged file
        advice = " Run `manage.py fetch_background_model`." if model == "u2net" else ""
        raise ConfigurationError(
            f"rembg's model {model!r} can't be loaded on this machine: {type(error).__name__}: {error}.{advice}"
        ) from error
