from django.conf import settings
from django.conf.urls.static import static
from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

from example_shop import views

urlpatterns = [
    path("", views.home, name="home"),
    path("products/<slug:slug>/", views.product, name="product"),
    path("search-by-photo/", include("visual_search.urls")),
    path("api/visual-search/v1/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/visual-search/v1/", include("visual_search.api.urls")),
    path("admin/", admin.site.urls),
    *static(settings.MEDIA_URL, document_root=settings.MEDIA_ROOT),  # empty unless DEBUG
]
