"""Create or update one product of the shop from its source."""

from __future__ import annotations

import io
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from django.core.files.base import ContentFile
from django.db import transaction
from django.db.models import Model
from django.utils.text import slugify
from PIL import Image

from example_shop.models import Brand, Category, Product, ProductImage
from example_shop.renditions import delete_renditions
from example_shop.sources import SourceProduct

DEFAULT_CATEGORY = "Other"
DEFAULT_STOCK = 10  # if the source has no stock, so that a new shop isn't sold out


NamedModel = TypeVar("NamedModel", Category, Brand)


class Outcome(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    UNCHANGED = "unchanged"


def load_product(source: SourceProduct) -> tuple[Outcome, list[str]]:
    """Create or update the product with the source's id; return the outcome and a line for each image left out.

    The product's images become those of the source, but none is removed while an image of the source cannot be
    read. `is_published` is never changed. Raises ValidationError; then nothing was saved.
    """
    files, problems = read_images(source.images or ())
    with transaction.atomic():
        product = Product.objects.filter(sku=source.id).first() or new_product(source)
        is_new = product.pk is None
        is_changed = save_values(product, values_from(source, is_new=is_new))
        if source.images is not None:
            is_changed |= save_images(product, files, keep_others=bool(problems))
    outcome = Outcome.CREATED if is_new else Outcome.UPDATED if is_changed else Outcome.UNCHANGED
    return outcome, problems


def read_images(paths: tuple[Path, ...]) -> tuple[dict[str, bytes], list[str]]:
    """Return the content of the readable images by file name, in order, and a line for each other image."""
    files: dict[str, bytes] = {}
    problems = []
    for path in paths:
        try:
            content = path.read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        except FileNotFoundError:
            problems.append(f"image {str(path)!r} is missing")
        except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes
            problems.append(f"image {str(path)!r} cannot be read ({error})")
        else:
            files[path.name if path.name not in files else f"{len(files)}-{path.name}"] = content
    return files, problems


def new_product(source: SourceProduct) -> Product:
    return Product(sku=source.id, slug=unique_slug(Product, source.name, source.id), stock=DEFAULT_STOCK)


def values_from(source: SourceProduct, *, is_new: bool) -> dict[str, Any]:
    """Return the values of the product's fields that the source has."""
    values: dict[str, Any] = {"name": source.name}
    if source.category is not None or is_new:
        values["category"] = get_or_create_by_name(Category, source.category or DEFAULT_CATEGORY)
    if source.brand is not None:
        values["brand"] = get_or_create_by_name(Brand, source.brand) if source.brand else None
    for field in ("price", "description", "stock"):
        if (value := getattr(source, field)) is not None:
            values[field] = value
    return values


def save_values(product: Product, wanted: dict[str, Any]) -> bool:
    """Save the product if a field differs, or if it is new; return whether it was."""
    if product.pk is not None and all(getattr(product, field) == value for field, value in wanted.items()):
        return False
    for field, value in wanted.items():
        setattr(product, field, value)
    product.full_clean()
    product.save()
    return True


def save_images(product: Product, files: dict[str, bytes], *, keep_others: bool) -> bool:
    """Replace the product's images with those in `files`; return whether anything changed.

    Files that the shop already has, byte for byte, are neither written again nor moved.
    """
    left = list(product.images.all())
    is_changed = False
    for position, (name, content) in enumerate(files.items()):
        row = next((row for row in left if has_content(row, content)), None)
        if row is None:
            ProductImage(product=product, image=ContentFile(content, name=name), position=position).save()
            is_changed = True
            continue
        left.remove(row)
        if row.position != position:
            row.position = position
            row.save()
            is_changed = True
    if not keep_others:
        for row in left:
            delete_image(row)
    return is_changed or (bool(left) and not keep_others)


def has_content(row: ProductImage, content: bytes) -> bool:
    """Return whether the row's file has this content."""
    try:
        if row.image.size != len(content):
            return False
        with row.image.open("rb") as file:
            return bool(file.read() == content)
    except (FileNotFoundError, ValueError):  # the row's file is missing, or it never had one
        return False


def delete_image(row: ProductImage) -> None:
    """Delete the row, and on commit its file and renditions."""
    storage, name = row.image.storage, row.image.name
    row.delete()

    def delete_files() -> None:
        storage.delete(name)
        delete_renditions(name)

    if name and not ProductImage.objects.filter(image=name).exists():
        transaction.on_commit(delete_files)


def get_or_create_by_name(model: type[NamedModel], name: str) -> NamedModel:
    """Return the category or brand with this name; create it if there is none."""
    row = model.objects.filter(name__iexact=name).first()
    if row is None:
        row = model(name=name, slug=unique_slug(model, name))
        row.full_clean()
        row.save()
    return row


def unique_slug(model: type[Model], *texts: str) -> str:
    """Return an unused slug: of the first text; if that is taken, of all texts; then with a number appended."""
    max_length = model._meta.get_field("slug").max_length - len("-99999")
    parts = [slug for text in texts if (slug := slugify(text))] or ["item"]
    slug = parts[0][:max_length]
    longest = "-".join(dict.fromkeys(parts))[:max_length]
    number = 1
    while model._default_manager.filter(slug=slug).exists():
        slug = longest if number == 1 else f"{longest}-{number}"
        number += 1
    return slug
