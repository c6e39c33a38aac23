from django.urls import path

from visual_search.api.views import FacetsView, HealthView, PhotosView, SearchView, SimilarView
from visual_search.web.answers import without_transaction

app_name = "visual_search_api"
urlpatterns = [
    path("search/", without_transaction(SearchView.as_view()), name="search"),
    path("similar/", without_transaction(SimilarView.as_view()), name="similar"),
    path("photos/", without_transaction(PhotosView.as_view()), name="photos"),
    path("facets/", without_transaction(FacetsView.as_view()), name="facets"),
    path("health/", HealthView.as_view(), name="health"),
]
