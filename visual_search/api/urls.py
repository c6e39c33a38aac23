from django.urls import path

from visual_search.api.views import HealthView, SearchView, without_transaction

app_name = "visual_search_api"
urlpatterns = [
    path("search/", without_transaction(SearchView.as_view()), name="search"),
    path("health/", HealthView.as_view(), name="health"),
]
