from django.urls import path

from visual_search.api.views import HealthView, SearchView

app_name = "visual_search_api"
urlpatterns = [
    path("search/", SearchView.as_view(), name="search"),
    path("health/", HealthView.as_view(), name="health"),
]
