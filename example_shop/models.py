"""The models of an ordinary small shop. Nothing here depends on the search."""

from __future__ import annotations

from decimal import Decimal

from django.core.validators import MinValueValidator
from django.db import models
from django.urls import reverse

OTHERS_SHOWN = 4


class Category(models.Model):
    name = models.CharField(max_length=100)
    slug = models.SlugField(max_length=100, unique=True)

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "categories"

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("category", args=[self.slug])


class Brand(models.Model):
    name = models.CharField(max_length=100)
    slug = models.SlugField(max_length=100, unique=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class ProductQuerySet(models.QuerySet["Product"]):
    def on_show(self) -> ProductQuerySet:
        """Return the published products, with the related rows that a product card needs."""
        return self.filter(is_published=True).select_related("category", "brand").prefetch_related("images")


class Product(models.Model):
    sku = models.CharField("SKU", max_length=64, unique=True, help_text="The id of the product in its source.")
    name = models.CharField(max_length=200)
    slug = models.SlugField(max_length=200, unique=True)
    description = models.TextField(blank=True)
    category = models.ForeignKey(Category, models.PROTECT, related_name="products")
    brand = models.ForeignKey(Brand, models.SET_NULL, related_name="products", null=True, blank=True)
    price = models.DecimalField(
        max_digits=10, decimal_places=2, default=Decimal("0.00"), validators=[MinValueValidator(Decimal("0.00"))]
    )
    stock = models.PositiveIntegerField(default=0)
    is_published = models.BooleanField("published", default=True)

    objects = ProductQuerySet.as_manager()

    class Meta:
        ordering = ["name", "pk"]

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        return reverse("product", args=[self.slug])

    def others_in_category(self) -> models.QuerySet[Product]:
        """Return a few other published products of the category."""
        return Product.objects.on_show().filter(category=self.category_id).exclude(pk=self.pk)[:OTHERS_SHOWN]

    @property
    def in_stock(self) -> bool:
        return self.stock > 0


class ProductImage(models.Model):
    product = models.ForeignKey(Product, models.CASCADE, related_name="images")
    image = models.ImageField(upload_to="products")
    position = models.PositiveSmallIntegerField(default=0, help_text="The lowest is the main image.")

    class Meta:
        ordering = ["position", "pk"]

    def __str__(self) -> str:
        return self.image.name or ""
