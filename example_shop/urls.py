from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

from example_shop import views
from example_shop.renditions import rendition

urlpatterns = [
    path("", views.home, name="home"),
    path("products/", views.listing, name="products"),
    path("categories/<slug:slug>/", views.listing, name="category"),
    path("products/<slug:slug>/", views.product, name="product"),
    path("pictures/<int:side_px>/<path:name>", rendition, name="rendition"),
    path("language/", include("django.conf.urls.i18n")),
    path("search-by-photo/", include("visual_search.urls")),
    path("api/visual-search/v1/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/visual-search/v1/", include("visual_search.api.urls")),
    path("admin/", admin.site.urls),
    *static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT),  # empty unless DEBUG
]
